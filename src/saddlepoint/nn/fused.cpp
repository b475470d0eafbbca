// Passes of small MLPs on a CPU, 64 rows at a time, so that what a layer makes is still in the cache when the next one needs it.
//
// Matrix products are oneDNN's (at::native::cpublas::brgemm: AVX-512 in float32, AMX or AVX-512 in bfloat16, always summed in float32); each is followed at
// once, block by block, by bias and activation. Several members are worked on side by side: all (member, rows) tiles are shared out among the threads. No sum
// depends on how: the same numbers come out with any number of threads.
//
// A net is: first layer  wide part of the inputs @ W_0[:wide] + b_0  (or given: `base`)  + narrow part (an action) @ W_0[wide:], hidden layers, and a head of
// few columns. Hidden widths are multiples of 32. nn/fused.py checks everything that comes in here.

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <tuple>
#include <vector>

using at::BFloat16;
using i64 = int64_t;
namespace blas = at::native::cpublas;

extern "C" struct Net {
    i64 members, wide, narrow, hidden, head;  // columns of both parts of the input, number of hidden layers, columns of the head
    i64 silu;                                 // activation: 1 SiLU, 0 ReLU
    i64 flipped;                              // layout of the hidden layers' weights: 0 (in, out), 1 (out, in)
    const i64* widths;                        // of the hidden layers
    const float* const* weights;              // first layer (members, wide + narrow, widths[0]), hidden layers, head (members, head, widths[-1])
    const float* const* biases;               // of each (members, out); the first is not read where the base is given
};

namespace {

constexpr i64 ROWS = 64, COLUMNS = 64;  // of a tile, and of one product: measured fastest of 32, 64, 128, 256 rows
using Vec = at::vec::Vectorized<float>;
constexpr i64 STEP = 2 * Vec::size();
using Two = std::tuple<Vec, Vec>;

inline Two load(const float* p) { return {Vec::loadu(p), Vec::loadu(p + Vec::size())}; }
inline Two load(const BFloat16* p) { return at::vec::convert_to_float<BFloat16>(at::vec::Vectorized<BFloat16>::loadu(p)); }
inline void store(float* p, Vec a, Vec b) { a.store(p), b.store(p + Vec::size()); }
inline void store(BFloat16* p, Vec a, Vec b) {
#ifdef __AVX512BF16__  // in one instruction, where PyTorch's takes a dozen
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b, a));
#else
    at::vec::convert_from_float<BFloat16>(a, b).store(p);
#endif
}

// 1/x for 1 <= x < inf.
inline Vec inverse(Vec x) {
#ifdef CPU_CAPABILITY_AVX512  // 14 bits and a step of Newton's: a division takes five times as long
    const Vec y(_mm512_rcp14_ps(x));
    return y * at::vec::fnmadd(x, y, Vec(2));
#else
    return x.reciprocal();
#endif
}

inline float total(Vec v) {
    return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, v);
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

template <class T>
struct Buffer {  // uninitialised, aligned
    explicit Buffer(i64 n) : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64 + 64)), std::free) {}
    operator T*() const { return data.get(); }
    std::unique_ptr<T, decltype(&std::free)> data;
};

// The right factor of a product, (depth, columns): as it is in float32; in bfloat16 in blocks of 64 columns, pairs of rows interleaved.
template <class T>
struct Factor {
    const T* data;
    i64 depth, columns;
    const T* block(i64 n) const { return std::is_same_v<T, float> ? data + n : data + n * depth; }
    i64 stride() const { return std::is_same_v<T, float> ? columns : COLUMNS; }
};

// The product of (rows, depth) with a factor, handed on in blocks: done(first column, columns, (rows, 64) float).
template <class T, class F>
void product(const T* a, i64 stride, i64 rows, const Factor<T>& b, F done) {
    alignas(64) float c[ROWS * COLUMNS];
    for (i64 n = 0; n < b.columns; n += COLUMNS) {
        const i64 width = std::min(COLUMNS, b.columns - n);
        blas::brgemm(rows, width, b.depth, stride, b.stride(), COLUMNS, false, a, b.block(n), c, !std::is_same_v<T, float>);
        done(n, width, c);
    }
}

// (rows, columns) with a row stride -> (columns, rows) with another.
template <class T>
void transpose(const T* in, i64 stride, i64 rows, i64 columns, T* out, i64 out_stride) {
    constexpr i64 B = at::vec::Vectorized<T>::size();
    for (i64 r = 0; r < rows; r += B)
        for (i64 c = 0; c < columns; c += B)
            at::vec::transpose_mxn<T>(in + r * stride + c, stride, out + c * out_stride + r, out_stride, std::min(B, rows - r), std::min(B, columns - c));
}

