// Included by the file of AVX2, inside its anonymous namespace, behind the kernels of BF16.

/** What codes of `columns` columns and two k count, as floats: those of the even k and those of the odd one. */
template <size_t Columns>
struct Pair {
  __m256 even[Columns / 8], odd[Columns / 8];
};

SWITCHYARD_INLINE __m128i half_of(__m256i lanes, int half) { return half == 0 ? _mm256_castsi256_si128(lanes) : _mm256_extracti128_si256(lanes, 1); }

struct E4m3 {
  static constexpr size_t columns = 16, bytes = 32;
  SWITCHYARD_INLINE static Pair<columns> read(const uint8_t* codes) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    // The exponent of a half float has a bit more, behind the sign.
    const __m256i mask = _mm256_set1_epi16(static_cast<short>(0xbf80));
    const __m256i even = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(words, 8), 1), mask);
    const __m256i odd = _mm256_and_si256(_mm256_srai_epi16(words, 1), mask);
    return {{_mm256_cvtph_ps(half_of(even, 0)), _mm256_cvtph_ps(half_of(even, 1))}, {_mm256_cvtph_ps(half_of(odd, 0)), _mm256_cvtph_ps(half_of(odd, 1))}};
  }
  template <size_t Vectors>
  SWITCHYARD_INLINE static void order(__m256 (&)[Vectors]) {}
};

struct I8 {
  static constexpr size_t columns = 16, bytes = 32;
  SWITCHYARD_INLINE static __m256 widen(__m128i words) { return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words)); }
  SWITCHYARD_INLINE static Pair<columns> read(const uint8_t* codes) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
    const __m256i odd = _mm256_srai_epi16(words, 8);
    return {{widen(half_of(even, 0)), widen(half_of(even, 1))}, {widen(half_of(odd, 0)), widen(half_of(odd, 1))}};
  }
  template <size_t Vectors>
  SWITCHYARD_INLINE static void order(__m256 (&)[Vectors]) {}
};

/** Codes of four bits: the two bytes of their BF16 come from tables. */
template <typename Values>
struct FourBits {
  static constexpr size_t columns = 32, bytes = 32;
  SWITCHYARD_INLINE static __m256i table(const uint8_t (&values)[16]) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  SWITCHYARD_INLINE static void widen(__m256i codes, __m256 (&out)[4]) {
    const __m256i high = _mm256_shuffle_epi8(table(Values::high), codes);
    const __m256i low = _mm256_shuffle_epi8(table(Values::low), codes);
    const __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
    const __m256i zero = _mm256_setzero_si256();
    out[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, first));
    out[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, first));
    out[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, second));
    out[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, second));
  }
  /** Not in the order of columns: of eight in a vector the upper four are 16 columns further. */
  SWITCHYARD_INLINE static Pair<columns> read(const uint8_t* codes) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i nibble = _mm256_set1_epi8(15);
    Pair<columns> pair;
    widen(_mm256_and_si256(both, nibble), pair.even);
    widen(_mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), pair.odd);
    return pair;
  }
  /** Puts what read() left in its own order into that of columns. */
  template <size_t Vectors>
  SWITCHYARD_INLINE static void order(__m256 (&lanes)[Vectors]) {
    static_assert(Vectors % 4 == 0);
#pragma GCC unroll 2
    for (size_t first = 0; first < Vectors; first += 4) {
      const __m256 a = lanes[first], b = lanes[first + 1], c = lanes[first + 2], d = lanes[first + 3];
      lanes[first] = _mm256_permute2f128_ps(a, b, 0x20);
      lanes[first + 1] = _mm256_permute2f128_ps(c, d, 0x20);
      lanes[first + 2] = _mm256_permute2f128_ps(a, b, 0x31);
      lanes[first + 3] = _mm256_permute2f128_ps(c, d, 0x31);
    }
  }
};

struct E2m1Values {
  static constexpr uint8_t high[16] = {0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
  static constexpr uint8_t low[16] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0, 0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0};
};

