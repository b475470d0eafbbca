"""ALGD beyond parity: a bandit whose constrained optimum is known, several constraints, save/load identity, guards, and the path entropy."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import EARLIER, PRESETS, ALGDConfig
from saddlepoint.algd.energy import Constraint, augmented
from saddlepoint.algd.losses import bellman_targets, critic_losses, policy_loss
from saddlepoint.algd.policy import ChainNoise, DiffusionPolicy, make_process, score_of_output
from saddlepoint.constrained.budget import CostBudget, cost_units, violation_ceiling
from saddlepoint.constrained.risk import cautious
from saddlepoint.nn import ops
from saddlepoint.nn.layers import ActionBox
from saddlepoint.nn.optim import frozen
from saddlepoint.replay import Ahead
from saddlepoint.types import Batch, EnvShape, NonFiniteError, UserError

SMALL = replace(
    EARLIER,
    multiplier_actions="policy",  # most tests update from a batch, without a replay
    critic_hidden=(32, 32),
    policy_hidden=(32, 32),
    batch_size=64,
    policy_learning_rate=3e-3,
    critic_learning_rate=3e-3,
    cost_learning_rate=3e-3,
    polyak=0.05,
    cost_unit="budget",  # of 0.3
    rho=0.09,
    multiplier=0.21,
)
STEP_BUDGET = CostBudget(0.3, per="step", horizon=1)


def bandit_batch(rows: int, generator: torch.Generator, constraints: int = 1) -> Batch:
    """One state, one step: reward a, cost max(a, 0) (and max(-a, 0) as a second constraint), for a uniform in [-1, 1]."""
    action = torch.rand(rows, 1, generator=generator) * 2 - 1
    state = torch.zeros(rows, 2)
    cost = torch.cat([action.clamp(min=0), (-action).clamp(min=0)], -1)[:, :constraints]
    return Batch(state, action, action[:, 0], cost, state, torch.ones(rows))


def bandit_agent(config: ALGDConfig, constraints: int = 1, **kwargs) -> ALGD:
    return ALGD(config, EnvShape(2, (-1.0,), (1.0,), constraints), (STEP_BUDGET,) * constraints, **kwargs)


def train_bandit(config: ALGDConfig, updates: int = 500) -> float:
    """Mean action of the trained policy."""
    agent, generator = bandit_agent(config), torch.Generator().manual_seed(3)
    for _ in range(updates):
        agent.update_batch(bandit_batch(config.batch_size, generator), agent.draw(config.batch_size))
    return float(agent.act(torch.zeros(500, 2), "stochastic", generator).mean())


QUICK = {"beta": 0.02, "entropy": "fixed", "multiplier_rate": 0.0027}


@pytest.mark.parametrize(
    "change",
    [
        {}, {"schedule": "vp"}, {"prediction": "clean"}, {"prediction": "score"}, {"score_space": "action", "entropy": "none"}, {"score_form": "mean"},
        {"energy": "plain"}, {"multiplier_rule": "pid", "proportional": 0.0045, "derivative": 0.0045}, {"precision": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_the_constrained_bandit_is_solved_at_its_budget(change):
    """max E[a] subject to E[max(a, 0)] <= 0.3: the best mean action is 0.3."""
    updates = 500 if "multiplier_rule" in change else 300
    assert train_bandit(replace(SMALL, **{**QUICK, **change}), updates) == pytest.approx(0.3, abs=0.12)


def test_without_a_constraint_the_bandit_goes_to_its_bound():
    assert train_bandit(replace(SMALL, **QUICK, energy="none"), 300) > 0.8


def test_the_released_agents_learn_the_bandit():
    """Both parity presets move towards more reward than they start with (mean 0)."""
    shared = ("critic_hidden", "policy_hidden", "batch_size", "polyak")
    rates = ("policy_learning_rate", "critic_learning_rate", "cost_learning_rate")
    for preset in ("parity", "parity-vp"):
        quick = replace(PRESETS[preset], **{name: getattr(SMALL, name) for name in (*shared, *rates)})
        assert train_bandit(quick, 200) > 0.03


def test_tuned_temperature_reaches_its_target_entropy():
    config = replace(SMALL, entropy="tuned", target_entropy=-2.5, beta=0.2, temperature_rate=0.02)
    agent, generator = bandit_agent(config), torch.Generator().manual_seed(3)
    entropies = [agent.update_batch(bandit_batch(64, generator), agent.draw(64))["entropy"] for _ in range(700)]
    assert float(torch.stack(entropies[-100:]).mean()) == pytest.approx(-2.5, abs=0.4)


def test_target_cost_critics_follow_at_their_own_rate():
    agent, generator = bandit_agent(replace(SMALL, polyak=0.1, cost_polyak=0.5)), torch.Generator().manual_seed(3)
    before = {name: value for name, value in agent.state_dict().items() if "target" in name}
    agent.update_batch(bandit_batch(64, generator), agent.draw(64))
    after = agent.state_dict()
    for target, online, rate in (("critic_target", "critic", 0.1), ("cost_target", "cost_critic", 0.5)):
        for name in (n for n in before if n.startswith(f"{target}.")):
            torch.testing.assert_close(after[name], before[name].lerp(after[name.replace(target, online)], rate))


@pytest.mark.parametrize(("share", "least", "most"), [(0.005, 0, 10), (0.2, 40, 70)])
def test_how_soon_cost_estimates_close_their_gap(share, least, most):
    """A cost of 1 for ever is worth 100 at a discount of 0.99, and 100 (1 - exp(-share * 0.01 * updates)) on the way there: 2 and 55 after 400 updates."""
    agent = bandit_agent(replace(SMALL, cost_polyak=share))
    generator = torch.Generator().manual_seed(3)
    for _ in range(400):
        batch = bandit_batch(64, generator)
        batch = batch._replace(cost=torch.ones_like(batch.cost), terminated=torch.zeros_like(batch.terminated))
        agent.update_batch(batch, agent.draw(64))
    assert least < float(agent.risk(batch.observation, batch.action).mean()) < most


@pytest.mark.parametrize("nonnegative", [True, False])
def test_cost_targets_below_zero_count_as_zero(nonnegative):
    """With target critics at -5 the cost members are fitted to c, or to c - 5 gamma_c as released."""
    agent, generator = bandit_agent(replace(SMALL, nonnegative_costs=nonnegative)), torch.Generator().manual_seed(3)
    with torch.no_grad():
        agent.cost_target.weights[-1].zero_()
        agent.cost_target.biases[-1].fill_(-5.0)
    batch = bandit_batch(64, generator)._replace(terminated=torch.zeros(64))
    wanted = batch.cost[:, 0] - (0 if nonnegative else 5 * agent.config.cost_gamma)
    loss = (agent.cost_critic(batch.observation, batch.action[None])[:, 0] - wanted).square().mean().detach()
    metrics = agent.update_batch(batch, agent.draw(64))
    assert float(metrics["cost_critic_loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_a_cost_member_bootstraps_with_its_own_target_or_with_a_cautious_one():
    """Three members whose targets are 6, 1 and 2 everywhere are fitted to c + gamma_c (6, 1, 2), or all to c + gamma_c times 6, or (6 + 6 + 2)/3."""
    for bootstrap, following in (("own", (6.0, 1.0, 2.0)), ("pair", (14 / 3,) * 3), ("largest", (6.0,) * 3)):
        config = replace(SMALL, cost_members=3, cost_bootstrap=bootstrap)
        agent, generator = bandit_agent(config), torch.Generator().manual_seed(3)
        with torch.no_grad():
            agent.cost_target.weights[-1].zero_()
            agent.cost_target.biases[-1].copy_(torch.tensor([6.0, 1.0, 2.0]).view(3, 1, 1))
        batch = bandit_batch(64, generator)._replace(terminated=torch.zeros(64))
        wanted = batch.cost[:, 0] + config.cost_gamma * torch.tensor(following)[:, None]
        loss = (agent.cost_critic(batch.observation, batch.action[None])[:, 0] - wanted).square().mean().detach()
        metrics = agent.update_batch(batch, agent.draw(64))
        assert float(metrics["cost_critic_loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_the_larger_of_a_pair_against_all_pairs():
    members = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [torch.maximum(members[:, i], members[:, j]) for i, j in itertools.combinations(range(5), 2)]
    torch.testing.assert_close(cautious(members, pair=True), torch.stack(pairs).mean(0))
    torch.testing.assert_close(cautious(members[:, :1], pair=True), members[:, 0])


def test_a_violation_moves_lambda_as_if_at_most_so_many_budgets():
    for cap, step in ((2.0, 2.0), (100.0, 30.0), (None, 30.0)):
        agent = bandit_agent(replace(SMALL, multiplier_actions="recent", largest_violation=cap))
        before, budget = agent.multiplier.item(), agent.budget.item()
        cost = torch.tensor([31 * budget], dtype=torch.float64)
        agent.update_batch(bandit_batch(64, torch.Generator().manual_seed(3)), agent.draw(64), cost)
        assert agent.multiplier.item() - before == pytest.approx(agent.config.multiplier_rate * step, rel=1e-4)


def test_a_budget_of_nothing_does_not_hold_lambda_down():
    config = replace(SMALL, multiplier_actions="recent", multiplier=0.0)
    agent = ALGD(config, EnvShape(2, (-1.0,), (1.0,), 1), (CostBudget(0.0),))
    agent.update_batch(bandit_batch(64, torch.Generator().manual_seed(3)), agent.draw(64), torch.tensor([5.0], dtype=torch.float64))
    assert agent.multiplier.item() == pytest.approx(5 * config.multiplier_rate)


def test_what_an_episode_cost_moves_lambda_by_its_excess():
    """Dual ascent: lambda + rate * (spent - h)/h, whatever the critics believe."""
    config = replace(SMALL, multiplier_actions="recent", multiplier=1.0, multiplier_rate=0.01, largest_violation=None)
    agent, generator = bandit_agent(config), torch.Generator().manual_seed(3)
    metrics = agent.update_batch(bandit_batch(64, generator), agent.draw(64), torch.tensor([0.7], dtype=torch.float64))
    excess = 0.7 - agent.budgets[0].critic
    assert float(metrics["violation"]) == pytest.approx(excess, rel=1e-6)
    assert agent.multiplier.tolist() == pytest.approx([max(1.0 + 0.01 * excess / agent.budgets[0].critic, 0.0)])


@pytest.mark.parametrize("energy", ["augmented", "plain", "none"])
def test_the_logged_effective_multiplier_is_the_slope_that_the_policy_paid(energy):
    agent, generator = bandit_agent(replace(SMALL, energy=energy, multiplier=0.7, rho=2.0)), torch.Generator().manual_seed(3)
    metrics = agent.update_batch(bandit_batch(64, generator), agent.draw(64))
    if energy == "augmented":
        # Budgets are far from the untrained critics' risk or near it: within the clamp's two sides its mean lies between them.
        excess = float(metrics["risk"]) - agent.budget.item()
        assert float(metrics["effective_multiplier"]) == pytest.approx(max(0.7 + 2.0 * excess / agent.budget.item(), 0.0), abs=0.05)
    else:
        assert float(metrics["effective_multiplier"]) == pytest.approx(0.7 if energy == "plain" else 0.0)
    read = float(metrics["effective_multiplier"])
    agent.update_batch(bandit_batch(64, generator), agent.draw(64))
    assert float(metrics["effective_multiplier"]) == read  # what it was then, whenever it is read


def test_the_effective_multiplier_is_not_computed_until_it_is_read(monkeypatch):
    agent, generator = bandit_agent(SMALL), torch.Generator().manual_seed(3)
    energy, calls = agent.energy, []
    metrics = agent.update_batch(bandit_batch(64, generator), agent.draw(64))
    agent.energy = lambda *values: calls.append(1) or energy(*values)
    first = float(metrics["effective_multiplier"])
    assert calls == [1]
    assert float(metrics["effective_multiplier"]) == first
    assert calls == [1]  # nor twice


def test_lambda_is_the_price_of_a_whole_budget_or_of_one():
    """L at lambda and rho a budget is L at lambda/h and rho/h^2 a unit of cost, slopes included; a budget of nothing is counted in ones."""
    generator = torch.Generator().manual_seed(0)
    reward, cost = torch.randn(2, 7, generator=generator), (torch.rand(8, 7, generator=generator) * 6).requires_grad_()
    budget, lam, one = torch.tensor([2.5, 0.5]), torch.tensor([3.0, 0.2]), torch.ones(2)
    for c in (0, 1):
        of_one = slice(c, c + 1)
        h, members = budget[of_one], cost[4 * c : 4 * c + 4]
        whole = augmented(reward, members, Constraint(lam[of_one], h, h, 6.0, 1.0))
        plain = augmented(reward, members, Constraint(lam[of_one] / h, h, one[of_one], 6.0 / float(h) ** 2, 1.0))
        torch.testing.assert_close(whole, plain)
        slopes = [torch.autograd.grad(energy.sum(), members, retain_graph=True)[0] for energy in (whole, plain)]
        torch.testing.assert_close(*slopes)
    assert cost_units((CostBudget(25.0), CostBudget(0.0)), "budget").tolist() == [CostBudget(25.0).critic, 1.0]
    assert cost_units((CostBudget(25.0), CostBudget(0.0)), "one").tolist() == [1.0, 1.0]


def test_two_constraints_have_a_multiplier_each():
    agent, generator = bandit_agent(replace(SMALL, **QUICK), 2), torch.Generator().manual_seed(3)
    for _ in range(400):
        metrics = agent.update_batch(bandit_batch(64, generator, 2), agent.draw(64))
    tight, slack = (agent.multiplier / agent.unit).tolist()
    assert tight > 0.5
    assert slack < 0.1
    assert {"multiplier_0", "multiplier_1", "risk_0", "effective_multiplier_1"} <= metrics.keys()
    with pytest.raises(UserError, match="2 constraint"):
        ALGD(SMALL, EnvShape(2, (-1.0,), (1.0,), 2), (STEP_BUDGET,))


@pytest.mark.parametrize("preset", PRESETS)
def test_saved_and_loaded_agents_go_on_alike_to_the_bit(preset):
    config = replace(PRESETS[preset], critic_hidden=(16, 16), policy_hidden=(16,), batch_size=8, multiplier_actions="policy")
    agent, generator = bandit_agent(config, seed=1), torch.Generator().manual_seed(3)
    for _ in range(3):
        agent.update_batch(bandit_batch(8, generator), agent.draw(8))
    other = bandit_agent(config, seed=2)
    other.load_state_dict(agent.state_dict())
    batch = bandit_batch(8, generator)
    for one in (agent, other):
        one.update_batch(batch, one.draw(8))
    left, right = agent.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_a_state_of_another_shape_is_refused_in_one_sentence():
    state = bandit_agent(SMALL).state_dict()
    with pytest.raises(UserError, match="does not fit"):
        bandit_agent(replace(SMALL, critic_hidden=(16, 16))).load_state_dict(state)


def test_no_stray_gradients():
    """The policy's loss reaches neither the critics nor the multiplier; the critics' step leaves the policy alone."""
    agent, generator = bandit_agent(SMALL), torch.Generator().manual_seed(3)
    batch, noise = bandit_batch(64, generator), agent.draw(64)
    critics = (agent.critic, agent.cost_critic)
    before = {name: flat.whole.grad.clone() for name, flat in agent.critic_optimiser.flats.items()}
    with frozen(*critics):
        loss = policy_loss(agent.config, agent.policy, critics, agent.energy, agent.constraint(), batch.observation, noise, torch.tensor(0.1))
        loss.total.backward()
    assert all(torch.equal(flat.whole.grad, before[name]) for name, flat in agent.critic_optimiser.flats.items())
    moved = agent.policy_optimiser.flats["policy"].whole.grad.clone()
    assert moved.abs().sum() > 0
    targets = bellman_targets(agent.config, batch, Ahead.of(batch, 0.99), torch.zeros(2, 64), torch.zeros(4, 64))
    losses = critic_losses(agent.config, *critics, batch, *targets)
    (losses.reward + losses.cost).backward()
    assert torch.equal(agent.policy_optimiser.flats["policy"].whole.grad, moved)
    assert not any(target.whole.grad.any() for target in agent.targets.values())


def bounded(reward, cost, constraint):
    """An energy of the user's own: the penalty saturates at 1."""
    return torch.tanh(constraint.violation(cost)).sum(0) - reward.amin(0)


