"""The baselines: density, targets, gradients and multiplier against independent computations; save/load; the command line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from saddlepoint.baselines.config import CAL_PRESETS, CALConfig, SACConfig, SACLagConfig, SACPIDConfig
from saddlepoint.baselines.constrained import CAL, SACPID, SACLag
from saddlepoint.baselines.losses import cost_loss, reward_loss, soft_loss
from saddlepoint.baselines.policy import GaussianPolicy, bounded_log_std, log_prob
from saddlepoint.baselines.sac import SAC
from saddlepoint.cli import main
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.nn.layers import ActionBox
from saddlepoint.policies import load_policy
from saddlepoint.replay import Ahead
from saddlepoint.systems import SYSTEMS
from saddlepoint.train import checkpoint
from saddlepoint.types import Batch, EnvShape, NonFiniteError, UserError

F64 = torch.float64
BASELINES = ("sac", "sac-lag", "sac-pid", "cal")
CONSTRAINED = BASELINES[1:]
LOW, HIGH = (-1.0, -3.0), (2.0, -1.0)  # asymmetric on purpose
BUDGET = CostBudget(0.3, per="step", horizon=1)


def box(dtype: torch.dtype = F64) -> ActionBox:
    return ActionBox.from_bounds(torch.tensor(LOW, dtype=dtype), torch.tensor(HIGH, dtype=dtype))


def learner(name: str, constraints: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32, compile: bool = False, **options: Any) -> Any:
    system = SYSTEMS[name]
    if name != "sac":  # most tests update from a batch, without a replay
        options = {"multiplier_actions": "policy"} | options
    config = replace(system.presets()["earlier"], **{"critic_hidden": (8, 7), "policy_hidden": (6, 5), "batch_size": 16, **options})
    shape = EnvShape(3, LOW, HIGH, constraints)
    return system.learner_class()(config, shape, (BUDGET,) * constraints, seed, torch.device("cpu"), dtype=dtype, compile=compile)  # type: ignore[call-arg]


def random_batch(rows: int, constraints: int = 1, dtype: torch.dtype = F64, seed: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    ended = (torch.arange(rows) % 3 == 0).to(dtype)
    return Batch(
        normal(rows, 3), box(dtype).squash(normal(rows, 2)), normal(rows), normal(rows, constraints).abs(), normal(rows, 3), ended
    )  # fmt: skip


def by_autograd(policy: GaussianPolicy, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions and log-probability of the policy, computed again with autograd and torch.distributions."""
    h = state
    for weight, bias in zip(policy.weights[:-1], policy.biases[:-1]):
        h = torch.relu(h @ weight.T + bias)
    mean, raw = (h @ policy.weights[-1].T + policy.biases[-1]).chunk(2, -1)
    std = (-5 + 3.5 * (torch.tanh(raw) + 1)).exp()
    unit = torch.tanh(mean + std * noise)
    density = TransformedDistribution(Independent(Normal(mean, std), 1), [TanhTransform(cache_size=0)])
    return unit * policy.box.scale + policy.box.bias, density.log_prob(unit)


# ---------------------------------------------------------------------------------------------------- the policy


def test_log_prob_is_torchs(generator):
    mean, raw = torch.randn(9, 2, dtype=F64, generator=generator), torch.randn(9, 2, dtype=F64, generator=generator)
    latent = mean + bounded_log_std(raw).exp() * torch.randn(9, 2, dtype=F64, generator=generator)
    base = Independent(Normal(mean, bounded_log_std(raw).exp()), 1)
    squash = [TanhTransform(cache_size=1), AffineTransform(box().bias, box().scale, event_dim=1)]
    wanted = TransformedDistribution(base, squash).log_prob(box().squash(latent)) + box().scale.log().sum()
    torch.testing.assert_close(log_prob(latent, mean, bounded_log_std(raw), box()), wanted)


def test_density_integrates_to_one():
    """Over actions scaled to [-1, 1], by the midpoint rule."""
    one = ActionBox.from_bounds(torch.tensor([-1.0], dtype=F64), torch.tensor([3.0], dtype=F64))
    unit = ((torch.arange(200_000, dtype=F64) + 0.5) / 100_000 - 1).unsqueeze(-1)
    for mean, log_std in ((0.0, 0.0), (1.5, -1.0), (-0.4, 0.5)):
        mean_, log_std_ = torch.full_like(unit, mean), torch.full_like(unit, log_std)
        density = log_prob(torch.atanh(unit), mean_, log_std_, one).exp()
        assert float(density.sum() / 100_000) == pytest.approx(1.0, abs=1e-4)


