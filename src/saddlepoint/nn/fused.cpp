// Passes of small MLPs on a CPU, 64 rows at a time, so that what a layer makes is still in the cache when the next one needs it.
//
// Matrix products are oneDNN's (at::native::cpublas::brgemm: AVX-512 in float32, AMX or AVX-512 in bfloat16, always summed in float32); each is followed at
// once, block by block, by bias and activation. Several members are worked on side by side: all (member, rows) tiles are shared out among the threads. No sum
// depends on how: the same numbers come out with any number of threads.
//
// A net is: first layer  wide part of the inputs @ W_0[:wide] + b_0  (or given: `base`)  + narrow part (an action) @ W_0[wide:], hidden layers, and a head of
// few columns. Hidden widths are multiples of 32. nn/fused.py checks everything that comes in here.

extern "C" struct Net {
    i64 members, wide, narrow, hidden, head;  // columns of both parts of the input, number of hidden layers, columns of the head
    i64 silu;                                 // activation: 1 SiLU, 0 ReLU
    i64 flipped;                              // layout of the hidden layers' weights: 0 (in, out), 1 (out, in)
    const i64* widths;                        // of the hidden layers
    const float* const* weights;              // first layer (members, wide + narrow, widths[0]), hidden layers, head (members, head, widths[-1])
    const float* const* biases;               // of each (members, out); the first is not read where the base is given
};

