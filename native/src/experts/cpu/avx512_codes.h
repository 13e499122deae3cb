// Included by the files of AVX-512 and of AMX, inside their anonymous namespaces, behind avx512_math.h.

// What codes count, in BF16. A line has the codes of 16 columns in blocks; see PanelOrder. Of `pairs` pairs of k widen() makes what dpbf16 takes.

/** The bytes of what codes count, in BF16. */
template <size_t Codes>
struct ByteTables {
  uint8_t lower[Codes], upper[Codes];

  explicit constexpr ByteTables(uint16_t (*value)(int code)) : lower(), upper() {
    for (size_t code = 0; code < Codes; ++code) {
      lower[code] = static_cast<uint8_t>(value(static_cast<int>(code)));
      upper[code] = static_cast<uint8_t>(value(static_cast<int>(code)) >> 8);
    }
  }
};

/** Half a table, or all of one that has no more: by seven bits of the codes. */
SWITCHYARD_INLINE __m512i look_up(const uint8_t* table, __m512i codes) {
  return _mm512_permutex2var_epi8(_mm512_loadu_si512(table), codes, _mm512_loadu_si512(table + 64));
}

/** In units, where the exponent is 112 more, which has none of its four bits; the codes of no exponent are apart. Without signs. */
constexpr uint16_t e4m3_value(int code) {
  constexpr uint16_t subnormal[8] = {0x0000, 0x3700, 0x3780, 0x37c0, 0x3800, 0x3820, 0x3840, 0x3860};
  return code < 8 ? subnormal[code] : static_cast<uint16_t>(0x3800 | code << 4);
}

constexpr uint16_t i8_value(int code) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(code < 128 ? code : code - 256)) >> 16); }

struct E4m3 {
  static constexpr int pairs = 2;
  SWITCHYARD_INLINE static void widen(__m512i line, __m512i (&words)[pairs]) {
    const __m512i lower = look_up(tables.lower, line);
    const __m512i signs = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i upper = _mm512_ternarylogic_epi32(line, signs, look_up(tables.upper, line), 0xea);  // line & signs | bytes
    words[0] = _mm512_unpacklo_epi8(lower, upper);
    words[1] = _mm512_unpackhi_epi8(lower, upper);
  }

 private:
  static constexpr ByteTables<128> tables{e4m3_value};
};

struct I8 {
  static constexpr int pairs = 2;
  SWITCHYARD_INLINE static void widen(__m512i line, __m512i (&words)[pairs]) {
    const auto negative = _mm512_movepi8_mask(line);
    const __m512i lower = _mm512_mask_blend_epi8(negative, look_up(tables.lower, line), look_up(tables.lower + 128, line));
    const __m512i upper = _mm512_mask_blend_epi8(negative, look_up(tables.upper, line), look_up(tables.upper + 128, line));
    words[0] = _mm512_unpacklo_epi8(lower, upper);
    words[1] = _mm512_unpackhi_epi8(lower, upper);
  }

 private:
  static constexpr ByteTables<256> tables{i8_value};
};

/** Values by a table, of which there are two: a fifth bit of a code does not matter. */
template <typename Values>
struct FourBits {
  static constexpr int pairs = 4;
  SWITCHYARD_INLINE static void widen(__m512i line, __m512i (&words)[pairs]) {
    const __m512i values = _mm512_loadu_si512(Values::bf16);
    words[0] = _mm512_permutexvar_epi16(line, values);
    words[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(line, 4), values);
    words[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(line, 8), values);
    words[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(line, 12), values);
  }
};

/** In units of 2^-16. */
struct E2m1Values {
  static constexpr uint16_t bf16[32] = {0x0000, 0x3700, 0x3780, 0x37c0, 0x3800, 0x3840, 0x3880, 0x38c0, 0x8000, 0xb700, 0xb780,
                                        0xb7c0, 0xb800, 0xb840, 0xb880, 0xb8c0, 0x0000, 0x3700, 0x3780, 0x37c0, 0x3800, 0x3840,
                                        0x3880, 0x38c0, 0x8000, 0xb700, 0xb780, 0xb7c0, 0xb800, 0xb840, 0xb880, 0xb8c0};
};

/** -8 to 7. */
struct U4Values {
  static constexpr uint16_t bf16[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
                                        0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
                                        0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
};

/** Calls `use` with the type that widens codes of this type. */
template <typename Use>
void with_code(CodeType type, const Use& use) {
  switch (type) {
    case CodeType::f8_e4m3: return use(E4m3{});
    case CodeType::i8: return use(I8{});
    case CodeType::u4: return use(FourBits<U4Values>{});
    case CodeType::f4_e2m1: return use(FourBits<E2m1Values>{});
  }
}

/** Columns of a line. */
constexpr size_t line_columns = 16;

/** Of some tiles of `Columns` columns and a group of k. */
template <typename Code, size_t Columns>
SWITCHYARD_TARGET void widen_tiles(const uint8_t* codes, size_t tiles, uint16_t* out) {
  constexpr size_t lines = Columns / line_columns;
  for (size_t run = 0; run < tiles * group_depth / 2 / Code::pairs; ++run, out += Code::pairs * Columns * 2) {
#pragma GCC unroll 4
    for (size_t line = 0; line < lines; ++line, codes += 64) {
      __m512i words[Code::pairs];
      Code::widen(_mm512_loadu_si512(codes), words);
#pragma GCC unroll 4
      for (size_t pair = 0; pair < Code::pairs; ++pair) _mm512_storeu_si512(out + (pair * Columns + line * line_columns) * 2, words[pair]);
    }
  }
}

/** Kernels::widen for panels of `Panel` columns in tiles of `Columns`. */
template <size_t Panel, size_t Columns>
void widen_groups(CodeType type, const uint8_t* codes, size_t groups, uint16_t* out) {
  with_code(type, [&](auto code) { widen_tiles<decltype(code), Columns>(codes, groups * Panel / Columns, out); });
}
