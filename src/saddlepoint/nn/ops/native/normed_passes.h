// Whole passes of such nets (normed.h): forward, back, and denoising chains. All (member, rows) tiles are shared out
// among the threads; no sum depends on how.

#pragma once

#include "normed.h"

namespace saddlepoint {

// What a pass sees of the inputs: parts (rows, inputs), null where `base` has them; base (members chosen, base rows,
// widths[0]) in place of the bias.
struct Inputs {
    std::vector<const float*> parts;
    const float* base;
    i64 base_rows, repeat;  // row r of the pass has row (r / repeat) % base_rows of the base
    const float* drop;      // (members chosen, rows, widths[0]), or null
};

// The same for going back.
template <class T>
Factor<T> factor_back(const Normed& net, T* const* turned, i64 index, i64 member) {
    const Weight w = weight_of(net, index, member);
    return {turned[index] + member * packed_size<T>(w.out, w.in), padded_for<T>(w.out), w.in};
}

// Packs all factors of the forward passes, or of the backward ones.
template <class T>
void pack_all(const Normed& net, T* const* to, bool backward) {
    const i64 count = net.parts + net.layers - 1;
    share(net.members * count, [&](Tasks& queue) {
        for (i64 task; queue.next(task);) {
            const i64 index = task % count, member = task / count;
            const Weight w = weight_of(net, index, member);
            pack(
                w.data, w.out, w.in, !backward,
                const_cast<T*>((backward ? factor_back(net, to, index, member) : factor(net, to, index, member)).data));
        }
    });
}

// Values (chosen, rows, last width).
template <class T>
void forward(const Normed& net, T* const* packed, const i64* chosen, i64 count, const Inputs& in, i64 rows,
             const Trail* trail, float* values) {
    const i64 tiles = (rows + ROWS - 1) / ROWS, first = net.widths[0], out = net.widths[net.layers - 1];
    share(count * tiles, [&](Tasks& queue) {
        Buffer<float> pre(ROWS * broadest(net));
        Buffer<T> ping(ROWS * broadest(net)), pong(ROWS * broadest(net));
        std::vector<Buffer<T>> cast;
        for (i64 p = 0; p < net.parts; ++p) cast.emplace_back(left_size<T>(net.inputs[p]));
        for (i64 task; queue.next(task);) {
            const i64 which = task / tiles, member = chosen[which], start = task % tiles * ROWS,
                      n = std::min(ROWS, rows - start);
            const float* bias = net.biases[0] + member * first;
            const auto more = [&](i64 r) {
                return in.base ? in.base + (which * in.base_rows + (start + r) / in.repeat % in.base_rows) * first
                               : bias;
            };
            const float* drop = in.drop ? in.drop + (which * rows + start) * first : nullptr;
            std::vector<Term<T>> terms;
            for (i64 p = 0; p < net.parts; ++p)
                if (in.parts[p])
                    terms.push_back(term<T>(in.parts[p] + start * net.inputs[p], n, net.inputs[p], cast[p],
                                            factor(net, packed, p, member)));
            product_to<T>(terms, n, pre, first);
            layers_forward<T>(net, packed, member, n, pre, more, drop, ping, pong, trail, which * rows + start,
                              values + (which * rows + start) * out);
        }
        products_end<T>();
    });
}

// x <- keep_k x + drift_k output(common + times_k + x W^T) * mask, for k from 0 to steps - 1, in place at x (rows,
// inputs[part]); the other parts of the input are in `common` (rows, widths[0]), bias included, and `times` (steps,
// widths[0]). The mask (rows, inputs[part]) may be null.
template <class T>
void chain(const Normed& net, T* const* packed, i64 part, const float* common, const float* times, const double* keep,
           const double* drift, const float* mask, i64 steps, i64 rows, float* x) {
    const i64 tiles = (rows + ROWS - 1) / ROWS, first = net.widths[0], size = net.inputs[part];
    share(tiles, [&](Tasks& queue) {
        Buffer<float> pre(ROWS * broadest(net)), output(ROWS * size);
        Buffer<T> ping(ROWS * broadest(net)), pong(ROWS * broadest(net)), cast(left_size<T>(size));
        for (i64 tile; queue.next(tile);) {
            const i64 start = tile * ROWS, n = std::min(ROWS, rows - start);
            float* here = x + start * size;
            const float *shared = common + start * first, *held = mask ? mask + start * size : nullptr;
            for (i64 k = 0; k < steps; ++k) {
                product_to<T>({term<T>(here, n, size, cast, factor(net, packed, part, 0))}, n, pre, first);
                for (i64 r = 0; r < n; ++r) add(pre + r * first, times + k * first, first);
                layers_forward<T>(
                    net, packed, 0, n, pre, [&](i64 r) { return shared + r * first; }, nullptr, ping, pong, nullptr, 0,
                    output);
                const float a = static_cast<float>(keep[k]), b = static_cast<float>(drift[k]);
                for (i64 i = 0; i < n * size; ++i) here[i] = a * here[i] + b * output[i] * (held ? held[i] : 1.0f);
            }
        }
        products_end<T>();
    });
}

// The gradient before the softmax within groups that gave `values`, in place of that at these, `grad`: (width).
inline void softmax_groups_back(float* grad, const float* values, i64 width, i64 group) {
    for (i64 j = 0; j < width; j += group) {
        float along = 0;
        for (i64 k = j; k < j + group; ++k) along += values[k] * grad[k];
        for (i64 k = j; k < j + group; ++k) grad[k] = values[k] * (grad[k] - along);
    }
}

struct Gradients {  // of the parameters of the chosen members, empty where not wanted; of the input's parts (rows,
                    // inputs), null where not wanted
    std::vector<float*> first, weights, biases, gains, shifts, parts;
};

// From `upstream` (chosen, rows, last width) at the values to `grads` (chosen, rows, width) at every layer's
// pre-activations (of a plain last layer: upstream itself, not written), and what is wanted of the other gradients.
template <class T>
void backward(const Normed& net, T* const* turned, const i64* chosen, i64 count, const Inputs& in, i64 rows,
              const Trail& trail, const float* values, const float* upstream, float* const* grads,
              const Gradients& wanted) {
    const i64 tiles = (rows + ROWS - 1) / ROWS, normed = normed_layers(net), last = net.layers - 1;
    std::vector<i64> offset(normed + 1, 0);
    for (i64 layer = 0; layer < normed; ++layer) offset[layer + 1] = offset[layer] + 2 * net.widths[layer];
    Buffer<float> sums(count * tiles * offset[normed]);
    share(count * tiles, [&](Tasks& queue) {
        Buffer<T> cast(left_size<T>(broadest(net)));
        for (i64 task; queue.next(task);) {
            const i64 which = task / tiles, member = chosen[which], start = task % tiles * ROWS,
                      n = std::min(ROWS, rows - start), at = which * rows + start;
            float* sum = sums + task * offset[normed];
            std::fill(sum, sum + offset[normed], 0.0f);
            if (net.simplex)
                std::copy(upstream + at * net.widths[last], upstream + (at + n) * net.widths[last],
                          grads[last] + at * net.widths[last]);
            for (i64 layer = last; layer >= 0; --layer) {
                const i64 width = net.widths[layer];
                const float* g = layer < normed ? grads[layer] + at * width : upstream + at * width;
                const auto back = [&](auto activation, i64 r) {
                    float* grad = grads[layer] + (at + r) * width;
                    norm_row_back(activation, grad, trail.hats[layer] + (at + r) * width, trail.inverses[layer][at + r],
                                  width, net.gains[layer] + member * width, net.shifts[layer] + member * width, grad,
                                  sum + offset[layer]);
                };
                for (i64 r = 0; layer < normed && r < n; ++r) {
                    if (layer < last) back(Mish(), r);
                    if (layer == last) {
                        softmax_groups_back(grads[layer] + (at + r) * width, values + (at + r) * width, width,
                                            net.simplex);
                        back(Identity(), r);
                    }
                }
                if (!layer) break;
                const i64 below = net.widths[layer - 1];
                product_to<T>({term<T>(g, n, width, cast, factor_back(net, turned, net.parts + layer - 1, member))}, n,
                              grads[layer - 1] + at * below, below);
            }
            if (in.drop) {
                float* g = grads[0] + at * net.widths[0];
                const float* drop = in.drop + at * net.widths[0];
                for (i64 i = 0; i < n * net.widths[0]; ++i) g[i] *= drop[i];
            }
        }
        products_end<T>();
    });
    const float* const front = normed ? grads[0] : upstream;
    const i64 first = net.widths[0];
    for (i64 p = 0; p < net.parts; ++p)  // summed over members
        if (wanted.parts[p]) {
            const i64 size = net.inputs[p];
            share(tiles, [&](Tasks& queue) {
                Buffer<T> cast(count * left_size<T>(first));
                for (i64 tile; queue.next(tile);) {
                    const i64 start = tile * ROWS, n = std::min(ROWS, rows - start);
                    std::vector<Term<T>> terms;
                    for (i64 which = 0; which < count; ++which)
                        terms.push_back(term<T>(front + (which * rows + start) * first, n, first,
                                                cast + which * left_size<T>(first),
                                                factor_back(net, turned, p, chosen[which])));
                    product_to<T>(terms, n, wanted.parts[p] + start * size, size);
                }
                products_end<T>();
            });
        }
    if (wanted.biases.empty()) return;
    // The right factors of the weights' gradients: the parts of the input, and each member's hidden outputs.
    const i64 hidden = net.layers - 1;
    std::vector<i64> place(net.parts + count * hidden + 1, 0);
    const auto columns_of = [&](i64 index) {
        return index < net.parts ? net.inputs[index] : net.widths[(index - net.parts) % hidden];
    };
    for (size_t index = 0; index + 1 < place.size(); ++index)
        place[index + 1] = place[index] + packed_size<T>(rows, columns_of(index));
    Buffer<T> laid(place.back());
    const auto outputs = [&](i64 index) {
        const i64 layer = (index - net.parts) % hidden;
        return static_cast<T*>(trail.outputs[layer]) + (index - net.parts) / hidden * rows * net.widths[layer];
    };
    const auto right = [&](i64 index) -> Factor<T> {
        return {laid + place[index], padded_for<T>(rows), columns_of(index)};
    };
    share(static_cast<i64>(place.size()) - 1, [&](Tasks& queue) {
        for (i64 index; queue.next(index);)
            if (index >= net.parts)
                lay(outputs(index), rows, columns_of(index), laid + place[index]);
            else if (in.parts[index])
                pack(in.parts[index], rows, columns_of(index), false, laid + place[index]);
    });
    std::vector<std::tuple<i64, i64, i64>> tasks;  // member, layer, first row of the weight
    for (i64 which = 0; which < count; ++which)
        for (i64 layer = 0; layer < net.layers; ++layer)
            for (i64 k = 0; k < net.widths[layer]; k += ROWS) tasks.emplace_back(which, layer, k);
    share(static_cast<i64>(tasks.size()), [&](Tasks& queue) {
        Buffer<float> across(ROWS * rows);
        Buffer<T> cast(left_size<T>(rows));
        for (i64 task; queue.next(task);) {
            auto [which, layer, k] = tasks[task];
            const i64 width = net.widths[layer], n = std::min(ROWS, width - k);
            const float* g = (layer < normed ? grads[layer] : upstream) + which * rows * width;
            transpose(g + k, width, rows, n, static_cast<float*>(across), rows);
            for (i64 r = 0; r < n; ++r) wanted.biases[layer][which * width + k + r] = sum_of(across + r * rows, rows);
            Term<T> product = term<T>(across, n, rows, cast, {});
            const auto weight = [&](i64 index, float* to) {
                product.b = right(index);
                product_to<T>({product}, n, to + (which * width + k) * product.b.columns, product.b.columns);
            };
            if (layer)
                weight(net.parts + which * hidden + layer - 1, wanted.weights[layer - 1]);
            else
                for (i64 p = 0; p < net.parts; ++p)
                    if (in.parts[p]) weight(p, wanted.first[p]);
            if (layer < normed)
                for (i64 j = k; j < k + n; ++j) {
                    float gain = 0, shift = 0;
                    for (i64 tile = 0; tile < tiles; ++tile) {
                        const float* sum = sums + (which * tiles + tile) * offset[normed] + offset[layer];
                        gain += sum[j], shift += sum[width + j];
                    }
                    wanted.gains[layer][which * width + j] = gain, wanted.shifts[layer][which * width + j] = shift;
                }
        }
        products_end<T>();
    });
}

}  // namespace saddlepoint