template <class T>
void interleave(const T* rows, i64 depth, i64 columns, T* out) {
    if constexpr (std::is_same_v<T, BFloat16>)
        for (i64 n = 0; n < columns; n += COLUMNS)
            blas::pack(depth, std::min(COLUMNS, columns - n), columns, COLUMNS, at::kBFloat16, at::kBFloat16, rows + n, out + n * depth);
}

// A weight (rows, columns), or its transpose, as a factor of depth padded(...), written to `out` (with room for whole blocks of columns).
template <class T>
void pack(const float* weight, i64 rows, i64 columns, bool turned, T* out) {
    constexpr bool same = std::is_same_v<T, float>;
    const i64 depth = turned ? columns : rows, wide = turned ? rows : columns;
    Buffer<T> cast(same ? 0 : rows * columns), scratch(same ? 0 : padded(depth) * wide);
    const T* from;
    if constexpr (same) from = weight;
    else {
        for (i64 i = 0; i < rows * columns; i += STEP) std::apply([&](Vec a, Vec b) { store(cast + i, a, b); }, load(weight + i));
        from = cast;
    }
    T* dense = same ? out : static_cast<T*>(scratch);
    if (turned) transpose(from, columns, rows, columns, dense, wide);
    else std::copy(from, from + rows * columns, dense);
    std::fill(dense + depth * wide, dense + padded(depth) * wide, T(0));
    interleave(dense, padded(depth), wide, out);
}

i64 packed_size(i64 depth, i64 columns) { return padded(depth) * ((columns + COLUMNS - 1) / COLUMNS * COLUMNS); }

// The layers l (from 0) whose products the passes need: out of layer l going forward, back into it going backward.
template <class T>
Factor<T> factor(const Net& net, T* const* packed, i64 layer, i64 member, bool backward) {
    const i64 in = layer ? net.widths[layer - 1] : net.wide, out = net.widths[layer];
    const i64 depth = backward ? out : in, columns = backward ? in : out;
    return {packed[layer] + member * packed_size(depth, columns), padded(depth), columns};
}

template <class T>
void pack_all(const Net& net, bool backward, T* const* packed) {
    const i64 first = backward || !net.wide ? 1 : 0, count = net.hidden - first;
    at::parallel_for(0, net.members * count, 1, [&](i64 begin, i64 end) {
        for (i64 task = begin; task < end; ++task) {
            const i64 member = task / count, layer = first + task % count;
            const i64 in = layer ? net.widths[layer - 1] : net.wide, out = net.widths[layer];
            const float* weight = net.weights[layer] + member * (layer ? in : net.wide + net.narrow) * out;
            const bool flipped = layer && net.flipped;
            T* to = packed[layer] + member * (backward ? packed_size(out, in) : packed_size(in, out));
            flipped ? pack(weight, out, in, !backward, to) : pack(weight, in, out, backward, to);
        }
    });
}

// out = activation(pre); source: what the backward pass multiplies with, kept for SiLU (the derivative); ReLU's is 1 where its output is above 0.
template <class T>
inline void activate(bool silu, Vec p0, Vec p1, T* out, T* source) {
    const Vec zero(0), one(1);
    if (!silu) return store(out, at::vec::maximum(p0, zero), at::vec::maximum(p1, zero));
    const Vec most(80);  // from there on the gate is 0 in float32
    const Vec g0 = inverse(one + at::vec::minimum(zero - p0, most).exp_u20()), g1 = inverse(one + at::vec::minimum(zero - p1, most).exp_u20());
    const Vec y0 = p0 * g0, y1 = p1 * g1;
    store(out, y0, y1);
    if (source) store(source, g0 + y0 * (one - g0), g1 + y1 * (one - g1));
}

template <class T>
inline Two slope(bool silu, const T* source) {
    auto [s0, s1] = load(source);
    if (silu) return {s0, s1};
    const Vec zero(0), one(1);
    return {Vec::blendv(zero, one, s0 > zero), Vec::blendv(zero, one, s1 > zero)};
}

