// What passes of small networks on a CPU are made of: rows of vectors, matrix products 64 rows and columns at a time, layouts for them.
//
// Matrix products are oneDNN's (at::native::cpublas::brgemm: AVX-512 in float32, AMX or AVX-512 in bfloat16, always summed in float32), in float32 on AMX our own
// (split.h); what follows a product is done block by block while it is still in the cache. nn/native.py puts this text, after split.h, before that of the passes.

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

using at::BFloat16;
using i64 = int64_t;
namespace blas = at::native::cpublas;

namespace {

constexpr i64 ROWS = 64, COLUMNS = 64;  // of a tile, and of one product: with AMX three times as fast as 32, 128 or 256 rows
using Vec = at::vec::Vectorized<float>;

struct Parted { float value; };  // a float32 number of rows whose products are made of parts (split.h)
template <class T>
constexpr bool PARTED = std::is_same_v<T, Parted>;
template <class T>
constexpr bool FLOAT32 = std::is_same_v<T, float> || PARTED<T>;
inline const float* plain(const Parted* p) { return reinterpret_cast<const float*>(p); }

constexpr i64 STEP = 2 * Vec::size();
using Two = std::tuple<Vec, Vec>;

inline Two load(const float* p) { return {Vec::loadu(p), Vec::loadu(p + Vec::size())}; }
inline Two load(const BFloat16* p) { return at::vec::convert_to_float<BFloat16>(at::vec::Vectorized<BFloat16>::loadu(p)); }
inline Two load(const Parted* p) { return load(plain(p)); }
inline void store(float* p, Vec a, Vec b) { a.store(p), b.store(p + Vec::size()); }
inline void store(Parted* p, Vec a, Vec b) { store(reinterpret_cast<float*>(p), a, b); }
inline void store(BFloat16* p, Vec a, Vec b) {
#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512BF16__)  // in one instruction, where PyTorch's takes a dozen
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b, a));
#else
    at::vec::convert_from_float<BFloat16>(a, b).store(p);
#endif
}

// 1/x, to the last bit or two.
inline Vec reciprocal(Vec x) {
#ifdef CPU_CAPABILITY_AVX512  // 14 bits and a step of Newton's: a division keeps its unit busy for 16 cycles
    const Vec inverse(_mm512_rcp14_ps(x));
    return inverse * at::vec::fnmadd(x, inverse, Vec(2));
#else
    return x.reciprocal();
#endif
}

// exp(x) for x up to `most`, and exp(most) from there on; what is not a number stays so.
inline Vec exp_up_to(Vec x, float most) {
#ifdef CPU_CAPABILITY_AVX512  // half the instructions of the line below: 2^y as 2^round(y) times Cephes' polynomial (exp2f)
    const Vec y = Vec(_mm512_min_ps(_mm512_set1_ps(most), x)) * Vec(1.44269504f), whole(_mm512_roundscale_ps(y, 0)), f = y - whole;
    Vec power(1.535336188e-4f);
    for (float c : {1.339887440e-3f, 9.618437358e-3f, 5.550332471e-2f, 2.402264791e-1f, 6.931472029e-1f, 1.0f}) power = at::vec::fmadd(power, f, Vec(c));
    return Vec(_mm512_scalef_ps(power, whole));
#else
    return at::vec::minimum(x, Vec(most)).exp_u20();
#endif
}

// 1 / (1 + exp(-x)); 0 below -80.
inline Vec sigmoid(Vec x) { return reciprocal(Vec(1) + exp_up_to(x.neg(), 80)); }

inline float total(Vec v) {
    return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, v);
}

inline float sum_of(const float* a, i64 n) {
    Vec sum(0);
    i64 j = 0;
    for (; j + Vec::size() <= n; j += Vec::size()) sum = sum + Vec::loadu(a + j);
    return std::accumulate(a + j, a + n, total(sum));
}

