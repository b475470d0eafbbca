// float32 products on a processor with AMX, whose matrix unit multiplies bfloat16 alone: every number is the sum of three of these, of 8 bits each, and of the
// nine products of the parts the six are summed, in float32, that are not below half its last bit:  a1 b1 + a1 b2 + a2 b1 + a2 b2 + a1 b3 + a3 b1.  A TPU
// multiplies float32 so (jax.lax.Precision.HIGHEST).
//
// A measured exception to taking oneDNN's products (Intel Xeon, Emerald Rapids, one core, GFLOP/s): 64 rows by (256, 256), oneDNN in float32 142 to 171, here
// 292 with the splitting of the rows, 348 without; (512, 512) 143 to 151, 276, 315. The error, in the norm, is less than half of oneDNN's: 1.2e-7 and 2.9e-7.
// oneDNN's own bfloat16 products, six times, reach 200 and 188.
//
// A factor's lines, the left one's rows or the right one's columns, are laid out 64 at a time, in tiles of 16 lines by 32 of the depth: steps along the depth,
// in each the three parts, of each four tiles. The right one's tiles have pairs of numbers of a column side by side.

#include <cstdint>

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdlib>

namespace split {

using Part = uint16_t;  // a bfloat16's bits
constexpr int64_t PARTS = 3, SIDE = 16, DEEP = 32, TILE = SIDE * DEEP, LINES = 64, STEP = PARTS * 4 * TILE;

inline int64_t steps(int64_t depth) { return (depth + DEEP - 1) / DEEP; }
inline int64_t size(int64_t depth, int64_t lines) { return steps(depth) * STEP * ((lines + LINES - 1) / LINES); }  // in parts

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

// Whether the system lets this process have the unit; SADDLEPOINT_AMX=0 leaves it alone.
inline bool asked() {
    const char* wish = std::getenv("SADDLEPOINT_AMX");
    constexpr long REQUEST = 0x1023, TILES = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return !(wish && *wish == '0') && !syscall(SYS_arch_prctl, REQUEST, TILES);
}
inline const bool available = asked();

inline __m512i widened(__m256i parts) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32(parts), 16); }

// The parts of 32 numbers, each of 64 bytes, `apart` parts from one to the next.
inline void parts_of(__m512 low, __m512 high, Part* out, int64_t apart) {
    for (int64_t p = 0; p < PARTS; ++p) {
        const __m512i part = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_storeu_si512(out + p * apart, part);
        low = _mm512_sub_ps(low, (__m512)widened(_mm512_castsi512_si256(part)));
        high = _mm512_sub_ps(high, (__m512)widened(_mm512_extracti64x4_epi64(part, 1)));
    }
}

// The parts of a pair of rows of 16 numbers, interleaved.
inline void parts_of_pair(__m512 even, __m512 odd, Part* out, int64_t apart) {
    for (int64_t p = 0; p < PARTS; ++p) {
        const __m512i first = widened((__m256i)_mm512_cvtneps_pbh(even)), second = widened((__m256i)_mm512_cvtneps_pbh(odd));
        _mm512_storeu_si512(out + p * apart, _mm512_or_si512(_mm512_srli_epi32(first, 16), second));
        even = _mm512_sub_ps(even, (__m512)first), odd = _mm512_sub_ps(odd, (__m512)second);
    }
}

inline __m512 some(const float* from, int64_t count) {  // what there is of 16 numbers, then zeros
    if (count >= SIDE) return _mm512_loadu_ps(from);
    return count <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}

// Up to 64 rows (depth) with a row stride as a left factor.
inline void rows(const float* a, int64_t stride, int64_t count, int64_t depth, Part* out) {
    for (int64_t r = 0; r < count; ++r)
        for (int64_t k = 0; k < depth; k += DEEP) {
            const float* from = a + r * stride + k;
            parts_of(some(from, depth - k), some(from + SIDE, depth - k - SIDE), out + k / DEEP * STEP + r / SIDE * TILE + r % SIDE * DEEP, 4 * TILE);
        }
}

// (depth, columns) as a right factor.
inline void columns(const float* b, int64_t depth, int64_t columns, Part* out) {
    for (int64_t n = 0; n < columns; n += LINES, out += steps(depth) * STEP)
        for (int64_t k = 0; k < steps(depth) * DEEP; k += 2)
            for (int64_t c = 0; c < LINES; c += SIDE) {
                const float* from = b + k * columns + n + c;
                const int64_t count = columns - n - c;
                parts_of_pair(some(from, k < depth ? count : 0), some(from + columns, k + 1 < depth ? count : 0),
                              out + k / DEEP * STEP + c / SIDE * TILE + k % DEEP / 2 * DEEP, 4 * TILE);
            }
}