namespace {

// Whether the products of a direction take a layer's weights as they lie, (depth, columns): in float32, where they need not be turned round for it.
template <class T>
bool as_it_lies(const Net& net, i64 layer, bool backward) { return std::is_same_v<T, float> && (layer && net.flipped) == backward; }

const float* weight_of(const Net& net, i64 layer, i64 member) {
    return net.weights[layer] + member * (layer ? net.widths[layer - 1] : net.wide + net.narrow) * net.widths[layer];
}

// The layers l (from 0) whose products the passes need: out of layer l going forward, back into it going backward.
template <class T>
Factor<T> factor(const Net& net, T* const* packed, i64 layer, i64 member, bool backward) {
    const i64 in = layer ? net.widths[layer - 1] : net.wide, out = net.widths[layer];
    const i64 depth = backward ? out : in, columns = backward ? in : out;
    if constexpr (std::is_same_v<T, float>)
        if (as_it_lies<T>(net, layer, backward)) return {weight_of(net, layer, member), depth, columns, false};
    return {packed[layer] + member * packed_size<T>(depth, columns), padded_for<T>(depth), columns};
}

// Lays out all factors of the forward passes (or backward ones) that are not weights as they lie.
template <class T>
void pack_all(const Net& net, T* const* packed, bool backward) {
    share(net.members * net.hidden, [&](Tasks& queue) {
        for (i64 task; queue.next(task);) {
            const i64 layer = task % net.hidden, member = task / net.hidden;
            if (!layer && (backward || !net.wide)) continue;
            if (as_it_lies<T>(net, layer, backward)) continue;
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

i64 widest(const Net& net) { return *std::max_element(net.widths, net.widths + net.hidden); }

// The columns of the first layer that see the narrow inputs: (narrow, widths[0]).
const float* narrow_columns(const Net& net, i64 member) { return weight_of(net, 0, member) + net.wide * net.widths[0]; }

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
// in `latents` (steps + 1, rows, narrow), whose last row is given. Of rows from `from` on, the hidden layers' outputs go to `kept` (steps, rows - from, width).
template <class T>
void chain_forward(const Net& net, T* const* packed, const float* common, const float* times, const float* noise, const float* keep, const float* drift,
                   const float* std, i64 steps, i64 rows, i64 from, float* latents, T* const* kept) {
    const i64 before = (from + ROWS - 1) / ROWS, tiles = before + (rows - from + ROWS - 1) / ROWS, first = net.widths[0], size = net.narrow;
    share(tiles, [&](Tasks& queue) {
        Buffer<T> ping(ROWS * widest(net)), pong(ROWS * widest(net));
        Buffer<float> output(ROWS * size);
        for (i64 tile; queue.next(tile);) {
            const bool record = kept && tile >= before;
            const i64 start = tile < before ? tile * ROWS : from + (tile - before) * ROWS, n = std::min(ROWS, (tile < before ? from : rows) - start);
            for (i64 k = steps - 1; k >= 0; --k) {
                const Kept<T> outputs{record ? kept : nullptr, net, k * (rows - from) + start - from};
                float *x = latents + ((k + 1) * rows + start) * size, *next = latents + (k * rows + start) * size;
                T* h = record ? outputs[0] : static_cast<T*>(ping);
                first_layer<T>(net, 0, common + start * first, times + k * first, x, n, h, nullptr);
                layers_forward<T>(net, packed, 0, n, h, outputs, {nullptr, net, 0}, ping, pong, output);
                for (i64 i = 0; i < n * size; ++i)
                    next[i] = keep[k] * x[i] + drift[k] * output[i] + (noise ? std[k] * noise[(k * rows + start) * size + i] : 0.0f);
            }
        }
        products_end<T>();
    });
}

// Back along a chain from `upstream` (steps + 1, rows, narrow) at its latents: gradients at the outputs of all steps to `of_output` (steps, rows, narrow), and
// at the pre-activations to `grads` (steps, rows, width).
template <class T>
void chain_backward(const Net& net, T* const* packed, const float* upstream, const float* keep, const float* drift, i64 steps, i64 rows, T* const* kept,
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
                for (i64 i = 0; i < n * size; ++i) up[i] = drift[k] * pull[i];
                const T* g = layers_back<T>(net, packed, 0, every.rows, n, up, {kept, net, at}, {grads, net, at}, nullptr, nullptr);
                for (i64 i = 0; i < n * size; ++i) pull[i] = upstream[(at + rows) * size + i] + keep[k] * pull[i];
                narrow_back(net, 0, every.rows, n, g, pull);
            }
        }
        products_end<T>();
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
    constexpr bool same = std::is_same_v<T, float>;  // whether rows can be a right factor as they lie
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
            if (!k) sums(member, layer);  // which read what the product is about to
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

// Gradients of a first layer's weights (width, wide + narrow + depth) and of the embeddings (steps, depth) that its last columns see, from those at its
// pre-activations, `grads` (steps + 1, rows, width): at the latents (steps, rows, narrow) of steps 0, 1, ..., then at `point` (rows, narrow) of the steps `taus`.
// The states (rows, wide) are the same each time.
template <class T>
void conditioned_gradients(i64 steps, i64 rows, i64 width, const T* grads, const float* state, i64 wide, const float* latents, const float* point, i64 narrow,
                           const i64* taus, const float* embedding, i64 depth, const float* weight, float* d_weight, float* d_embedding) {
    const i64 columns = wide + narrow + depth;
    Buffer<float> of_steps(steps * width);
    share(width / STEP, [&](Tasks& queue) {
        Buffer<float> total(rows * STEP), turned(STEP * rows), of_narrow(narrow * STEP);
        const auto add = [](float* to, Two g, Vec scale) {
            auto [t0, t1] = load(to);
            store(to, at::vec::fmadd(scale, std::get<0>(g), t0), at::vec::fmadd(scale, std::get<1>(g), t1));
        };
        for (i64 task; queue.next(task);) {
            const i64 j = task * STEP;
            std::fill(total + 0, total + rows * STEP, 0.0f), std::fill(of_narrow + 0, of_narrow + narrow * STEP, 0.0f);
            for (i64 k = 0; k < steps; ++k) std::fill(of_steps + k * width + j, of_steps + k * width + j + STEP, 0.0f);
            for (i64 k = 0; k <= steps; ++k)
                for (i64 r = 0; r < rows; ++r) {
                    const Two g = load(grads + (k * rows + r) * width + j);
                    const float* u = (k < steps ? latents + k * rows * narrow : point) + r * narrow;
                    add(total + r * STEP, g, Vec(1));
                    add(of_steps + (k < steps ? k : taus[r]) * width + j, g, Vec(1));
                    for (i64 a = 0; a < narrow; ++a) add(of_narrow + a * STEP, g, Vec(u[a]));
                }
            float* to = d_weight + j * columns;
            transpose(static_cast<float*>(total), STEP, rows, STEP, static_cast<float*>(turned), rows);
            product_to<float>({{turned, rows, Factor<float>{state, rows, wide, false}}}, STEP, to, columns);
            for (i64 i = 0; i < STEP; ++i) {
                for (i64 a = 0; a < narrow; ++a) to[i * columns + wide + a] = of_narrow[a * STEP + i];
                for (i64 e = 0; e < depth; ++e) {
                    float sum = 0;
                    for (i64 k = 0; k < steps; ++k) sum += of_steps[k * width + j + i] * embedding[k * depth + e];
                    to[i * columns + wide + narrow + e] = sum;
                }
            }
        }
        products_end<float>();
    });
    std::fill(d_embedding, d_embedding + steps * depth, 0.0f);
    for (i64 k = 0; k < steps; ++k)
        for (i64 j = 0; j < width; ++j)
            for (i64 e = 0; e < depth; ++e) d_embedding[k * depth + e] += of_steps[k * width + j] * weight[j * columns + wide + narrow + e];
}

}  // namespace

extern "C" {

int pack_net(const Net* net, int kind, void* const* packed, int backward) {
    return of_kind(kind, [&](auto t) { pack_all(*net, as<decltype(t)>(packed), backward); });
}

int forward_net(const Net* net, int kind, void* const* packed, const float* wide, const float* base, const float* narrow, i64 proposals, i64 batch,
                void* const* outputs, void* const* sources, float* values) {
    return of_kind(kind, [&](auto t) {
        using T = decltype(t);
        forward(*net, as<T>(packed), wide, base, narrow, proposals, batch, as<T>(outputs), as<T>(sources), values);
    });
}

int backward_net(const Net* net, int kind, void* const* packed, i64 rows, void* const* sources, const float* upstream, void* const* grads, i64 stride, float* below) {
    return of_kind(kind, [&](auto t) {
        using T = decltype(t);
        backward(*net, as<T>(packed), rows, as<T>(sources), upstream, as<T>(grads), stride, below);
    });
}

int fit_net(const Net* net, int kind, void* const* packed, void* const* turned, const float* wide, const float* narrow, i64 rows, const float* wanted, i64 shared,
            float scale, void* const* outputs, void* const* grads, i64 stride, float* upstream, float* loss) {
    return of_kind(kind, [&](auto t) {
        using T = decltype(t);
        fit(*net, as<T>(packed), as<T>(turned), wide, narrow, rows, wanted, shared, scale, as<T>(outputs), as<T>(grads), stride, upstream, loss);
    });
}

int chain_forward_net(const Net* net, int kind, void* const* packed, const float* common, const float* times, const float* noise, const float* keep,
                      const float* drift, const float* std, i64 steps, i64 rows, i64 from, float* latents, void* const* kept) {
    return of_kind(kind, [&](auto t) {
        using T = decltype(t);
        chain_forward(*net, as<T>(packed), common, times, noise, keep, drift, std, steps, rows, from, latents, as<T>(kept));
    });
}

int chain_backward_net(const Net* net, int kind, void* const* packed, const float* upstream, const float* keep, const float* drift, i64 steps, i64 rows,
                       void* const* kept, float* of_output, void* const* grads) {
    return of_kind(kind, [&](auto t) {
        using T = decltype(t);
        chain_backward(*net, as<T>(packed), upstream, keep, drift, steps, rows, as<T>(kept), of_output, as<T>(grads));
    });
}

int weight_gradients_net(const Net* net, int kind, i64 rows, const void* inputs, void* const* outputs, void* const* grads, i64 stride, const float* upstream,
                         float* const* d_weights, float* const* d_biases) {
    return of_kind(kind, [&](auto t) {
        using T = decltype(t);
        weight_gradients(*net, rows, static_cast<const T*>(inputs), as<T>(outputs), as<T>(grads), stride, upstream, d_weights, d_biases);
    });
}

int conditioned_gradients_net(const Net* net, int kind, i64 steps, i64 rows, const void* grads, const float* state, i64 wide, const float* latents,
                              const float* point, const i64* taus, const float* embedding, i64 depth, const float* weight, float* d_weight, float* d_embedding) {
    return of_kind(kind, [&](auto t) {
        const auto* found = static_cast<const decltype(t)*>(grads);
        conditioned_gradients(steps, rows, net->widths[0], found, state, wide, latents, point, net->narrow, taus, embedding, depth, weight, d_weight, d_embedding);
    });
}

}  // extern "C"
