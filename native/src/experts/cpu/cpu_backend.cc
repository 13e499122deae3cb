#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include "experts/backend.h"
#include "experts/cpu/cpu_expert.h"
#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"
#include "experts/cpu/memory.h"
#include "experts/cpu/team.h"
#include "kernels/bf16.h"
#include "runtime/error.h"
#include "runtime/serial_queue.h"

namespace switchyard {
namespace cpu {
namespace {

/** Rows computed together: enough to use each weight often, few enough that they stay near the core. */
constexpr size_t block_rows_max = 510;
/** Tasks per member of the team: enough to even out members that are held up. */
constexpr size_t tasks_per_member = 4;

struct RowReference {
  const uint16_t* source;
  uint16_t* output;
  /** Null: the row is used as it is. */
  const float* weight;
};

/** A range of tiles times a range of panels. */
struct Task {
  size_t first_tile, end_tile;
  size_t first_panel, end_panel;
};

/** Groups of k of a packed panel that are widened at once for a single tile: a part of the first-level cache. */
constexpr size_t widened_groups = 4;
/** Cache lines of a panel per group of k. */
constexpr size_t group_lines = panel_group_elements * sizeof(uint16_t) / 64;
/** Tiles that share the fetching of the next block of weights: the first ones, each of them as evenly as its kernel can. */
constexpr size_t fetching_tiles_max = 8;

size_t cache_bytes(int level_name, size_t assumed) {
  const long found = sysconf(level_name);
  return found > 0 ? static_cast<size_t>(found) : assumed;
}

/** A quarter of the second-level cache: as much again is fetched meanwhile, and sums and rows take their part. */
size_t cached_groups() {
  return std::clamp<size_t>(cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20) / 4 / (panel_group_elements * sizeof(uint16_t)), 8, 256);
}

/** Half of the first-level cache, in lines: what the rows of a tile may take that stays there from one pass over it to the next. */
size_t near_lines() { return cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10) / 2 / (group_depth * sizeof(uint16_t)); }

/** The first element of a group of k in a tile of packed rows. */
const uint16_t* tile_at(const Split& tiles, size_t tile, const uint16_t* a, size_t groups, size_t group) {
  return a + (tiles.begin(tile) * groups + group * tiles.size(tile)) * group_depth;
}

class CpuBackend final : public ExpertBackend {
 public:
  CpuBackend(int threads, const Kernels& kernels) : kernels_(kernels), block_groups_(cached_groups()), near_lines_(near_lines()), team_(threads), sums_(threads), widened_(threads) {}

  BackendDescription description() const override {
    // While one call computes, the next waits here, so that the threads never idle for their caller.
    return {.kind = "cpu", .detail = std::string(kernels_.name), .threads = team_.members(), .calls = 2};
  }

  std::unique_ptr<Expert> load(const ExpertSource& source) override { return load_expert(source, latents_); }

  void submit(const Expert& expert, std::vector<ExpertInput> inputs, ForwardDone done) override {
    queue_.submit([this, &expert, inputs = std::move(inputs), done = std::move(done)] {
      ComputeTime time{.started = std::chrono::steady_clock::now()};
      std::exception_ptr error;
      try {
        time.seconds = compute(expert, inputs);
      } catch (...) {
        error = std::current_exception();
      }
      done(time, error);
    });
  }

 private:
  double compute(const Expert& expert, std::span<const ExpertInput> inputs);
  void reserve(const CpuExpert& expert, size_t rows);
  void compute_block(const CpuExpert& expert, std::span<const RowReference> rows);
  void pack_tile(const CpuExpert& expert, std::span<const RowReference> rows, uint16_t* packed) const;
  void activate(const CpuExpert& expert, size_t panel, size_t rows, const float* sums, uint16_t* tile) const;

  /** Calls finish(panel, tile, sums [rows of the tile][64]) for every element of A · Bᵀ. */
  template <typename Finish>
  void multiply(const Split& tiles, const uint16_t* a, const PackedWeights& weights, const Finish& finish);
  /** The same, with a bias [panels][64] added and rounded to BF16: to output rows, or to rows of A of the next product, of so many columns. */
  void multiply_to_rows(const Split& tiles, const uint16_t* a, const PackedWeights& weights, const float* bias, std::span<const RowReference> rows,
                        size_t columns);
  void multiply_to_tiles(const Split& tiles, const uint16_t* a, const PackedWeights& weights, const float* bias, uint16_t* out, size_t columns);
  template <typename Finish>
  void multiply_task(const Split& tiles, const uint16_t* a, const PackedWeights& weights, const Task& task, float* sums, uint16_t* widened,
                     const Finish& finish) const;

