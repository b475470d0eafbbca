// Passes of small MLPs on a CPU, 64 rows at a time, so that what a layer makes is still in the cache when the next one
// needs it.
//
// Several members are worked on side by side: all (member, rows) tiles are shared out among the threads. No sum depends
// on how: results are the same to the bit with any number of threads.
//
// A net is: first layer  wide part of the inputs @ W_0[:wide] + b_0  (or given: `base`)  + narrow part (an action) @
// W_0[wide:], hidden layers, each perhaps with LayerNorm before its activation, and a head of few columns. Hidden widths
// are multiples of 32. mlp.cpp checks everything that comes in here.

#pragma once

#include "norm_rows.h"

namespace saddlepoint {

struct Net {
    i64 members, wide, narrow, hidden,
        head;                 // columns of both parts of the input, number of hidden layers, columns of the head
    bool silu;                // activation: SiLU, or ReLU
    bool flipped;             // hidden layers' weights are (out, in), or (in, out)
    std::vector<i64> widths;  // of the hidden layers
    std::vector<const float*>
        weights;  // first layer (members, wide + narrow, widths[0]), hidden layers, head (members, head, widths[-1])
    std::vector<const float*> biases;  // of each (members, out); the first is not read where the base is given
    std::vector<const float*> gains, shifts;  // of each hidden layer (members, width); empty: no LayerNorm

    bool normed() const { return !gains.empty(); }
};

inline const float* weight_of(const Net& net, i64 layer, i64 member) {
    return net.weights[layer] + member * (layer ? net.widths[layer - 1] : net.wide + net.narrow) * net.widths[layer];
}

// Whether the products of a direction read a layer's weights unpacked, (depth, columns): in float32, where they need
// not be transposed for it.
template <class T>
bool unpacked(const Net& net, i64 layer, bool backward) {
    return FLOAT32<T> && (layer && net.flipped) == backward;
}

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
            layer&& net.flipped ? pack(weight, out, in, !backward, to) : pack(weight, in, out, backward, to);
        }
    });
}

// out = activation(pre); source: what the backward pass multiplies with, kept for SiLU (the derivative); ReLU's is 1
// where its output is above 0. Normed layers keep `hat` of norm_row, and its inverses, instead.
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
    float* const* inverses = nullptr;  // of normed layers, (rows) each
    T* operator[](i64 layer) const { return layers ? layers[layer] + row * net.widths[layer] : nullptr; }
    float* inverse(i64 layer) const { return inverses ? inverses[layer] + row : nullptr; }
};

// Where the sums of a hidden layer's gains and shifts begin; of layer `hidden`: how many there are.
inline i64 norm_offset(const Net& net, i64 layer) {
    return 2 * std::accumulate(net.widths.begin(), net.widths.begin() + layer, i64(0));
}

inline i64 widest(const Net& net) { return *std::max_element(net.widths.begin(), net.widths.end()); }

// Numbers of room that the sums of a tile of normed layers need, `pre` below.
inline i64 sums_size(const Net& net) { return net.normed() ? ROWS * widest(net) : 0; }

// The columns of the first layer that see the narrow inputs: (narrow, widths[0]).
inline const float* narrow_columns(const Net& net, i64 member) {
    return weight_of(net, 0, member) + net.wide * net.widths[0];
}

// A hidden layer's rows from its sums `pre` (n, width), which are used up, plus `bias` where not null: normed and
// activated, to `out`.
template <class T>
void norm_rows(const Net& net, i64 layer, i64 member, i64 n, float* pre, const float* bias, T* out, Kept<T> sources) {
    const i64 width = net.widths[layer];
    const float *gain = net.gains[layer] + member * width, *shift = net.shifts[layer] + member * width;
    T* hat = sources[layer];
    float* inverse = sources.inverse(layer);
    const auto all = [&](auto activation) {
        for (i64 r = 0; r < n; ++r)
            norm_row(activation, pre + r * width, bias, nullptr, width, gain, shift, out + r * width,
                     hat ? hat + r * width : nullptr, inverse ? inverse + r : nullptr);
    };
    net.silu ? all(Silu()) : all(Relu());
}

// The gradients at such a layer's sums, for the `count` rows `picked`, from those at its outputs, `grad` (count, width),
// which are used up; `sums` as in norm_row_back.
template <class T>
void norm_rows_back(const Net& net, i64 layer, i64 member, const i64* picked, i64 count, float* grad, Kept<T> sources,
                    T* out, float* sums) {
    const i64 width = net.widths[layer];
    const float *gain = net.gains[layer] + member * width, *shift = net.shifts[layer] + member * width;
    const auto all = [&](auto activation) {
        for (i64 i = 0; i < count; ++i)
            norm_row_back(activation, grad + i * width, sources[layer] + picked[i] * width,
                          sources.inverse(layer)[picked[i]], width, gain, shift, out + i * width, sums);
    };
    net.silu ? all(Silu()) : all(Relu());
}

