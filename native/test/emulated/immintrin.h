/**
 * In front of the compiler's own header: the intrinsics of AVX-512 and AMX that the expert kernels use, computed with AVX2 by the rules
 * of Intel's manual, so that these kernels are tested on machines without them. Tile registers exist between loadconfig and release only;
 * what would fault ends the program.
 */
#pragma once

#include <cpuid.h>
#include_next <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace emulated {

[[noreturn]] inline void fault(const char* what) {
  std::fprintf(stderr, "emulated processor: %s\n", what);
  std::abort();
}

template <typename To, typename From>
inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <typename Vector>
inline Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

/** So many lanes, of which body(lane) gives each. */
template <typename Vector, typename Lane, typename Body>
inline Vector each(const Body& body) {
  Lane lanes[sizeof(Vector) / sizeof(Lane)];
  for (size_t i = 0; i < sizeof lanes / sizeof *lanes; ++i) lanes[i] = static_cast<Lane>(body(i));
  return load<Vector>(lanes);
}

template <typename Lane, typename Vector>
inline Lane lane(const Vector& vector, size_t index) {
  Lane value;
  std::memcpy(&value, reinterpret_cast<const char*>(&vector) + index * sizeof value, sizeof value);
  return value;
}

/** Both halves of 512 bits, with what AVX2 has. */
template <typename Vector, typename Half, typename Body, typename... Vectors>
inline Vector halves(const Body& body, const Vectors&... vectors) {
  struct Halves {
    Half of[2];
  };
  Halves result;
  for (int i = 0; i < 2; ++i) result.of[i] = body(as<Halves>(vectors).of[i]...);
  return as<Vector>(result);
}

inline __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  return halves<__m512, __m256>([](__m256 x, __m256 y, __m256 z) { return _mm256_fmadd_ps(x, y, z); }, a, b, c);
}

/** Conversions to BF16 and products of it count subnormal numbers as zero. */
inline __m512 flush_all(__m512 value) {
  const auto flush_half = [](__m256 half) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256 small = _mm256_cmp_ps(_mm256_andnot_ps(sign, half), _mm256_set1_ps(0x1p-126f), _CMP_LT_OQ);
    return _mm256_blendv_ps(half, _mm256_and_ps(half, sign), small);
  };
  return halves<__m512, __m256>(flush_half, value);
}

/** While it lives, subnormal numbers count as zero, as operands and as results. */
class Flushing {
 public:
  Flushing() { _mm_setcsr(before_ | flush_results | flush_operands); }
  ~Flushing() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned flush_results = 0x8000, flush_operands = 0x40;
  const unsigned before_ = _mm_getcsr();
};

inline __m256 even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd(__m256i pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000)))); }

/** Two multiply-adds, that of the odd place first. Out of line, so that the compiler moves nothing out of the Flushing around it. */
__attribute__((noinline)) inline void multiply_pairs(__m256 (&sums)[2], const __m256i (&a)[2], const __m256i (&b)[2]) {
  for (int i = 0; i < 2; ++i) sums[i] = _mm256_fmadd_ps(even(a[i]), even(b[i]), _mm256_fmadd_ps(odd(a[i]), odd(b[i]), sums[i]));
}

/** VDPBF16PS. */
inline __m512 dpbf16(__m512 sums, __m512i a, __m512i b) {
  struct Floats {
    __m256 of[2];
  };
  struct Pairs {
    __m256i of[2];
  };
  Floats result = as<Floats>(sums);
  const Flushing flushing;
  multiply_pairs(result.of, as<Pairs>(a).of, as<Pairs>(b).of);
  return as<__m512>(result);
}