def test_an_energy_of_ones_own_is_one_function(generator):
    agent = bandit_agent(replace(SMALL, energy=f"{__name__}:bounded"))
    metrics = agent.update_batch(bandit_batch(64, generator), agent.draw(64))
    excess = (agent.risk(torch.zeros(9, 2), torch.zeros(9, 1)) - agent.budget[:, None]) / agent.unit[:, None]
    assert 0 < float(metrics["effective_multiplier"]) <= 1
    state, action = torch.zeros(9, 2), torch.zeros(1, 9, 1)
    torch.testing.assert_close(agent.energies(state, action)[0], (torch.tanh(excess)[0] - agent.critic(state, action)[:, 0].amin(0)).float())


@pytest.mark.parametrize("network", ["layer_norm", "residual"])
@pytest.mark.parametrize("values", ["scalar", "two_hot"])
def test_other_critics_learn_the_bandit(network, values):
    config = replace(SMALL, **QUICK, critic_network=network, critic_values=values)
    assert train_bandit(config, 300) == pytest.approx(0.3, abs=0.2)


def test_proposals_whose_weight_is_below_rounding_get_no_gradient(generator):
    """Critics see no upstream gradient at such proposals, and the score target is that of all proposals."""
    agent = bandit_agent(replace(SMALL, beta=1e-3, entropy="fixed"), seed=3)
    upstream = []

    def watched(reward, cost, constraint):
        energy = augmented(reward, cost, constraint)
        if energy.requires_grad:
            energy.register_hook(lambda gradient: upstream.append(gradient))
        return energy

    agent.energy = watched
    agent.update_batch(bandit_batch(64, generator), agent.draw(64))
    of_proposals = next(gradient for gradient in upstream if gradient.shape[0] == agent.config.proposals)
    assert int((of_proposals == 0).sum()) > 20


