// Included by the file of AVX2, inside its anonymous namespace, behind the kernels of BF16.

/**
 * What codes of `columns` columns and two k count, as floats: those of the even k and those of the odd one. They are smaller by `lift` of the
 * code than unit_of() says, and in an order of columns that order() of the code mends.
 */
template <size_t Columns>
struct Pair {
  __m256 even[Columns / 8], odd[Columns / 8];

  /** A product of a subnormal float takes long where a sum of one does not. */
  SWITCHYARD_INLINE void multiply(float factor) {
#pragma GCC unroll 4
    for (size_t vector = 0; vector < Columns / 8; ++vector) {
      even[vector] = _mm256_fmadd_ps(even[vector], _mm256_set1_ps(factor), _mm256_set1_ps(-0.0f));
      odd[vector] = _mm256_fmadd_ps(odd[vector], _mm256_set1_ps(factor), _mm256_set1_ps(-0.0f));
    }
  }
};

/** The lower and the upper word of each lane, each as the upper half of a float, of which `mask` stays. */
SWITCHYARD_INLINE void split_words(__m256i words, int mask, __m256& lower, __m256& upper) {
  const __m256i kept = _mm256_set1_epi32(mask);
  lower = _mm256_castsi256_ps(_mm256_and_si256(kept, _mm256_slli_epi32(words, 16)));
  upper = _mm256_castsi256_ps(_mm256_and_si256(kept, words));
}

/** Codes of 8 bits: a lane has two columns of the even and the odd k. Of two vectors one has even columns, the other odd ones. */
template <typename Code>
struct EightBits {
  static constexpr size_t columns = 16, bytes = 32;
  SWITCHYARD_INLINE static void order(__m256 (&lanes)[2]) {
    const __m256 lower = _mm256_unpacklo_ps(lanes[0], lanes[1]), upper = _mm256_unpackhi_ps(lanes[0], lanes[1]);
    lanes[0] = _mm256_permute2f128_ps(lower, upper, 0x20);
    lanes[1] = _mm256_permute2f128_ps(lower, upper, 0x31);
  }
  SWITCHYARD_INLINE static void widen(const uint8_t* codes, __m256i (&lanes)[2]) {
    auto pair = Code::read(codes);
    pair.multiply(Code::lift);
    __m256 both[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i even = _mm256_srli_epi32(_mm256_castps_si256(pair.even[half]), 16);
      const __m256i odd = _mm256_and_si256(_mm256_castps_si256(pair.odd[half]), _mm256_set1_epi32(static_cast<int>(0xffff0000)));
      both[half] = _mm256_castsi256_ps(_mm256_or_si256(even, odd));
    }
    order(both);
    for (int half = 0; half < 2; ++half) lanes[half] = _mm256_castps_si256(both[half]);
  }
};

/** A code has the bits of a float, subnormal ones among them, whose exponent counts from -127 where the code's counts from -7. */
struct E4m3 : EightBits<E4m3> {
  static constexpr float lift = unit_of(CodeType::f8_e4m3) * 0x1p120f;
  SWITCHYARD_INLINE static Pair<columns> read(const uint8_t* codes) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    constexpr int mask = static_cast<int>(0x87f00000);
    Pair<columns> pair;
    split_words(_mm256_srai_epi16(_mm256_slli_epi16(words, 8), 4), mask, pair.even[0], pair.even[1]);
    split_words(_mm256_srai_epi16(words, 4), mask, pair.odd[0], pair.odd[1]);
    return pair;
  }
};

struct I8 : EightBits<I8> {
  static constexpr float lift = 1;
  SWITCHYARD_INLINE static __m256 top_byte(__m256i lanes) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(lanes, 24)); }
  SWITCHYARD_INLINE static Pair<columns> read(const uint8_t* codes) {
    const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    return {{top_byte(_mm256_slli_epi32(lanes, 24)), top_byte(_mm256_slli_epi32(lanes, 8))}, {top_byte(_mm256_slli_epi32(lanes, 16)), top_byte(lanes)}};
  }
};

/** Codes of 4 bits: the two bytes of the BF16 that they count as come from tables. */
template <typename Values>
struct FourBits {
  static constexpr size_t columns = 32, bytes = 32;

