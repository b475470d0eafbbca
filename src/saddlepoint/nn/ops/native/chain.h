// Denoising chains of a score network: all steps of 64 rows in one go, forward and back.

#pragma once

#include "mlp.h"

namespace saddlepoint {

// A chain of a score network (one member): x_k = keep_k x_{k+1} + drift_k output(common + times_k, x_{k+1}) + std_k
// noise_k, for k from steps - 1 down to 0, in `latents` (steps + 1, rows, narrow), whose last row is given. The hidden
// layers' outputs go to `kept` (steps, rows, width) unless null.
template <class T>
void chain_forward(const Net& net, T* const* packed, const float* common, const float* times, const float* noise,
                   const double* keep, const double* drift, const double* std, i64 steps, i64 rows, float* latents,
                   T* const* kept) {
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
                first_layer<T>(net, 0, common + start * first, times + k * first, x, n, h, {nullptr, net, 0}, nullptr);
                layers_forward<T>(net, packed, 0, n, h, outputs, {nullptr, net, 0}, ping, pong, nullptr, output);
                const float a = static_cast<float>(keep[k]), b = static_cast<float>(drift[k]),
                            c = static_cast<float>(std[k]);
                for (i64 i = 0; i < n * size; ++i)
                    next[i] = a * x[i] + b * output[i] + (noise ? c * noise[(k * rows + start) * size + i] : 0.0f);
            }
        }
        products_end<T>();
    });
}

// Back along a chain from `upstream` (steps + 1, rows, narrow) at its latents: gradients at the outputs of all steps to
// `of_output` (steps, rows, narrow), and at the pre-activations to `grads` (steps, rows, width).
template <class T>
void chain_backward(const Net& net, T* const* packed, const float* upstream, const double* keep, const double* drift,
                    i64 steps, i64 rows, T* const* kept, float* of_output, T* const* grads) {
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
                const T* g = layers_back<T>(net, packed, 0, every.rows, n, up, {kept, net, at}, {grads, net, at},
                                            nullptr, nullptr, nullptr, nullptr);
                for (i64 i = 0; i < n * size; ++i) pull[i] = upstream[(at + rows) * size + i] + a * pull[i];
                narrow_back(net, 0, every.rows, n, g, pull);
            }
        }
        products_end<T>();
    });
}

// From the gradients at a chain's first pre-activations, `grads` (steps, rows, width), with `latents` (steps, rows,
// narrow), the inputs of each step: those of common (rows, width), summed over steps, of times (steps, width), summed
// over rows, and of columns (width, narrow).
template <class T>
void first_layer_gradients(i64 steps, i64 rows, i64 width, i64 narrow, const T* grads, const float* latents,
                           float* d_common, float* d_times, float* d_columns) {
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
                    for (i64 a = 0; a < narrow; ++a)
                        add(of_narrow + a * STEP, g, Vec(latents[(k * rows + r) * narrow + a]));
                }
                store(d_times + k * width + j, low, high);
            }
            for (i64 i = 0; i < STEP; ++i)
                for (i64 a = 0; a < narrow; ++a) d_columns[(j + i) * narrow + a] = of_narrow[a * STEP + i];
        }
    });
}

}  // namespace saddlepoint
