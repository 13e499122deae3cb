#include "kernels/combine.h"

#include <string>

#include "kernels/lanes.h"
#include "kernels/streaming.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

std::string of(std::size_t index, std::size_t count) {
  return std::to_string(index) + " of " + std::to_string(count);
}

/**
 * Lays `targets[i]` -> entry lists in the order of i: a counting sort. `place(i, entry)` says where entry i went.
 * Every target must have one entry at least.
 */
template <typename Place>
std::vector<std::uint32_t> sort_by_target(std::span<const std::uint32_t> targets, std::size_t target_count,
                                          const char* field, Place place) {
  std::vector<std::uint32_t> offsets(target_count + 1);
  for (const std::uint32_t target : targets) {
    if (target >= target_count) throw_invalid(field, target, "below " + std::to_string(target_count));
    ++offsets[target + 1];
  }
  for (std::size_t target = 0; target < target_count; ++target) {
    if (offsets[target + 1] == 0) {
      throw Error(Code::data_loss, "row " + of(target, target_count) + " has no result");
    }
    offsets[target + 1] += offsets[target];
  }
  std::vector<std::uint32_t> next(offsets.begin(), offsets.end() - 1);
  for (std::size_t i = 0; i < targets.size(); ++i) place(i, next[targets[i]]++);
  return offsets;
}

/** Registers of 16 elements whose sums are taken at once: cache lines of every row that goes into them. */
constexpr std::size_t registers_at_once = 4;

SWITCHYARD_AVX2 inline lanes::Pair add_weighted(lanes::Pair sum, __m256i bits, __m256 weight) {
  const lanes::Pair x = lanes::widen(bits);
  return {_mm256_fmadd_ps(x.even, weight, sum.even), _mm256_fmadd_ps(x.odd, weight, sum.odd)};
}

SWITCHYARD_AVX2 inline lanes::Pair add(lanes::Pair sum, __m256i bits) {
  const lanes::Pair x = lanes::widen(bits);
  return {_mm256_add_ps(x.even, sum.even), _mm256_add_ps(x.odd, sum.odd)};
}

/** The rows and weights that sum to one output row. */
struct Entries {
  const std::uint16_t* const* rows;
  const float* weights;
  std::size_t count;
  /** Whether as many rows follow these, for the next output row. */
  bool followed;
};

/** Brings the lines of a step to the cache: a processor fetches ahead within a page only. */
inline void prefetch(const std::uint16_t* from, std::size_t elements) {
  constexpr std::size_t line = line_bytes / sizeof(std::uint16_t);
  for (std::size_t i = 0; i < elements; i += line) __builtin_prefetch(from + i);
}

/** `Registers` registers of a row from element i on. Returns `magnitudes` with what they hold, for has_non_finite. */
template <bool streaming, std::size_t Registers>
SWITCHYARD_AVX2 inline __m256i combine_registers(const Entries& entries, std::size_t i, const std::uint16_t* residual,
                                                 std::uint16_t* output, __m256i magnitudes) {
  lanes::Pair sums[Registers];
#pragma GCC unroll 4
  for (lanes::Pair& sum : sums) sum = lanes::zero();
  for (std::size_t e = 0; e < entries.count; ++e) {
    const __m256 weight = _mm256_set1_ps(entries.weights[e]);
    const std::uint16_t* row = entries.rows[e] + i;
    if (Registers > 1 && entries.followed) prefetch(entries.rows[entries.count + e] + i, Registers * lanes::width);
#pragma GCC unroll 4
    for (std::size_t r = 0; r < Registers; ++r) {
      sums[r] = add_weighted(sums[r], lanes::load(row + r * lanes::width), weight);
    }
  }
#pragma GCC unroll 4
  for (std::size_t r = 0; r < Registers; ++r) {
    const std::size_t at = i + r * lanes::width;
    if (residual != nullptr) sums[r] = add(sums[r], lanes::load(residual + at));
    const __m256i bits = lanes::narrow(sums[r]);
    lanes::store<streaming>(output + at, bits);
    magnitudes = lanes::larger_magnitude(magnitudes, bits);
  }
  return magnitudes;
}

/** Whether the output holds NaN or infinity. `streaming`: it is written past the caches, and is aligned to 32 bytes. */
template <bool streaming>
SWITCHYARD_AVX2 bool combine_row(const Entries& entries, std::size_t hidden, const std::uint16_t* residual,
                                 std::uint16_t* output) {
  constexpr std::size_t step = registers_at_once * lanes::width;
  __m256i magnitudes = _mm256_setzero_si256();
  std::size_t i = 0;
  for (; i + step <= hidden; i += step) {
    magnitudes = combine_registers<streaming, registers_at_once>(entries, i, residual, output, magnitudes);
  }
  for (; i + lanes::width <= hidden; i += lanes::width) {
    magnitudes = combine_registers<streaming, 1>(entries, i, residual, output, magnitudes);
  }
  if (i < hidden) {
    const std::size_t count = hidden - i;
    lanes::Pair sum = lanes::zero();
    for (std::size_t e = 0; e < entries.count; ++e) {
      const __m256 weight = _mm256_set1_ps(entries.weights[e]);
      sum = add_weighted(sum, lanes::load_tail(entries.rows[e] + i, count), weight);
    }
    if (residual != nullptr) sum = add(sum, lanes::load_tail(residual + i, count));
    const __m256i bits = lanes::narrow(sum);
    lanes::store_tail(output + i, bits, count);
    magnitudes = lanes::larger_magnitude(magnitudes, bits);
  }
  return lanes::has_non_finite(magnitudes);
}

}  // namespace