  SWITCHYARD_INLINE static __m256i look_up(const uint8_t (&values)[16], __m256i codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values))), codes);
  }
  /** Columns 0 to 7 and 16 to 23 first, then the others. */
  SWITCHYARD_INLINE static void look_up(__m256i codes, __m256i (&words)[2]) {
    const __m256i upper = look_up(Values::high, codes), lower = look_up(Values::low, codes);
    words[0] = _mm256_unpacklo_epi8(lower, upper);
    words[1] = _mm256_unpackhi_epi8(lower, upper);
  }
  SWITCHYARD_INLINE static void look_up(const uint8_t* codes, __m256i (&even)[2], __m256i (&odd)[2]) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i nibble = _mm256_set1_epi8(15);
    look_up(_mm256_and_si256(both, nibble), even);
    look_up(_mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), odd);
  }
  SWITCHYARD_INLINE static void widen(const uint8_t* codes, __m256i (&lanes)[4]) {
    __m256i even[2], odd[2];
    look_up(codes, even, odd);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i lower = _mm256_unpacklo_epi16(even[half], odd[half]), upper = _mm256_unpackhi_epi16(even[half], odd[half]);
      lanes[half] = _mm256_permute2x128_si256(lower, upper, 0x20);
      lanes[half + 2] = _mm256_permute2x128_si256(lower, upper, 0x31);
    }
  }
};

/** In units. */
struct E2m1Values {
  static constexpr uint8_t high[16] = {0x00, 0x37, 0x37, 0x37, 0x38, 0x38, 0x38, 0x38, 0x80, 0xb7, 0xb7, 0xb7, 0xb8, 0xb8, 0xb8, 0xb8};
  static constexpr uint8_t low[16] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0, 0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0};
};

/** For few rows as E4m3; a lane has four columns. */
struct E2m1 : FourBits<E2m1Values> {
  static constexpr float lift = unit_of(CodeType::f4_e2m1) * 0x1p126f;
  SWITCHYARD_INLINE static void split(__m256i words, __m256& lower, __m256& upper) {
    split_words(_mm256_srai_epi16(words, 6), static_cast<int>(0x81c00000), lower, upper);
  }
  SWITCHYARD_INLINE static Pair<columns> read(const uint8_t* codes) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    Pair<columns> pair;
    split(_mm256_slli_epi16(words, 12), pair.even[0], pair.even[2]);
    split(_mm256_slli_epi16(words, 8), pair.odd[0], pair.odd[2]);
    split(_mm256_slli_epi16(words, 4), pair.even[1], pair.even[3]);
    split(words, pair.odd[1], pair.odd[3]);
    return pair;
  }
  /** A vector has one of four columns each. */
  SWITCHYARD_INLINE static void order(__m256 (&lanes)[4]) {
    __m256 quads[4];
#pragma GCC unroll 2
    for (int upper = 0; upper < 2; ++upper) {
      const auto pairs = [&](size_t at) SWITCHYARD_TARGET __attribute__((always_inline)) {
        return _mm256_castps_pd(upper == 0 ? _mm256_unpacklo_ps(lanes[at], lanes[at + 1]) : _mm256_unpackhi_ps(lanes[at], lanes[at + 1]));
      };
      quads[upper * 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(pairs(0), pairs(2)));
      quads[upper * 2 + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(pairs(0), pairs(2)));
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      lanes[half] = _mm256_permute2f128_ps(quads[half * 2], quads[half * 2 + 1], 0x20);
      lanes[half + 2] = _mm256_permute2f128_ps(quads[half * 2], quads[half * 2 + 1], 0x31);
    }
  }
};

/** -8 to 7. */
struct U4Values {
  static constexpr uint8_t high[16] = {0xc1, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xbf, 0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40};
  static constexpr uint8_t low[16] = {0x00, 0xe0, 0xc0, 0xa0, 0x80, 0x40, 0x00, 0x80, 0x00, 0x80, 0x00, 0x40, 0x80, 0xa0, 0xc0, 0xe0};
};

struct U4 : FourBits<U4Values> {
  static constexpr float lift = 1;
  SWITCHYARD_INLINE static Pair<columns> read(const uint8_t* codes) {
    __m256i even[2], odd[2];
    look_up(codes, even, odd);
    constexpr int mask = static_cast<int>(0xffff0000);
    Pair<columns> pair;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      split_words(even[half], mask, pair.even[half * 2], pair.even[half * 2 + 1]);
      split_words(odd[half], mask, pair.odd[half * 2], pair.odd[half * 2 + 1]);
    }
    return pair;
  }
  /** Of two vectors one has even columns, the other odd ones, the upper four 16 columns further than the lower four. */
  SWITCHYARD_INLINE static void order(__m256 (&lanes)[4]) {
    const __m256 a = _mm256_unpacklo_ps(lanes[0], lanes[1]), b = _mm256_unpackhi_ps(lanes[0], lanes[1]);
    const __m256 c = _mm256_unpacklo_ps(lanes[2], lanes[3]), d = _mm256_unpackhi_ps(lanes[2], lanes[3]);
    lanes[0] = _mm256_permute2f128_ps(a, b, 0x20);
    lanes[1] = _mm256_permute2f128_ps(c, d, 0x20);
    lanes[2] = _mm256_permute2f128_ps(a, b, 0x31);
    lanes[3] = _mm256_permute2f128_ps(c, d, 0x31);
  }
};

/** Codes come to the nearest cache so many bytes ahead. */
constexpr size_t near_codes = 4096;

