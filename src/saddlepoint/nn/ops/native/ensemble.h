// Whole passes of ensembles: forward, back, and a fit to targets that goes forward and back tile by tile.

#pragma once

#include "mlp.h"

namespace saddlepoint {

// Values (members, proposals, batch, head) at `wide` (batch, wide), or `base` (batch, widths[0]) instead, and `narrow`
// (proposals, batch, narrow). What is kept of the hidden layers, outputs and sources (members, proposals * batch,
// width), may be null. The wide part is taken once for all proposals.
template <class T>
void forward(const Net& net, T* const* packed, const float* wide, const float* base, const float* narrow, i64 proposals,
             i64 batch, T* const* outputs, T* const* sources, float* const* inverses, float* values) {
    const i64 tiles = (batch + ROWS - 1) / ROWS, rows = proposals * batch, first = net.widths[0];
    share(net.members * tiles, [&](Tasks& queue) {
        Buffer<float> shared(ROWS * first), pre(sums_size(net));
        Buffer<T> cast(cast_size<T>(net)), ping(ROWS * widest(net)), pong(ROWS * widest(net));
        for (i64 task; queue.next(task);) {
            const i64 member = task / tiles, start = task % tiles * ROWS, n = std::min(ROWS, batch - start);
            const float* common = base ? base + start * first : static_cast<float*>(shared);
            if (!base) wide_part<T>(net, packed, member, wide + start * net.wide, n, cast, shared);
            for (i64 p = 0; p < proposals; ++p) {
                const i64 row = p * batch + start, at = member * rows + row;
                const Kept<T> kept{outputs, net, at}, slopes{sources, net, at, inverses};
                T* h = outputs ? kept[0] : static_cast<T*>(ping);
                first_layer<T>(net, member, common, nullptr, narrow + row * net.narrow, n, h, slopes, pre);
                layers_forward<T>(net, packed, member, n, h, kept, slopes, ping, pong, pre, values + at * net.head);
            }
        }
        products_end<T>();
    });
}

// The part of the sums for gains and shifts that a (member, tile) task fills, from 0 on; null where there are none.
inline float* sums_of(const Net& net, float* sums, i64 task) {
    if (!net.normed()) return nullptr;
    const i64 size = norm_offset(net, net.hidden);
    return std::fill_n(sums + task * size, size, 0.0f) - size;
}

// The gradients of gains and shifts, `found` (members, width) each: those of all tiles together.
inline void norm_gradients(const Net& net, i64 tiles, const float* sums, float* const* gains, float* const* shifts) {
    const i64 size = norm_offset(net, net.hidden);
    for (i64 member = 0; member < net.members; ++member)
        for (i64 layer = 0; layer < net.hidden; ++layer) {
            const i64 width = net.widths[layer];
            float *gain = gains[layer] + member * width, *shift = shifts[layer] + member * width;
            std::fill(gain, gain + width, 0.0f), std::fill(shift, shift + width, 0.0f);
            for (i64 tile = 0; tile < tiles; ++tile) {
                const float* sum = sums + (member * tiles + tile) * size + norm_offset(net, layer);
                add(gain, sum, width), add(shift, sum + width, width);
            }
        }
}

// Back from `upstream` (members, rows, head) at the values: gradients at the pre-activations of all layers to `grads`
// (members, stride, width), or those at the narrow inputs, summed over members, to `below` (rows, narrow). For `below`,
// rows without upstream are left out: a reward head is the smallest in a part of the rows only, and costs matter only
// where the penalty pushes. `sums` (members, tiles, norm_offset): what each tile adds to the gradients of gains and
// shifts; null where nobody wants them.
template <class T>
void backward(const Net& net, T* const* packed, i64 rows, T* const* sources, float* const* inverses,
              const float* upstream, T* const* grads, i64 stride, float* sums, float* below) {
    const i64 tiles = (rows + ROWS - 1) / ROWS;
    const Every every;
    share((grads ? net.members : 1) * tiles, [&](Tasks& queue) {
        Buffer<T> ping(ROWS * widest(net)), pong(ROWS * widest(net));
        Buffer<float> pre(sums_size(net));
        for (i64 task; queue.next(task);) {
            const i64 start = task % tiles * ROWS, n = std::min(ROWS, rows - start);
            if (grads) {
                const i64 member = task / tiles, at = member * rows + start;
                layers_back<T>(net, packed, member, every.rows, n, upstream + at * net.head,
                               {sources, net, at, inverses}, {grads, net, member * stride + start}, ping, pong, pre,
                               sums_of(net, sums, task));
                continue;
            }
            std::fill(below + start * net.narrow, below + (start + n) * net.narrow, 0.0f);
            for (i64 member = 0; member < net.members; ++member) {
                const i64 at = member * rows + start;
                i64 picked[ROWS], count = 0;
                for (i64 r = 0; r < n; ++r)
                    if (std::any_of(upstream + (at + r) * net.head, upstream + (at + r + 1) * net.head,
                                    [](float u) { return u != 0; }))
                        picked[count++] = r;
                if (!count) continue;
                const T* g = layers_back<T>(net, packed, member, picked, count, upstream + at * net.head,
                                            {sources, net, at, inverses}, {nullptr, net, 0}, ping, pong, pre, nullptr);
                narrow_back(net, member, picked, count, g, below + start * net.narrow);
            }
        }
        products_end<T>();
    });
}

// Of scale * sum of (values - wanted)^2 over members and rows, at `wide` (rows, wide) and `narrow` (rows, narrow): the
// loss, its gradient at the values, `upstream` (members, rows), and those at the pre-activations, `grads` (members,
// stride, width), 0 from `rows` on; `outputs` (members, rows, width) are left as well. `wanted` (members, rows), or
// `shared` (rows). Forward and back again tile by tile. The net has one value.
template <class T>
void fit(const Net& net, T* const* packed, T* const* turned, const float* wide, const float* narrow, i64 rows,
         const float* wanted, i64 shared, float scale, T* const* outputs, T* const* grads, i64 stride, float* norm_sums,
         float* upstream, float* loss) {
    const i64 tiles = (rows + ROWS - 1) / ROWS, first = net.widths[0];
    const Every every;
    std::vector<double> sums(net.members * tiles, 0.0);
    share(net.members * tiles, [&](Tasks& queue) {
        Buffer<float> common(ROWS * first), values(ROWS), pre(sums_size(net)), scales(net.hidden * ROWS);
        const bool apart = net.silu || net.normed();  // what the way back multiplies with is not the outputs
        Buffer<T> cast(cast_size<T>(net)), derivatives(apart ? net.hidden * ROWS * widest(net) : 0);
        std::vector<T*> slopes;
        std::vector<float*> inverses;
        for (i64 layer = 0; layer < net.hidden; ++layer)
            slopes.push_back(derivatives + layer * ROWS * widest(net)), inverses.push_back(scales + layer * ROWS);
        for (i64 task; queue.next(task);) {
            const i64 member = task / tiles, start = task % tiles * ROWS, n = std::min(ROWS, rows - start),
                      at = member * rows + start;
            const Kept<T> kept{outputs, net, at}, own{slopes.data(), net, 0, inverses.data()}, nothing{nullptr, net, 0};
            wide_part<T>(net, packed, member, wide + start * net.wide, n, cast, common);
            first_layer<T>(net, member, common, nullptr, narrow + start * net.narrow, n, kept[0], apart ? own : nothing,
                           pre);
            layers_forward<T>(net, packed, member, n, kept[0], kept, apart ? own : nothing, nullptr, nullptr, pre,
                              values);
            for (i64 r = 0; r < n; ++r) {
                const float error = values[r] - wanted[(shared ? 0 : member * rows) + start + r];
                upstream[at + r] = 2 * scale * error, sums[task] += error * error;
            }
            layers_back<T>(net, turned, member, every.rows, n, upstream + at, apart ? own : kept,
                           {grads, net, member * stride + start}, nullptr, nullptr, pre, sums_of(net, norm_sums, task));
            for (i64 layer = 0; start + n == rows && layer < net.hidden; ++layer) {
                T* end = grads[layer] + (member + 1) * stride * net.widths[layer];
                std::fill(end - (stride - rows) * net.widths[layer], end, T{});
            }
        }
        products_end<T>();
    });
    *loss = scale * static_cast<float>(std::accumulate(sums.begin(), sums.end(), 0.0));
}

}  // namespace saddlepoint