def test_non_finite_numbers_stop_the_update_and_name_themselves():
    agent, generator = bandit_agent(SMALL), torch.Generator().manual_seed(3)
    batch = bandit_batch(64, generator)
    weights = {n: p.clone() for n, p in agent.state_dict().items()}
    with pytest.raises(NonFiniteError, match="reward_critic_loss"):
        agent.update_batch(batch._replace(reward=batch.reward * float("nan")), agent.draw(64))
    with pytest.raises(NonFiniteError, match="cost_critic_loss"):
        agent.update_batch(batch._replace(cost=batch.cost * float("inf")), agent.draw(64))
    for name, value in agent.state_dict().items():
        if name != "generator":
            assert torch.equal(value, weights[name]), name


def test_best_of_n_takes_the_sample_of_least_energy():
    config = replace(SMALL, entropy="fixed", beta=0.5, energy="none", evaluation="best_of_n", evaluation_samples=64)
    agent, generator = bandit_agent(config), torch.Generator().manual_seed(3)
    for _ in range(150):
        agent.update_batch(bandit_batch(64, generator), agent.draw(64))
    state = torch.zeros(200, 2)
    best = agent.act(state, "deterministic", generator)
    sample = agent.act(state, "stochastic", generator)
    assert best.mean() > sample.mean() + 0.2  # Q grows with a


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rho": 0}, "--rho"), ({"gamma": 1.5}, "--gamma"), ({"critic_hidden": ()}, "--critic-hidden"), ({"multiplier": -1}, "negative"),
        ({"sigma_min": 2.0}, "--sigma-min"),
        ({"cost_polyak": 0.0}, "--cost-polyak"),
        ({"sigma_min": 1.0}, "--sigma-min"), ({"rho": float("inf")}, "finite"), ({"entropy": "tuned", "target_entropy": 1.0}, "log 2"),
        ({"prediction": "guided"}, "--prediction guided"), ({"schedule": "vp", "step_noise": "euler"}, "euler"),
        ({"step_noise": "euler"}, "path entropy"), ({"multiplier_rule": "log_adam", "multiplier": 0.0}, "log lambda"), ({"beta_first": 0.5}, "--beta-first"),
    ],
)  # fmt: skip
def test_impossible_configurations_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        replace(ALGDConfig(), **change).validate()