CombinePlan plan_combine_exact(std::span<const CombinePart> parts, std::size_t row_count, std::size_t top_k,
                               std::size_t hidden, std::span<const float> weights) {
  const std::size_t slots = row_count * top_k;
  if (!weights.empty() && weights.size() != slots) {
    throw_invalid("weights.length", weights.size(), "0 or " + std::to_string(slots));
  }
  CombinePlan plan;
  plan.rows.assign(slots, nullptr);
  for (const CombinePart& part : parts) {
    for (std::size_t i = 0; i < part.targets.size(); ++i) {
      const std::uint32_t slot = part.targets[i];
      if (slot >= slots) throw_invalid("targets", slot, "below " + std::to_string(slots));
      if (plan.rows[slot] != nullptr) {
        throw Error(Code::data_loss, "slot " + of(slot, slots) + " is given twice");
      }
      plan.rows[slot] = part.rows + i * hidden;
    }
  }
  for (std::size_t slot = 0; slot < slots; ++slot) {
    if (plan.rows[slot] == nullptr) throw Error(Code::data_loss, "slot " + of(slot, slots) + " is missing");
  }
  plan.offsets.resize(row_count + 1);
  for (std::size_t t = 0; t <= row_count; ++t) plan.offsets[t] = static_cast<std::uint32_t>(t * top_k);
  if (weights.empty()) {
    plan.weights.assign(slots, 1.0f);
  } else {
    plan.weights.assign(weights.begin(), weights.end());
  }
  return plan;
}

CombinePlan plan_combine_partial(std::span<const CombinePart> parts, std::size_t row_count, std::size_t hidden) {
  std::vector<std::uint32_t> targets;
  std::vector<const std::uint16_t*> rows;
  std::vector<std::size_t> last_part(row_count, parts.size());
  for (std::size_t p = 0; p < parts.size(); ++p) {
    for (std::size_t i = 0; i < parts[p].targets.size(); ++i) {
      const std::uint32_t token = parts[p].targets[i];
      if (token < row_count) {
        if (last_part[token] == p) {
          throw Error(Code::data_loss,
                      "token " + of(token, row_count) + " is given twice in part " + std::to_string(p));
        }
        last_part[token] = p;
      }
      targets.push_back(token);
      rows.push_back(parts[p].rows + i * hidden);
    }
  }
  CombinePlan plan;
  plan.rows.resize(rows.size());
  plan.weights.assign(rows.size(), 1.0f);
  plan.offsets = sort_by_target(targets, row_count, "targets",
                                [&](std::size_t i, std::uint32_t entry) { plan.rows[entry] = rows[i]; });
  return plan;
}

CombinePlan plan_reduce(const std::uint16_t* rows, std::span<const std::uint32_t> row_indices,
                        std::span<const float> weights, std::size_t output_rows, std::size_t hidden) {
  if (weights.size() != row_indices.size()) {
    throw_invalid("weights.length", weights.size(), std::to_string(row_indices.size()));
  }
  CombinePlan plan;
  plan.rows.resize(row_indices.size());
  plan.weights.resize(row_indices.size());
  plan.offsets = sort_by_target(row_indices, output_rows, "rowIndices", [&](std::size_t i, std::uint32_t entry) {
    plan.rows[entry] = rows + i * hidden;
    plan.weights[entry] = weights[i];
  });
  return plan;
}

std::size_t combine_rows(const CombinePlan& plan, std::size_t first, std::size_t count, std::size_t hidden,
                         const std::uint16_t* residual, std::uint16_t* output) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(output) % 32 == 0 && hidden % lanes::width == 0;
  // A sum that replaces its residual has it in the cache already.
  const bool streaming =
      aligned && output != residual && worth_streaming(plan.row_count() * hidden * sizeof(std::uint16_t));
  std::size_t non_finite = 0;
  for (std::size_t t = first; t < first + count; ++t) {
    const std::uint32_t begin = plan.offsets[t];
    const std::uint32_t end = plan.offsets[t + 1];
    const bool followed = t + 1 < first + count && plan.offsets[t + 2] - end >= end - begin;
    const Entries entries{plan.rows.data() + begin, plan.weights.data() + begin, end - begin, followed};
    const auto combine = streaming ? combine_row<true> : combine_row<false>;
    non_finite += combine(entries, hidden, residual == nullptr ? nullptr : residual + t * hidden, output + t * hidden);
  }
  if (streaming) streaming_done();
  return non_finite;
}

}  // namespace switchyard
