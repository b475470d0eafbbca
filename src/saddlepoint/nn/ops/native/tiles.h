// The parts that native passes of small networks are made of: vectors, matrix products in tiles of 64 rows by 64
// columns, packed layouts, a share of work.
//
// Matrix products are oneDNN's batch-reduce GEMM (AVX2 or AVX-512 in float32, AVX-512 or AMX in bfloat16; sums are
// always float32). What follows a product, bias and activation, is done block by block while the block is still in the
// cache.
//
// ``at::native::cpublas`` is declared in ATen's installed headers but is not documented as stable. It stays because
// PyTorch exports no other door to oneDNN's ukernels: a call of torch.mm for a tile of 64 rows costs more than the
// product. nn/ops/native/build.py therefore bounds the torch version.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

namespace saddlepoint {

using at::BFloat16;
using at::Tensor;
using i64 = int64_t;
namespace blas = at::native::cpublas;

constexpr i64 ROWS = 64, COLUMNS = 64;  // of a tile; with AMX three times as fast as 32, 128 or 256 rows
using Vec = at::vec::Vectorized<float>;

template <class T>
constexpr bool FLOAT32 = std::is_same_v<T, float>;

constexpr i64 STEP = 2 * Vec::size();
using Two = std::tuple<Vec, Vec>;

inline Two load(const float* p) { return {Vec::loadu(p), Vec::loadu(p + Vec::size())}; }
inline Two load(const BFloat16* p) {
    return at::vec::convert_to_float<BFloat16>(at::vec::Vectorized<BFloat16>::loadu(p));
}
inline void store(float* p, Vec a, Vec b) { a.store(p), b.store(p + Vec::size()); }
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
#ifdef CPU_CAPABILITY_AVX512  // half the instructions of the line below: 2^y as 2^round(y) times Cephes' polynomial
                              // (exp2f)
    const Vec y = Vec(_mm512_min_ps(_mm512_set1_ps(most), x)) * Vec(1.44269504f), whole(_mm512_roundscale_ps(y, 0)),
              f = y - whole;
    Vec power(1.535336188e-4f);
    for (float c : {1.339887440e-3f, 9.618437358e-3f, 5.550332471e-2f, 2.402264791e-1f, 6.931472029e-1f, 1.0f})
        power = at::vec::fmadd(power, f, Vec(c));
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

inline void add(float* to, const float* more, i64 count) {
    i64 j = 0;
    for (; j + Vec::size() <= count; j += Vec::size()) (Vec::loadu(to + j) + Vec::loadu(more + j)).store(to + j);
    for (; j < count; ++j) to[j] += more[j];
}

inline i64 padded(i64 n) { return (n + 31) / 32 * 32; }  // oneDNN is slow for other depths in bfloat16

// Columns that rows of numbers of the type T have where they are the left factor of a product.
template <class T>
i64 padded_for(i64 n) {
    return FLOAT32<T> ? n : padded(n);
}

template <class T>
void products_end() {
    blas::brgemm_release(!FLOAT32<T>);
}

// Numbers of the type T that a factor takes when it is packed, the right one or 64 rows as the left one.
template <class T>
i64 packed_size(i64 depth, i64 columns) {
    return padded(depth) * ((columns + COLUMNS - 1) / COLUMNS * COLUMNS);
}

template <class T>
i64 left_size(i64 depth) {
    return packed_size<T>(depth, ROWS);
}

template <class T>
struct Buffer {  // uninitialised, aligned
    explicit Buffer(i64 n)
        : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64 + 64)), std::free) {}
    operator T*() const { return data.get(); }
    std::unique_ptr<T, decltype(&std::free)> data;
};

// The right factor of a product, (depth, columns): packed in blocks of 64 columns, in bfloat16 with pairs of rows
// interleaved; or plain. A packed block is read from end to end; the rows of a plain one with 512 columns lie 2 KiB
// apart and evict each other from the cache (69 GFLOP/s against 93).
template <class T>
struct Factor {
    const T* data;
    i64 depth, columns;
    bool blocks = true;
    const T* block(i64 n) const { return data + (blocks ? n * depth : n); }
    i64 stride() const { return blocks ? COLUMNS : columns; }
};

// A product to be summed: (rows, depth) with a row stride, times a factor.
template <class T>
struct Term {
    const T* a;
    i64 stride;
    Factor<T> b;
};

// Columns n .. n + 63, or to the last, of a sum of products of equal size: (rows, columns) to c with a row stride.
// Returns how many columns.
template <class T>
i64 block(const std::vector<Term<T>>& terms, i64 rows, i64 n, float* c, i64 stride) {
    const i64 columns = std::min(COLUMNS, terms.front().b.columns - n);
    for (size_t i = 0; i < terms.size(); ++i) {
        const auto& [a, a_stride, b] = terms[i];
        blas::brgemm(rows, columns, b.depth, a_stride, b.stride(), stride, i > 0, a, b.block(n), c, !FLOAT32<T>);
    }
    return columns;
}

// The sum, handed on in blocks: done(first column, columns, (rows, 64) float).
template <class T, class F>
void product(const std::vector<Term<T>>& terms, i64 rows, F done) {
    alignas(64) float c[ROWS * COLUMNS];
    for (i64 n = 0; n < terms.front().b.columns; n += COLUMNS) {
        const i64 columns = block(terms, rows, n, c, COLUMNS);
        done(n, columns, static_cast<const float*>(c));
    }
}