def test_actions_stay_inside_asymmetric_bounds_and_the_noise_free_one_is_the_squashed_mean():
    agent, state = learner("sac"), 100 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    for mode in ("explore", "stochastic", "deterministic"):
        action = agent.act(state, mode, torch.Generator().manual_seed(2))
        assert action.shape == (50, 2)
        assert (action >= torch.tensor(LOW)).all()
        assert (action <= torch.tensor(HIGH)).all()
    wanted, _ = by_autograd(agent.policy, state, torch.zeros(50, 2))
    torch.testing.assert_close(agent.act(state, "deterministic", torch.Generator()), wanted.detach())


# ---------------------------------------------------------------------------------------------------- losses and gradients


@pytest.mark.parametrize("through", [False, True])
def test_critics_are_fitted_to_their_bellman_targets(through):
    agent, batch, beta = learner("cal", 2, dtype=F64, cost_through_termination=through), random_batch(10, 2), torch.tensor(0.3, dtype=F64)
    noise = torch.randn(10, 2, dtype=F64, generator=torch.Generator().manual_seed(6))
    for target in agent.targets.values():  # they differ from the critics
        for parameter in target.parameters():
            parameter.mul_(0.9)
    with torch.no_grad():
        action, log_density = by_autograd(agent.policy, batch.next_observation, noise)
        following = agent.policy.sample(batch.next_observation, noise)
        alive = 1 - batch.terminated
        least = agent.critic_target(batch.next_observation, action[None])[:, 0].amin(0)
        wanted = batch.reward + 0.99 * alive * (least - beta * log_density)
        value = agent.cost_target(batch.next_observation, action[None])[:, 0].unflatten(0, (2, -1)).clamp(min=0)
        wanted_cost = batch.cost.T[:, None] + 0.99 * (1.0 if through else alive) * value
    found = reward_loss(agent.config, agent.critic, agent.critic_target, batch, following, beta)
    values = agent.critic(batch.observation, batch.action[None])[:, 0]
    torch.testing.assert_close(found, (values - wanted).square().mean(-1).sum())  # summed over the heads
    found = cost_loss(agent.config, agent.cost_critic, agent.cost_target, batch, Ahead.of(batch, 0.99), following)
    values = agent.cost_critic(batch.observation, batch.action[None])[:, 0].unflatten(0, (2, -1))
    torch.testing.assert_close(found, (values - wanted_cost).square().mean((-1, -2)).sum())  # summed over constraints


def test_the_policys_loss_is_the_soft_value_and_the_price_of_its_risk():
    agent, batch, beta = learner("cal", 2, dtype=F64, cost_unit="budget"), random_batch(10, 2), torch.tensor(0.3, dtype=F64)
    noise = agent.draw(10)
    action, log_density = by_autograd(agent.policy, batch.observation, noise.policy)
    wanted = (beta * log_density - agent.critic(batch.observation, action[None])[:, 0].amin(0)).mean()
    found, sample, _ = soft_loss(agent.policy, agent.critic, batch.observation, noise.policy, beta)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(sample.log_prob, log_density)
    values = agent.cost_critic(batch.observation, action[None])[:, 0].unflatten(0, (2, -1))
    risk = values.mean(1) + agent.config.risk_std * values.std(1)
    torch.testing.assert_close(agent.risk(batch.observation, action), risk)


@pytest.mark.parametrize("name", BASELINES)
def test_compiled_updates_are_eager_ones(name):
    eager, compiled = (learner(name, critic_hidden=(32, 64), compile=compile) for compile in (False, True))
    for seed in range(4):  # so that the C++ passes must take up weights that Adam and Polyak have moved
        batch = random_batch(16, dtype=torch.float32, seed=seed)
        for agent in (eager, compiled):
            agent.update_batch(batch, agent.draw(16))
    for (key, one), two in zip(eager.state_dict().items(), compiled.state_dict().values(), strict=True):
        if one.is_floating_point():
            assert (one - two).norm() <= 1e-3 * one.norm() + 1e-5, key


