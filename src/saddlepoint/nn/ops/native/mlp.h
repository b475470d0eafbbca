// Passes of small MLPs on a CPU, 64 rows at a time, so that what a layer makes is still in the cache when the next one needs it.
//
// Several members are worked on side by side: all (member, rows) tiles are shared out among the threads. No sum depends on how: results are the same to the
// bit with any number of threads.
//
// A net is: first layer  wide part of the inputs @ W_0[:wide] + b_0  (or given: `base`)  + narrow part (an action) @ W_0[wide:], hidden layers, and a head of
// few columns. Hidden widths are multiples of 32. mlp.cpp checks everything that comes in here.

#pragma once

#include "tiles.h"

namespace saddlepoint {

struct Net {
    i64 members, wide, narrow, hidden, head;  // columns of both parts of the input, number of hidden layers, columns of the head
    bool silu;                                // activation: SiLU, or ReLU
    bool flipped;                             // hidden layers' weights are (out, in), or (in, out)
    std::vector<i64> widths;                  // of the hidden layers
    std::vector<const float*> weights;        // first layer (members, wide + narrow, widths[0]), hidden layers, head (members, head, widths[-1])
    std::vector<const float*> biases;         // of each (members, out); the first is not read where the base is given
};

inline const float* weight_of(const Net& net, i64 layer, i64 member) {
    return net.weights[layer] + member * (layer ? net.widths[layer - 1] : net.wide + net.narrow) * net.widths[layer];
}

// Whether the products of a direction read a layer's weights unpacked, (depth, columns): in float32, where they need not be transposed for it.
template <class T>
bool unpacked(const Net& net, i64 layer, bool backward) { return FLOAT32<T> && (layer && net.flipped) == backward; }

// The right factor of layer l's product: into its outputs going forward, back to its inputs going backward.
template <class T>
Factor<T> factor(const Net& net, T* const* packed, i64 layer, i64 member, bool backward) {
    const i64 in = layer ? net.widths[layer - 1] : net.wide, out = net.widths[layer];
    const i64 depth = backward ? out : in, columns = backward ? in : out;
    if constexpr (FLOAT32<T>)
        if (unpacked<T>(net, layer, backward)) return {weight_of(net, layer, member), depth, columns, false};
    return {packed[layer] + member * packed_size<T>(depth, columns), padded_for<T>(depth), columns};
}

// Packs all factors of the forward passes (or backward ones) that are not read unpacked.
template <class T>
void pack_all(const Net& net, T* const* packed, bool backward) {
    share(net.members * net.hidden, [&](Tasks& queue) {
        for (i64 task; queue.next(task);) {
            const i64 layer = task % net.hidden, member = task / net.hidden;
            if (!layer && (backward || !net.wide)) continue;
            if (unpacked<T>(net, layer, backward)) continue;
            const i64 in = layer ? net.widths[layer - 1] : net.wide, out = net.widths[layer];
            const float* weight = weight_of(net, layer, member);
            T* to = packed[layer] + member * (backward ? packed_size<T>(out, in) : packed_size<T>(in, out));
            layer && net.flipped ? pack(weight, out, in, !backward, to) : pack(weight, in, out, backward, to);
        }
    });
}

// out = activation(pre); source: what the backward pass multiplies with, kept for SiLU (the derivative); ReLU's is 1 where its output is above 0.
template <class T>
inline void activate(bool silu, Vec p0, Vec p1, T* out, T* source) {
    const Vec zero(0), one(1);
    if (!silu) return store(out, at::vec::maximum(p0, zero), at::vec::maximum(p1, zero));
    const Vec g0 = sigmoid(p0), g1 = sigmoid(p1);
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

// Rows of what is kept of each hidden layer, from `row` on; nothing where nothing is kept.
template <class T>
struct Kept {
    T* const* layers;
    const Net& net;
    i64 row;
    T* operator[](i64 layer) const { return layers ? layers[layer] + row * net.widths[layer] : nullptr; }
};

inline i64 widest(const Net& net) { return *std::max_element(net.widths.begin(), net.widths.end()); }

// The columns of the first layer that see the narrow inputs: (narrow, widths[0]).
inline const float* narrow_columns(const Net& net, i64 member) { return weight_of(net, 0, member) + net.wide * net.widths[0]; }

// The first layer at n rows: activation(common (n, width) + more (width) + narrow @ columns).
template <class T>
void first_layer(const Net& net, i64 member, const float* common, const float* more, const float* narrow, i64 n, T* out, T* source) {
    const i64 width = net.widths[0];
    const float* columns = narrow_columns(net, member);
    for (i64 r = 0; r < n; ++r)
        for (i64 j = 0; j < width; j += STEP) {
            auto [p0, p1] = load(common + r * width + j);
            if (more) {
                auto [m0, m1] = load(more + j);
                p0 = p0 + m0, p1 = p1 + m1;
            }
            for (i64 a = 0; a < net.narrow; ++a) {
                const Vec u(narrow[r * net.narrow + a]);
                auto [w0, w1] = load(columns + a * width + j);
                p0 = at::vec::fmadd(u, w0, p0), p1 = at::vec::fmadd(u, w1, p1);
            }
            activate(net.silu, p0, p1, out + r * width + j, source ? source + r * width + j : nullptr);
        }
}

// The other hidden layers at n rows and the head's values (n, head), from the first layer's output h. Outputs that are not kept go to ping and pong.
template <class T>
void layers_forward(const Net& net, T* const* packed, i64 member, i64 n, const T* h, Kept<T> outputs, Kept<T> sources, T* ping, T* pong, float* values) {
    for (i64 layer = 1; layer < net.hidden; ++layer) {
        const i64 width = net.widths[layer];
        const float* bias = net.biases[layer] + member * width;
        T* next = outputs.layers ? outputs[layer] : (h == ping ? pong : ping);
        T* source = sources[layer];
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
    const i64 last = net.widths[net.hidden - 1];
    const float *head = net.weights[net.hidden] + member * net.head * last, *bias = net.biases[net.hidden] + member * net.head;
    for (i64 r = 0; r < n; ++r)
        for (i64 o = 0; o < net.head; ++o) values[r * net.head + o] = dot(h + r * last, head + o * last, last) + bias[o];
}

// The part of the first layer's sums that the wide inputs (n, wide) make, and its bias: (n, widths[0]), to `to`. `cast` has room for rows of T's, as a product
// takes them.
template <class T>
void wide_part(const Net& net, T* const* packed, i64 member, const float* wide, i64 n, T* cast, float* to) {
    const i64 first = net.widths[0], depth = padded_for<T>(net.wide);
    const float* bias = net.biases[0] + member * first;
    const T* input = cast;
    if constexpr (FLOAT32<T>) input = reinterpret_cast<const T*>(wide);
    else pad(wide, n, net.wide, cast, depth);
    product<T>(input, depth, n, factor(net, packed, 0, member, false), [&](i64 from, i64 width, const float* c) {
        for (i64 r = 0; r < n; ++r)
            for (i64 j = 0; j < width; j += STEP) {
                auto [c0, c1] = load(c + r * COLUMNS + j);
                auto [b0, b1] = load(bias + from + j);
                store(to + r * first + from + j, c0 + b0, c1 + b1);
            }
    });
}

template <class T>
i64 cast_size(const Net& net) { return FLOAT32<T> ? 0 : ROWS * padded(net.wide); }

// Values (members, proposals, batch, head) at `wide` (batch, wide), or `base` (batch, widths[0]) instead, and `narrow` (proposals, batch, narrow). What is kept
// of the hidden layers, outputs and sources (members, proposals * batch, width), may be null. The wide part is taken once for all proposals.
template <class T>
void forward(const Net& net, T* const* packed, const float* wide, const float* base, const float* narrow, i64 proposals, i64 batch,
             T* const* outputs, T* const* sources, float* values) {
    const i64 tiles = (batch + ROWS - 1) / ROWS, rows = proposals * batch, first = net.widths[0];
    share(net.members * tiles, [&](Tasks& queue) {
        Buffer<float> shared(ROWS * first);
        Buffer<T> cast(cast_size<T>(net)), ping(ROWS * widest(net)), pong(ROWS * widest(net));
        for (i64 task; queue.next(task);) {
            const i64 member = task / tiles, start = task % tiles * ROWS, n = std::min(ROWS, batch - start);
            const float* common = base ? base + start * first : static_cast<float*>(shared);
            if (!base) wide_part<T>(net, packed, member, wide + start * net.wide, n, cast, shared);
            for (i64 p = 0; p < proposals; ++p) {
                const i64 row = p * batch + start, at = member * rows + row;
                const Kept<T> kept{outputs, net, at}, slopes{sources, net, at};
                T* h = outputs ? kept[0] : static_cast<T*>(ping);
                first_layer<T>(net, member, common, nullptr, narrow + row * net.narrow, n, h, slopes[0]);
                layers_forward<T>(net, packed, member, n, h, kept, slopes, ping, pong, values + at * net.head);
            }
        }
        products_end<T>();
    });
}

// Back through all hidden layers from `upstream` (n, head) at the values, for the `count` rows `picked`: returns the gradient at the first pre-activation,
// (count, widths[0]). `sources` and `upstream` have all n rows; `grads` and what is returned the picked ones.
template <class T>
const T* layers_back(const Net& net, T* const* packed, i64 member, const i64* picked, i64 count, const float* upstream, Kept<T> sources, Kept<T> grads, T* ping, T* pong) {
    const i64 last = net.widths[net.hidden - 1];
    const float* head = net.weights[net.hidden] + member * net.head * last;
    T* g = grads.layers ? grads[net.hidden - 1] : ping;
    for (i64 i = 0; i < count; ++i)
        for (i64 j = 0; j < last; j += STEP) {
            Vec g0(0), g1(0);
            for (i64 o = 0; o < net.head; ++o) {
                const Vec u(upstream[picked[i] * net.head + o]);
                auto [w0, w1] = load(head + o * last + j);
                g0 = at::vec::fmadd(u, w0, g0), g1 = at::vec::fmadd(u, w1, g1);
            }
            auto [s0, s1] = slope(net.silu, sources[net.hidden - 1] + picked[i] * last + j);
            store(g + i * last + j, g0 * s0, g1 * s1);
        }
    for (i64 layer = net.hidden - 1; layer > 0; --layer) {
        const i64 width = net.widths[layer - 1];
        T* next = grads.layers ? grads[layer - 1] : (g == ping ? pong : ping);
        const T* source = sources[layer - 1];
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
    return g;
}

// below[picked] += g (count, widths[0]) @ columns^T, (n, narrow).
template <class T>
void narrow_back(const Net& net, i64 member, const i64* picked, i64 count, const T* g, float* below) {
    const i64 first = net.widths[0];
    const float* columns = narrow_columns(net, member);
    for (i64 i = 0; i < count; ++i)
        for (i64 a = 0; a < net.narrow; ++a) below[picked[i] * net.narrow + a] += dot(g + i * first, columns + a * first, first);
}

struct Every {  // the rows 0, 1, ... of a tile
    i64 rows[ROWS];
    Every() { std::iota(rows, rows + ROWS, 0); }
};

// Back from `upstream` (members, rows, head) at the values: gradients at the pre-activations of all layers to `grads` (members, stride, width), or those at the
// narrow inputs, summed over members, to `below` (rows, narrow). For `below`, rows without upstream are left out: a reward head is the smallest in a part of
// the rows only, and costs matter only where the penalty pushes.
template <class T>
void backward(const Net& net, T* const* packed, i64 rows, T* const* sources, const float* upstream, T* const* grads, i64 stride, float* below) {
    const i64 tiles = (rows + ROWS - 1) / ROWS;
    const Every every;
    share((grads ? net.members : 1) * tiles, [&](Tasks& queue) {
        Buffer<T> ping(ROWS * widest(net)), pong(ROWS * widest(net));
        for (i64 task; queue.next(task);) {
            const i64 start = task % tiles * ROWS, n = std::min(ROWS, rows - start);
            if (grads) {
                const i64 member = task / tiles, at = member * rows + start;
                layers_back<T>(net, packed, member, every.rows, n, upstream + at * net.head, {sources, net, at}, {grads, net, member * stride + start}, ping, pong);
                continue;
            }
            std::fill(below + start * net.narrow, below + (start + n) * net.narrow, 0.0f);
            for (i64 member = 0; member < net.members; ++member) {
                const i64 at = member * rows + start;
                i64 picked[ROWS], count = 0;
                for (i64 r = 0; r < n; ++r)
                    if (std::any_of(upstream + (at + r) * net.head, upstream + (at + r + 1) * net.head, [](float u) { return u != 0; })) picked[count++] = r;
                if (!count) continue;
                const T* g = layers_back<T>(net, packed, member, picked, count, upstream + at * net.head, {sources, net, at}, {nullptr, net, 0}, ping, pong);
                narrow_back(net, member, picked, count, g, below + start * net.narrow);
            }
        }
        products_end<T>();
    });
}

// Of scale * sum of (values - wanted)^2 over members and rows, at `wide` (rows, wide) and `narrow` (rows, narrow): the loss, its gradient at the values,
// `upstream` (members, rows), and those at the pre-activations, `grads` (members, stride, width), 0 from `rows` on; `outputs` (members, rows, width) are left
// as well. `wanted` (members, rows), or `shared` (rows). Forward and back again tile by tile. The net has one value.
template <class T>
void fit(const Net& net, T* const* packed, T* const* turned, const float* wide, const float* narrow, i64 rows, const float* wanted, i64 shared, float scale,
         T* const* outputs, T* const* grads, i64 stride, float* upstream, float* loss) {
    const i64 tiles = (rows + ROWS - 1) / ROWS, first = net.widths[0];
    const Every every;
    std::vector<double> sums(net.members * tiles, 0.0);
    share(net.members * tiles, [&](Tasks& queue) {
        Buffer<float> common(ROWS * first), values(ROWS);
        Buffer<T> cast(cast_size<T>(net)), derivatives(net.silu ? net.hidden * ROWS * widest(net) : 0);
        std::vector<T*> slopes;
        for (i64 layer = 0; layer < net.hidden; ++layer) slopes.push_back(derivatives + layer * ROWS * widest(net));
        for (i64 task; queue.next(task);) {
            const i64 member = task / tiles, start = task % tiles * ROWS, n = std::min(ROWS, rows - start), at = member * rows + start;
            const Kept<T> kept{outputs, net, at}, sources = net.silu ? Kept<T>{slopes.data(), net, 0} : kept, nothing{nullptr, net, 0};
            wide_part<T>(net, packed, member, wide + start * net.wide, n, cast, common);
            first_layer<T>(net, member, common, nullptr, narrow + start * net.narrow, n, kept[0], net.silu ? sources[0] : nullptr);
            layers_forward<T>(net, packed, member, n, kept[0], kept, net.silu ? sources : nothing, nullptr, nullptr, values);
            for (i64 r = 0; r < n; ++r) {
                const float error = values[r] - wanted[(shared ? 0 : member * rows) + start + r];
                upstream[at + r] = 2 * scale * error, sums[task] += error * error;
            }
            layers_back<T>(net, turned, member, every.rows, n, upstream + at, sources, {grads, net, member * stride + start}, nullptr, nullptr);
            for (i64 layer = 0; start + n == rows && layer < net.hidden; ++layer) {
                T* end = grads[layer] + (member + 1) * stride * net.widths[layer];
                std::fill(end - (stride - rows) * net.widths[layer], end, T{});
            }
        }
        products_end<T>();
    });
    *loss = scale * static_cast<float>(std::accumulate(sums.begin(), sums.end(), 0.0));
}

// A chain of a score network (one member): x_k = keep_k x_{k+1} + drift_k output(common + times_k, x_{k+1}) + std_k noise_k, for k from steps - 1 down to 0,
// in `latents` (steps + 1, rows, narrow), whose last row is given. The hidden layers' outputs go to `kept` (steps, rows, width) unless null.
template <class T>
void chain_forward(const Net& net, T* const* packed, const float* common, const float* times, const float* noise, const double* keep, const double* drift,
                   const double* std, i64 steps, i64 rows, float* latents, T* const* kept) {
    const i64 tiles = (rows + ROWS - 1) / ROWS, first = net.widths[0], size = net.narrow;
    share(tiles, [&](Tasks& queue) {
        Buffer<T> ping(ROWS * widest(net)), pong(ROWS * widest(net));
        Buffer<float> output(ROWS * size);
        for (i64 tile; queue.next(tile);) {
            const i64 start = tile * ROWS, n = std::min(ROWS, rows - start);
            for (i64 k = steps - 1; k >= 0; --k) {
                const Kept<T> outputs{kept, net, k * rows + start};
                float *x = latents + ((k + 1) * rows + start) * size, *next = latents + (k * rows + start) * size;
                T* h = kept ? outputs[0] : static_cast<T*>(ping);
                first_layer<T>(net, 0, common + start * first, times + k * first, x, n, h, nullptr);
                layers_forward<T>(net, packed, 0, n, h, outputs, {nullptr, net, 0}, ping, pong, output);
                const float a = static_cast<float>(keep[k]), b = static_cast<float>(drift[k]), c = static_cast<float>(std[k]);
                for (i64 i = 0; i < n * size; ++i) next[i] = a * x[i] + b * output[i] + (noise ? c * noise[(k * rows + start) * size + i] : 0.0f);
            }
        }
        products_end<T>();
    });
}

// Back along a chain from `upstream` (steps + 1, rows, narrow) at its latents: gradients at the outputs of all steps to `of_output` (steps, rows, narrow), and
// at the pre-activations to `grads` (steps, rows, width).
template <class T>
void chain_backward(const Net& net, T* const* packed, const float* upstream, const double* keep, const double* drift, i64 steps, i64 rows, T* const* kept,
                    float* of_output, T* const* grads) {
    const i64 tiles = (rows + ROWS - 1) / ROWS, size = net.narrow;
    const Every every;
    share(tiles, [&](Tasks& queue) {
        Buffer<float> pull(ROWS * size);
        for (i64 tile; queue.next(tile);) {
            const i64 start = tile * ROWS, n = std::min(ROWS, rows - start);
            std::copy(upstream + start * size, upstream + (start + n) * size, static_cast<float*>(pull));
            for (i64 k = 0; k < steps; ++k) {
                const i64 at = k * rows + start;
                float* up = of_output + at * size;
                const float a = static_cast<float>(keep[k]), b = static_cast<float>(drift[k]);
                for (i64 i = 0; i < n * size; ++i) up[i] = b * pull[i];
                const T* g = layers_back<T>(net, packed, 0, every.rows, n, up, {kept, net, at}, {grads, net, at}, nullptr, nullptr);
                for (i64 i = 0; i < n * size; ++i) pull[i] = upstream[(at + rows) * size + i] + a * pull[i];
                narrow_back(net, 0, every.rows, n, g, pull);
            }
        }
        products_end<T>();
    });
}

// From the gradients at a chain's first pre-activations, `grads` (steps, rows, width), with `latents` (steps, rows, narrow), the inputs of each step: those of
// common (rows, width), summed over steps, of times (steps, width), summed over rows, and of columns (width, narrow).
template <class T>
void first_layer_gradients(i64 steps, i64 rows, i64 width, i64 narrow, const T* grads, const float* latents, float* d_common, float* d_times, float* d_columns) {
    share(width / STEP, [&](Tasks& queue) {
        Buffer<float> of_narrow(narrow * STEP);
        const auto add = [](float* to, Two g, Vec scale) {
            auto [t0, t1] = load(to);
            store(to, at::vec::fmadd(scale, std::get<0>(g), t0), at::vec::fmadd(scale, std::get<1>(g), t1));
        };
        for (i64 task; queue.next(task);) {
            const i64 j = task * STEP;
            std::fill(of_narrow + 0, of_narrow + narrow * STEP, 0.0f);
            for (i64 r = 0; r < rows; ++r) store(d_common + r * width + j, Vec(0), Vec(0));
            for (i64 k = 0; k < steps; ++k) {
                Vec low(0), high(0);
                for (i64 r = 0; r < rows; ++r) {
                    const Two g = load(grads + (k * rows + r) * width + j);
                    low = low + std::get<0>(g), high = high + std::get<1>(g);
                    add(d_common + r * width + j, g, Vec(1));
                    for (i64 a = 0; a < narrow; ++a) add(of_narrow + a * STEP, g, Vec(latents[(k * rows + r) * narrow + a]));
                }
                store(d_times + k * width + j, low, high);
            }
            for (i64 i = 0; i < STEP; ++i)
                for (i64 a = 0; a < narrow; ++a) d_columns[(j + i) * narrow + a] = of_narrow[a * STEP + i];
        }
    });
}

// Gradients of weights and biases, in the layout of these, from `inputs` (rows, wide + narrow), or without those of the first layer's weights where null; from
// the hidden layers' outputs, the gradients that `backward` left, whose `stride` rows are 0 from `rows` on, and `upstream` (members, rows, head).
template <class T>
void weight_gradients(const Net& net, i64 rows, const T* inputs, T* const* outputs, T* const* grads, i64 stride, const float* upstream,
                      float* const* d_weights, float* const* d_biases) {
    // A product for each layer: left^T right, (rows, in)^T (rows, out), or flipped, the other way round.
    struct Sides { const T *left, *right; i64 left_rows, right_rows, in, out; };
    const auto sides = [&](i64 member, i64 layer) -> Sides {
        const i64 below = layer ? net.widths[layer - 1] : net.wide + net.narrow, width = net.widths[layer];
        const T *source = layer ? outputs[layer - 1] + member * rows * below : inputs, *grad = grads[layer] + member * stride * width;
        if (net.flipped) return {grad, source, stride, rows, width, below};
        return {source, grad, rows, stride, below, width};
    };
    constexpr bool same = FLOAT32<T>;  // whether rows can be a right factor unpacked
    const i64 first = inputs ? 0 : 1, last = net.widths[net.hidden - 1];
    std::vector<i64> offset(net.hidden + 1, 0);
    for (i64 layer = 0; layer < net.hidden; ++layer) offset[layer + 1] = offset[layer] + packed_size<T>(stride, std::max(net.widths[layer], layer ? net.widths[layer - 1] : 0));
    Buffer<T> packed(same ? 0 : net.members * offset[net.hidden]);
    const auto factor_of = [&](i64 member, i64 layer) { return packed + member * offset[net.hidden] + offset[layer]; };
    const auto add = [](float* to, Vec scale, const T* row, i64 width) {
        for (i64 j = 0; j < width; j += STEP) {
            auto [a, b] = load(row + j);
            auto [t0, t1] = load(to + j);
            store(to + j, at::vec::fmadd(scale, a, t0), at::vec::fmadd(scale, b, t1));
        }
    };
    // All but the products: of a layer's biases and, of the head, of its weights.
    const auto sums = [&](i64 member, i64 layer) {
        if (layer < net.hidden) {
            const i64 width = net.widths[layer];
            float* d_bias = d_biases[layer] + member * width;
            std::fill(d_bias, d_bias + width, 0.0f);
            for (i64 r = 0; r < rows; ++r) add(d_bias, Vec(1), grads[layer] + (member * stride + r) * width, width);
            return;
        }
        for (i64 o = 0; o < net.head; ++o) {
            float *d_weight = d_weights[layer] + (member * net.head + o) * last, *d_bias = d_biases[layer] + member * net.head + o;
            std::fill(d_weight, d_weight + last, 0.0f), *d_bias = 0;
            for (i64 r = 0; r < rows; ++r) {
                const float up = upstream[(member * rows + r) * net.head + o];
                *d_bias += up;
                add(d_weight, Vec(up), outputs[layer - 1] + (member * rows + r) * last, last);
            }
        }
    };
    if constexpr (!same)
        share(net.members * (net.hidden - first), [&](Tasks& queue) {
            for (i64 task; queue.next(task);) {
                const i64 member = task / (net.hidden - first), layer = first + task % (net.hidden - first);
                const Sides s = sides(member, layer);
                lay(s.right, s.right_rows, s.out, factor_of(member, layer));
            }
        });
    std::vector<std::tuple<i64, i64, i64>> tasks;  // member, layer, first row of the weight
    for (i64 member = 0; member < net.members; ++member)
        for (i64 layer = 0; layer <= net.hidden; ++layer)
            for (i64 k = 0; k < (layer >= first && layer < net.hidden ? sides(member, layer).in : 1); k += ROWS) tasks.emplace_back(member, layer, k);
    share(static_cast<i64>(tasks.size()), [&](Tasks& queue) {
        Buffer<T> turned(ROWS * stride);
        for (i64 task; queue.next(task);) {
            auto [member, layer, k] = tasks[task];
            if (!k && layer >= first) sums(member, layer);
            if (layer < first || layer == net.hidden) continue;
            const Sides s = sides(member, layer);
            const i64 n = std::min(ROWS, s.in - k);
            transpose(s.left + k, s.in, rows, n, static_cast<T*>(turned), stride);
            for (i64 c = 0; c < n; ++c) std::fill(turned + c * stride + rows, turned + (c + 1) * stride, T{});
            float* d_weight = d_weights[layer] + (member * s.in + k) * s.out;
            const Factor<T> right{same ? s.right : factor_of(member, layer), stride, s.out, !same};
            product<T>(turned, stride, n, right, [&, out = s.out](i64 from, i64 count, const float* c) {
                for (i64 r = 0; r < n; ++r) std::copy(c + r * COLUMNS, c + r * COLUMNS + count, d_weight + r * out + from);
            });
        }
        products_end<T>();
    });
}

}  // namespace saddlepoint
