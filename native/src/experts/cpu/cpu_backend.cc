#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "experts/backend.h"
#include "experts/cpu/cpu_expert.h"
#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"
#include "experts/cpu/memory.h"
#include "experts/cpu/team.h"
#include "kernels/bf16.h"
#include "runtime/arithmetic.h"
#include "runtime/error.h"
#include "runtime/serial_queue.h"

namespace switchyard {
namespace cpu {
namespace {

/** Tasks per member of the team: enough to even out members that are held up. */
constexpr size_t tasks_per_member = 4;
/** Groups of k of a packed panel that are widened at once for a single tile: a part of the first-level cache. */
constexpr size_t widened_groups = 4;
/** From so many tiles of rows on their number, not the weights, is what takes time. */
constexpr size_t many_tiles = 8;
/** Elements of weights that brief calls, of a few rows each, read together: it takes a hundred microseconds or two. */
constexpr size_t brief_elements = 1024 * 1024;
/** So many rows take about as long again, on the slowest instruction set. */
constexpr size_t rows_per_reading = 4;
/** Of an expert: its own, and the linear maps around them. */
constexpr size_t stages_max = 4;
/** Panels of codes. */
constexpr size_t panels_together = 2;

size_t cache_bytes(int level_name, size_t assumed) {
  const long found = sysconf(level_name);
  return found > 0 ? static_cast<size_t>(found) : assumed;
}

/** Of a panel, a quarter of the second-level cache: as much again is fetched meanwhile, and sums and rows take their part. */
size_t cached_groups(const PanelOrder& order) {
  return std::clamp<size_t>(cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20) / 4 / (order.group_elements() * sizeof(uint16_t)), 8, 256);
}

/** Half of the first-level cache, in lines: what the rows of a tile may take that stays there from one pass over it to the next. */
size_t near_lines() { return cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10) / 2 / (group_depth * sizeof(uint16_t)); }

/** A range of tiles times a piece of each band of a range. */
struct Task {
  size_t first_tile, end_tile;
  size_t first_band, end_band;
  size_t piece, pieces;