template <class A, class B>
float dot(const A* a, const B* b, i64 n) {
    Vec low(0), high(0);
    for (i64 j = 0; j < n; j += STEP) {
        auto [a0, a1] = load(a + j);
        auto [b0, b1] = load(b + j);
        low = at::vec::fmadd(a0, b0, low), high = at::vec::fmadd(a1, b1, high);
    }
    return total(low + high);
}

inline i64 padded(i64 n) { return (n + 31) / 32 * 32; }  // oneDNN is slow for other depths in bfloat16

// Columns that rows of numbers of the type T have where they are the left factor of a product.
template <class T>
i64 padded_for(i64 n) { return FLOAT32<T> ? n : padded(n); }

template <class T>
void products_end() { PARTED<T> ? split::end() : blas::brgemm_release(!FLOAT32<T>); }

// Numbers of the type T that a factor takes when it is laid out, the right one or 64 rows as the left one.
template <class T>
i64 packed_size(i64 depth, i64 columns) {
    constexpr i64 a_number = sizeof(T) / sizeof(split::Part);
    return PARTED<T> ? split::size(depth, columns) / a_number : padded(depth) * ((columns + COLUMNS - 1) / COLUMNS * COLUMNS);
}

template <class T>
i64 left_size(i64 depth) { return packed_size<T>(depth, ROWS); }

template <class T>
struct Buffer {  // uninitialised, aligned
    explicit Buffer(i64 n) : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64 + 64)), std::free) {}
    operator T*() const { return data.get(); }
    std::unique_ptr<T, decltype(&std::free)> data;
};

template <class T>
split::Part* parts(T* data) { return reinterpret_cast<split::Part*>(data); }

// The right factor of a product, (depth, columns): laid out in blocks of 64 columns, in bfloat16 with pairs of rows interleaved, or in parts; or as it is. In
// blocks it is read from end to end; 512 columns as they are lie 2 KiB apart and throw each other out of the cache (69 GFLOP/s where blocks reach 93).
template <class T>
struct Factor {
    const T* data;
    i64 depth, columns;
    bool blocks = true;
    const T* block(i64 n) const { return !blocks ? data + n : data + (PARTED<T> ? packed_size<T>(depth, n) : n * depth); }
    i64 stride() const { return blocks ? COLUMNS : columns; }
};

// A product to be summed: (rows, depth) with a row stride, which may be laid out in parts already, times a factor.
template <class T>
struct Term {
    const T* a;
    i64 stride;
    Factor<T> b;
    bool laid = false;
};

// A sum of products of equal size, whose blocks of 64 columns can be asked for.
//
// What rows are split into lies in room that each thread keeps: between two of its blocks nothing else may be multiplied on the thread.
template <class T>
class Sum {
    const std::vector<Term<T>>& terms;
    const i64 rows;
    std::vector<const split::Part*> lefts;

   public:
    Sum(const std::vector<Term<T>>& terms, i64 rows) : terms(terms), rows(rows) {
        if constexpr (PARTED<T>) {
            static thread_local std::vector<Buffer<T>> room;  // of each term
            static thread_local std::vector<i64> sizes;
            for (size_t i = 0; i < terms.size(); ++i) {
                const auto& [a, stride, b, laid] = terms[i];
                if (laid) {
                    lefts.push_back(parts(const_cast<T*>(a)));
                    continue;
                }
                const i64 size = left_size<T>(b.depth);
                if (room.size() <= i) room.emplace_back(0), sizes.push_back(0);
                if (sizes[i] < size) room[i] = Buffer<T>(size), sizes[i] = size;
                split::rows(plain(a), stride, rows, b.depth, parts<T>(room[i]));
                lefts.push_back(parts<T>(room[i]));
            }
            split::begin();
        }
    }
    i64 columns() const { return terms.front().b.columns; }
    i64 width(i64 n) const { return std::min(COLUMNS, columns() - n); }
    bool whole(i64 n) const { return !PARTED<T> || (rows % split::SIDE == 0 && width(n) == COLUMNS); }  // whether a block has no more than these
    // The columns from n on, to c with a row stride: (rows, width(n)), or a block that is not whole (rows rounded up to 16s, 64).
    void block(i64 n, float* c, i64 stride) const {
        for (size_t i = 0; i < terms.size(); ++i) {
            const Factor<T>& b = terms[i].b;
            if constexpr (PARTED<T>) split::multiply(lefts[i], rows, parts(const_cast<T*>(b.block(n))), b.depth, c, stride, i > 0);
            else blas::brgemm(rows, width(n), b.depth, terms[i].stride, b.stride(), stride, i > 0, terms[i].a, b.block(n), c, !FLOAT32<T>);
        }
    }
};