template <class T>
void forward(const Net& net, T* const* packed, const T* wide, const float* base, const float* narrow, i64 proposals, i64 batch,
             T* const* outputs, T* const* sources, float* values) {
    const i64 tiles = (batch + ROWS - 1) / ROWS, rows = proposals * batch, first = net.widths[0], last = net.widths[net.hidden - 1];
    const i64 widest = *std::max_element(net.widths, net.widths + net.hidden);
    at::parallel_for(0, net.members * tiles, 1, [&](i64 begin, i64 end) {
        Buffer<float> shared(ROWS * first);
        Buffer<T> ping(ROWS * widest), pong(ROWS * widest);
        for (i64 task = begin; task < end; ++task) {
            const i64 member = task / tiles, start = task % tiles * ROWS, n = std::min(ROWS, batch - start);
            const float* columns = net.weights[0] + (member * (net.wide + net.narrow) + net.wide) * first;
            const float* common = base ? base + start * first : static_cast<float*>(shared);
            if (!base) {
                const i64 depth = padded(net.wide);
                const float* bias = net.biases[0] + member * first;
                product<T>(wide + start * depth, depth, n, factor(net, packed, 0, member, false), [&](i64 from, i64 width, const float* c) {
                    for (i64 r = 0; r < n; ++r)
                        for (i64 j = 0; j < width; j += STEP) {
                            auto [c0, c1] = load(c + r * COLUMNS + j);
                            auto [b0, b1] = load(bias + from + j);
                            store(shared + r * first + from + j, c0 + b0, c1 + b1);
                        }
                });
            }
            for (i64 p = 0; p < proposals; ++p) {
                const i64 row = p * batch + start, at = member * rows + row;
                T* h = outputs ? outputs[0] + at * first : static_cast<T*>(ping);
                T* source = sources ? sources[0] + at * first : nullptr;
                for (i64 r = 0; r < n; ++r)
                    for (i64 j = 0; j < first; j += STEP) {
                        auto [p0, p1] = load(common + r * first + j);
                        for (i64 a = 0; a < net.narrow; ++a) {
                            const Vec u(narrow[(row + r) * net.narrow + a]);
                            auto [w0, w1] = load(columns + a * first + j);
                            p0 = at::vec::fmadd(u, w0, p0), p1 = at::vec::fmadd(u, w1, p1);
                        }
                        activate(net.silu, p0, p1, h + r * first + j, source ? source + r * first + j : nullptr);
                    }
                for (i64 layer = 1; layer < net.hidden; ++layer) {
                    const i64 width = net.widths[layer];
                    const float* bias = net.biases[layer] + member * width;
                    T* next = outputs ? outputs[layer] + at * width : static_cast<T*>(layer % 2 ? pong : ping);
                    source = sources ? sources[layer] + at * width : nullptr;
                    product<T>(h, net.widths[layer - 1], n, factor(net, packed, layer, member, false), [&](i64 from, i64 count, const float* c) {
                        for (i64 r = 0; r < n; ++r)
                            for (i64 j = 0; j < count; j += STEP) {
                                auto [c0, c1] = load(c + r * COLUMNS + j);
                                auto [b0, b1] = load(bias + from + j);
                                const i64 to = r * width + from + j;
                                activate(net.silu, c0 + b0, c1 + b1, next + to, source ? source + to : nullptr);
                            }
                    });
                    h = next;
                }
                const float* head = net.weights[net.hidden] + member * net.head * last;
                for (i64 r = 0; r < n; ++r)
                    for (i64 o = 0; o < net.head; ++o)
                        values[(at + r) * net.head + o] = dot(h + r * last, head + o * last, last) + net.biases[net.hidden][member * net.head + o];
            }
        }
        blas::brgemm_release(!std::is_same_v<T, float>);
    });
}