def test_a_budget_of_nothing_does_not_bound_the_violation():
    budgets = (CostBudget(25.0), CostBudget(0.0))
    assert violation_ceiling(budgets, 2.0).tolist() == [2 * budgets[0].critic, math.inf]
    assert violation_ceiling(budgets, None).tolist() == [math.inf, math.inf]


def test_options_that_would_do_nothing_are_refused():
    for name, change in (
        ("guidance", {}),
        ("clip_proposals", {}),
        ("target_entropy", {}),
        ("sigma_max", {"schedule": "vp"}),
        ("multiplier", {"energy": "none"}),
        ("largest_violation", {"energy": "none"}),
        ("score_form", {"score_weight": 0.0}),
        ("derivative", {}),
        ("cost_bootstrap", {"cost_members": 1}),
        ("multiplier_rate", {"energy": "none"}),
        ("risk_std", {"energy": "none"}),
        ("detach_point", {"steps": 1}),
    ):
        with pytest.raises(UserError, match="does nothing"):
            replace(ALGDConfig(), **change).refuse_idle({name})
    ALGDConfig().refuse_idle({"rho", "sigma_min", "beta", "env"})
    ALGDConfig(entropy="tuned").refuse_idle({"target_entropy", "temperature_rate"})


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_act_inside_asymmetric_bounds(preset, generator):
    config = PRESETS[preset]
    config.validate()
    agent = ALGD(config, EnvShape(3, (-2.0, 0.0), (1.0, 0.5), 1), (CostBudget(25),))
    for mode in ("explore", "stochastic", "deterministic"):
        action = agent.act(torch.randn(50, 3), mode, generator)
        assert action.shape == (50, 2)
        assert (action >= torch.tensor([-2.0, 0.0]) - 1e-6).all()
        assert (action <= torch.tensor([1.0, 0.5]) + 1e-6).all()