struct Tile {
  alignas(64) uint8_t bytes[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local bool is_configured = false;

inline Tile& tile(int number) {
  if (!is_configured) fault("a tile register was used without a configuration");
  return tiles[number];
}

/** All registers have 16 rows of 64 bytes; others than these are not emulated. */
inline void load_config(const void* from) {
  uint8_t bytes[64];
  std::memcpy(bytes, from, sizeof bytes);
  if (bytes[0] != 1) fault("a tile configuration of another palette");
  for (int i = 0; i < 8; ++i) {
    if (bytes[16 + 2 * i] != 64 || bytes[17 + 2 * i] != 0 || bytes[48 + i] != 16) fault("a tile register of another shape");
  }
  is_configured = true;
  std::memset(tiles, 0, sizeof tiles);
}

inline void tile_load(int number, const void* from, long stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(tile(number).bytes[row], static_cast<const char*>(from) + row * stride, 64);
}
inline void tile_store(int number, void* to, long stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(to) + row * stride, tile(number).bytes[row], 64);
}

__attribute__((noinline)) inline void multiply_tiles(Tile& sums, const Tile& a, const Tile& b) {
  for (int row = 0; row < 16; ++row) {
    __m256 chains[2][2] = {};
    for (int pair = 0; pair < 16; ++pair) {
      const __m256i rows = _mm256_set1_epi32(lane<int>(a.bytes[row], pair));
      for (int half = 0; half < 2; ++half) {
        const auto weights = load<__m256i>(b.bytes[pair] + half * 32);
        chains[half][0] = _mm256_fmadd_ps(even(rows), even(weights), chains[half][0]);
        chains[half][1] = _mm256_fmadd_ps(odd(rows), odd(weights), chains[half][1]);
      }
    }
    for (int half = 0; half < 2; ++half) {
      uint8_t* const to = sums.bytes[row] + half * 32;
      const __m256 sum = _mm256_add_ps(load<__m256>(to), _mm256_add_ps(chains[half][0], chains[half][1]));
      std::memcpy(to, &sum, sizeof sum);
    }
  }
}

/** TDPBF16PS: one chain of multiply-adds over the even k and one over the odd, added, and then to the sums. */
inline void tile_dpbf16(int sums, int a, int b) {
  const Flushing flushing;
  multiply_tiles(tile(sums), tile(a), tile(b));
}

/** The kernel gives what a process asks for. */
inline long system_call(long, long, long) { return 0; }

inline void stream(void* to, __m512i value) {
  if (reinterpret_cast<uintptr_t>(to) % 64 != 0) fault("a store past the caches to where no line begins");
  std::memcpy(to, &value, sizeof value);
}

inline void mask_store(void* to, uint32_t mask, __m512i value) {
  for (size_t i = 0; i < 32; ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<uint16_t*>(to) + i, reinterpret_cast<const uint16_t*>(&value) + i, sizeof(uint16_t));
  }
}

/** VSCALEFPS for powers up to 2^250, in two steps, because the whole power may not be a float. */
inline __m512 scale_by_power(__m512 a, __m512 n) {
  const auto power = [](__m256i exponent) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23)); };
  const auto scale_half = [&](__m256 x, __m256 powers) {
    const __m256i whole = _mm256_cvtps_epi32(powers), first = _mm256_srai_epi32(whole, 1);
    return _mm256_mul_ps(_mm256_mul_ps(x, power(first)), power(_mm256_sub_epi32(whole, first)));
  };
  return halves<__m512, __m256>(scale_half, a, n);
}

template <typename Vector, typename Half>
inline Vector both(Half half) {
  return halves<Vector, Half>([&] { return half; });
}

/** Eight floats to BF16: to the nearest, ties to even. */
inline __m128i round_eight(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline __m256bh round(__m512 value) {
  struct Halves {
    __m256 of[2];
  };
  const auto flushed = as<Halves>(flush_all(value));
  return as<__m256bh>(_mm256_set_m128i(round_eight(flushed.of[1]), round_eight(flushed.of[0])));
}

inline __m512bh round_two(__m512 high, __m512 low) {
  const __m256bh both[] = {round(low), round(high)};
  return as<__m512bh>(both);
}

/** Words whose bit of the mask is set, and zeros. */
template <typename Vector>
inline Vector mask_words(uint32_t mask, Vector words) {
  if (mask == ~uint32_t{0}) return words;
  return each<Vector, uint16_t>([&](size_t i) { return mask >> i & 1 ? lane<uint16_t>(words, i) : 0; });
}

/** The table of VPTERNLOGD that the kernels use: a & b | c. */
template <int Table>
void and_or() {
  static_assert(Table == 0xea);
}

}  // namespace emulated

// What the kernels ask of the machine.
#define __builtin_cpu_supports(feature) true
#define __get_cpuid_count(leaf, subleaf, a, b, c, d) (*(a) = *(b) = *(c) = 0, *(d) = ~0u, 1)
#define syscall(...) emulated::system_call(__VA_ARGS__)

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) emulated::load_config(from)
#define _tile_release() (emulated::is_configured = false)
#define _tile_loadd(number, from, stride) emulated::tile_load(number, from, stride)
#define _tile_stream_loadd(number, from, stride) emulated::tile_load(number, from, stride)
#define _tile_stored(number, to, stride) emulated::tile_store(number, to, stride)
#define _tile_zero(number) (emulated::tile(number) = {})
#define _tile_dpbf16ps(sums, a, b) emulated::tile_dpbf16(sums, a, b)