// Back from `upstream` (members, rows, head) at the values: gradients at the pre-activations of all layers to `grads` (members, stride, width), and at the
// narrow inputs, summed over members, to `below` (rows, narrow); either may be null. Without `grads`, rows without upstream are left out: a reward head is the
// smallest in a part of the rows only, and costs matter only where the penalty pushes.
template <class T>
void backward(const Net& net, T* const* packed, i64 rows, T* const* sources, const float* upstream, T* const* grads, i64 stride, float* below) {
    const i64 tiles = (rows + ROWS - 1) / ROWS, first = net.widths[0], last = net.widths[net.hidden - 1];
    const i64 widest = *std::max_element(net.widths, net.widths + net.hidden), groups = grads ? net.members : 1;
    at::parallel_for(0, groups * tiles, 1, [&](i64 begin, i64 end) {
        Buffer<T> ping(ROWS * widest), pong(ROWS * widest);
        for (i64 task = begin; task < end; ++task) {
            const i64 start = task % tiles * ROWS, n = std::min(ROWS, rows - start);
            if (below && !grads) std::fill(below + start * net.narrow, below + (start + n) * net.narrow, 0.0f);
            for (i64 member = grads ? task / tiles : 0; member < (grads ? task / tiles + 1 : net.members); ++member) {
                const i64 at = member * rows + start;
                i64 picked[ROWS], count = 0;
                for (i64 r = 0; r < n; ++r)
                    if (grads || std::any_of(upstream + (at + r) * net.head, upstream + (at + r + 1) * net.head, [](float u) { return u != 0; })) picked[count++] = r;
                if (!count) continue;
                const i64 place = member * stride + start;
                T* g = grads ? grads[net.hidden - 1] + place * last : static_cast<T*>(ping);
                const float* head = net.weights[net.hidden] + member * net.head * last;
                for (i64 i = 0; i < count; ++i)
                    for (i64 j = 0; j < last; j += STEP) {
                        Vec g0(0), g1(0);
                        for (i64 o = 0; o < net.head; ++o) {
                            const Vec u(upstream[(at + picked[i]) * net.head + o]);
                            auto [w0, w1] = load(head + o * last + j);
                            g0 = at::vec::fmadd(u, w0, g0), g1 = at::vec::fmadd(u, w1, g1);
                        }
                        auto [s0, s1] = slope(net.silu, sources[net.hidden - 1] + (at + picked[i]) * last + j);
                        store(g + i * last + j, g0 * s0, g1 * s1);
                    }
                for (i64 layer = net.hidden - 1; layer > 0; --layer) {
                    const i64 width = net.widths[layer - 1];
                    T* next = grads ? grads[layer - 1] + place * width : static_cast<T*>(g == static_cast<T*>(ping) ? pong : ping);
                    const T* source = sources[layer - 1] + at * width;
                    product<T>(g, net.widths[layer], count, factor(net, packed, layer, member, true), [&](i64 from, i64 wide, const float* c) {
                        for (i64 i = 0; i < count; ++i)
                            for (i64 j = 0; j < wide; j += STEP) {
                                auto [c0, c1] = load(c + i * COLUMNS + j);
                                auto [s0, s1] = slope(net.silu, source + picked[i] * width + from + j);
                                store(next + i * width + from + j, c0 * s0, c1 * s1);
                            }
                    });
                    g = next;
                }
                if (!below) continue;
                const float* columns = net.weights[0] + (member * (net.wide + net.narrow) + net.wide) * first;
                for (i64 i = 0; i < count; ++i)
                    for (i64 a = 0; a < net.narrow; ++a) {
                        float* to = below + (start + picked[i]) * net.narrow + a;
                        const float found = dot(g + i * first, columns + a * first, first);
                        *to = grads ? found : *to + found;
                    }
            }
        }
        blas::brgemm_release(!std::is_same_v<T, float>);
    });
}