// The transpose of (columns, depth) as a right factor.
inline void turned(const float* b, int64_t columns, int64_t depth, Part* out) {
    alignas(64) Part lines[PARTS * TILE];
    for (int64_t n = 0; n < columns; n += LINES, out += steps(depth) * STEP)
        for (int64_t c = 0; c < LINES; c += SIDE)
            for (int64_t k = 0; k < depth; k += DEEP) {
                for (int64_t r = 0; r < SIDE; ++r) {
                    const float* from = b + (n + c + r) * depth + k;
                    const int64_t count = n + c + r < columns ? depth - k : 0;
                    parts_of(some(from, count), some(from + SIDE, count - SIDE), lines + r * DEEP, TILE);
                }
                for (int64_t p = 0; p < PARTS; ++p)  // of pairs, as which they belong together
                    at::vec::transpose_mxn<float>(reinterpret_cast<const float*>(lines + p * TILE), SIDE,
                                                  reinterpret_cast<float*>(out + k / DEEP * STEP + (p * 4 + c / SIDE) * TILE), SIDE, SIDE, SIDE);
            }
}

struct alignas(64) Layout {  // of the unit's eight registers: 16 rows of 64 bytes
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr Layout layout;  // in memory for good: the compiler takes the instruction to read eight bytes of it
inline void begin() { _tile_loadconfig(&layout); }  // before the first product of a thread, and after others have had the unit
inline void end() { _tile_release(); }

// 16 or 32 rows by 32 columns of the product, to c with a row stride, or added to what is there.
template <bool TWO>
inline void block(const Part* a, const Part* b, int64_t depth, float* c, int64_t stride, bool add) {
    const int64_t bytes = stride * sizeof(float);
    float* const below = c + SIDE * stride;
    if (add) {
        _tile_loadd(0, c, bytes); _tile_loadd(1, c + SIDE, bytes);
        if constexpr (TWO) { _tile_loadd(2, below, bytes); _tile_loadd(3, below + SIDE, bytes); }
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    // Each of these takes the place of the part before; in this order all six pairs are met with seven of them.
#define LEFT(part) { _tile_loadd(4, a + (part) * 4 * TILE, 64); if constexpr (TWO) _tile_loadd(5, a + ((part) * 4 + 1) * TILE, 64); }
#define RIGHT(part) { _tile_loadd(6, b + (part) * 4 * TILE, 64); _tile_loadd(7, b + ((part) * 4 + 1) * TILE, 64); }
#define MULTIPLY { _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); if constexpr (TWO) { _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7); } }
    for (int64_t s = steps(depth); s > 0; --s, a += STEP, b += STEP) {
        LEFT(0) RIGHT(2) MULTIPLY RIGHT(1) MULTIPLY LEFT(1) MULTIPLY RIGHT(0) MULTIPLY LEFT(2) MULTIPLY LEFT(0) MULTIPLY
    }
#undef LEFT
#undef RIGHT
#undef MULTIPLY
    _tile_stored(0, c, bytes); _tile_stored(1, c + SIDE, bytes);
    if constexpr (TWO) { _tile_stored(2, below, bytes); _tile_stored(3, below + SIDE, bytes); }
}

// Up to 64 rows by 64 columns: c (rows rounded up to 16s, 64) with a row stride.
inline void multiply(const Part* a, int64_t rows, const Part* b, int64_t depth, float* c, int64_t stride, bool add) {
    for (int64_t r = 0; r < rows; r += 2 * SIDE)
        for (int64_t n = 0; n < LINES; n += 2 * SIDE) {
            const Part *left = a + r / SIDE * TILE, *right = b + n / SIDE * TILE;
            rows - r > SIDE ? block<true>(left, right, depth, c + r * stride + n, stride, add) : block<false>(left, right, depth, c + r * stride + n, stride, add);
        }
}

#else  // never called

inline const bool available = false;
inline void rows(const float*, int64_t, int64_t, int64_t, Part*) {}
inline void columns(const float*, int64_t, int64_t, Part*) {}
inline void turned(const float*, int64_t, int64_t, Part*) {}
inline void begin() {}
inline void end() {}
inline void multiply(const Part*, int64_t, const Part*, int64_t, float*, int64_t, bool) {}

#endif

}  // namespace split