  /** The first panel of its piece of a band, and how many there are. */
  std::pair<size_t, size_t> panels(const Split& bands, size_t band) const {
    const Split split{bands.size(band), pieces};
    return {bands.begin(band) + split.begin(piece), split.size(piece)};
  }
};

/** Packs rows of one tile, and zeros for those that pad it. `origins`: which element of a row each k is; empty: the same. */
void pack_tile(const RowOrder& order, size_t tile, std::span<const RowReference> rows, size_t columns, std::span<const uint32_t> origins, uint16_t* packed) {
  const size_t first = order.tiles.begin(tile), count = order.tiles.size(tile);
  for (size_t part = 0; part < order.parts.parts; ++part) {
    const size_t first_k = order.parts.begin(part) * group_depth, end_k = order.parts.begin(part + 1) * group_depth;
    uint16_t* const lines = packed + order.element(part, tile);
    for (size_t row = first; row < first + count; ++row) {
      uint16_t* line = lines + (row - first) * group_depth;
      for (size_t k = first_k; k < end_k; k += group_depth, line += count * group_depth) {
        const size_t given = row < rows.size() && k < columns ? std::min(group_depth, columns - k) : 0;
        if (given < group_depth) std::memset(line, 0, group_depth * sizeof *line);
        if (given == 0) continue;
        std::array<uint16_t, group_depth> gathered;
        for (size_t i = 0; i < (origins.empty() ? 0 : given); ++i) gathered[i] = rows[row].source[origins[k + i]];
        const uint16_t* const source = origins.empty() ? rows[row].source + k : gathered.data();
        if (rows[row].weight != nullptr) {
          for (size_t i = 0; i < given; ++i) line[i] = float_to_bf16(bf16_to_float(source[i]) * *rows[row].weight);
        } else if (given == group_depth) {
          std::memcpy(line, source, group_depth * sizeof *line);
        } else {
          std::memcpy(line, source, given * sizeof *line);
        }
      }
    }
  }
}

/** The sum of a row of a tile over some groups, in an order that k alone determines. `line`: its first; the next are `stride` elements further each. */
float sum_of(const uint16_t* line, size_t stride, size_t groups) {
  std::array<float, 8> lanes{};
  for (size_t group = 0; group < groups; ++group, line += stride) {
    for (size_t i = 0; i < group_depth; ++i) lanes[i % lanes.size()] += bf16_to_float(line[i]);
  }
  return std::accumulate(lanes.begin(), lanes.end(), 0.0f);
}

/** Writes the sums of a tile's rows over steps of so many groups to their places among those of all rows. */
void sum_tile(const RowOrder& order, size_t tile, const uint16_t* a, size_t step_groups, float* sums) {
  const size_t first = order.tiles.begin(tile), count = order.tiles.size(tile);
  for (size_t part = 0; part < order.parts.parts; ++part) {
    const uint16_t* lines = a + order.element(part, tile);
    for (size_t group = order.parts.begin(part); group < order.parts.begin(part + 1); group += step_groups) {
      const size_t groups = std::min(step_groups, order.parts.begin(part + 1) - group);
      float* const step = sums + group / step_groups * order.tiles.count + first;
      for (size_t row = 0; row < count; ++row) step[row] = sum_of(lines + row * group_depth, count * group_depth, groups);
      lines += groups * count * group_depth;
    }
  }
}

bool begin_lines(std::span<const RowReference> rows) {
  constexpr size_t line_bytes = 64;
  uintptr_t addresses = 0;
  for (const RowReference& row : rows) addresses |= reinterpret_cast<uintptr_t>(row.output);
  return addresses % line_bytes == 0;
}

/**
 * Into how many pieces each of `tasks` tasks is cut: the fewest, at most `most`, that make at least `wanted` tasks and the same number for every
 * member, or as many as `wanted` asks for.
 */
size_t pieces_of(size_t tasks, size_t most, size_t wanted, size_t members) {
  for (size_t pieces = 1; pieces <= most; ++pieces) {
    if (tasks * pieces >= wanted && tasks * pieces % members == 0) return pieces;
  }
  return std::min(most, divide_up(wanted, tasks));
}

class CpuBackend final : public ExpertBackend {
 public:
  CpuBackend(int threads, const Kernels& kernels)
      : kernels_(kernels), cached_groups_(cached_groups(kernels.order)), near_lines_(near_lines()), team_(threads), sums_(threads), widened_(threads) {}

  BackendDescription description() const override {
    // While one call computes, the next waits here, so that the threads never idle for their caller.
    return {.kind = "cpu", .detail = std::string(kernels_.name), .threads = team_.members(), .calls = 2};
  }

  std::unique_ptr<Expert> load(const ExpertSource& source) override { return load_expert(kernels_.order, source, latents_); }

  void submit(const Expert& expert, std::vector<ExpertInput> inputs, ForwardDone done) override {
    ++submitted_;
    queue_.submit([this, &expert, inputs = std::move(inputs), done = std::move(done)] {
      ComputeTime time{.started = std::chrono::steady_clock::now()};
      std::exception_ptr error;
      try {
        time.seconds = forward(expert, inputs);
      } catch (...) {
        error = std::current_exception();
      }
      --submitted_;
      done(time, error);
    });
  }

  double forward(const Expert& expert, std::span<const ExpertInput> inputs) override;

  bool is_brief(std::span<const ExpertCall> calls) const override {
    if (submitted_ > 0) return false;
    size_t elements = 0;
    for (const ExpertCall& call : calls) {
      const auto* const mine = dynamic_cast<const CpuExpert*>(&call.expert);
      if (mine == nullptr) return false;
      elements += mine->elements() * (1 + call.rows() / rows_per_reading);
      if (elements > brief_elements) return false;
    }
    return true;
  }