def test_bounds_are_as_exact_as_the_agent():
    """-0.3 and 0.8 have no exact mean in float32."""
    low, high = (-0.3, -1.0), (0.8, 2.1)
    agent = ALGD(PRESETS["parity"], EnvShape(3, low, high, 1), (CostBudget(1.0),), dtype=torch.float64)
    box = agent.policy.box
    np.testing.assert_array_equal(box.scale, np.subtract(high, low) / 2)
    np.testing.assert_array_equal(box.bias, np.add(high, low) / 2)


@pytest.mark.parametrize("schedule", ["ve", "vp"])
def test_path_entropy_is_a_tight_lower_bound_for_a_gaussian(schedule):
    """With the exact score of a Gaussian latent the bound is below, and with many steps near, log|da/dx| + the Gaussian's entropy."""
    std, steps = 0.5, 300
    config = ALGDConfig(schedule=schedule, steps=steps, sigma_min=0.01, sigma_max=8.0, prediction="score")
    box = ActionBox.from_bounds(-torch.ones(1), torch.ones(1))
    policy = DiffusionPolicy(config, 1, box, torch.Generator()).place(torch.device("cpu"), torch.float64)

    def exact(x, k):
        return -x / (policy.schedule.alpha[k] ** 2 * std**2 + policy.schedule.sigma[k] ** 2)

    generator = torch.Generator().manual_seed(0)
    noise = ChainNoise(
        *(torch.randn(s, generator=generator, dtype=torch.float64) for s in ((4_000, 1), (steps, 4_000, 1)))
    )
    latents = ops.reverse_chain(exact, policy.process.start * noise.start, noise.steps, policy.process.table)
    bound = policy.path_entropy(latents, noise).mean()
    jacobian = policy.box.log_jacobian(latents[0]).mean()
    exact_entropy = 0.5 * math.log(2 * math.pi * math.e * float(latents[0].var())) + jacobian
    assert bound <= exact_entropy + 0.03
    assert bound >= exact_entropy - 0.15


@pytest.mark.parametrize("compiler", ["native", "torch.compile"])
def test_compiled_updates_equal_eager_ones(compiler):
    """Native kernels on this CPU; and what an accelerator compiles, traced, decomposed and cut as for it, and run without its code generator."""
    generator = torch.Generator().manual_seed(3)
    eager, compiled = (bandit_agent(replace(SMALL, precision="float32"), seed=1, compile=native) for native in (False, compiler == "native"))
    if compiler == "torch.compile":
        traced = partial(torch.compile, backend="aot_eager_decomp_partition")
        compiled.critic_losses, compiled.policy_loss = traced(critic_losses), traced(policy_loss)
    for _ in range(3):
        batch = bandit_batch(64, generator)
        for agent in (eager, compiled):
            agent.update_batch(batch, agent.draw(64))
    for (name, one), two in zip(eager.policy.state_dict().items(), compiled.policy.state_dict().values()):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("schedule", "prediction"), [("ve", "noise"), ("vp", "clean")])
def test_what_the_network_predicts_goes_with_the_schedule(schedule, prediction):
    config = ALGDConfig(schedule=schedule)
    assert score_of_output(config, make_process(config)[0]) == score_of_output(replace(config, prediction=prediction), make_process(config)[0])
