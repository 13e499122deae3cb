// Included by the file of AMX, inside its anonymous namespace, behind the mathematics of AVX-512.

constexpr size_t register_rows = 16;
constexpr size_t register_columns = 16;
/** Of a panel. */
constexpr size_t pair_columns = 2 * register_columns;
/** Floats of the sums of one register: [16][16]. */
constexpr size_t register_sums = register_rows * register_columns;
/** Up to two registers of rows times two of columns: [2][2][16][16]. */
constexpr size_t pair_sums = 4 * register_sums;

/**
 * What is done with the sums of one panel and one tile of rows when k has ended: at() says which they are, row() finishes one row
 * of them, so that the rows can be spread between the products of what comes next.
 */
struct Unfinished {
  static constexpr bool finishes = false;
  explicit Unfinished(const PartProduct&) {}
  void at(size_t, size_t) {}
  void row(const float*, size_t) const {}
};

/** The sums of a row: of the panel's first 16 columns, and of the others. */
struct RowSums {
  Vector low, high;

  SWITCHYARD_INLINE static RowSums of(const float* sums, size_t row, const float* bias) {
    const float* const first = sums + row / register_rows * 2 * register_sums + row % register_rows * register_columns;
    return {Vector::load(first) + Vector::load(bias), Vector::load(first + register_sums) + Vector::load(bias + register_columns)};
  }
};

/** Of the first so many columns of a panel. */
constexpr __mmask32 mask_of(size_t columns) { return columns >= pair_columns ? ~__mmask32{0} : (__mmask32{1} << columns) - 1; }

/** To rows of A of the next product. */
class NextRows {
 public:
  static constexpr bool finishes = true;

 protected:
  explicit NextRows(const PartProduct& product) : finish_(product.finish) {}

  void at(size_t panel, size_t tile, size_t outputs) {
    const RowOrder& order = *finish_.next_order;
    if (panel != panel_) {
      panel_ = panel;
      const size_t first = panel * outputs;
      const size_t part = order.parts.part_of(first / group_depth);
      part_ = finish_.next + order.element(part, 0) + first % group_depth;
      part_groups_ = order.parts.size(part);
      group_ = first / group_depth - order.parts.begin(part);
      bias_ = finish_.bias + panel * pair_columns;
      mask_ = mask_of(finish_.columns - std::min(finish_.columns, first));
    }
    to_ = part_ + (order.tiles.begin(tile) * part_groups_ + group_ * order.tiles.size(tile)) * group_depth;
  }

  const Finish& finish_;
  uint16_t* to_ = nullptr;
  /** Of `panel_`: the part of its group of k of the next product, of so many groups, which of them it is, and its bias. */
  size_t panel_ = SIZE_MAX;
  uint16_t* part_ = nullptr;
  size_t part_groups_ = 0, group_ = 0;
  const float* bias_ = nullptr;
  /** Columns of the result; beyond it are zeros. */
  __mmask32 mask_ = 0;
};

/** Form: see activation_math.h. */
template <typename Form>
class Gated : NextRows {
 public:
  using NextRows::finishes;
  explicit Gated(const PartProduct& product) : NextRows(product) {}
  void at(size_t panel, size_t tile) { NextRows::at(panel, tile, register_columns); }
  SWITCHYARD_INLINE void row(const float* sums, size_t row) const {
    const RowSums sum = RowSums::of(sums, row, bias_);
    const __m256i values = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(Form::of(sum.low, sum.high, finish_.glu).lanes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to_ + row * group_depth), _mm256_maskz_mov_epi16(static_cast<__mmask16>(mask_), values));
  }
};

template <typename Form>
class Ungated : NextRows {
 public:
  using NextRows::finishes;
  explicit Ungated(const PartProduct& product) : NextRows(product) {}
  void at(size_t panel, size_t tile) { NextRows::at(panel, tile, pair_columns); }
  SWITCHYARD_INLINE void row(const float* sums, size_t row) const {
    const RowSums sum = RowSums::of(sums, row, bias_);
    _mm512_storeu_si512(to_ + row * group_depth, _mm512_maskz_mov_epi16(mask_, round_pair(Form::of(sum.low), Form::of(sum.high))));
  }
};

/** To output rows. Many of them are written past the caches, which the next weights need. */
class OutputRows {
 public:
  static constexpr bool finishes = true;

  explicit OutputRows(const PartProduct& product) : finish_(product.finish), tiles_(product.order.tiles) {
    constexpr size_t streamed_rows_min = 64;
    streamed_ = finish_.rows.size() >= streamed_rows_min && finish_.begins_lines;
  }
  void at(size_t panel, size_t tile) {
    column_ = panel * pair_columns;
    mask_ = mask_of(finish_.columns - column_);
    rows_ = finish_.rows.subspan(tiles_.begin(tile), std::min(tiles_.size(tile), finish_.rows.size() - tiles_.begin(tile)));
  }
  SWITCHYARD_INLINE void row(const float* sums, size_t row) const {
    if (row >= rows_.size()) return;
    const RowSums sum = RowSums::of(sums, row, finish_.bias + column_);
    const __m512i values = round_pair(sum.low, sum.high);
    uint16_t* const to = rows_[row].output + column_;
    if (streamed_ && mask_ == ~__mmask32{0}) _mm512_stream_si512(reinterpret_cast<__m512i*>(to), values);
    else _mm512_mask_storeu_epi16(to, mask_, values);
  }

 private:
  const Finish& finish_;
  const Split& tiles_;
  bool streamed_;
  size_t column_ = 0;
  __mmask32 mask_ = 0;
  std::span<const RowReference> rows_;
};

/** Calls use(type) with the type of what is done with the product's sums. */
template <typename Use>
void with_ending(const PartProduct& product, const Use& use) {
  const Finish& finish = product.finish;
  if (!product.is_last()) return use(std::type_identity<Unfinished>{});
  if (finish.next == nullptr) return use(std::type_identity<OutputRows>{});
  switch (finish.activation) {
    case Activation::swiglu: return use(std::type_identity<Gated<Swiglu>>{});
    case Activation::geglu: return use(std::type_identity<Gated<Geglu>>{});
    case Activation::gelu: return use(std::type_identity<Ungated<Gelu>>{});
    case Activation::relu2: return use(std::type_identity<Ungated<Relu2>>{});
    case Activation::identity: return use(std::type_identity<Ungated<Rounding>>{});
  }
}