/** What widen_rows() made, times `factor`. */
template <int Rows>
SWITCHYARD_INLINE void lift_rows(size_t groups, float factor, float* widened) {
  for (int row = 0; row < Rows; ++row) {
    for (size_t i = row * widened_stride; i < row * widened_stride + groups * group_depth; i += 8) {
      _mm256_store_ps(widened + i, _mm256_mul_ps(_mm256_load_ps(widened + i), _mm256_set1_ps(factor)));
    }
  }
}

/** Up to five rows with codes, which are widened in registers. What codes lack, rows are multiplied by, or weights if they are to be lifted. */
template <typename Code, int Rows, bool LiftWeights>
SWITCHYARD_TARGET void multiply_coded_rows(const CodedProduct& product, const PackedPanel& panel, float* c) {
  constexpr size_t vectors = Rows == 1 ? 8 : Rows == 2 ? 4 : Code::columns / 8;
  constexpr size_t bytes_per_column = Code::bytes / Code::columns;
  alignas(32) float widened[Rows * widened_stride];
  const Scales& scales = panel.scales;
  const size_t together = widened_groups / scales.groups * scales.groups;
  for (size_t first = 0; first < product.groups(); first += together) {
    const size_t groups = std::min(together, product.groups() - first);
    widen_rows<Rows>(product.a, first, groups, widened);
    if (!LiftWeights && Code::lift != 1) lift_rows<Rows>(groups, Code::lift, widened);
    for (size_t column = 0; column < panel_columns; column += vectors * 8) {
      for (size_t group = 0; group < groups; group += scales.groups) {
        __m256 sums[Rows][vectors] = {};
        const float* a = widened + group * group_depth;
        const uint8_t* codes = panel.codes + ((first + group) * group_depth / 2 * panel_columns + column) * bytes_per_column;
        const size_t pairs = std::min(scales.groups, groups - group) * group_depth / 2;
        for (size_t pair = 0; pair < pairs; ++pair, a += 2, codes += panel_columns * bytes_per_column) {
          fetch_near(codes, vectors * 8 * bytes_per_column, near_codes);
#pragma GCC unroll 4
          for (size_t part = 0; part < vectors * 8 / Code::columns; ++part) {
            auto weights = Code::read(codes + part * Code::bytes);
            if constexpr (LiftWeights) weights.multiply(Code::lift);
#pragma GCC unroll 5
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
#pragma GCC unroll 5
        for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 4
          for (size_t vector = 0; vector < vectors; vector += Code::columns / 8) Code::order(reinterpret_cast<__m256(&)[Code::columns / 8]>(sums[row][vector]));
        }
        add_step(sums, {scales, product.step_sums, (first + group) / scales.groups, column, first + group > 0}, c + column);
      }
    }
  }
}

/** Whether rows that are multiplied by `factor` have no element beyond the floats. */
SWITCHYARD_TARGET inline bool can_take(float factor, std::span<const uint16_t> a) {
  uint16_t largest = 0;
  for (const uint16_t element : a) largest = std::max<uint16_t>(largest, element & 0x7fff);
  return largest < std::bit_cast<uint32_t>(0x1p127f / factor) >> 16;
}

template <typename Code, int Rows>
void multiply_coded_by_size(const CodedProduct& product, const PackedPanel& panel, float* c) {
  // Powers of two change no bit of a product, whichever of its factors they come with.
  if (Code::lift == 1 || can_take(Code::lift, {product.a, product.groups() * Rows * group_depth})) multiply_coded_rows<Code, Rows, false>(product, panel, c);
  else multiply_coded_rows<Code, Rows, true>(product, panel, c);
}

template <typename Code>
void multiply_coded(const CodedProduct& product, const PackedPanel& panel, float* c) {
  static constexpr void (*by_rows[])(const CodedProduct&, const PackedPanel&, float*) = {multiply_coded_by_size<Code, 1>, multiply_coded_by_size<Code, 2>, multiply_coded_by_size<Code, 3>,
                                                             multiply_coded_by_size<Code, 4>, multiply_coded_by_size<Code, 5>};
  by_rows[product.rows() - 1](product, panel, c);
}

template <typename Code>
SWITCHYARD_TARGET void widen_coded(const uint8_t* codes, size_t groups, uint16_t* out) {
  for (size_t column = 0; column < groups * panel_group_elements / 2; column += Code::columns, codes += Code::bytes) {
    __m256i lanes[Code::columns / 8];
    Code::widen(codes, lanes);
    for (const __m256i lane : lanes) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), lane);
      out += 16;
    }
  }
}

/** Calls `use` with the type that reads codes of this type. */
template <typename Use>
void with_code(CodeType type, const Use& use) {
  switch (type) {
    case CodeType::f8_e4m3: return use(E4m3{});
    case CodeType::i8: return use(I8{});
    case CodeType::f4_e2m1: return use(E2m1{});
    case CodeType::u4: return use(U4{});
  }
}