  const Kernels& kernels_;
  /** Groups of k after which the next tile takes its turn, so that this part of a panel stays cached. */
  const size_t block_groups_;
  const size_t near_lines_;
  Team team_;
  Latents latents_;
  std::vector<RowReference> rows_;
  /** Rows of A of the first product, and of the second. */
  PackedMemory inputs_;
  PackedMemory intermediate_;
  /** Rows of A between an expert's own products and the linear maps around them. */
  PackedMemory latent_rows_;
  /** One per member: float32 sums of a panel between blocks of k. */
  std::vector<PackedMemory> sums_;
  /** One per member: groups of a packed panel as BF16. */
  std::vector<PackedMemory> widened_;
  /** Its thread is the first member of the team. Last, so that its calls end before what they use. */
  SerialQueue queue_{"experts"};
};

double CpuBackend::compute(const Expert& expert, std::span<const ExpertInput> inputs) {
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
  const Split blocks = Split::into_parts_of(block_rows_max, rows_.size());
  if (blocks.parts > 0) reserve(*mine, divide_up(blocks.count, blocks.parts));
  for (size_t block = 0; block < blocks.parts; ++block) {
    compute_block(*mine, std::span(rows_).subspan(blocks.begin(block), blocks.size(block)));
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void CpuBackend::reserve(const CpuExpert& expert, size_t rows) {
  const size_t group_bytes = rows * group_depth * sizeof(uint16_t);
  const Latent* const latent = expert.latent();
  inputs_.reserve(divide_up(expert.hidden(), group_depth) * group_bytes, "expert input rows");
  if (latent != nullptr) latent_rows_.reserve(expert.first().groups() * group_bytes, "expert latent rows");
  intermediate_.reserve(expert.second().groups() * group_bytes, "expert intermediate rows");
  for (PackedMemory& sums : sums_) sums.reserve(rows * panel_columns * sizeof(float), "expert sums");
  const bool latent_packed = latent != nullptr && (latent->input.weights().is_packed() || latent->output.weights().is_packed());
  if (!latent_packed && !expert.first().is_packed() && !expert.second().is_packed()) return;
  for (PackedMemory& widened : widened_) widened.reserve(block_groups_ * panel_group_elements * sizeof(uint16_t), "widened weights");
}

void CpuBackend::compute_block(const CpuExpert& expert, std::span<const RowReference> rows) {
  const Split tiles = rows.size() <= kernels_.single_tile_rows ? Split{rows.size(), 1} : Split::into_parts_of(kernels_.tile_rows, rows.size());
  uint16_t* const inputs = inputs_.as<uint16_t>();
  uint16_t* const intermediate = intermediate_.as<uint16_t>();
  uint16_t* const latent_rows = latent_rows_.as<uint16_t>();
  const size_t input_row_elements = divide_up(expert.hidden(), group_depth) * group_depth;
  const size_t intermediate_row_elements = expert.second().groups() * group_depth;
  const Latent* const latent = expert.latent();

  team_.run(tiles.parts, [&](size_t, size_t tile) {
    pack_tile(expert, rows.subspan(tiles.begin(tile), tiles.size(tile)), inputs + tiles.begin(tile) * input_row_elements);
  });
  if (latent != nullptr) multiply_to_tiles(tiles, inputs, latent->input.weights(), latent->input.bias(), latent_rows, expert.width());
  multiply(tiles, latent == nullptr ? inputs : latent_rows, expert.first(), [&](size_t panel, size_t tile, const float* sums) {
    activate(expert, panel, tiles.size(tile), sums, intermediate + tiles.begin(tile) * intermediate_row_elements);
  });
  if (latent == nullptr) {
    multiply_to_rows(tiles, intermediate, expert.second(), expert.second_bias(), rows, expert.hidden());
    return;
  }
  multiply_to_tiles(tiles, intermediate, expert.second(), expert.second_bias(), latent_rows, expert.width());
  multiply_to_rows(tiles, latent_rows, latent->output.weights(), latent->output.bias(), rows, expert.hidden());
}

void CpuBackend::multiply_to_rows(const Split& tiles, const uint16_t* a, const PackedWeights& weights, const float* bias,
                                  std::span<const RowReference> rows, size_t columns) {
  multiply(tiles, a, weights, [&](size_t panel, size_t tile, const float* sums) {
    const size_t column = panel * panel_columns;
    for (size_t row = 0; row < tiles.size(tile); ++row) {
      kernels_.store(sums + row * panel_columns, bias + column, rows[tiles.begin(tile) + row].output + column, std::min(panel_columns, columns - column));
    }
  });
}

void CpuBackend::multiply_to_tiles(const Split& tiles, const uint16_t* a, const PackedWeights& weights, const float* bias, uint16_t* out,
                                   size_t columns) {
  constexpr size_t panel_groups = panel_columns / group_depth;
  const size_t groups = divide_up(columns, group_depth);
  multiply(tiles, a, weights, [&](size_t panel, size_t tile, const float* sums) {
    const size_t column = panel * panel_columns;
    const size_t first_group = panel * panel_groups;
    uint16_t* const lines = out + tiles.begin(tile) * groups * group_depth;
    for (size_t row = 0; row < tiles.size(tile); ++row) {
      // Padding columns are zero even where the row is infinite, or they would make its output NaN.
      uint16_t values[panel_columns] = {};
      kernels_.store(sums + row * panel_columns, bias + column, values, std::min(panel_columns, columns - column));
      for (size_t group = first_group; group < std::min(first_group + panel_groups, groups); ++group) {
        std::memcpy(lines + (group * tiles.size(tile) + row) * group_depth, values + (group - first_group) * group_depth, group_depth * sizeof *lines);
      }
    }
  });
}

void CpuBackend::pack_tile(const CpuExpert& expert, std::span<const RowReference> rows, uint16_t* packed) const {
  const size_t hidden = expert.hidden();
  for (size_t row = 0; row < rows.size(); ++row) {
    uint16_t* line = packed + row * group_depth;
    for (size_t k = 0; k < hidden; k += group_depth, line += rows.size() * group_depth) {
      const size_t count = std::min(group_depth, hidden - k);
      const uint16_t* const source = rows[row].source + k;
      if (rows[row].weight != nullptr) {
        for (size_t i = 0; i < count; ++i) line[i] = float_to_bf16(bf16_to_float(source[i]) * *rows[row].weight);
      } else {
        std::memcpy(line, source, count * sizeof *line);
      }
      if (count < group_depth) std::memset(line + count, 0, (group_depth - count) * sizeof *line);
    }
  }
}

void CpuBackend::activate(const CpuExpert& expert, size_t panel, size_t rows, const float* sums, uint16_t* tile) const {
  const size_t outputs = expert.panel_outputs();
  uint16_t* const h = tile + panel * outputs * rows;
  kernels_.activate[static_cast<size_t>(expert.activation())](sums, expert.epilogue(panel), rows, h);
  // Padding columns must be zero even where the row is infinite, or they would make its output NaN.
  for (size_t column = expert.ffn() - panel * outputs; column < outputs; ++column) {
    for (size_t row = 0; row < rows; ++row) h[(column / group_depth * rows + row) * group_depth + column % group_depth] = 0;
  }
}

template <typename Finish>
void CpuBackend::multiply(const Split& tiles, const uint16_t* a, const PackedWeights& weights, const Finish& finish) {
  const size_t wanted = team_.members() == 1 ? 1 : team_.members() * tasks_per_member;
  const Split panel_ranges{weights.panels(), std::min(weights.panels(), wanted)};
  const Split tile_ranges{tiles.parts, std::min(tiles.parts, divide_up(wanted, panel_ranges.parts))};
  team_.run(panel_ranges.parts * tile_ranges.parts, [&](size_t member, size_t index) {
    const size_t panel_range = index / tile_ranges.parts;
    const size_t tile_range = index % tile_ranges.parts;
    const Task task{.first_tile = tile_ranges.begin(tile_range),
                    .end_tile = tile_ranges.begin(tile_range + 1),
                    .first_panel = panel_ranges.begin(panel_range),
                    .end_panel = panel_ranges.begin(panel_range + 1)};
    multiply_task(tiles, a, weights, task, sums_[member].as<float>(), widened_[member].as<uint16_t>(), finish);
  });
}

template <typename Finish>
void CpuBackend::multiply_task(const Split& tiles, const uint16_t* a, const PackedWeights& weights, const Task& task, float* sums,
                               uint16_t* widened, const Finish& finish) const {
  const size_t groups = weights.groups();
  const size_t task_tiles = task.end_tile - task.first_tile;
  const size_t first_rows = tiles.size(task.first_tile);
  const bool packed = weights.is_packed();
  if (packed && task_tiles == 1 && first_rows <= kernels_.coded_rows) {
    const uint16_t* const rows = tile_at(tiles, task.first_tile, a, groups, 0);
    for (size_t panel = task.first_panel; panel < task.end_panel; ++panel) {
      kernels_.multiply_codes({.rows = first_rows, .groups = groups, .a = rows, .b = weights.packed_panel(panel), .c = sums});
      finish(panel, task.first_tile, sums);
    }
    return;
  }
  const bool streamed = task_tiles == 1 && first_rows <= kernels_.streamed_rows;
  // The first tiles fetch the next block of weights while they compute with this one.
  const size_t fetch_lines = streamed || packed ? 0 : std::bit_ceil(group_lines / std::min(task_tiles, fetching_tiles_max));
  // Equal blocks, so that each fetches the whole of the next one. With a single tile only its rows have to stay near.
  const size_t usual_groups = task_tiles == 1 && !streamed ? near_lines_ / first_rows : block_groups_;
  // Of packed weights a block that one tile uses is used at once, from the nearest cache.
  const size_t block_groups = packed && task_tiles == 1 ? std::min(widened_groups, usual_groups) : usual_groups;
  const size_t step_groups = weights.step_groups();
  const Split blocks = Split::into_parts_of(std::max<size_t>(1, block_groups / step_groups), divide_up(groups, step_groups));
  const uint16_t* const end = packed ? nullptr : weights.panel(task.end_panel);
  for (size_t panel = task.first_panel; panel < task.end_panel; ++panel) {
    const PackedPanel codes = packed ? weights.packed_panel(panel) : PackedPanel{};
    for (size_t block = 0; block < blocks.parts; ++block) {
      const bool last_block = block + 1 == blocks.parts;
      const size_t first_group = blocks.begin(block) * step_groups;
      const size_t count = std::min(blocks.begin(block + 1) * step_groups, groups) - first_group;
      if (packed) kernels_.widen(codes, first_group, count, widened);
      const uint16_t* const b = packed ? widened : weights.panel(panel) + first_group * panel_group_elements;
      const size_t block_elements = count * panel_group_elements;
      const uint16_t* fetch = b + block_elements;
      for (size_t tile = task.first_tile; tile < task.end_tile; ++tile) {
        const bool last_tile = tile + 1 == task.end_tile;
        const size_t next_block = !last_tile ? block : last_block ? 0 : block + 1;
        // One block alone leaves its sums in the same lines, tile after tile.
        const size_t sums_row = blocks.parts == 1 ? 0 : tiles.begin(tile) - tiles.begin(task.first_tile);
        kernels_.multiply({.rows = tiles.size(tile),
                           .groups = count,
                           .a = tile_at(tiles, tile, a, groups, first_group),
                           .b = b,
                           .c = sums + sums_row * panel_columns,
                           .accumulate = block > 0,
                           .scales = codes.scales.from(first_group),
                           .next_a = tile_at(tiles, last_tile ? task.first_tile : tile + 1, a, groups, blocks.begin(next_block) * step_groups),
                           .fetch = fetch,
                           .fetch_lines = fetch_lines > 0 && fetch < std::min(end, b + 2 * block_elements) ? fetch_lines : 0});
        fetch += block_elements / group_lines * fetch_lines;
        if (last_block) finish(panel, tile, sums + sums_row * panel_columns);
      }
    }
  }
}

}  // namespace
}  // namespace cpu

std::unique_ptr<ExpertBackend> create_cpu_backend(int threads) {
  return std::make_unique<cpu::CpuBackend>(threads, cpu::choose_kernels());
}

}  // namespace switchyard