// The first layer at n rows: activation(common (n, width) + more (width) + narrow @ columns). Normed layers need room for
// their sums, `pre` (n, width).
template <class T>
void first_layer(const Net& net, i64 member, const float* common, const float* more, const float* narrow, i64 n, T* out,
                 Kept<T> sources, float* pre) {
    const i64 width = net.widths[0];
    const float* columns = narrow_columns(net, member);
    T* source = sources[0];
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
            if (net.normed())
                store(pre + r * width + j, p0, p1);
            else
                activate(net.silu, p0, p1, out + r * width + j, source ? source + r * width + j : nullptr);
        }
    if (net.normed()) norm_rows<T>(net, 0, member, n, pre, nullptr, out, sources);
}

// The other hidden layers at n rows and the head's values (n, head), from the first layer's output h. Outputs that are
// not kept go to ping and pong; normed layers need `pre` (n, broadest width).
template <class T>
void layers_forward(const Net& net, T* const* packed, i64 member, i64 n, const T* h, Kept<T> outputs, Kept<T> sources,
                    T* ping, T* pong, float* pre, float* values) {
    for (i64 layer = 1; layer < net.hidden; ++layer) {
        const i64 width = net.widths[layer];
        const float* bias = net.biases[layer] + member * width;
        T* next = outputs.layers ? outputs[layer] : (h == ping ? pong : ping);
        T* source = sources[layer];
        const Factor<T> weight = factor(net, packed, layer, member, false);
        if (net.normed()) {
            product_to<T>({{h, net.widths[layer - 1], weight}}, n, pre, width);
            norm_rows<T>(net, layer, member, n, pre, bias, next, sources);
            h = next;
            continue;
        }
        product<T>(h, net.widths[layer - 1], n, weight,
                   [&](i64 from, i64 count, const float* c) {
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
    const float *head = net.weights[net.hidden] + member * net.head * last,
                *bias = net.biases[net.hidden] + member * net.head;
    for (i64 r = 0; r < n; ++r)
        for (i64 o = 0; o < net.head; ++o)
            values[r * net.head + o] = dot(h + r * last, head + o * last, last) + bias[o];
}

// The part of the first layer's sums that the wide inputs (n, wide) make, and its bias: (n, widths[0]), to `to`. `cast`
// has room for rows of T's, as a product takes them.
template <class T>
void wide_part(const Net& net, T* const* packed, i64 member, const float* wide, i64 n, T* cast, float* to) {
    const i64 first = net.widths[0], depth = padded_for<T>(net.wide);
    const float* bias = net.biases[0] + member * first;
    const T* input = cast;
    if constexpr (FLOAT32<T>)
        input = reinterpret_cast<const T*>(wide);
    else
        pad(wide, n, net.wide, cast, depth);
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
i64 cast_size(const Net& net) {
    return FLOAT32<T> ? 0 : ROWS * padded(net.wide);
}

// Back through all hidden layers from `upstream` (n, head) at the values, for the `count` rows `picked`: returns the
// gradient at the first pre-activation, (count, widths[0]). `sources` and `upstream` have all n rows; `grads` and what
// is returned the picked ones. Normed layers need `pre` (n, broadest width); what they add to the gradients of gains and
// shifts goes to `sums`, (2, width) a layer, unless null.
template <class T>
const T* layers_back(const Net& net, T* const* packed, i64 member, const i64* picked, i64 count, const float* upstream,
                     Kept<T> sources, Kept<T> grads, T* ping, T* pong, float* pre, float* sums) {
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
            if (net.normed()) {
                store(pre + i * last + j, g0, g1);
                continue;
            }
            auto [s0, s1] = slope(net.silu, sources[net.hidden - 1] + picked[i] * last + j);
            store(g + i * last + j, g0 * s0, g1 * s1);
        }
    const auto sum_of = [&](i64 layer) { return sums ? sums + norm_offset(net, layer) : nullptr; };
    if (net.normed())
        norm_rows_back<T>(net, net.hidden - 1, member, picked, count, pre, sources, g, sum_of(net.hidden - 1));
    for (i64 layer = net.hidden - 1; layer > 0; --layer) {
        const i64 width = net.widths[layer - 1];
        T* next = grads.layers ? grads[layer - 1] : (g == ping ? pong : ping);
        const T* source = sources[layer - 1];
        const Factor<T> weight = factor(net, packed, layer, member, true);
        if (net.normed()) {
            product_to<T>({{g, net.widths[layer], weight}}, count, pre, width);
            norm_rows_back<T>(net, layer - 1, member, picked, count, pre, sources, next, sum_of(layer - 1));
            g = next;
            continue;
        }
        product<T>(g, net.widths[layer], count, weight,
                   [&](i64 from, i64 wide, const float* c) {
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
        for (i64 a = 0; a < net.narrow; ++a)
            below[picked[i] * net.narrow + a] += dot(g + i * first, columns + a * first, first);
}

struct Every {  // the rows 0, 1, ... of a tile
    i64 rows[ROWS];
    Every() { std::iota(rows, rows + ROWS, 0); }
};

}  // namespace saddlepoint
