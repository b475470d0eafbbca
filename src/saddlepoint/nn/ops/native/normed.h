// An MLP of Linear, LayerNorm and Mish on a CPU, and its layers from the first one's product on: each layer's product
// is normed and activated 64 rows at a time while it is in the cache.
//
// A net is: first layer  sum of (part of the input) @ W_0,part^T + b_0  [ * drop],  LayerNorm, Mish;  hidden layers
// like it;  a last layer that is plain, or with `simplex` LayerNorm and a softmax within groups. Widths that are normed
// are multiples of 32. The constructor checks everything that comes in here.

#pragma once

#include <torch/custom_class.h>

#include "norm_rows.h"

namespace saddlepoint {

struct Normed : torch::CustomClassHolder {
    i64 members, parts, layers, simplex;
    bool low;                           // products in bfloat16
    std::vector<i64> inputs;            // columns of each part
    std::vector<i64> widths;            // of the layers, the last one included
    std::vector<const float*> first;    // of each part (members, widths[0], inputs)
    std::vector<const float*> weights;  // of each later layer (members, width, width before)
    std::vector<const float*> biases;   // of each layer (members, width)
    std::vector<const float*> gains;    // of each normed layer (members, width)
    std::vector<const float*> shifts;

    // Keeps the tensors, whose numbers may change: then a new one is to be made, for the packed forms are of these.
    Normed(const std::vector<std::vector<Tensor>>& parameters, i64 simplex, bool low);
    // The packed weights of one direction, made when they are first asked for.
    template <class T>
    std::vector<T*> packed(bool backward);
    void release_resources() override;  // gives up its number

   private:
    std::vector<std::vector<Tensor>> kept;
    std::vector<Tensor> forms[2];
};

using NormedPtr = c10::intrusive_ptr<Normed>;

// Networks by number, while they live. Operations are given the number: for an object PyTorch looks for a
// __torch_function__ at every call, in two C++ exceptions.
i64 number_of(const NormedPtr& net);
NormedPtr numbered(i64 number);

inline i64 normed_layers(const Normed& net) { return net.simplex ? net.layers : net.layers - 1; }

inline i64 broadest(const Normed& net) { return *std::max_element(net.widths.begin(), net.widths.end()); }

// The weight `index` of a member, (out, in): that of a part of the input, then those of the later layers.
struct Weight {
    const float* data;
    i64 out, in;
};

inline Weight weight_of(const Normed& net, i64 index, i64 member) {
    const i64 layer = index - net.parts;
    if (layer < 0)
        return {net.first[index] + member * net.widths[0] * net.inputs[index], net.widths[0], net.inputs[index]};
    return {net.weights[layer] + member * net.widths[layer + 1] * net.widths[layer], net.widths[layer + 1],
            net.widths[layer]};
}

template <class T>
Factor<T> factor(const Normed& net, T* const* packed, i64 index, i64 member) {
    const Weight w = weight_of(net, index, member);
    return {packed[index] + member * packed_size<T>(w.in, w.out), padded_for<T>(w.in), w.out};
}

// Rows of numbers as the left factor of a product: as they are, or converted into `room`, left_size<T>(width).
template <class T>
Term<T> term(const float* a, i64 n, i64 width, T* room, const Factor<T>& b) {
    if constexpr (FLOAT32<T>)
        return {a, width, b};
    else
        return pad(a, n, width, room, padded(width)), Term<T>{room, padded(width), b};
}

// p = softmax of each group of y, in place: (width).
inline void softmax_groups(float* y, i64 width, i64 group) {
    for (i64 j = 0; j < width; j += group) {
        const float most = *std::max_element(y + j, y + j + group);
        for (i64 k = j; k < j + group; ++k) y[k] -= most;
    }
    i64 j = 0;
    for (; j + Vec::size() <= width; j += Vec::size()) Vec::loadu(y + j).exp_u20().store(y + j);
    for (; j < width; ++j) y[j] = std::exp(y[j]);
    for (j = 0; j < width; j += group) {
        const float scale = 1 / std::accumulate(y + j, y + j + group, 0.0f);
        for (i64 k = j; k < j + group; ++k) y[k] *= scale;
    }
}

// What is kept for the way back, of every normed layer: outputs (rows, width) of all but the last layer, hats (rows,
// width), inverses (rows).
struct Trail {
    std::vector<void*> outputs;  // in the type of the products
    std::vector<float*> hats, inverses;
};

// The layers from the first one's products `pre` (n, widths[0]) on, a float buffer that is used up, to values (n, last
// width). more(row) is what is added to the first products, `drop` (n, widths[0]) what multiplies them then, or null;
// `at` the first row in the trail.
template <class T, class M>
void layers_forward(const Normed& net, T* const* packed, i64 member, i64 n, float* pre, M more, const float* drop,
                    T* ping, T* pong, const Trail* trail, i64 at, float* values) {
    const i64 normed = normed_layers(net), last = net.layers - 1;
    T* h = nullptr;
    for (i64 layer = 0; layer < net.layers; ++layer) {
        const i64 width = net.widths[layer];
        const float* bias = net.biases[layer] + member * width;
        const auto added = [&](i64 r) { return layer ? bias : more(r); };
        if (layer)
            product_to<T>({{h, net.widths[layer - 1], factor(net, packed, net.parts + layer - 1, member)}}, n,
                          layer < normed ? pre : values, width);
        if (layer >= normed) {
            if (!layer) std::copy(pre, pre + n * width, values);
            for (i64 r = 0; r < n; ++r) add(values + r * width, added(r), width);
            break;
        }
        const float *gain = net.gains[layer] + member * width, *shift = net.shifts[layer] + member * width;
        const auto norm = [&](auto activation, auto* out) {
            for (i64 r = 0; r < n; ++r)
                norm_row(activation, pre + r * width, added(r), layer || !drop ? nullptr : drop + r * width, width, gain,
                         shift, out + r * width, trail ? trail->hats[layer] + (at + r) * width : nullptr,
                         trail ? trail->inverses[layer] + at + r : nullptr);
        };
        if (layer == last) {
            norm(Identity(), values);
            for (i64 r = 0; r < n; ++r) softmax_groups(values + r * width, width, net.simplex);
            break;
        }
        h = trail ? static_cast<T*>(trail->outputs[layer]) + at * width : (h == ping ? pong : ping);
        norm(Mish(), h);
    }
}

}  // namespace saddlepoint
