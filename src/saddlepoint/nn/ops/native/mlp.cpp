// The registered operations on ensembles and chains: shapes and types are checked here, and room is made for what comes
// out.

#include "chain.h"
#include "ensemble.h"
#include "weight_gradients.h"

namespace saddlepoint {
namespace {

using Tensors = std::vector<Tensor>;

// An ensemble on concat(state, action) with one value a member: weights (members, in, out), biases (members, 1, out), and
// `norms`, the gains of all hidden layers and then their shifts (members, 1, width), or nothing.
Net ensemble(at::TensorList weights, at::TensorList biases, at::TensorList norms, i64 wide, bool silu) {
    TORCH_CHECK_VALUE(weights.size() >= 2 && (biases.empty() || biases.size() == weights.size()),
                      "an ensemble needs a hidden layer, and a bias a layer");
    const i64 members = weights[0].size(0), inputs = weights[0].size(1), hidden = static_cast<i64>(weights.size()) - 1;
    TORCH_CHECK_VALUE(inputs > wide && members > 0, "the state has ", wide, " columns of ", inputs);
    Net net{members, wide, inputs - wide, hidden, 1, silu, false, {}, floats(weights), floats(biases), {}, {}};
    TORCH_CHECK_VALUE(norms.empty() || static_cast<i64>(norms.size()) == 2 * hidden, "a gain and a shift a hidden layer");
    i64 in = inputs;
    for (i64 layer = 0; layer <= hidden; ++layer) {
        const i64 out = weights[layer].size(2);
        TORCH_CHECK_VALUE(layer < hidden ? out > 0 && out % 32 == 0 : out == 1,
                          "hidden widths are multiples of 32, the head has one column");
        require(weights[layer], {members, in, out});
        if (!biases.empty()) require(biases[layer], {members, 1, out});
        if (layer < hidden) net.widths.push_back(out);
        in = out;
    }
    for (size_t i = 0; i < norms.size(); ++i) {
        const i64 layer = static_cast<i64>(i) % hidden;
        (static_cast<i64>(i) < hidden ? net.gains : net.shifts)
            .push_back(floats(require(norms[i], {members, 1, net.widths[layer]})));
    }
    return net;
}

// What follows on the first layer's sums in a score network, with `columns` (narrow, hidden) in its place: weights
// (out, in), biases (out,).
Net score_network(const Tensor& columns, at::TensorList weights, at::TensorList biases, const Tensor& head_weight,
                  const Tensor& head_bias) {
    TORCH_CHECK_VALUE(weights.size() == biases.size(), "a bias a layer");
    const i64 narrow = columns.size(0), hidden = static_cast<i64>(weights.size()) + 1;
    Net net{1,
            0,
            narrow,
            hidden,
            head_weight.size(0),
            false,
            true,
            {columns.size(1)},
            {floats(require(columns, columns.sizes()))},
            {nullptr},
            {},
            {}};
    for (size_t layer = 0; layer < weights.size(); ++layer) {
        const i64 out = weights[layer].size(0);
        net.weights.push_back(floats(require(weights[layer], {out, net.widths.back()})));
        net.biases.push_back(floats(require(biases[layer], {out})));
        net.widths.push_back(out);
    }
    for (i64 width : net.widths) TORCH_CHECK_VALUE(width > 0 && width % 32 == 0, "hidden widths are multiples of 32");
    TORCH_CHECK_VALUE(narrow > 0 && net.head == narrow, "a chain needs as many outputs as its latent has entries");
    net.weights.push_back(floats(require(head_weight, {narrow, net.widths.back()})));
    net.biases.push_back(floats(require(head_bias, {narrow})));
    return net;
}

template <class T>
Tensors pack_net(const Net& net, bool backward) {
    Tensors packed;
    for (i64 layer = 0; layer < net.hidden; ++layer) {
        const i64 in = layer ? net.widths[layer - 1] : net.wide, out = net.widths[layer];
        const bool none = (!layer && (backward || !net.wide)) || unpacked<T>(net, layer, backward);
        packed.push_back(room({none ? 0 : net.members * (backward ? packed_size<T>(out, in) : packed_size<T>(in, out))},
                              !FLOAT32<T>));
    }
    pack_all<T>(net, numbers<T>(packed).data(), backward);
    return packed;
}

template <class T>
void require_packed(const Net& net, at::TensorList packed, bool backward) {
    TORCH_CHECK_VALUE(static_cast<i64>(packed.size()) == net.hidden, "packed weights of another network");
    for (i64 layer = 0; layer < net.hidden; ++layer) {
        const i64 in = layer ? net.widths[layer - 1] : net.wide, out = net.widths[layer];
        const bool none = (!layer && (backward || !net.wide)) || unpacked<T>(net, layer, backward);
        require(packed[layer],
                {none ? 0 : net.members * (backward ? packed_size<T>(out, in) : packed_size<T>(in, out))},
                at::CppTypeToScalarType<T>());
    }
}

Tensors hidden_room(const Net& net, i64 rows, bool low) {
    Tensors found;
    for (i64 width : net.widths) found.push_back(room({net.members, rows, width}, low));
    return found;
}

void require_hidden(const Net& net, at::TensorList tensors, i64 rows, bool low) {
    TORCH_CHECK_VALUE(static_cast<i64>(tensors.size()) == net.hidden, "a tensor a hidden layer");
    for (i64 layer = 0; layer < net.hidden; ++layer)
        require(tensors[layer], {net.members, rows, net.widths[layer]}, low ? at::kBFloat16 : at::kFloat);
}

// What the way back multiplies with: a tensor a hidden layer, and of normed layers also their inverses (members, rows).
Tensors sources_room(const Net& net, i64 rows, bool low) {
    Tensors found = hidden_room(net, rows, low);
    for (i64 layer = 0; net.normed() && layer < net.hidden; ++layer) found.push_back(room({net.members, rows}));
    return found;
}

void require_sources(const Net& net, at::TensorList sources, i64 rows, bool low) {
    TORCH_CHECK_VALUE(static_cast<i64>(sources.size()) == net.hidden * (net.normed() ? 2 : 1),
                      "what a forward pass of this network has kept");
    require_hidden(net, sources.slice(0, net.hidden), rows, low);
    for (const Tensor& inverse : sources.slice(net.hidden)) require(inverse, {net.members, rows});
}

// Their pointers: those of the hidden layers, and the inverses.
template <class T>
std::tuple<std::vector<T*>, std::vector<float*>> source_numbers(const Net& net, at::TensorList sources) {
    if (sources.empty()) return {};
    return {numbers<T>(sources.slice(0, net.hidden)), numbers<float>(sources.slice(net.hidden))};
}

// The norms' gradients, from the sums of each tile.
void write_norm_gradients(const Net& net, i64 rows, const float* sums, const Tensors& d_norms) {
    if (!net.normed()) return;
    const std::vector<float*> found = numbers<float>(d_norms);
    norm_gradients(net, (rows + ROWS - 1) / ROWS, sums, found.data(), found.data() + net.hidden);
}

i64 norm_sums_size(const Net& net, i64 rows) {
    return net.normed() ? net.members * ((rows + ROWS - 1) / ROWS) * norm_offset(net, net.hidden) : 0;
}

Tensors like(at::TensorList tensors) {
    Tensors found;
    for (const Tensor& tensor : tensors) found.push_back(at::empty_like(tensor));
    return found;
}

i64 stride_of(i64 rows, bool low) { return low ? padded(rows) : rows; }  // what oneDNN sums over in bfloat16

// The inputs (rows, wide + narrow) in the type of the products.
Tensor inputs_of(const Tensor& state, const Tensor& action, bool low) {
    const Tensor states = state.unsqueeze(0).expand({action.size(0), -1, -1});
    return at::cat({states, action}, 2).flatten(0, 1).to(low ? at::kBFloat16 : at::kFloat);
}

// ---------------------------------------------------------------------------------------------- ensembles

Tensors ensemble_pack(at::TensorList weights, i64 wide, bool low, bool backward) {
    const Net net = ensemble(weights, {}, {}, wide, false);
    return low ? pack_net<BFloat16>(net, backward) : pack_net<float>(net, backward);
}

std::tuple<Tensor, Tensors, Tensors> ensemble_forward(at::TensorList weights, at::TensorList biases,
                                                      at::TensorList norms, at::TensorList packed, const Tensor& state,
                                                      const Tensor& action, bool silu, bool low, bool outputs,
                                                      bool slopes) {
    const Net net = ensemble(weights, biases, norms, state.size(1), silu);
    const i64 proposals = action.size(0), batch = action.size(1);
    require(state, {batch, net.wide}), require(action, {proposals, batch, net.narrow});
    const Tensor values = room({net.members, proposals, batch});
    const Tensors kept = outputs ? hidden_room(net, proposals * batch, low) : Tensors(),
                  sources = slopes ? sources_room(net, proposals * batch, low) : Tensors();
    with_type(low, [&](auto t) {
        using T = decltype(t);
        require_packed<T>(net, packed, false);
        const auto out = numbers<T>(kept);
        const auto [slope, inverse] = source_numbers<T>(net, sources);
        forward<T>(net, numbers<T>(packed).data(), floats(state), nullptr, floats(action), proposals, batch,
                   outputs ? out.data() : nullptr, slopes ? slope.data() : nullptr,
                   slopes && net.normed() ? inverse.data() : nullptr, values.data_ptr<float>());
    });
    return {values, kept, sources};
}

Tensor ensemble_action_gradient(at::TensorList weights, at::TensorList norms, at::TensorList turned,
                                at::TensorList sources, const Tensor& upstream, i64 wide, bool silu, bool low) {
    const Net net = ensemble(weights, {}, norms, wide, silu);
    const i64 proposals = upstream.size(1), batch = upstream.size(2), rows = proposals * batch;
    require(upstream, {net.members, proposals, batch}), require_sources(net, sources, rows, low);
    const Tensor below = room({proposals, batch, net.narrow});
    with_type(low, [&](auto t) {
        using T = decltype(t);
        require_packed<T>(net, turned, true);
        const auto [slope, inverse] = source_numbers<T>(net, sources);
        backward<T>(net, numbers<T>(turned).data(), rows, slope.data(), inverse.data(), floats(upstream), nullptr, rows,
                    nullptr, below.data_ptr<float>());
    });
    return below;
}

// The gradients of weights, biases and norms.
std::tuple<Tensors, Tensors, Tensors> ensemble_weight_gradients(
    at::TensorList weights, at::TensorList biases, at::TensorList norms, at::TensorList turned, const Tensor& state,
    const Tensor& action, at::TensorList outputs, at::TensorList sources, const Tensor& upstream, bool silu, bool low) {
    const Net net = ensemble(weights, biases, norms, state.size(1), silu);
    const i64 proposals = action.size(0), batch = action.size(1), rows = proposals * batch,
              stride = stride_of(rows, low);
    require(state, {batch, net.wide}), require(action, {proposals, batch, net.narrow}),
        require(upstream, {net.members, proposals, batch});
    require_hidden(net, outputs, rows, low), require_sources(net, sources, rows, low);
    const Tensors grads = hidden_room(net, stride, low), d_weights = like(weights), d_biases = like(biases),
                  d_norms = like(norms);
    for (const Tensor& grad : grads) grad.narrow(1, rows, stride - rows).zero_();
    const Tensor inputs = inputs_of(state, action, low);
    Buffer<float> sums(norm_sums_size(net, rows));
    with_type(low, [&](auto t) {
        using T = decltype(t);
        require_packed<T>(net, turned, true);
        const auto grad = numbers<T>(grads);
        const auto [slope, inverse] = source_numbers<T>(net, sources);
        backward<T>(net, numbers<T>(turned).data(), rows, slope.data(), inverse.data(), floats(upstream), grad.data(),
                    stride, sums, nullptr);
        weight_gradients<T>(net, rows, inputs.data_ptr<T>(), numbers<T>(outputs).data(), grad.data(), stride,
                            floats(upstream), numbers<float>(d_weights).data(), numbers<float>(d_biases).data());
    });
    write_norm_gradients(net, rows, sums, d_norms);
    return {d_weights, d_biases, d_norms};
}

// The loss, and its gradients at weights, biases and norms.
std::tuple<Tensor, Tensors, Tensors, Tensors> ensemble_fit(at::TensorList weights, at::TensorList biases,
                                                           at::TensorList norms, at::TensorList packed,
                                                           at::TensorList turned, const Tensor& state,
                                                           const Tensor& action, const Tensor& target, double scale,
                                                           bool silu, bool low) {
    const Net net = ensemble(weights, biases, norms, state.size(1), silu);
    const i64 rows = state.size(0), stride = stride_of(rows, low);
    const bool shared = target.dim() == 1;
    require(state, {rows, net.wide}), require(action, {rows, net.narrow});
    shared ? require(target, {rows}) : require(target, {net.members, rows});
    const Tensors outputs = hidden_room(net, rows, low), grads = hidden_room(net, stride, low),
                  d_weights = like(weights), d_biases = like(biases), d_norms = like(norms);
    const Tensor upstream = room({net.members, rows}), loss = room({}),
                 inputs = inputs_of(state, action.unsqueeze(0), low);
    Buffer<float> sums(norm_sums_size(net, rows));
    with_type(low, [&](auto t) {
        using T = decltype(t);
        require_packed<T>(net, packed, false), require_packed<T>(net, turned, true);
        const auto out = numbers<T>(outputs), grad = numbers<T>(grads);
        fit<T>(net, numbers<T>(packed).data(), numbers<T>(turned).data(), floats(state), floats(action), rows,
               floats(target), shared, static_cast<float>(scale), out.data(), grad.data(), stride,
               sums, upstream.data_ptr<float>(), loss.data_ptr<float>());
        weight_gradients<T>(net, rows, inputs.data_ptr<T>(), out.data(), grad.data(), stride, floats(upstream),
                            numbers<float>(d_weights).data(), numbers<float>(d_biases).data());
    });
    write_norm_gradients(net, rows, sums, d_norms);
    return {loss, d_weights, d_biases, d_norms};
}

// ---------------------------------------------------------------------------------------------- chains

Tensors chain_pack(const Tensor& columns, at::TensorList weights, at::TensorList biases, const Tensor& head_weight,
                   const Tensor& head_bias, bool low, bool backward) {
    const Net net = score_network(columns, weights, biases, head_weight, head_bias);
    return low ? pack_net<BFloat16>(net, backward) : pack_net<float>(net, backward);
}

std::tuple<Tensor, Tensors> chain_forward_op(const Tensor& common, const Tensor& times, const Tensor& columns,
                                             at::TensorList weights, at::TensorList biases, const Tensor& head_weight,
                                             const Tensor& head_bias, at::TensorList packed, const Tensor& start,
                                             const std::optional<Tensor>& noise, at::ArrayRef<double> keep,
                                             at::ArrayRef<double> drift, at::ArrayRef<double> std, bool low,
                                             bool record) {
    const Net net = score_network(columns, weights, biases, head_weight, head_bias);
    const i64 steps = times.size(0), rows = start.size(0), size = net.narrow;
    require(common, {rows, net.widths[0]}), require(times, {steps, net.widths[0]}), require(start, {rows, size});
    if (noise) require(*noise, {steps, rows, size});
    for (auto table : {keep, drift, std})
        TORCH_CHECK_VALUE(static_cast<i64>(table.size()) == steps, "three coefficients a step");
    const Tensor latents = room({steps + 1, rows, size});
    latents[steps].copy_(start);
    const Tensors kept = record ? hidden_room(net, steps * rows, low) : Tensors();
    with_type(low, [&](auto t) {
        using T = decltype(t);
        require_packed<T>(net, packed, false);
        const auto outputs = numbers<T>(kept);
        chain_forward<T>(net, numbers<T>(packed).data(), floats(common), floats(times), floats(noise), keep.data(),
                         drift.data(), std.data(), steps, rows, latents.data_ptr<float>(),
                         record ? outputs.data() : nullptr);
    });
    return {latents, kept};
}

// The gradients of common, times, columns (hidden, narrow), weights, biases, head_weight, head_bias from `upstream` at
// the latents.
std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors, Tensor, Tensor> chain_backward_op(
    const Tensor& columns, at::TensorList weights, at::TensorList biases, const Tensor& head_weight,
    const Tensor& head_bias, at::TensorList turned, const Tensor& latents, at::TensorList kept, const Tensor& upstream,
    at::ArrayRef<double> keep, at::ArrayRef<double> drift, bool low) {
    const Net net = score_network(columns, weights, biases, head_weight, head_bias);
    const i64 steps = latents.size(0) - 1, rows = latents.size(1), size = net.narrow, first = net.widths[0],
              all = steps * rows, stride = stride_of(all, low);
    require(latents, {steps + 1, rows, size}), require(upstream, {steps + 1, rows, size}),
        require_hidden(net, kept, all, low);
    for (auto table : {keep, drift})
        TORCH_CHECK_VALUE(static_cast<i64>(table.size()) == steps, "two coefficients a step");
    const Tensors grads = hidden_room(net, stride, low);
    for (const Tensor& grad : grads) grad.narrow(1, all, stride - all).zero_();
    const Tensor of_output = room({steps, rows, size}), d_common = room({rows, first}), d_times = room({steps, first}),
                 d_columns = room({first, size});
    const Tensor d_head = at::empty_like(head_weight), d_head_bias = at::empty_like(head_bias);
    const Tensors d_weights = like(weights), d_biases = like(biases);
    Tensors all_weights{room({0})}, all_biases{room({0})};  // the first layer has `first_layer_gradients`
    all_weights.insert(all_weights.end(), d_weights.begin(), d_weights.end()), all_weights.push_back(d_head);
    all_biases.insert(all_biases.end(), d_biases.begin(), d_biases.end()), all_biases.push_back(d_head_bias);
    with_type(low, [&](auto t) {
        using T = decltype(t);
        require_packed<T>(net, turned, true);
        const auto outputs = numbers<T>(kept), grad = numbers<T>(grads);
        chain_backward<T>(net, numbers<T>(turned).data(), floats(upstream), keep.data(), drift.data(), steps, rows,
                          outputs.data(), of_output.data_ptr<float>(), grad.data());
        weight_gradients<T>(net, all, nullptr, outputs.data(), grad.data(), stride, floats(of_output),
                            numbers<float>(all_weights).data(), numbers<float>(all_biases).data());
        first_layer_gradients<T>(steps, rows, first, size, grad[0], floats(latents) + rows * size,
                                 d_common.data_ptr<float>(), d_times.data_ptr<float>(), d_columns.data_ptr<float>());
    });
    return {d_common, d_times, d_columns, d_weights, d_biases, d_head, d_head_bias};
}

}  // namespace

TORCH_LIBRARY(saddlepoint, m) {
    m.def("ensemble_pack(Tensor[] weights, int wide, bool low, bool backward) -> Tensor[]");
    m.def(
        "ensemble_forward(Tensor[] weights, Tensor[] biases, Tensor[] norms, Tensor[] packed, Tensor state, Tensor "
        "action, bool silu, bool low, bool outputs, bool slopes) -> (Tensor, Tensor[], Tensor[])");
    m.def(
        "ensemble_action_gradient(Tensor[] weights, Tensor[] norms, Tensor[] turned, Tensor[] sources, Tensor "
        "upstream, int wide, bool silu, bool low) -> Tensor");
    m.def(
        "ensemble_weight_gradients(Tensor[] weights, Tensor[] biases, Tensor[] norms, Tensor[] turned, Tensor state, "
        "Tensor action, Tensor[] outputs, Tensor[] sources, Tensor upstream, bool silu, bool low)"
        " -> (Tensor[], Tensor[], Tensor[])");
    m.def(
        "ensemble_fit(Tensor[] weights, Tensor[] biases, Tensor[] norms, Tensor[] packed, Tensor[] turned, Tensor "
        "state, Tensor action, Tensor target, float scale, bool silu, bool low)"
        " -> (Tensor, Tensor[], Tensor[], Tensor[])");
    m.def(
        "chain_pack(Tensor columns, Tensor[] weights, Tensor[] biases, Tensor head_weight, Tensor head_bias, bool low, "
        "bool backward) -> Tensor[]");
    m.def(
        "chain_forward(Tensor common, Tensor times, Tensor columns, Tensor[] weights, Tensor[] biases, Tensor "
        "head_weight, Tensor head_bias,"
        " Tensor[] packed, Tensor start, Tensor? noise, float[] keep, float[] drift, float[] std, bool low, bool "
        "record) -> (Tensor, Tensor[])");
    m.def(
        "chain_backward(Tensor columns, Tensor[] weights, Tensor[] biases, Tensor head_weight, Tensor head_bias, "
        "Tensor[] turned, Tensor latents,"
        " Tensor[] kept, Tensor upstream, float[] keep, float[] drift, bool low) -> (Tensor, Tensor, Tensor, Tensor[], "
        "Tensor[], Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(saddlepoint, CPU, m) {
    m.impl("ensemble_pack", ensemble_pack);
    m.impl("ensemble_forward", ensemble_forward);
    m.impl("ensemble_action_gradient", ensemble_action_gradient);
    m.impl("ensemble_weight_gradients", ensemble_weight_gradients);
    m.impl("ensemble_fit", ensemble_fit);
    m.impl("chain_pack", chain_pack);
    m.impl("chain_forward", chain_forward_op);
    m.impl("chain_backward", chain_backward_op);
}

}  // namespace saddlepoint
