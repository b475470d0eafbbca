// Gradients of weights and biases from what the passes of ensembles and chains have kept.

#pragma once

#include "mlp.h"

namespace saddlepoint {

// Gradients of weights and biases, in the layout of these, from `inputs` (rows, wide + narrow), or without those of the
// first layer's weights where null; from the hidden layers' outputs, the gradients that `backward` left, whose `stride`
// rows are 0 from `rows` on, and `upstream` (members, rows, head).
template <class T>
void weight_gradients(const Net& net, i64 rows, const T* inputs, T* const* outputs, T* const* grads, i64 stride,
                      const float* upstream, float* const* d_weights, float* const* d_biases) {
    // A product for each layer: left^T right, (rows, in)^T (rows, out), or flipped, the other way round.
    struct Sides {
        const T *left, *right;
        i64 left_rows, right_rows, in, out;
    };
    const auto sides = [&](i64 member, i64 layer) -> Sides {
        const i64 below = layer ? net.widths[layer - 1] : net.wide + net.narrow, width = net.widths[layer];
        const T *source = layer ? outputs[layer - 1] + member * rows * below : inputs,
                *grad = grads[layer] + member * stride * width;
        if (net.flipped) return {grad, source, stride, rows, width, below};
        return {source, grad, rows, stride, below, width};
    };
    constexpr bool same = FLOAT32<T>;  // whether rows can be a right factor unpacked
    const i64 first = inputs ? 0 : 1, last = net.widths[net.hidden - 1];
    std::vector<i64> offset(net.hidden + 1, 0);
    for (i64 layer = 0; layer < net.hidden; ++layer)
        offset[layer + 1] =
            offset[layer] + packed_size<T>(stride, std::max(net.widths[layer], layer ? net.widths[layer - 1] : 0));
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
            float *d_weight = d_weights[layer] + (member * net.head + o) * last,
                  *d_bias = d_biases[layer] + member * net.head + o;
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
            for (i64 k = 0; k < (layer >= first && layer < net.hidden ? sides(member, layer).in : 1); k += ROWS)
                tasks.emplace_back(member, layer, k);
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
                for (i64 r = 0; r < n; ++r)
                    std::copy(c + r * COLUMNS, c + r * COLUMNS + count, d_weight + r * out + from);
            });
        }
        products_end<T>();
    });
}

}  // namespace saddlepoint
