// The arithmetic of ALGD's update between the networks' passes, element by element in float32: what algd/formulas.py says in PyTorch, where each of some two
// hundred small operations costs more than all that is done here. algd/fused_formulas.py checks everything that comes in.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

using i64 = int64_t;

extern "C" struct Prices {
    i64 constraints, members, kind;  // kind: 0 none, 1 plain, 2 augmented
    const float *multiplier, *budget, *unit;
    float rho, risk_std;
};

extern "C" struct Box {
    i64 size;
    const float *scale, *bias;
};

namespace {

float positive(float x) { return x < 0 ? 0 : x; }  // what is not a number stays so

// tanh x, and log(1 - tanh^2 x) = log 4 - 2 |x| - 2 log(1 + exp(-2 |x|)).
struct Squashed {
    float value, log_slope;
    explicit Squashed(float x) {
        const float length = std::abs(x), e = std::exp(-2 * length);
        value = std::copysign((1 - e) / (1 + e), x);
        log_slope = 1.38629436f - 2 * length - 2 * std::log1p(e);
    }
};

// da/dx of the squashing at an action: scale (1 - tanh^2 x).
float slope(const Box& box, i64 j, float action) {
    const float low = box.bias[j] - box.scale[j], high = box.bias[j] + box.scale[j];
    return (action - low) * (high - action) / box.scale[j];
}

}  // namespace