def test_cals_price_is_the_rectified_multiplier_and_never_negative():
    agent, multiplier = learner("cal", 3, rho=10.0), torch.tensor([0.5, 0.5, 0.5], dtype=F64)
    violation = torch.tensor([-1.0, -0.02, 0.3], dtype=F64)
    torch.testing.assert_close(agent.weight(multiplier, violation), torch.tensor([0.0, 0.3, 3.5], dtype=F64))


# ---------------------------------------------------------------------------------------------------- updates


@pytest.mark.parametrize("name", CONSTRAINED)
@pytest.mark.parametrize("actions", ["policy", "replay"])
def test_the_multiplier_rises_when_the_budget_is_overspent_and_falls_when_it_is_not(name, actions):
    for cost, up in ((2.0, True), (0.0, False)):
        agent = learner(name, multiplier=0.3, cost_learning_rate=0.03, polyak=1.0, multiplier_actions=actions)
        batch = random_batch(16, dtype=torch.float32)
        batch = batch._replace(cost=torch.full((16, 1), cost), terminated=torch.ones(16))
        for _ in range(60):  # the critic learns that every action costs as much
            metrics = agent.update_batch(batch, agent.draw(16))
        assert float(metrics["risk"]) == pytest.approx(cost, abs=0.25)
        before = agent.multiplier
        agent.update_batch(batch, agent.draw(16))
        assert bool(agent.multiplier > before) is up or (not up and float(agent.multiplier) == 0.0)
        assert bool(metrics["violation"] > 0) is up
        assert bool(metrics["effective_multiplier"] >= metrics["multiplier"] - 1e-6) is (up or name != "cal")


@pytest.mark.parametrize("name", BASELINES)
def test_temperature_moves_towards_the_target_entropy(name):
    for target, up in ((0.6, True), (-6.0, False)):
        agent = learner(name, target_entropy=target)
        metrics = agent.update_batch(random_batch(16, dtype=torch.float32), agent.draw(16))
        assert bool(metrics["entropy"] < target) is up
        assert bool(agent.beta > metrics["beta"]) is up
    fixed = learner(name, entropy="fixed")
    fixed.update_batch(random_batch(16, dtype=torch.float32), fixed.draw(16))
    assert float(fixed.beta) == pytest.approx(0.1)


@pytest.mark.parametrize("name", BASELINES)
def test_targets_follow_by_polyak_averaging(name):
    agent = learner(name, polyak=0.25, target_every=2)
    batch = random_batch(16, dtype=torch.float32)
    for step in range(3):
        before = {n: [p.clone() for p in target.parameters()] for n, target in agent.targets.items()}
        agent.update_batch(batch, agent.draw(16))
        for owner, critic in agent.critics.items():
            for old, new, online in zip(before[owner], agent.targets[owner].parameters(), critic.parameters(), strict=True):
                wanted = old + 0.25 * (online - old) if step % 2 == 0 else old
                torch.testing.assert_close(new, wanted.detach())


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("constraints", [1, 2])
def test_saved_and_loaded_learners_go_on_alike_to_the_bit(name, constraints):
    agent, batch = learner(name, constraints, seed=1), random_batch(16, constraints, torch.float32)
    for _ in range(3):
        agent.update_batch(batch, agent.draw(16))
    other = learner(name, constraints, seed=2)
    other.load_state_dict(agent.state_dict())
    for one in (agent, other):
        one.update_batch(batch, one.draw(16))
    left, right = agent.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


def test_several_constraints_have_a_multiplier_each():
    agent = learner("cal", 2)
    metrics = agent.update_batch(random_batch(16, 2, torch.float32), agent.draw(16))
    for key in ("multiplier", "effective_multiplier", "risk", "violation"):
        assert {f"{key}_0", f"{key}_1"} <= metrics.keys()


def test_a_state_of_another_shape_or_system_is_refused_in_one_sentence():
    for state in (learner("cal", critic_hidden=(4,)).state_dict(), learner("sac").state_dict(), learner("sac-pid").state_dict()):
        with pytest.raises(UserError, match="does not fit"):
            learner("cal").load_state_dict(state)


@pytest.mark.parametrize("name", BASELINES)
def test_non_finite_numbers_stop_the_update_before_any_step(name):
    agent, batch = learner(name), random_batch(16, dtype=torch.float32)
    weights = agent.state_dict()
    with pytest.raises(NonFiniteError, match="reward_critic_loss is not finite at update 0"):
        agent.update_batch(batch._replace(reward=batch.reward * float("nan")), agent.draw(16))
    if name != "sac":
        with pytest.raises(NonFiniteError, match="cost_critic_loss"):
            agent.update_batch(batch._replace(cost=batch.cost * float("inf")), agent.draw(16))
    for key, value in agent.state_dict().items():
        if key != "generator":
            assert torch.equal(value, weights[key]), key


