// The registered operations of normed_passes.h: shapes and types are checked here, and room is made for what comes out.

#include "normed_passes.h"

#include <mutex>
#include <unordered_map>

namespace saddlepoint {

Normed::Normed(const std::vector<std::vector<Tensor>>& parameters, i64 simplex, bool low)
    : simplex(simplex), low(low), kept(parameters) {
    TORCH_CHECK_VALUE(parameters.size() == 5, "first weights, weights, biases, gains, shifts");
    const auto& [first_, weights_, biases_, gains_, shifts_] =
        std::tie(parameters[0], parameters[1], parameters[2], parameters[3], parameters[4]);
    TORCH_CHECK_VALUE(!first_.empty() && biases_.size() == weights_.size() + 1 && gains_.size() == shifts_.size(),
                      "parameters of no such network");
    members = biases_[0].size(0), parts = static_cast<i64>(first_.size()), layers = static_cast<i64>(biases_.size());
    TORCH_CHECK_VALUE(members > 0 && static_cast<i64>(gains_.size()) == (simplex ? layers : layers - 1),
                      "a gain and a shift for each normed layer");
    for (const Tensor& bias : biases_)
        widths.push_back(bias.size(-1)), biases.push_back(floats(require(bias, {members, widths.back()})));
    for (const Tensor& part : first_)
        inputs.push_back(part.size(-1)), first.push_back(floats(require(part, {members, widths[0], inputs.back()})));
    for (i64 layer = 1; layer < layers; ++layer)
        weights.push_back(floats(require(weights_[layer - 1], {members, widths[layer], widths[layer - 1]})));
    for (i64 layer = 0; layer < static_cast<i64>(gains_.size()); ++layer) {
        TORCH_CHECK_VALUE(widths[layer] % 32 == 0 && (!simplex || layer < layers - 1 || widths[layer] % simplex == 0),
                          "normed layers have a multiple of 32 units");
        gains.push_back(floats(require(gains_[layer], {members, widths[layer]}))),
            shifts.push_back(floats(require(shifts_[layer], {members, widths[layer]})));
    }
}

struct Numbers {
    std::mutex mutex;
    i64 last = 0;
    std::unordered_map<i64, c10::weak_intrusive_ptr<Normed>> nets;
    std::unordered_map<const Normed*, i64> of;
};

static Numbers& all_numbers() {
    static Numbers* const numbers = new Numbers;  // outlives every network
    return *numbers;
}

i64 number_of(const NormedPtr& net) {
    Numbers& all = all_numbers();
    const std::lock_guard<std::mutex> lock(all.mutex);
    i64& number = all.of[net.get()];
    if (!number) number = ++all.last, all.nets.emplace(number, c10::weak_intrusive_ptr<Normed>(net));
    return number;
}

NormedPtr numbered(i64 number) {
    Numbers& all = all_numbers();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.nets.find(number);
    const NormedPtr net = found == all.nets.end() ? NormedPtr() : found->second.lock();
    TORCH_CHECK_VALUE(net, "no network has the number ", number);
    return net;
}

void Normed::release_resources() {
    Numbers& all = all_numbers();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.of.find(this);
    if (found != all.of.end()) all.nets.erase(found->second), all.of.erase(found);
}

template <class T>
std::vector<T*> Normed::packed(bool backward) {
    std::vector<Tensor>& form = forms[backward];
    if (form.empty()) {
        for (i64 index = 0; index < parts + layers - 1; ++index) {
            const Weight w = weight_of(*this, index, 0);
            form.push_back(
                room({members * (backward ? packed_size<T>(w.out, w.in) : packed_size<T>(w.in, w.out))}, low));
        }
        pack_all<T>(*this, numbers<T>(form).data(), backward);
    }
    return numbers<T>(form);
}
template std::vector<float*> Normed::packed<float>(bool);
template std::vector<BFloat16*> Normed::packed<BFloat16>(bool);

namespace {

using Tensors = std::vector<Tensor>;
using OptionalTensors = c10::List<std::optional<Tensor>>;

// What a pass sees, checked: parts (rows, width), or nothing where `base` (chosen, base rows, widths[0]) has their
// product.
Inputs inputs_of(const Normed& net, const OptionalTensors& parts, at::IntArrayRef chosen, i64 rows,
                 const std::optional<Tensor>& base, i64 repeat, const std::optional<Tensor>& drop) {
    const i64 count = static_cast<i64>(chosen.size()), first = net.widths[0];
    TORCH_CHECK_VALUE(static_cast<i64>(parts.size()) == net.parts && count && rows > 0 && repeat > 0,
                      "a part of the input for each of the network's");
    for (i64 member : chosen) TORCH_CHECK_VALUE(member >= 0 && member < net.members, "members that exist");
    Inputs in{{}, floats(base), base ? base->size(1) : 1, repeat, floats(drop)};
    bool any = false;
    for (i64 p = 0; p < net.parts; ++p) {
        const std::optional<Tensor> part = parts.get(p);
        in.parts.push_back(part ? floats(require(*part, {rows, net.inputs[p]})) : nullptr), any = any || part;
    }
    TORCH_CHECK_VALUE(any, "a part of the input with all rows");
    if (base) require(*base, {count, in.base_rows, first});
    if (drop) require(*drop, {count, rows, first});
    return in;
}

Trail trail_of(const Normed& net, at::TensorList outputs, at::TensorList hats, at::TensorList inverses) {
    Trail trail;
    for (const Tensor& output : outputs) trail.outputs.push_back(output.data_ptr());
    trail.hats = numbers<float>(hats), trail.inverses = numbers<float>(inverses);
    return trail;
}

// Values (chosen, rows, outputs) and, where they are kept for the way back, the layers' outputs, what LayerNorm made of
// their sums, and its scales.
std::tuple<Tensor, Tensors, Tensors, Tensors> normed_forward(i64 number, const OptionalTensors& parts,
                                                             at::IntArrayRef chosen, i64 rows,
                                                             const std::optional<Tensor>& base, i64 repeat,
                                                             const std::optional<Tensor>& drop, bool keep) {
    const NormedPtr net = numbered(number);
    const Inputs in = inputs_of(*net, parts, chosen, rows, base, repeat, drop);
    const i64 count = static_cast<i64>(chosen.size());
    const Tensor values = room({count, rows, net->widths.back()});
    Tensors outputs, hats, inverses;
    if (keep) {
        for (i64 layer = 0; layer + 1 < net->layers; ++layer)
            outputs.push_back(room({count, rows, net->widths[layer]}, net->low));
        for (i64 layer = 0; layer < normed_layers(*net); ++layer)
            hats.push_back(room({count, rows, net->widths[layer]})), inverses.push_back(room({count, rows}));
    }
    const Trail trail = trail_of(*net, outputs, hats, inverses);
    with_type(net->low, [&](auto t) {
        using T = decltype(t);
        forward<T>(*net, net->packed<T>(false).data(), chosen.data(), count, in, rows, keep ? &trail : nullptr,
                   values.data_ptr<float>());
    });
    return {values, outputs, hats, inverses};
}

// From `upstream` at the values: the gradient at the first pre-activations before dropping (chosen, rows, widths[0]),
// those of the named parts, and, where wanted, those of the parameters of the chosen members in five groups, one after
// another.
std::tuple<Tensor, Tensors, Tensors> normed_backward(i64 number, const OptionalTensors& parts,
                                                     at::IntArrayRef chosen, i64 rows,
                                                     const std::optional<Tensor>& base, i64 repeat,
                                                     const std::optional<Tensor>& drop, at::TensorList outputs,
                                                     at::TensorList hats, at::TensorList inverses, const Tensor& values,
                                                     const Tensor& upstream, const c10::List<bool>& wanted_parts,
                                                     bool parameters) {
    const NormedPtr net = numbered(number);
    const Inputs in = inputs_of(*net, parts, chosen, rows, base, repeat, drop);
    const i64 count = static_cast<i64>(chosen.size()), normed = normed_layers(*net);
    require(values, {count, rows, net->widths.back()}), require(upstream, values.sizes());
    TORCH_CHECK_VALUE(static_cast<i64>(outputs.size()) == net->layers - 1 && static_cast<i64>(hats.size()) == normed &&
                          hats.size() == inverses.size() && static_cast<i64>(wanted_parts.size()) == net->parts,
                      "what a forward pass of this network has kept");
    for (i64 layer = 0; layer + 1 < net->layers; ++layer)
        require(outputs[layer], {count, rows, net->widths[layer]}, net->low ? at::kBFloat16 : at::kFloat);
    for (i64 layer = 0; layer < normed; ++layer)
        require(hats[layer], {count, rows, net->widths[layer]}), require(inverses[layer], {count, rows});
    Tensors grads, of_parts, of_parameters;
    for (i64 layer = 0; layer < normed; ++layer) grads.push_back(room({count, rows, net->widths[layer]}));
    for (i64 p = 0; p < net->parts; ++p) of_parts.push_back(room({wanted_parts.get(p) ? rows : 0, net->inputs[p]}));
    Gradients wanted;
    wanted.parts = numbers<float>(of_parts);
    const auto make = [&](at::IntArrayRef shape) {
        return of_parameters.push_back(room(shape)), of_parameters.back().data_ptr<float>();
    };
    if (parameters) {
        for (i64 width : net->inputs) wanted.first.push_back(make({count, net->widths[0], width}));
        for (i64 layer = 1; layer < net->layers; ++layer)
            wanted.weights.push_back(make({count, net->widths[layer], net->widths[layer - 1]}));
        for (i64 width : net->widths) wanted.biases.push_back(make({count, width}));
        for (i64 layer = 0; layer < normed; ++layer) wanted.gains.push_back(make({count, net->widths[layer]}));
        for (i64 layer = 0; layer < normed; ++layer) wanted.shifts.push_back(make({count, net->widths[layer]}));
    }
    const Trail trail = trail_of(*net, outputs, hats, inverses);
    with_type(net->low, [&](auto t) {
        using T = decltype(t);
        backward<T>(*net, net->packed<T>(true).data(), chosen.data(), count, in, rows, trail, floats(values),
                    floats(upstream), numbers<float>(grads).data(), wanted);
    });
    return {normed ? grads[0] : upstream, of_parts, of_parameters};
}

// See `chain`: x after all steps; `common`, `times` and `mask` as there.
Tensor normed_chain(i64 number, i64 part, const Tensor& common, const Tensor& times, const Tensor& start,
                    const std::optional<Tensor>& mask, at::ArrayRef<double> keep, at::ArrayRef<double> drift) {
    const NormedPtr net = numbered(number);
    TORCH_CHECK_VALUE(
        net->members == 1 && part >= 0 && part < net->parts && !net->simplex && net->widths.back() == net->inputs[part],
        "a chain needs a single plain net whose outputs are as many as that part of its inputs");
    const i64 rows = start.size(0), steps = times.size(0), size = net->inputs[part];
    for (auto table : {keep, drift})
        TORCH_CHECK_VALUE(static_cast<i64>(table.size()) == steps, "two coefficients a step");
    require(common, {rows, net->widths[0]}), require(times, {steps, net->widths[0]}), require(start, {rows, size});
    if (mask) require(*mask, {rows, size});
    const Tensor x = start.clone();
    with_type(net->low, [&](auto t) {
        using T = decltype(t);
        chain<T>(*net, net->packed<T>(false).data(), part, floats(common), floats(times), keep.data(), drift.data(),
                 floats(mask), steps, rows, x.data_ptr<float>());
    });
    return x;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(saddlepoint, m) {
    m.class_<Normed>("Normed")
        .def(torch::init<std::vector<std::vector<Tensor>>, i64, bool>())
        .def("number", [](const NormedPtr& net) { return number_of(net); });
    m.def(
        "normed_forward(int net, Tensor?[] parts, int[] chosen, int rows, "
        "Tensor? base, int repeat, Tensor? drop,"
        " bool keep) -> (Tensor, Tensor[], Tensor[], Tensor[])");
    m.def(
        "normed_backward(int net, Tensor?[] parts, int[] chosen, int rows, "
        "Tensor? base, int repeat, Tensor? drop,"
        " Tensor[] outputs, Tensor[] hats, Tensor[] inverses, Tensor values, Tensor upstream, bool[] wanted_parts, "
        "bool parameters)"
        " -> (Tensor, Tensor[], Tensor[])");
    m.def(
        "normed_chain(int net, int part, Tensor common, Tensor times, Tensor "
        "start, Tensor? mask, float[] keep,"
        " float[] drift) -> Tensor");
}

TORCH_LIBRARY_IMPL(saddlepoint, CPU, m) {
    m.impl("normed_forward", normed_forward);
    m.impl("normed_backward", normed_backward);
    m.impl("normed_chain", normed_chain);
}

}  // namespace saddlepoint
