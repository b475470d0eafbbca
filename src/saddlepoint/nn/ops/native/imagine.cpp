// Imagined steps of a world model on a CPU (reference_imagine.py): plans are gone through 64 at a time, all networks of
// all their steps in one go.

#include <torch/library.h>

#include "normed.h"

namespace saddlepoint {
namespace {

enum { REWARD, ENERGY, COST, DYNAMICS, END, NETS };  // in the order in which a step evaluates them

struct Imagined {
    i64 states, proposals, horizon, action, bins;
    Normed* nets[NETS];    // of parts z, the task where there are several, and a, which END does not see; null where
                           // there is none
    const float* places;   // (bins,) of the two-hot codes, in symlog units
    const float* factors;  // (states, horizon) discounts of rewards
    const double* cost_factors;         // (horizon,)
    float weight, mean, inverse, clip;  // of the energy: its share, running mean, 1/std and bound
};

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

// gain (rows), cost (constraints, rows), whether a plan goes on after its last step, `alive` (rows), and where it
// leads, `after` (rows, latent), from z (states, latent) and the tasks' embeddings (states, width), or null, by actions
// (rows, horizon, action), where each state has `proposals` rows.
template <class T>
void imagine(const Imagined& in, const float* z, const float* task, const float* actions, float* gain, float* cost,
             float* alive, float* after) {
    const i64 rows = in.states * in.proposals, tiles = (rows + ROWS - 1) / ROWS, latent = in.nets[DYNAMICS]->inputs[0],
              size = in.action;
    struct Pass {  // a member of a net
        i64 net, member;
        Buffer<float> fixed, first;  // (states, widths[0]): the bias and the task's product, and with that of z, which
                                     // all plans of a state begin at
    };
    std::vector<std::vector<T*>> packed(NETS);
    std::vector<Pass> passes;
    i64 broad = latent;
    for (i64 k = 0; k < NETS; ++k)
        if (Normed* net = in.nets[k]) {
            packed[k] = net->packed<T>(false), broad = std::max(broad, broadest(*net));
            for (i64 member = 0; member < net->members; ++member)
                passes.push_back(
                    {k, member, Buffer<float>(in.states * net->widths[0]), Buffer<float>(in.states * net->widths[0])});
        }
    const i64 count = static_cast<i64>(passes.size()), blocks = (in.states + ROWS - 1) / ROWS,
              depth = task ? std::max(latent, in.nets[DYNAMICS]->inputs[1]) : latent;
    share(count * blocks, [&](Tasks& queue) {
        Buffer<T> cast(left_size<T>(depth));
        for (i64 work; queue.next(work);) {
            const Pass& pass = passes[work / blocks];
            const Normed& net = *in.nets[pass.net];
            const i64 start = work % blocks * ROWS, n = std::min(ROWS, in.states - start), width = net.widths[0];
            float *fixed = pass.fixed + start * width, *first = pass.first + start * width;
            T* const* weights = packed[pass.net].data();
            if (task)
                product_to<T>({term<T>(task + start * net.inputs[1], n, net.inputs[1], cast,
                                       factor(net, weights, 1, pass.member))},
                              n, fixed, width);
            else
                std::fill(fixed, fixed + n * width, 0.0f);
            for (i64 r = 0; r < n; ++r) add(fixed + r * width, net.biases[0] + pass.member * width, width);
            product_to<T>({term<T>(z + start * latent, n, latent, cast, factor(net, weights, 0, pass.member))}, n,
                          first, width);
            add(first, fixed, n * width);
        }
        products_end<T>();
    });
    share(tiles, [&](Tasks& queue) {
        Buffer<float> pre(ROWS * broad), values(ROWS * broad), act(ROWS * size), now(ROWS * latent);
        Buffer<T> ping(ROWS * broad), pong(ROWS * broad), cast_z(left_size<T>(latent)), cast_next(left_size<T>(latent)),
            cast_a(left_size<T>(size));
        for (i64 tile; queue.next(tile);) {
            const i64 start = tile * ROWS, n = std::min(ROWS, rows - start);
            const auto state = [&](i64 r) { return (start + r) / in.proposals; };
            std::fill(gain + start, gain + start + n, 0.0f), std::fill(alive + start, alive + start + n, 1.0f);
            for (i64 h = 0; h < in.horizon; ++h) {
                for (i64 r = 0; r < n; ++r)
                    std::copy_n(actions + ((start + r) * in.horizon + h) * size, size, act + r * size);
                Term<T> of_a = term<T>(act, n, size, cast_a, {}), of_z = term<T>(now, h ? n : 0, latent, cast_z, {});
                float* const next = h + 1 < in.horizon ? static_cast<float*>(now) : after + start * latent;
                for (const Pass& pass : passes) {
                    const i64 k = pass.net, member = pass.member;
                    const Normed& net = *in.nets[k];
                    const i64 width = net.widths[0], out = net.widths[net.layers - 1];
                    T* const* weights = packed[k].data();
                    const bool begins = h == 0 && k != END;
                    std::vector<Term<T>> terms;
                    if (k == END)
                        terms.push_back(term<T>(next, n, latent, cast_next, {}));
                    else if (h)
                        terms.push_back(of_z);
                    if (!terms.empty()) terms[0].b = factor(net, weights, 0, member);
                    if (k != END) of_a.b = factor(net, weights, net.parts - 1, member), terms.push_back(of_a);
                    product_to<T>(terms, n, pre, width);
                    const float* base = begins ? pass.first : pass.fixed;
                    const auto more = [&](i64 r) { return base + state(r) * width; };
                    float* to = k == DYNAMICS ? next : static_cast<float*>(values);
                    layers_forward<T>(net, weights, member, n, pre, more, nullptr, ping, pong, nullptr, 0, to);
                    for (i64 r = 0; r < n; ++r) {
                        const float living = alive[start + r], factor = living * in.factors[state(r) * in.horizon + h];
                        if (k == REWARD) gain[start + r] += factor * decode(to + r * out, in.places, in.bins);
                        if (k == ENERGY)
                            gain[start + r] +=
                                factor * in.weight * std::clamp((to[r] - in.mean) * in.inverse, -in.clip, in.clip);
                        if (k == COST) {
                            const float paid = living * static_cast<float>(in.cost_factors[h]) *
                                               std::max(decode(to + r * out, in.places, in.bins), 0.0f);
                            float& sum = cost[member * rows + start + r];
                            sum = h ? sum + paid : paid;
                        }
                        if (k == END) alive[start + r] = living * (to[r] <= 0 ? 1.0f : 0.0f);
                    }
                }
            }
        }
        products_end<T>();
    });
}

// gain (states, proposals), cost (constraints, states, proposals), empty without costs, alive (states, proposals),
// after (states, proposals, latent).
std::tuple<Tensor, Tensor, Tensor, Tensor> imagine_op(const Tensor& z, const std::optional<Tensor>& task,
                                                      const Tensor& actions, i64 dynamics, i64 reward,
                                                      std::optional<i64> energy, std::optional<i64> cost,
                                                      std::optional<i64> end, const Tensor& places,
                                                      const Tensor& factors, at::ArrayRef<double> cost_factors,
                                                      at::ArrayRef<double> scaling) {
    TORCH_CHECK_VALUE(actions.dim() == 4 && scaling.size() == 4, "plans are (states, proposals, horizon, action)");
    const i64 states = actions.size(0), proposals = actions.size(1), horizon = actions.size(2), size = actions.size(3),
              bins = places.size(0);
    Imagined in{states,
                proposals,
                horizon,
                size,
                bins,
                {},
                floats(require(places, {bins})),
                floats(require(factors, {states, horizon})),
                cost_factors.data(),
                static_cast<float>(scaling[0]),
                static_cast<float>(scaling[1]),
                static_cast<float>(scaling[2]),
                static_cast<float>(scaling[3])};
    NormedPtr held[NETS];  // that they live as long as this
    held[DYNAMICS] = numbered(dynamics), held[REWARD] = numbered(reward);
    if (energy) held[ENERGY] = numbered(*energy);
    if (cost) held[COST] = numbered(*cost);
    if (end) held[END] = numbered(*end);
    for (i64 k = 0; k < NETS; ++k) in.nets[k] = held[k].get();
    const bool low = in.nets[DYNAMICS]->low;
    const i64 latent = in.nets[DYNAMICS]->widths.back(), shared = task ? 2 : 1, embedding = task ? task->size(1) : 0,
              costs = cost ? in.nets[COST]->members : 0;
    require(z, {states, latent}), require(actions, {states, proposals, horizon, size});
    if (task) require(*task, {states, embedding});
    TORCH_CHECK_VALUE(static_cast<i64>(cost_factors.size()) == horizon && horizon > 0 && states > 0 && proposals > 0,
                      "a discount a step");
    for (i64 k = 0; k < NETS; ++k)
        if (const Normed* net = in.nets[k]) {
            const i64 outputs = k == DYNAMICS ? latent : k == REWARD || k == COST ? bins : 1;
            TORCH_CHECK_VALUE(net->parts == shared + (k != END) && net->inputs[0] == latent &&
                                  (!task || net->inputs[1] == embedding) && (k == END || net->inputs[shared] == size) &&
                                  net->widths.back() == outputs && net->low == low &&
                                  (k == COST || net->members == 1),
                              "networks of one world model");
        }
    const Tensor gain = room({states, proposals}), paid = room({costs, states, proposals}),
                 alive = room({states, proposals});
    const Tensor after = room({states, proposals, latent});
    with_type(low, [&](auto t) {
        imagine<decltype(t)>(in, floats(z), floats(task), floats(actions), gain.data_ptr<float>(),
                             cost ? paid.data_ptr<float>() : nullptr, alive.data_ptr<float>(), after.data_ptr<float>());
    });
    return {gain, paid, alive, after};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(saddlepoint, m) {
    m.def(
        "imagine(Tensor z, Tensor? task, Tensor actions, int dynamics, int reward, int? energy, int? cost, int? end, "
        "Tensor places, Tensor factors, float[] cost_factors, float[] scaling) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(saddlepoint, CPU, m) { m.impl("imagine", imagine_op); }

}  // namespace saddlepoint