// The sum of products of equal size, handed on in blocks: done(first column, columns, (rows, 64) float).
template <class T, class F>
void product(const std::vector<Term<T>>& terms, i64 rows, F done) {
    alignas(64) float c[ROWS * COLUMNS];
    const Sum<T> sum(terms, rows);
    for (i64 n = 0; n < sum.columns(); n += COLUMNS) sum.block(n, c, COLUMNS), done(n, sum.width(n), c);
}

// The same, written to `out` (rows, columns) with a row stride.
template <class T>
void product_to(const std::vector<Term<T>>& terms, i64 rows, float* out, i64 out_stride) {
    alignas(64) float c[ROWS * COLUMNS];
    const Sum<T> sum(terms, rows);
    for (i64 n = 0; n < sum.columns(); n += COLUMNS) {
        if (sum.whole(n)) {
            sum.block(n, out + n, out_stride);
            continue;
        }
        sum.block(n, c, COLUMNS);
        for (i64 r = 0; r < rows; ++r) std::copy_n(c + r * COLUMNS, sum.width(n), out + r * out_stride + n);
    }
}

template <class T, class F>
void product(const T* a, i64 stride, i64 rows, const Factor<T>& b, F done) {
    product<T>({{a, stride, b}}, rows, done);
}

// (rows, columns) with a row stride -> (columns, rows) with another.
template <class T>
void transpose(const T* in, i64 stride, i64 rows, i64 columns, T* out, i64 out_stride) {
    using Number = std::conditional_t<PARTED<T>, float, T>;
    constexpr i64 B = at::vec::Vectorized<Number>::size();
    const Number* from = reinterpret_cast<const Number*>(in);
    Number* to = reinterpret_cast<Number*>(out);
    for (i64 r = 0; r < rows; r += B)
        for (i64 c = 0; c < columns; c += B)
            at::vec::transpose_mxn<Number>(from + r * stride + c, stride, to + c * out_stride + r, out_stride, std::min(B, rows - r), std::min(B, columns - c));
}

// (depth, columns) as a factor that is laid out.
template <class T>
void interleave(const T* rows, i64 depth, i64 columns, T* out) {
    if constexpr (std::is_same_v<T, BFloat16>) {
        for (i64 n = 0; n < columns; n += COLUMNS)
            blas::pack(depth, std::min(COLUMNS, columns - n), columns, COLUMNS, at::kBFloat16, at::kBFloat16, rows + n, out + n * depth);
    } else if constexpr (PARTED<T>) split::columns(plain(rows), depth, columns, parts(out));
    else
        for (i64 r = 0; r < depth; ++r)  // read from end to end
            for (i64 n = 0; n < columns; n += COLUMNS) {
                const i64 width = std::min(COLUMNS, columns - n);
                std::copy(rows + r * columns + n, rows + r * columns + n + width, out + n * depth + r * COLUMNS);
            }
}

// (rows, columns) to (rows, depth) with zeros at the end of each, in another precision.
template <class T>
void pad(const float* in, i64 rows, i64 columns, T* out, i64 depth) {
    float row[STEP];
    for (i64 r = 0; r < rows; ++r)
        for (i64 j = 0; j < depth; j += STEP) {
            const float* from = in + r * columns + j;
            if (j + STEP > columns) {
                std::fill(std::copy(from, from + std::max(columns - j, i64(0)), row), row + STEP, 0.0f);
                from = row;
            }
            auto [a, b] = load(from);
            store(out + r * depth + j, a, b);
        }
}

