// Imagined steps of MBDPO's world model on a CPU (mbdpo/imagine.py: `roll`): plans are gone through 64 at a time, all networks of all their steps in one go.

extern "C" struct Imagined {
    i64 states, proposals, horizon, action, bins;
    const Normed* const* nets;     // dynamics, reward, energy or null, cost or null: of parts z and a
    void* const* const* packed;    // their weights, laid out for going forward
    const float* places;           // (bins,) of the two-hot codes, in symlog units
    const float *factors, *cost_factors;  // (horizon,) discounts
    float weight, mean, inverse, clip;    // of the energy: its share, running mean, 1/std and bound
};

namespace {

// symexp of the mean place under softmax(logits); the logits are used up.
float decode(float* logits, const float* places, i64 bins) {
    const float most = *std::max_element(logits, logits + bins);
    Vec sum(0), along(0);
    i64 j = 0;
    for (; j + Vec::size() <= bins; j += Vec::size()) {
        const Vec e = (Vec::loadu(logits + j) - Vec(most)).exp_u20();
        sum = sum + e, along = at::vec::fmadd(e, Vec::loadu(places + j), along);
    }
    float all = total(sum), place = total(along);
    for (; j < bins; ++j) {
        const float e = std::exp(logits[j] - most);
        all += e, place += e * places[j];
    }
    place /= all;
    return std::copysign(std::expm1(std::abs(place)), place);
}

// gain (rows), cost (constraints, rows) and where the plans lead, `after` (rows, latent), from z (states, latent) by actions (rows, horizon, action), where
// each state has `proposals` rows.
template <class T>
void imagine(const Imagined& in, const float* z, const float* actions, float* gain, float* cost, float* after) {
    enum { DYNAMICS, REWARD, ENERGY, COST, NETS };
    const i64 rows = in.states * in.proposals, tiles = (rows + ROWS - 1) / ROWS, latent = in.nets[DYNAMICS]->inputs[0], size = in.action;
    const auto packed = [&](i64 k) { return as<T>(in.packed[k]); };
    i64 broad = 0;
    std::vector<std::tuple<i64, i64>> passes;  // every member of every net, the dynamics last
    std::vector<Buffer<float>> bases;          // of each pass: the first layer's bias and its product with the states, which all their plans begin at
    for (i64 k : {REWARD, ENERGY, COST, DYNAMICS})
        if (const Normed* net = in.nets[k]) {
            broad = std::max(broad, broadest(*net));
            for (i64 member = 0; member < net->members; ++member) passes.emplace_back(k, member), bases.emplace_back(in.states * net->widths[0]);
        }
    const i64 count = static_cast<i64>(passes.size()), blocks = (in.states + ROWS - 1) / ROWS;
    share(count * blocks, [&](Tasks& queue) {
        Buffer<T> cast(left_size<T>(latent));
        for (i64 task; queue.next(task);) {
            const auto [k, member] = passes[task / blocks];
            const Normed& net = *in.nets[k];
            const i64 start = task % blocks * ROWS, n = std::min(ROWS, in.states - start), width = net.widths[0];
            float* base = bases[task / blocks] + start * width;
            product_to<T>({term<T>(z + start * latent, n, latent, cast, factor(net, packed(k), 0, member))}, n, base, width);
            for (i64 r = 0; r < n; ++r) add(base + r * width, net.biases[0] + member * width, width);
        }
        products_end<T>();
    });
    share(tiles, [&](Tasks& queue) {
        Buffer<float> pre(ROWS * broad), values(ROWS * broad), act(ROWS * size), now(ROWS * latent);
        Buffer<T> ping(ROWS * broad), pong(ROWS * broad), cast_z(left_size<T>(latent)), cast_a(left_size<T>(size));
        for (i64 tile; queue.next(tile);) {
            const i64 start = tile * ROWS, n = std::min(ROWS, rows - start);
            std::fill(gain + start, gain + start + n, 0.0f);
            for (i64 h = 0; h < in.horizon; ++h) {
                for (i64 r = 0; r < n; ++r) std::copy_n(actions + ((start + r) * in.horizon + h) * size, size, act + r * size);
                Term<T> of_a = term<T>(act, n, size, cast_a, {}), of_z = term<T>(now, h ? n : 0, latent, cast_z, {});
                for (i64 pass = 0; pass < count; ++pass) {
                    const auto [k, member] = passes[pass];
                    const Normed& net = *in.nets[k];
                    const i64 width = net.widths[0], out = net.widths[net.layers - 1];
                    of_a.b = factor(net, packed(k), 1, member), of_z.b = factor(net, packed(k), 0, member);
                    h ? product_to<T>({of_z, of_a}, n, pre, width) : product_to<T>({of_a}, n, pre, width);
                    const float *bias = net.biases[0] + member * width, *base = bases[pass];
                    const auto more = [&](i64 r) { return h ? bias : base + (start + r) / in.proposals * width; };
                    float* to = k == DYNAMICS ? (h + 1 < in.horizon ? static_cast<float*>(now) : after + start * latent) : static_cast<float*>(values);
                    layers_forward<T>(net, packed(k), member, n, pre, more, nullptr, ping, pong, nullptr, 0, to);
                    for (i64 r = 0; r < n; ++r) {
                        if (k == REWARD) gain[start + r] += in.factors[h] * decode(to + r * out, in.places, in.bins);
                        if (k == ENERGY) gain[start + r] += in.factors[h] * in.weight * std::clamp((to[r] - in.mean) * in.inverse, -in.clip, in.clip);
                        if (k == COST) {
                            const float paid = in.cost_factors[h] * std::max(decode(to + r * out, in.places, in.bins), 0.0f);
                            float& sum = cost[member * rows + start + r];
                            sum = h ? sum + paid : paid;
                        }
                    }
                }
            }
        }
        products_end<T>();
    });
}

}  // namespace

extern "C" {

int imagine_plans(const Imagined* in, int kind, const float* z, const float* actions, float* gain, float* cost, float* after) {
    return of_kind(kind, [&](auto t) { imagine<decltype(t)>(*in, z, actions, gain, cost, after); });
}

}  // extern "C"