// Gradients of weights and biases, in the layout of critics (members, in, out), from `inputs` (rows, wide + narrow), the hidden layers' outputs, the gradients
// that `backward` left, whose `stride` rows are 0 from `rows` on, and `upstream` (members, rows, 1).
template <class T>
void weight_gradients(const Net& net, i64 rows, const T* inputs, T* const* outputs, T* const* grads, i64 stride, const float* upstream,
                      float* const* d_weights, float* const* d_biases) {
    const i64 last = net.widths[net.hidden - 1];
    std::vector<i64> offset(net.hidden + 1, 0);
    for (i64 layer = 0; layer < net.hidden; ++layer) offset[layer + 1] = offset[layer] + packed_size(stride, net.widths[layer]);
    Buffer<T> packed(std::is_same_v<T, float> ? 0 : net.members * offset[net.hidden]);
    const i64 layers = net.hidden + 1;
    at::parallel_for(0, net.members * layers, 1, [&](i64 begin, i64 end) {
        for (i64 task = begin; task < end; ++task) {
            const i64 member = task / layers, layer = task % layers;
            if (layer == net.hidden) {
                float* d_weight = d_weights[layer] + member * last;
                float sum = 0;
                std::fill(d_weight, d_weight + last, 0.0f);
                for (i64 r = 0; r < rows; ++r) {
                    const float up = upstream[member * rows + r];
                    sum += up;
                    for (i64 j = 0; j < last; j += STEP) {
                        auto [h0, h1] = load(outputs[layer - 1] + (member * rows + r) * last + j);
                        auto [d0, d1] = load(d_weight + j);
                        store(d_weight + j, at::vec::fmadd(Vec(up), h0, d0), at::vec::fmadd(Vec(up), h1, d1));
                    }
                }
                d_biases[layer][member] = sum;
                continue;
            }
            const i64 width = net.widths[layer];
            const T* grad = grads[layer] + member * stride * width;
            float* d_bias = d_biases[layer] + member * width;
            std::fill(d_bias, d_bias + width, 0.0f);
            for (i64 r = 0; r < rows; ++r)
                for (i64 j = 0; j < width; j += STEP) {
                    auto [g0, g1] = load(grad + r * width + j);
                    auto [d0, d1] = load(d_bias + j);
                    store(d_bias + j, d0 + g0, d1 + g1);
                }
            interleave(grad, stride, width, packed + member * offset[net.hidden] + offset[layer]);
        }
    });
    std::vector<std::tuple<i64, i64, i64>> tasks;  // member, layer, first row of the weight
    for (i64 member = 0; member < net.members; ++member)
        for (i64 layer = 0; layer < net.hidden; ++layer)
            for (i64 k = 0; k < (layer ? net.widths[layer - 1] : net.wide + net.narrow); k += ROWS) tasks.emplace_back(member, layer, k);
    at::parallel_for(0, static_cast<i64>(tasks.size()), 1, [&](i64 begin, i64 end) {
        Buffer<T> turned(ROWS * stride);
        for (i64 task = begin; task < end; ++task) {
            auto [member, layer, k] = tasks[task];
            const i64 in = layer ? net.widths[layer - 1] : net.wide + net.narrow, width = net.widths[layer], n = std::min(ROWS, in - k);
            if (layer) transpose(outputs[layer - 1] + member * rows * in + k, in, rows, n, static_cast<T*>(turned), stride);
            else transpose(inputs + k, in, rows, n, static_cast<T*>(turned), stride);
            for (i64 c = 0; c < n; ++c) std::fill(turned + c * stride + rows, turned + (c + 1) * stride, T(0));
            const T* grad = std::is_same_v<T, float> ? grads[layer] + member * stride * width : packed + member * offset[net.hidden] + offset[layer];
            float* d_weight = d_weights[layer] + (member * in + k) * width;
            product<T>(turned, stride, n, Factor<T>{grad, stride, width}, [&](i64 from, i64 count, const float* c) {
                for (i64 r = 0; r < n; ++r) std::copy(c + r * COLUMNS, c + r * COLUMNS + count, d_weight + r * width + from);
            });
        }
        blas::brgemm_release(!std::is_same_v<T, float>);
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

}  // namespace

extern "C" {

i64 room(i64 depth, i64 columns) { return packed_size(depth, columns); }

int pack_net(const Net* net, int low, int backward, void* const* packed) {
    return guarded([&] { low ? pack_all(*net, backward, as<BFloat16>(packed)) : pack_all(*net, backward, as<float>(packed)); });
}

int forward_net(const Net* net, int low, void* const* packed, const void* wide, const float* base, const float* narrow, i64 proposals, i64 batch,
                void* const* outputs, void* const* sources, float* values) {
    return guarded([&] {
        low ? forward(*net, as<BFloat16>(packed), static_cast<const BFloat16*>(wide), base, narrow, proposals, batch, as<BFloat16>(outputs), as<BFloat16>(sources), values)
            : forward(*net, as<float>(packed), static_cast<const float*>(wide), base, narrow, proposals, batch, as<float>(outputs), as<float>(sources), values);
    });
}

int backward_net(const Net* net, int low, void* const* packed, i64 rows, void* const* sources, const float* upstream, void* const* grads, i64 stride, float* below) {
    return guarded([&] {
        low ? backward(*net, as<BFloat16>(packed), rows, as<BFloat16>(sources), upstream, as<BFloat16>(grads), stride, below)
            : backward(*net, as<float>(packed), rows, as<float>(sources), upstream, as<float>(grads), stride, below);
    });
}

int weight_gradients_net(const Net* net, int low, i64 rows, const void* inputs, void* const* outputs, void* const* grads, i64 stride, const float* upstream,
                         float* const* d_weights, float* const* d_biases) {
    return guarded([&] {
        low ? weight_gradients(*net, rows, static_cast<const BFloat16*>(inputs), as<BFloat16>(outputs), as<BFloat16>(grads), stride, upstream, d_weights, d_biases)
            : weight_gradients(*net, rows, static_cast<const float*>(inputs), as<float>(outputs), as<float>(grads), stride, upstream, d_weights, d_biases);
    });
}

}  // extern "C"