// A weight (rows, columns), or its transpose, as a factor of depth padded_for<T>(...), written to `out` (with room for whole blocks of columns).
template <class T>
void pack(const float* weight, i64 rows, i64 columns, bool turned, T* out) {
    if constexpr (PARTED<T>) turned ? split::turned(weight, rows, columns, parts(out)) : split::columns(weight, rows, columns, parts(out));
    else if constexpr (FLOAT32<T>) {
        if (!turned) return interleave(weight, rows, columns, out);
        for (i64 n = 0; n < rows; n += COLUMNS) transpose(weight + n * columns, columns, std::min(COLUMNS, rows - n), columns, out + n * columns, COLUMNS);
    } else {
        const i64 depth = turned ? padded(columns) : columns;
        Buffer<T> cast(padded(rows) * depth + STEP);  // the last row's end is written in steps
        pad(weight, rows, columns, static_cast<T*>(cast), depth);
        if (!turned) {
            std::fill(cast + rows * columns, cast + padded(rows) * columns, T{});
            return interleave<T>(cast, padded(rows), columns, out);
        }
        for (i64 n = 0; n < rows; n += COLUMNS)  // pairs of numbers that are neighbours here belong together there
            transpose(reinterpret_cast<const float*>(cast + n * depth), depth / 2, std::min(COLUMNS, rows - n), depth / 2,
                      reinterpret_cast<float*>(out + n * depth), COLUMNS);
    }
}

// Rows (rows, columns) as a factor of depth padded_for<T>(rows).
template <class T>
void lay(const T* in, i64 rows, i64 columns, T* out) {
    if (rows == padded_for<T>(rows)) return interleave(in, rows, columns, out);
    Buffer<T> whole(padded(rows) * columns);
    std::fill(std::copy(in, in + rows * columns, static_cast<T*>(whole)), whole + padded(rows) * columns, T{});
    interleave<T>(whole, padded(rows), columns, out);
}

// A thread's share of the tasks 0, 1, ..., and then what the others have not begun of theirs.
class Tasks {
    const i64 count, shares, own;
    std::atomic<i64>* const begun;  // of each share

   public:
    Tasks(i64 count, i64 shares, i64 own, std::atomic<i64>* begun) : count(count), shares(shares), own(own), begun(begun) {}
    bool next(i64& task) {
        for (i64 k = 0; k < shares; ++k) {
            const i64 share = (own + k) % shares, first = share * count / shares;
            task = first + begun[share].fetch_add(1, std::memory_order_relaxed);
            if (task < (share + 1) * count / shares) return true;
        }
        return false;
    }
};

// work(tasks) on every thread. A core that others use as well does fewer of them, where with fixed shares the rest would wait for it. Who does what must make
// no difference to what comes out.
template <class F>
void share(i64 count, F work) {
    const i64 shares = std::min<i64>(count, at::get_num_threads());
    std::vector<std::atomic<i64>> begun(shares);
    at::parallel_for(0, shares, 1, [&](i64 begin, i64) {
        Tasks tasks(count, shares, begin, begun.data());
        work(tasks);
    });
}

template <class F>
int guarded(F work) {  // nothing is thrown across the border
    try {
        work();
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

template <class T>
T* const* as(void* const* pointers) { return reinterpret_cast<T* const*>(pointers); }

// work(a number of the type that products have): 0 float32, 1 bfloat16, 2 float32 in parts.
template <class F>
int of_kind(int kind, F work) {
    return guarded([&] { kind == 2 ? work(Parted()) : kind == 1 ? work(BFloat16()) : work(0.0f); });
}

}  // namespace

extern "C" {

int has_parts() { return split::available; }

// Numbers, of four bytes or with bfloat16 of two, that a laid out factor (depth, columns) takes.
i64 room(i64 depth, i64 columns, int kind) {
    return kind == 2 ? packed_size<Parted>(depth, columns) : kind == 1 ? packed_size<BFloat16>(depth, columns) : packed_size<float>(depth, columns);
}

}  // extern "C"