// The sum, written to `out` (rows, columns) with a row stride.
template <class T>
void product_to(const std::vector<Term<T>>& terms, i64 rows, float* out, i64 out_stride) {
    for (i64 n = 0; n < terms.front().b.columns; n += COLUMNS) block(terms, rows, n, out + n, out_stride);
}

template <class T, class F>
void product(const T* a, i64 stride, i64 rows, const Factor<T>& b, F done) {
    product<T>({{a, stride, b}}, rows, done);
}

// (rows, columns) with a row stride -> (columns, rows) with another.
template <class T>
void transpose(const T* in, i64 stride, i64 rows, i64 columns, T* out, i64 out_stride) {
    constexpr i64 B = at::vec::Vectorized<T>::size();
    for (i64 r = 0; r < rows; r += B)
        for (i64 c = 0; c < columns; c += B)
            at::vec::transpose_mxn<T>(in + r * stride + c, stride, out + c * out_stride + r, out_stride,
                                      std::min(B, rows - r), std::min(B, columns - c));
}

// (depth, columns) as a packed factor: blocks of 64 columns, in bfloat16 with each pair of rows interleaved (VNNI),
// which needs an even depth.
template <class T>
void interleave(const T* rows, i64 depth, i64 columns, T* out) {
    constexpr i64 PAIR = FLOAT32<T> ? 1 : 2;
    for (i64 r = 0; r < depth; r += PAIR)  // read from end to end
        for (i64 n = 0; n < columns; n += COLUMNS) {
            const i64 width = std::min(COLUMNS, columns - n);
            const T* from = rows + r * columns + n;
            T* to = out + n * depth + r * COLUMNS;
            if constexpr (FLOAT32<T>)
                std::copy_n(from, width, to);
            else
                for (i64 c = 0; c < width; ++c) to[2 * c] = from[c], to[2 * c + 1] = from[columns + c];
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

// A weight (rows, columns), or its transpose, as a factor of depth padded_for<T>(...), written to `out` (with room for
// whole blocks of columns).
template <class T>
void pack(const float* weight, i64 rows, i64 columns, bool turned, T* out) {
    if constexpr (FLOAT32<T>) {
        if (!turned) return interleave(weight, rows, columns, out);
        for (i64 n = 0; n < rows; n += COLUMNS)
            transpose(weight + n * columns, columns, std::min(COLUMNS, rows - n), columns, out + n * columns, COLUMNS);
    } else {
        const i64 depth = turned ? padded(columns) : columns;
        Buffer<T> cast(padded(rows) * depth + STEP);  // the last row's end is written in steps
        pad(weight, rows, columns, static_cast<T*>(cast), depth);
        if (!turned) {
            std::fill(cast + rows * columns, cast + padded(rows) * columns, T{});
            return interleave<T>(cast, padded(rows), columns, out);
        }
        for (i64 n = 0; n < rows; n += COLUMNS)  // pairs of numbers that are neighbours here belong together there
            transpose(reinterpret_cast<const float*>(cast + n * depth), depth / 2, std::min(COLUMNS, rows - n),
                      depth / 2, reinterpret_cast<float*>(out + n * depth), COLUMNS);
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
    Tasks(i64 count, i64 shares, i64 own, std::atomic<i64>* begun)
        : count(count), shares(shares), own(own), begun(begun) {}
    bool next(i64& task) {
        for (i64 k = 0; k < shares; ++k) {
            const i64 share = (own + k) % shares, first = share * count / shares;
            task = first + begun[share].fetch_add(1, std::memory_order_relaxed);
            if (task < (share + 1) * count / shares) return true;
        }
        return false;
    }
};

// work(tasks) on every thread. A core that others use as well does fewer of them, where with fixed shares the rest
// would wait for it. Who does what must make no difference to what comes out.
template <class F>
void share(i64 count, F work) {
    const i64 shares = std::min<i64>(count, at::get_num_threads());
    std::vector<std::atomic<i64>> begun(shares);
    at::parallel_for(0, shares, 1, [&](i64 begin, i64) {
        Tasks tasks(count, shares, begin, begun.data());
        work(tasks);
    });
}

// work(a number of the type that products have).
template <class F>
void with_type(bool low, F work) {
    low ? work(BFloat16()) : work(0.0f);
}

inline const float* floats(const Tensor& tensor) { return tensor.const_data_ptr<float>(); }
inline const float* floats(const std::optional<Tensor>& tensor) { return tensor ? floats(*tensor) : nullptr; }

inline std::vector<const float*> floats(at::TensorList tensors) {
    std::vector<const float*> pointers;
    for (const Tensor& tensor : tensors) pointers.push_back(floats(tensor));
    return pointers;
}

// Pointers to what kernels write, in the type of the products or in float32.
template <class T>
std::vector<T*> numbers(at::TensorList tensors) {
    std::vector<T*> pointers;
    for (const Tensor& tensor : tensors) pointers.push_back(tensor.numel() ? tensor.data_ptr<T>() : nullptr);
    return pointers;
}

// That a kernel may read or write as much as it will behind the tensor's pointer.
inline const Tensor& require(const Tensor& tensor, at::IntArrayRef shape, at::ScalarType type = at::kFloat) {
    TORCH_CHECK_VALUE(
        tensor.sizes() == shape && tensor.scalar_type() == type && tensor.is_contiguous() && tensor.device().is_cpu(),
        "native operations take a dense ", type, " tensor of ", shape, " on the CPU here, not ", tensor.scalar_type(),
        " ", tensor.sizes());
    return tensor;
}

inline Tensor room(at::IntArrayRef shape, bool low = false) {
    return at::empty(shape, low ? at::kBFloat16 : at::kFloat);
}

}  // namespace saddlepoint