/** -8 to 7. */
struct U4Values {
  static constexpr uint8_t high[16] = {0xc1, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xbf, 0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40};
  static constexpr uint8_t low[16] = {0x00, 0xe0, 0xc0, 0xa0, 0x80, 0x40, 0x00, 0x80, 0x00, 0x80, 0x00, 0x40, 0x80, 0xa0, 0xc0, 0xe0};
};

/** One or two rows with codes, which are widened in registers. */
template <typename Code, int Rows>
SWITCHYARD_TARGET void multiply_coded_rows(const CodedProduct& product) {
  constexpr size_t vectors = 8 / Rows;
  constexpr size_t bytes_per_column = Code::bytes / Code::columns;
  alignas(32) float widened[Rows * widened_stride];
  const Scales& scales = product.b.scales;
  const size_t together = widened_groups / scales.groups * scales.groups;
  for (size_t first = 0; first < product.groups; first += together) {
    const size_t groups = std::min(together, product.groups - first);
    widen_rows<Rows>(product.a, first, groups, widened);
    for (size_t column = 0; column < panel_columns; column += vectors * 8) {
      for (size_t group = 0; group < groups; group += scales.groups) {
        __m256 sums[Rows][vectors] = {};
        const float* a = widened + group * group_depth;
        const uint8_t* codes = product.b.codes + ((first + group) * group_depth / 2 * panel_columns + column) * bytes_per_column;
        const size_t pairs = std::min(scales.groups, groups - group) * group_depth / 2;
        for (size_t pair = 0; pair < pairs; ++pair, a += 2, codes += panel_columns * bytes_per_column) {
#pragma GCC unroll 4
          for (size_t part = 0; part < vectors * 8 / Code::columns; ++part) {
            const auto weights = Code::read(codes + part * Code::bytes);
#pragma GCC unroll 2
            for (int row = 0; row < Rows; ++row) {
              const __m256 even = _mm256_broadcast_ss(a + row * widened_stride), odd = _mm256_broadcast_ss(a + row * widened_stride + 1);
#pragma GCC unroll 4
              for (size_t vector = 0; vector < Code::columns / 8; ++vector) {
                __m256& sum = sums[row][part * Code::columns / 8 + vector];
                sum = _mm256_fmadd_ps(odd, weights.odd[vector], _mm256_fmadd_ps(even, weights.even[vector], sum));
              }
            }
          }
        }
#pragma GCC unroll 2
        for (int row = 0; row < Rows; ++row) Code::order(sums[row]);
        add_step(sums, {scales, (first + group) / scales.groups, column, first + group > 0}, product.c + column);
      }
    }
  }
}

template <typename Code>
void multiply_coded(const CodedProduct& product) {
  if (product.rows == 1) multiply_coded_rows<Code, 1>(product);
  else multiply_coded_rows<Code, 2>(product);
}

template <typename Code>
SWITCHYARD_TARGET void widen_coded(const uint8_t* codes, size_t lines, uint16_t* out) {
  constexpr size_t vectors = Code::columns / 8;
  const __m256i high_half = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  // A panel has an even number of lines.
  for (size_t column = 0; column < lines * line_codes / 2; column += Code::columns, codes += Code::bytes) {
    auto pair = Code::read(codes);
    Code::order(pair.even);
    Code::order(pair.odd);
#pragma GCC unroll 4
    for (size_t vector = 0; vector < vectors; ++vector, out += 16) {
      const __m256i even = _mm256_srli_epi32(_mm256_castps_si256(pair.even[vector]), 16);
      const __m256i odd = _mm256_and_si256(_mm256_castps_si256(pair.odd[vector]), high_half);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_or_si256(even, odd));
    }
  }
}

/** Calls `use` with the type that reads codes of this type. */
template <typename Use>
void with_code(CodeType type, const Use& use) {
  switch (type) {
    case CodeType::f8_e4m3: return use(E4m3{});
    case CodeType::i8: return use(I8{});
    case CodeType::f4_e2m1: return use(FourBits<E2m1Values>{});
    case CodeType::u4: return use(FourBits<U4Values>{});
  }
}
