// LayerNorm of single rows and the activation that follows it, forward and back. Widths are multiples of 32.

#pragma once

#include "tiles.h"

namespace saddlepoint {

constexpr float EPSILON = 1e-5f;  // of LayerNorm

// Activations: the value at x, and the slope there.
struct Identity {
    static Vec value(Vec x) { return x; }
    static Vec slope(Vec) { return Vec(1); }
};

struct Relu {
    static Vec value(Vec x) { return at::vec::maximum(x, Vec(0)); }
    static Vec slope(Vec x) { return Vec::blendv(Vec(0), Vec(1), x > Vec(0)); }
};

struct Silu {
    static Vec value(Vec x) { return x * sigmoid(x); }
    static Vec slope(Vec x) {
        const Vec g = sigmoid(x);
        return at::vec::fmadd(x * g, Vec(1) - g, g);
    }
};

struct Mish {
    // exp(x), and t = tanh(log(1 + exp(x))) = n / (n + 2) with n = exp(x) (exp(x) + 2).
    struct Parts {
        Vec exponential, inverse, t;  // inverse: 1 / (n + 2)
        explicit Parts(Vec x)
            : exponential(exp_up_to(x, 43)) {  // n is then all but the largest number; t is 1 in float32 from 10 on
            const Vec n = exponential * (exponential + Vec(2));
            inverse = reciprocal(n + Vec(2)), t = n * inverse;
        }
    };
    static Vec value(Vec x) { return x * Parts(x).t; }
    // t + x dt/dx, where dt/dx = 4 exp(x) (exp(x) + 1) / (n + 2)^2.
    static Vec slope(Vec x) {
        const Parts m(x);
        return at::vec::fmadd(x * (Vec(4) * m.exponential * m.inverse), (m.exponential + Vec(1)) * m.inverse, m.t);
    }
};

// One normed row: pre [+ more] [* drop], in place, its mean and deviation, then hat = (pre - mean) * inverse and out =
// activation(hat * gain + shift). What may be null: more, drop, hat and inverse.
template <class A, class T, class H>
void norm_row(A, float* pre, const float* more, const float* drop, i64 width, const float* gain, const float* shift,
              T* out, H* hat, float* inverse) {
    Vec sum(0), squares(0);
    for (i64 j = 0; j < width; j += Vec::size()) {
        Vec x = Vec::loadu(pre + j);
        if (more) x = x + Vec::loadu(more + j);
        if (drop) x = x * Vec::loadu(drop + j);
        if (more || drop) x.store(pre + j);
        sum = sum + x;
    }
    const Vec mean(total(sum) / width);
    for (i64 j = 0; j < width; j += STEP) {
        auto [a, b] = load(pre + j);
        const Vec low = a - mean, high = b - mean;
        squares = at::vec::fmadd(low, low, squares), squares = at::vec::fmadd(high, high, squares);
    }
    const float scale = 1 / std::sqrt(total(squares) / width + EPSILON);
    if (inverse) *inverse = scale;
    for (i64 j = 0; j < width; j += STEP) {
        auto [a, b] = load(pre + j);
        auto [g0, g1] = load(gain + j);
        auto [s0, s1] = load(shift + j);
        const Vec h0 = (a - mean) * Vec(scale), h1 = (b - mean) * Vec(scale);
        if (hat) store(hat + j, h0, h1);
        store(out + j, A::value(at::vec::fmadd(h0, g0, s0)), A::value(at::vec::fmadd(h1, g1, s1)));
    }
}

// From `grad` (width) at the outputs of a normed row, which is used up, the gradient at what was normed, to `out`.
// `sums` (2, width): what it adds to the gradients of gain and shift; null where nobody wants them.
template <class A, class T, class H>
void norm_row_back(A, float* grad, const H* hat, float inverse, i64 width, const float* gain, const float* shift,
                   T* out, float* sums) {
    Vec mean(0), along(0);
    for (i64 j = 0; j < width; j += STEP) {
        auto [h0, h1] = load(hat + j);
        auto [g0, g1] = load(gain + j);
        auto [s0, s1] = load(shift + j);
        auto [y0, y1] = load(grad + j);
        y0 = y0 * A::slope(at::vec::fmadd(h0, g0, s0)), y1 = y1 * A::slope(at::vec::fmadd(h1, g1, s1));
        if (sums) {
            auto [a0, a1] = load(sums + j);
            auto [b0, b1] = load(sums + width + j);
            store(sums + j, at::vec::fmadd(y0, h0, a0), at::vec::fmadd(y1, h1, a1));
            store(sums + width + j, b0 + y0, b1 + y1);
        }
        y0 = y0 * g0, y1 = y1 * g1;
        store(grad + j, y0, y1);
        mean = mean + y0, along = at::vec::fmadd(y0, h0, along);
        mean = mean + y1, along = at::vec::fmadd(y1, h1, along);
    }
    const Vec centre(total(mean) / width), slope(total(along) / width), scale(inverse);
    for (i64 j = 0; j < width; j += STEP) {
        auto [h0, h1] = load(hat + j);
        auto [y0, y1] = load(grad + j);
        store(out + j, (y0 - at::vec::fmadd(h0, slope, centre)) * scale,
              (y1 - at::vec::fmadd(h1, slope, centre)) * scale);
    }
}

}  // namespace saddlepoint