extern "C" {

// Of `next` values (2, rows) and (constraints * members, rows): what the reward critics, (rows), and the cost critics, shaped as theirs, are fitted to.
// bootstrap: 0 own, 1 pair, 2 largest.
int bellman(i64 rows, i64 constraints, i64 members, i64 bootstrap, i64 nonnegative, i64 through, const float* discounts, const float* reward, const float* cost,
            const float* terminated, const float* next_reward, const float* next_cost, float* of_reward, float* of_cost) {
    std::vector<float> sorted(members);
    for (i64 r = 0; r < rows; ++r) {
        const float alive = 1 - terminated[r], a = next_reward[r], b = next_reward[rows + r];
        of_reward[r] = reward[r] + discounts[0] * alive * (b < a || b != b ? b : a);
        for (i64 c = 0; c < constraints; ++c) {
            const float* next = next_cost + c * members * rows + r;
            float shared = 0;
            if (bootstrap == 2) {
                shared = next[0];
                for (i64 m = 1; m < members; ++m) shared = next[m * rows] > shared || next[m * rows] != next[m * rows] ? next[m * rows] : shared;
            } else if (bootstrap == 1 && members > 1) {  // of the members in rising order the k-th is the larger one of k pairs
                for (i64 m = 0; m < members; ++m) sorted[m] = next[m * rows];
                std::sort(sorted.begin(), sorted.end());
                for (i64 k = 1; k < members; ++k) shared += sorted[k] * (k / (members * (members - 1) / 2.0f));
            } else {
                shared = next[0];
            }
            for (i64 m = 0; m < members; ++m) {
                const float value = bootstrap ? shared : next[m * rows];
                of_cost[(c * members + m) * rows + r] = cost[r * constraints + c] + discounts[1] * (through ? 1 : alive) * (nonnegative ? positive(value) : value);
            }
        }
    }
    return 0;
}

// The Lagrangian of `reward` (heads, rows) and `cost` (constraints * members, rows): value (rows), slopes shaped as the two, risk (constraints, rows).
int lagrangian(const Prices* prices, i64 heads, i64 rows, const float* reward, const float* cost, float* value, float* reward_slope, float* cost_slope, float* risk) {
    for (i64 r = 0; r < rows; ++r) {
        i64 best = 0;
        for (i64 h = 1; h < heads; ++h)
            if (reward[h * rows + r] < reward[best * rows + r]) best = h;
        value[r] = -reward[best * rows + r];
        for (i64 h = 0; h < heads; ++h) reward_slope[h * rows + r] = h == best ? -1 : 0;
    }
    const i64 members = prices->members;
    const float rho = prices->rho, of_spread = members > 1 ? prices->risk_std / std::sqrt(members - 1.0f) : 0;
    for (i64 c = 0; c < prices->constraints; ++c) {
        const float multiplier = prices->multiplier[c], budget = prices->budget[c], unit = prices->unit[c];
        for (i64 r = 0; r < rows; ++r) {
            const float* q = cost + c * members * rows + r;
            float mean = 0, squares = 0;
            for (i64 m = 0; m < members; ++m) mean += q[m * rows];
            mean /= members;
            for (i64 m = 0; m < members; ++m) squares += (q[m * rows] - mean) * (q[m * rows] - mean);
            const float spread = std::sqrt(squares), found = mean + of_spread * spread, violation = (found - budget) / unit;
            risk[c * rows + r] = found;
            float price = 0;
            if (prices->kind == 2) price = positive(multiplier + rho * violation), value[r] += (price * price - multiplier * multiplier) / (2 * rho);
            if (prices->kind == 1) price = multiplier, value[r] += multiplier * violation;
            const float share = of_spread / std::max(spread, 1e-12f);
            for (i64 m = 0; m < members; ++m) cost_slope[(c * members + m) * rows + r] = (1.0f / members + (q[m * rows] - mean) * share) * (price / unit);
        }
    }
    return 0;
}

// Means over the batch at the chain's actions, the first `rows` of (1 + proposals, rows): of the energy, of each constraint's risk, and of the sum of its members'
// slopes.
int means(i64 constraints, i64 members, i64 whole, i64 rows, const float* value, const float* cost_slope, const float* risk, float* found) {
    const auto mean = [rows](const float* a) { return static_cast<float>(std::accumulate(a, a + rows, 0.0) / rows); };
    found[0] = mean(value);
    for (i64 c = 0; c < constraints; ++c) {
        found[1 + c] = mean(risk + c * whole), found[1 + constraints + c] = 0;
        for (i64 m = 0; m < members; ++m) found[1 + constraints + c] += mean(cost_slope + (c * members + m) * whole);
    }
    return 0;
}

// Candidates (point + sigma noise) / alpha, (proposals, rows, size); their actions after the chain's, (1 + proposals, rows, size); log |da/dx| (proposals, rows).
int propose(const Box* box, i64 proposals, i64 rows, const float* point, const float* alpha, const float* sigma, const float* noise, const float* action,
            float* candidates, float* actions, float* log_jacobian) {
    const i64 size = box->size, of_one = rows * size;
    float of_scale = 0;
    for (i64 j = 0; j < size; ++j) of_scale += std::log(box->scale[j]);
    std::copy(action, action + of_one, actions);
    for (i64 p = 0; p < proposals; ++p)
        for (i64 r = 0; r < rows; ++r) {
            float sum = of_scale;
            for (i64 j = 0; j < size; ++j) {
                const i64 at = p * of_one + r * size + j;
                candidates[at] = (point[r * size + j] + sigma[r] * noise[at]) / alpha[r];
                const Squashed found(candidates[at]);
                actions[of_one + at] = found.value * box->scale[j] + box->bias[j], sum += found.log_slope;
            }
            log_jacobian[p * rows + r] = sum;
        }
    return 0;
}

// Weights (proposals, rows), softmax of -(energy - beta log_jacobian) / beta, where energy (1 + proposals, rows) begins with the chain's; and 0 for the slopes,
// (count, 1 + proposals, rows) each, of proposals whose weight is lost in rounding.
int weigh(i64 proposals, i64 rows, float beta, const float* energy, const float* log_jacobian, i64 heads, float* reward_slope, i64 members, float* cost_slope,
          float* weights) {
    const i64 whole = (1 + proposals) * rows;
    for (i64 r = 0; r < rows; ++r) {
        float most = -std::numeric_limits<float>::infinity(), sum = 0;
        for (i64 at = r; at < proposals * rows; at += rows) most = std::max(most, weights[at] = log_jacobian[at] - energy[rows + at] / beta);
        for (i64 at = r; at < proposals * rows; at += rows) sum += weights[at] = std::exp(weights[at] - most);
        for (i64 at = r; at < proposals * rows; at += rows) {
            weights[at] /= sum;
            if (weights[at] > std::numeric_limits<float>::epsilon()) continue;
            for (i64 h = 0; h < heads; ++h) reward_slope[h * whole + rows + at] = 0;
            for (i64 m = 0; m < members; ++m) cost_slope[m * whole + rows + at] = 0;
        }
    }
    return 0;
}

// The score's target, (rows, size): -sum_p weights_p (dE_p/da da/dx + 2 beta tanh x_p) / (alpha beta), from dE/da and actions (1 + proposals, rows, size).
int target(const Box* box, i64 proposals, i64 rows, float beta, const float* alpha, const float* weights, const float* actions, const float* of_action, float* found) {
    const i64 size = box->size, of_one = rows * size;
    for (i64 r = 0; r < rows; ++r)
        for (i64 j = 0; j < size; ++j) {
            float sum = 0;
            for (i64 p = 0; p < proposals; ++p) {
                const i64 at = (1 + p) * of_one + r * size + j;
                const float pull = of_action[at] * slope(*box, j, actions[at]) + 2 * beta * (actions[at] - box->bias[j]) / box->scale[j];
                sum += weights[p * rows + r] * pull;
            }
            found[r * size + j] = -sum / (beta * alpha[r]);
        }
    return 0;
}

// The mean of weight (gain output + shift point - wanted)^2, to `loss`, with weight beta sigma^2 (`scaled`) or 1; `factor` times its gradient at the score.
int match(i64 rows, i64 size, float beta, i64 scaled, float factor, const float* sigma, const float* gain, const float* shift, const float* output,
          const float* point, const float* wanted, float* loss, float* of_score) {
    double sum = 0;
    for (i64 r = 0; r < rows; ++r)
        for (i64 j = 0; j < size; ++j) {
            const i64 at = r * size + j;
            const float error = gain[r] * output[at] + shift[r] * point[at] - wanted[at], weighted = (scaled ? beta * sigma[r] * sigma[r] : 1) * error;
            sum += weighted * error, of_score[at] = factor * 2 / (rows * size) * weighted;
        }
    *loss = static_cast<float>(sum / (rows * size));
    return 0;
}

// Of the mean energy of the chain's actions, whose gradient is of_action (rows, size), less beta times the path entropy (DiffusionPolicy.path_entropy) unless
// `ratio` is null: the mean entropy, and the gradient at the latents (steps + 1, rows, size).
int upstream(const Box* box, i64 steps, i64 rows, float beta, const float* ratio, const float* added, float constant, const float* latents, const float* noise,
             const float* start, const float* action, const float* of_action, float* entropy, float* found) {
    const i64 size = box->size, of_one = rows * size;
    const float weight = -beta / rows;
    double sum = 0;
    std::fill(found, found + (steps + 1) * of_one, 0.0f);
    for (i64 k = 0; ratio && k < steps; ++k)
        for (i64 at = 0; at < of_one; ++at) {
            const float residual = latents[(k + 1) * of_one + at] - ratio[k] * latents[k * of_one + at], pull = residual / added[k], draw = noise[k * of_one + at];
            sum += 0.5 * (draw * draw - residual * pull);
            found[k * of_one + at] += weight * ratio[k] * pull, found[(k + 1) * of_one + at] -= weight * pull;
        }
    for (i64 at = 0; at < of_one; ++at) {
        if (ratio) {
            const Squashed squashed(latents[at]);
            sum += 0.5 * start[at] * start[at] + squashed.log_slope;
            found[at] -= weight * 2 * squashed.value;
        }
        found[at] += of_action[at] * slope(*box, at % size, action[at]) / rows;
    }
    *entropy = ratio ? static_cast<float>(sum / rows) + constant : 0;
    return 0;
}

}  // extern "C"