 private:
  void compute_block(const CpuExpert& expert, std::span<const RowReference> rows);
  Split tiles_of(size_t rows) const;
  bool is_coded(const PackedWeights& weights, const Split& tiles) const;
  Split parts_of(const PackedWeights& weights, const Split& tiles) const;
  void multiply(const RowOrder& order, const uint16_t* a, const PackedWeights& weights, const Finish& finish);
  StepSums step_sums(const RowOrder& order, const uint16_t* a, const PackedWeights& weights);
  void multiply_task(const RowOrder& order, const uint16_t* a, const StepSums& sums, const PackedWeights& weights, const Task& task, size_t member, const Finish& finish);
  void multiply_coded(const RowOrder& order, const uint16_t* a, const StepSums& sums, const PackedWeights& weights, const Task& task, size_t member, const Finish& finish);
  void multiply_widened(PartProduct product, const PackedWeights& weights, size_t member);

  const Kernels& kernels_;
  /** Groups of k after which the next tile takes its turn, so that this part of a panel stays cached. */
  const size_t cached_groups_;
  const size_t near_lines_;
  /** Calls that have not ended. */
  std::atomic<size_t> submitted_{0};
  /** What follows is for one call. */
  std::mutex computing_;
  Team team_;
  Latents latents_;
  std::vector<RowReference> rows_;
  /** Rows of A of each stage. */
  std::array<PackedMemory, stages_max> stage_rows_;
  /** Of a stage whose weights have zero points. */
  PackedMemory step_sums_;
  /** One per member: sums between parts of k. */
  std::vector<PackedMemory> sums_;
  /** One per member: a part of a packed panel as BF16. */
  std::vector<PackedMemory> widened_;
  /** Its thread, or who calls forward(), is the first member of the team. Last, so that its calls end before what they use. */
  SerialQueue queue_{"experts"};
};

double CpuBackend::forward(const Expert& expert, std::span<const ExpertInput> inputs) {
  const std::lock_guard computing(computing_);
  const UsualArithmetic arithmetic;
  check_inputs(inputs);
  const auto* const mine = dynamic_cast<const CpuExpert*>(&expert);
  if (mine == nullptr) throw_invalid("expert", std::string("of another backend"), "one that this backend loaded");
  const auto begin = std::chrono::steady_clock::now();
  const size_t hidden = mine->hidden();
  rows_.clear();
  for (const ExpertInput& input : inputs) {
    for (size_t i = 0; i < input.indices.size(); ++i) {
      rows_.push_back({.source = input.rows + input.indices[i] * hidden,
                       .output = input.output + (input.output_row + i) * hidden,
                       .weight = input.input_weights == nullptr ? nullptr : input.input_weights + i});
    }
  }
  if (mine->activation() == Activation::identity) {
    for (const RowReference& row : rows_) std::memcpy(row.output, row.source, hidden * sizeof(uint16_t));
    rows_.clear();
  }
  const Split blocks = Split::into_parts_of(kernels_.block_rows, rows_.size());
  for (size_t block = 0; block < blocks.parts; ++block) {
    compute_block(*mine, std::span(rows_).subspan(blocks.begin(block), blocks.size(block)));
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void CpuBackend::compute_block(const CpuExpert& expert, std::span<const RowReference> rows) {
  const std::vector<Stage> stages = expert.stages();
  const Split tiles = tiles_of(rows.size());
  std::vector<RowOrder> orders;
  for (const Stage& stage : stages) {
    orders.push_back({tiles, parts_of(stage.weights, tiles)});
    stage_rows_[orders.size() - 1].reserve(orders.back().elements() * sizeof(uint16_t), "expert rows");
  }
  const PanelOrder& order = kernels_.order;
  for (PackedMemory& sums : sums_) sums.reserve(std::max(order.band_panels, panels_together) * order.columns * tiles.count * sizeof(float), "expert sums");

  const bool begins_lines = begin_lines(rows);
  team_.run(tiles.parts, [&](size_t, size_t tile) { pack_tile(orders[0], tile, rows, expert.hidden(), stages[0].weights.column_order(), stage_rows_[0].as<uint16_t>()); });
  for (size_t i = 0; i < stages.size(); ++i) {
    const bool last = i + 1 == stages.size();
    multiply(orders[i], stage_rows_[i].as<uint16_t>(), stages[i].weights,
             {.activation = stages[i].activation,
              .glu = expert.glu(),
              .bias = stages[i].bias,
              .columns = stages[i].columns,
              .next = last ? nullptr : stage_rows_[i + 1].as<uint16_t>(),
              .next_order = last ? nullptr : &orders[i + 1],
              .rows = rows,
              .begins_lines = begins_lines});
  }
}

Split CpuBackend::tiles_of(size_t rows) const {
  const size_t unit = kernels_.row_unit;
  const size_t whole = divide_up(rows, unit) * unit;
  return Split::into_parts_of(whole <= kernels_.single_tile_rows ? whole : kernels_.tile_rows, whole, unit);
}

/** Whether weights are multiplied as codes. */
bool CpuBackend::is_coded(const PackedWeights& weights, const Split& tiles) const {
  return weights.is_packed() && tiles.parts == 1 && tiles.count <= kernels_.coded_rows;
}

Split CpuBackend::parts_of(const PackedWeights& weights, const Split& tiles) const {
  if (kernels_.order.band_panels > 1) return weights.parts();
  if (is_coded(weights, tiles)) return weights.cut(SIZE_MAX);
  if (tiles.parts > 1) return weights.cut(cached_groups_);
  // With a single tile only its rows have to stay near.
  const size_t usual = tiles.count <= kernels_.streamed_rows ? cached_groups_ : near_lines_ / tiles.count;
  // Of packed weights a part that one tile uses is used at once, from the nearest cache.
  return weights.cut(weights.is_packed() ? std::min(widened_groups, usual) : usual);
}

void CpuBackend::multiply(const RowOrder& order, const uint16_t* a, const PackedWeights& weights, const Finish& finish) {
  if (weights.is_packed()) {
    const size_t part_elements = order.parts.largest() * kernels_.order.group_elements();
    for (PackedMemory& widened : widened_) widened.reserve(part_elements * sizeof(uint16_t), "widened weights");
  }
  const StepSums sums = step_sums(order, a, weights);
  const size_t members = team_.members();
  const size_t wanted = members == 1 ? 1 : members * tasks_per_member;
  const Split bands = weights.bands();
  // Ranges of one or two bands would be too uneven.
  const Split band_ranges{bands.parts, bands.parts < 2 * wanted ? bands.parts : wanted};
  // Many rows are cut rather than bands whose panels share the reading of them, few are not, for weights would be read for each part of them.
  const bool has_many_rows = order.tiles.parts >= many_tiles;
  const size_t pieces = pieces_of(band_ranges.parts, std::max<size_t>(1, has_many_rows ? bands.size(0) / 8 : bands.size(0)), wanted, members);
  const size_t tasks = band_ranges.parts * pieces;
  const Split tile_ranges{order.tiles.parts, pieces_of(tasks, has_many_rows || tasks < wanted ? order.tiles.parts : 1, wanted, members)};
  team_.run(band_ranges.parts * pieces * tile_ranges.parts, [&](size_t member, size_t index) {
    const size_t tile_range = index % tile_ranges.parts;
    const size_t band_range = index / tile_ranges.parts / pieces;
    const Task task{.first_tile = tile_ranges.begin(tile_range),
                    .end_tile = tile_ranges.begin(tile_range + 1),
                    .first_band = band_ranges.begin(band_range),
                    .end_band = band_ranges.begin(band_range + 1),
                    .piece = index / tile_ranges.parts % pieces,
                    .pieces = pieces};
    multiply_task(order, a, sums, weights, task, member, finish);
  });
}

StepSums CpuBackend::step_sums(const RowOrder& order, const uint16_t* a, const PackedWeights& weights) {
  const size_t step_groups = weights.shifted_step_groups();
  if (step_groups == 0) return {};
  step_sums_.reserve(divide_up(order.parts.count, step_groups) * order.tiles.count * sizeof(float), "sums of expert rows");
  float* const sums = step_sums_.as<float>();
  team_.run(order.tiles.parts, [&](size_t, size_t tile) { sum_tile(order, tile, a, step_groups, sums); });
  return {sums, order.tiles.count};
}

void CpuBackend::multiply_task(const RowOrder& order, const uint16_t* a, const StepSums& sums, const PackedWeights& weights, const Task& task,
                               size_t member, const Finish& finish) {
  if (is_coded(weights, order.tiles)) return multiply_coded(order, a, sums, weights, task, member, finish);
  const Split bands = weights.bands();
  for (size_t band = task.first_band; band < task.end_band; ++band) {
    const auto [first_panel, panels] = task.panels(bands, band);
    for (size_t part = 0; part < order.parts.parts; ++part) {
      PartProduct product{.order = order,
                          .a = a,
                          .part = part,
                          .first_tile = task.first_tile,
                          .end_tile = task.end_tile,
                          .first_panel = first_panel,
                          .panels = panels,
                          .b = nullptr,
                          .scales = {},
                          .step_sums = {},
                          .next = nullptr,
                          .next_lines = weights.group_bytes() / 64,
                          .sums = sums_[member].as<float>(),
                          .finish = finish};
      if (!product.is_last()) product.next = weights.at(first_panel, order.parts, part + 1);
      else if (band + 1 < task.end_band) product.next = weights.at(task.panels(bands, band + 1).first, order.parts, 0);
      if (weights.is_packed()) {
        if (sums.sums != nullptr) product.step_sums = sums.from(order.parts.begin(part) / weights.shifted_step_groups(), 0);
        multiply_widened(product, weights, member);
      } else {
        product.b = weights.part(first_panel, order.parts, part);
        kernels_.multiply(product);
      }
    }
  }
}

/** Panels of codes as they are. Two at once are half of the task's panels apart. */
void CpuBackend::multiply_coded(const RowOrder& order, const uint16_t* a, const StepSums& sums, const PackedWeights& weights, const Task& task,
                                size_t member, const Finish& finish) {
  const bool pairs = kernels_.takes_pairs != nullptr && kernels_.takes_pairs(weights.code_type(), order.tiles.count);
  const size_t together = pairs ? panels_together : 1;
  const size_t turns = divide_up(task.end_band - task.first_band, together);
  for (size_t first = task.first_band; first < task.first_band + turns; ++first) {
    std::array<PackedPanel, panels_together> panels;
    size_t count = 0;
    for (size_t panel = first; panel < task.end_band && count < together; panel += turns) panels[count++] = weights.packed_part(panel, order.parts, 0);
    kernels_.multiply_coded({.order = order, .a = a, .panels = {panels.data(), count}, .step_sums = sums, .sums = sums_[member].as<float>(), .finish = finish});
  }
}

/** Panels of codes as BF16, one by one. */
void CpuBackend::multiply_widened(PartProduct product, const PackedWeights& weights, size_t member) {
  uint16_t* const widened = widened_[member].as<uint16_t>();
  product.b = widened;
  const void* const next = product.next;
  const size_t end = product.first_panel + product.panels;
  for (product.panels = 1; product.first_panel < end; ++product.first_panel) {
    const bool last = product.first_panel + 1 == end;
    product.next = last ? next : weights.at(product.first_panel + 1, product.order.parts, product.part);
    const PackedPanel panel = weights.packed_part(product.first_panel, product.order.parts, product.part);
    product.scales = panel.scales;
    kernels_.widen(panel.type, panel.codes, product.groups(), widened);
    kernels_.multiply(product);
    product.sums += kernels_.order.columns * product.rows();
  }
}

}  // namespace
}  // namespace cpu

std::unique_ptr<ExpertBackend> create_cpu_backend(int threads) {
  return std::make_unique<cpu::CpuBackend>(threads, cpu::choose_kernels());
}

}  // namespace switchyard