#undef _mm512_roundscale_ps
#undef _mm512_extracti64x4_epi64
#undef _mm512_slli_epi32
#undef _mm512_srli_epi16
#undef _mm512_ternarylogic_epi32
// clang-format off
#define _mm512_setzero_ps() (__m512{})
#define _mm512_set1_ps(value) emulated::both<__m512>(_mm256_set1_ps(value))
#define _mm512_set1_epi16(value) emulated::both<__m512i>(_mm256_set1_epi16(value))
#define _mm512_set1_epi32(value) emulated::both<__m512i>(_mm256_set1_epi32(value))
#define _mm512_loadu_ps(from) emulated::load<__m512>(from)
#define _mm512_loadu_si512(from) emulated::load<__m512i>(from)
#define _mm512_storeu_ps(to, value) std::memcpy(to, &static_cast<const __m512&>(value), 64)
#define _mm512_storeu_si512(to, value) std::memcpy(to, &static_cast<const __m512i&>(value), 64)
#define _mm512_mask_storeu_epi16(to, mask, value) emulated::mask_store(to, mask, value)
#define _mm512_stream_si512(to, value) emulated::stream(to, value)
#define _mm512_add_ps(a, b) ((a) + (b))
#define _mm512_sub_ps(a, b) ((a) - (b))
#define _mm512_mul_ps(a, b) ((a) * (b))
#define _mm512_div_ps(a, b) ((a) / (b))
#define _mm512_min_ps(a, b) emulated::halves<__m512, __m256>([](__m256 x, __m256 y) { return _mm256_min_ps(x, y); }, a, b)
#define _mm512_max_ps(a, b) emulated::halves<__m512, __m256>([](__m256 x, __m256 y) { return _mm256_max_ps(x, y); }, a, b)
#define _mm512_abs_ps(a) emulated::halves<__m512, __m256>([](__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }, a)
#define _mm512_roundscale_ps(a, how) emulated::halves<__m512, __m256>([](__m256 x) { return _mm256_round_ps(x, how); }, a)
#define _mm512_scalef_ps(a, n) emulated::scale_by_power(a, n)
#define _mm512_fmadd_ps(a, b, c) emulated::fmadd(a, b, c)
#define _mm512_fnmadd_ps(a, b, c) emulated::fmadd(-(a), b, c)
#define _mm512_dpbf16_ps(sums, a, b) emulated::dpbf16(sums, emulated::as<__m512i>(a), emulated::as<__m512i>(b))
#define _mm512_cvtne2ps_pbh(high, low) emulated::round_two(high, low)
#define _mm512_cvtneps_pbh(a) emulated::round(a)
#define _mm512_and_si512(a, b) ((a) & (b))
#define _mm512_or_si512(a, b) ((a) | (b))
#define _mm512_slli_epi32(a, count) emulated::halves<__m512i, __m256i>([](__m256i x) { return _mm256_slli_epi32(x, count); }, a)
#define _mm512_ternarylogic_epi32(a, b, c, table) (emulated::and_or<table>(), ((a) & (b)) | (c))
#define _mm512_castps_si512(a) emulated::as<__m512i>(a)
#define _mm512_castsi512_ps(a) emulated::as<__m512>(a)
#define _mm512_castsi512_si256(a) emulated::lane<__m256i>(a, 0)
#define _mm512_extracti64x4_epi64(a, half) emulated::lane<__m256i>(a, half)
#define _mm512_movepi32_mask(a) emulated::as<__m512i>(a)
#define _mm512_mask_blend_ps(signs, otherwise, chosen) emulated::halves<__m512, __m256>([](__m256 s, __m256 x, __m256 y) { return _mm256_blendv_ps(x, y, s); }, signs, otherwise, chosen)
#define _mm512_cvtepu16_epi32(a) emulated::each<__m512i, int32_t>([&](size_t i) { return emulated::lane<uint16_t>(a, i); })
#define _mm512_cvtepi8_epi32(a) emulated::each<__m512i, int32_t>([&](size_t i) { return emulated::lane<int8_t>(a, i); })
#define _mm512_cvtepi32_ps(a) emulated::halves<__m512, __m256>([](__m256 x) { return _mm256_cvtepi32_ps(_mm256_castps_si256(x)); }, a)
#define _mm512_permutexvar_epi16(index, a) emulated::each<__m512i, uint16_t>([&](size_t i) { return emulated::lane<uint16_t>(a, emulated::lane<uint16_t>(index, i) % 32); })
#define _mm512_permutex2var_epi8(a, index, b) emulated::each<__m512i, uint8_t>([&](size_t i) { const uint8_t at = emulated::lane<uint8_t>(index, i); return emulated::lane<uint8_t>(at & 64 ? (b) : (a), at % 64); })
#define _mm512_set1_epi8(value) emulated::both<__m512i>(_mm256_set1_epi8(value))
#define _mm512_movepi8_mask(a) (a)
#define _mm512_mask_blend_epi8(signs, otherwise, chosen) emulated::halves<__m512i, __m256i>([](__m256i s, __m256i x, __m256i y) { return _mm256_blendv_epi8(x, y, s); }, signs, otherwise, chosen)
#define _mm512_unpacklo_epi8(a, b) emulated::halves<__m512i, __m256i>([](__m256i x, __m256i y) { return _mm256_unpacklo_epi8(x, y); }, a, b)
#define _mm512_unpackhi_epi8(a, b) emulated::halves<__m512i, __m256i>([](__m256i x, __m256i y) { return _mm256_unpackhi_epi8(x, y); }, a, b)
#define _mm512_srli_epi16(a, count) emulated::halves<__m512i, __m256i>([](__m256i x) { return _mm256_srli_epi16(x, count); }, a)
#define _mm512_maskz_mov_epi16(mask, a) emulated::mask_words(mask, a)
#define _mm256_maskz_mov_epi16(mask, a) emulated::mask_words(0xffff0000 | (mask), a)
// clang-format on