def test_budgets_must_fit_the_environment_and_the_discount():
    shape = EnvShape(3, LOW, HIGH, 2)
    with pytest.raises(UserError, match="2 constraint"):
        CAL(CALConfig(), shape, (BUDGET,))
    speed = CostBudget(80.0, discounted=True)
    with pytest.raises(UserError, match="--cost-gamma"):
        SAC(SACConfig(cost_gamma=0.9), shape, (speed, speed))
    assert [budget.gamma for budget in SAC(SACConfig(cost_gamma=0.9), shape, (BUDGET, BUDGET)).budgets] == [0.9, 0.9]  # plain sums


# ---------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SACConfig(batch_size=0), "--batch-size must be greater than 0"),
        (SACConfig(gamma=1.5), "--gamma must lie in"),
        (SACConfig(beta=math.inf), "--beta must be a finite number"),
        (SACConfig(policy_hidden=()), "--policy-hidden needs"),
        (SACConfig(target_entropy=1.0), "cannot be reached"),
        (SACLagConfig(cost_members=0), "--cost-members must be greater than 0"),
        (SACLagConfig(multiplier=-1.0), "--multiplier must not be negative"),
        (CALConfig(multiplier=0.0), "--multiplier 0"),
        (CALConfig(rho=0.0), "--rho must be greater than 0"),
        (SACPIDConfig(smoothing=1.0), "--smoothing must be below 1"),
        (SACPIDConfig(proportional=0.0, integral=0.0, derivative=0.0), "a gain"),
    ],
)
def test_impossible_options_are_one_sentence(config, words):
    with pytest.raises(UserError, match=words):
        config.validate()


def test_options_without_effect_are_refused():
    with pytest.raises(UserError, match="--risk-std does nothing"):
        SACLagConfig(cost_members=1).refuse_idle({"risk_std"})
    with pytest.raises(UserError, match="--target-entropy does nothing"):
        CALConfig(entropy="fixed").refuse_idle({"target_entropy"})
    CALConfig().refuse_idle({"risk_std", "target_entropy"})


def test_each_learner_knows_its_name_and_its_presets():
    assert {SAC.system, SACLag.system, SACPID.system, CAL.system} == set(BASELINES)
    for name, system in SYSTEMS.items():
        assert system.learner_class().system == name
        assert system.presets()["default"] == system.config_class()()
    for config in CAL_PRESETS.values():
        config.validate()


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("name", BASELINES)
def test_the_toy_trains_resumes_and_is_taken_up_again(name: str, tmp_path: Path) -> None:
    small = (
        f"train {name} --env saddlepoint/Toy-v0 --warmup-steps 60 --eval-every 240 --checkpoint-every 240 --updates-per-step 0.3"
        " --batch-size 16 --critic-hidden 16 16 --policy-hidden 16 --replay-size 1000 --threads 1 --compile off --quiet"
    ).split()
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert main([*small, "--total-steps", "240", "--out", str(once)]) == 0
    assert main([*small, "--total-steps", "130", "--out", str(twice)]) == 0
    assert main(["train", name, "--resume", str(twice), "--total-steps", "240", "--quiet"]) == 0
    a, b = (checkpoint.load(checkpoint.latest(folder)[0]) for folder in (once, twice))
    assert a.learner.keys() == b.learner.keys()
    for key in a.learner:
        assert torch.equal(a.learner[key], b.learner[key]), key
    policy = load_policy(once)
    system = SYSTEMS[name]
    fresh = system.learner_class()(policy.learner.config, policy.shape, policy.budgets, 0, torch.device("cpu"), compile=False)  # type: ignore[attr-defined]
    for key, start in fresh.state_dict().items():
        if start.is_floating_point() and key.split(".")[0] in ("policy", "reward_critic", "cost_critic"):
            assert not torch.equal(start, a.learner[key]), key
    observation = np.zeros((4, 6), np.float32)
    assert policy.act(observation).shape == (4, 2)
    assert main(["evaluate", str(once), "--episodes", "2", "--threads", "1"]) == 0
