#include "experts/cpu/tiles.h"

#include <bit>

namespace switchyard::cpu {
namespace {

constexpr size_t line_bytes = 64;
/** Tiles that share the fetching of the next part of weights: the first ones, each of them as evenly as its kernel can. */
constexpr size_t fetching_tiles_max = 8;
/** Of a group of k; fewer are left to fewer tiles. */
constexpr size_t fetch_lines_min = 8;

void store_rows(const TileKernels& kernels, const RowOrder& order, const Finish& finish, size_t panel, size_t tile, const float* sums) {
  const size_t column = panel * panel_columns;
  const size_t columns = std::min(panel_columns, finish.columns - column);
  for (size_t row = order.tiles.begin(tile); row < order.tiles.begin(tile + 1); ++row, sums += panel_columns) {
    kernels.store(sums, finish.bias + column, finish.rows[row].output + column, columns);
  }
}

void finish_rows(const TileKernels& kernels, const RowOrder& order, const Finish& finish, size_t panel, size_t tile, const float* sums) {
  const size_t rows = order.tiles.size(tile);
  const size_t outputs = is_gated(finish.activation) ? panel_columns / 2 : panel_columns;
  const size_t first = panel * outputs;
  // Parts of the next product hold all groups of a panel or none.
  uint16_t* const h = finish.next + finish.next_order->element_of_group(first / group_depth, tile);
  kernels.finish[static_cast<size_t>(finish.activation)](sums, {finish.bias + panel * panel_columns, finish.glu}, rows, h);
  for (size_t column = finish.columns - std::min(finish.columns, first); column < outputs; ++column) {
    for (size_t row = 0; row < rows; ++row) h[(column / group_depth * rows + row) * group_depth + column % group_depth] = 0;
  }
}

void finish_tile(const TileKernels& kernels, const RowOrder& order, const Finish& finish, size_t panel, size_t tile, const float* sums) {
  if (finish.next == nullptr) store_rows(kernels, order, finish, panel, tile, sums);
  else finish_rows(kernels, order, finish, panel, tile, sums);
}

}  // namespace

void multiply_by_tiles(const TileKernels& kernels, size_t streamed_rows, const PartProduct& product) {
  const RowOrder& order = product.order;
  const size_t tiles = product.end_tile - product.first_tile;
  const bool streamed = tiles == 1 && order.tiles.size(product.first_tile) <= streamed_rows;
  // The first tiles fetch the next part of the weights while they compute with this one.
  const size_t share = std::bit_ceil(product.next_lines / std::min(tiles, fetching_tiles_max));
  const size_t fetch_lines = streamed || product.next == nullptr ? 0 : std::max(share, fetch_lines_min);
  const char* fetch = static_cast<const char*>(product.next);
  const char* const fetched = fetch + product.groups() * product.next_lines * line_bytes;
  const size_t next_part = product.is_last() ? 0 : product.part + 1;
  for (size_t tile = product.first_tile; tile < product.end_tile; ++tile) {
    const bool last_tile = tile + 1 == product.end_tile;
    // One part alone leaves its sums in the same lines, tile after tile.
    const size_t sums_row = order.parts.parts == 1 ? 0 : order.tiles.begin(tile) - order.tiles.begin(product.first_tile);
    float* const sums = product.sums + sums_row * panel_columns;
    kernels.multiply({.rows = order.tiles.size(tile),
                      .groups = product.groups(),
                      .a = product.a + order.element(product.part, tile),
                      .b = product.b,
                      .c = sums,
                      .accumulate = !product.is_first(),
                      .scales = product.scales,
                      .step_sums = product.step_sums.from(0, order.tiles.begin(tile)),
                      .next_a = product.a + (last_tile ? order.element(next_part, product.first_tile) : order.element(product.part, tile + 1)),
                      .fetch = fetch,
                      .fetch_lines = fetch < fetched ? fetch_lines : 0});
    fetch += product.groups() * fetch_lines * line_bytes;
    if (product.is_last()) finish_tile(kernels, order, product.finish, product.first_panel, tile, sums);
  }
}

void multiply_coded_tile(const TileKernels& kernels, const CodedProduct& product) {
  kernels.multiply_codes(product);
  const float* sums = product.sums;
  for (const PackedPanel& panel : product.panels) {
    finish_tile(kernels, product.order, product.finish, panel.panel, 0, sums);
    sums += product.rows() * panel_columns;
  }
}

}  // namespace switchyard::cpu
