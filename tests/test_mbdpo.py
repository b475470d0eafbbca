"""MBDPO the agent: it learns from a fixed batch, saves and loads to the bit, and keeps its plans inside a budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import PARITY, PRESETS, MBDPOConfig
from saddlepoint.mbdpo.imagine import Constraint
from saddlepoint.mbdpo.losses import Sequences, UpdateNoise, contrastive_loss, score_loss
from saddlepoint.mbdpo.search import PlanNoise
from saddlepoint.mbdpo.transfer import adopt
from saddlepoint.mbdpo.world_model import Tasks
from saddlepoint.nn.ops import Imagined
from saddlepoint.replay import Replay
from saddlepoint.types import EnvShape, NonFiniteError, UserError

TINY = replace(
    PRESETS["small"], width=32, latent=16, encoder_width=32, proposals=32, elites=8, policy_rollouts=4, steps=6, batch_size=16, score_states=4,
    score_proposals=16, critics=3, cost_members=2, bins=21, multiplier_actions="policy",
)  # fmt: skip
DUAL = replace(TINY, multiplier_rule="dual_ascent", multiplier=0.6931, cost_unit="one", budget_share=1.0)
SHAPE = EnvShape(5, (-2.0, 0.0), (2.0, 1.0), 0)
COSTLY = {1: (CostBudget(10.0),), 2: (CostBudget(10.0), CostBudget(5.0))}


def agent_of(config: MBDPOConfig = TINY, constraints: int = 0, seed: int = 0, **others) -> MBDPO:
    return MBDPO(config, SHAPE._replace(constraints=constraints), COSTLY.get(constraints, ()), seed, **others)


def batch_of(agent: MBDPO, generator: torch.Generator, task: Tensor | None = None) -> Sequences:
    h, b = agent.config.horizon, agent.config.batch_size
    action = torch.rand(h, b, 2, generator=generator) * 2 - 1
    observation = torch.randn(h + 1, b, 5, generator=generator)
    cost = (action[..., 0] > 0).float().expand(agent.shape.constraints, -1, -1)
    ended = torch.zeros(h, b)
    ended[-1, : b // 4] = 1
    return Sequences(observation, action, action.sum(-1), cost, ended, task)


def replay_of(constraints: int, generator: torch.Generator, steps: int = 60) -> Replay:
    replay = Replay(200, 5, 2, constraints, num_envs=2)
    rng = np.random.default_rng(0)
    for t in range(steps):
        ended = np.full(2, t % 15 == 14)
        cost = np.ones((2, constraints))
        replay.add(rng.normal(size=(2, 5)), rng.uniform(0, 1, (2, 2)), rng.normal(size=2), cost, rng.normal(size=(2, 5)), ended, np.zeros(2, bool))
    return replay


@pytest.mark.parametrize("constraints", [0, 1, 2])
def test_losses_fall_on_a_fixed_batch(generator, constraints):
    agent = agent_of(replace(TINY, learning_rate=3e-3), constraints)
    data = batch_of(agent, generator)
    history = [agent.update_sequences(data, UpdateNoise.draw(agent.model, 16, generator)) for _ in range(30)]
    names = ["consistency_loss", "reward_loss", "contrastive_loss", "termination_loss"]
    for name in names + (["cost_loss"] if constraints else []):
        early, late = (sum(float(m[name]) for m in part) for part in (history[:10], history[-10:]))
        assert late < early, name
    assert ("multiplier" in history[0]) == (constraints == 1)
    assert ("multiplier_1" in history[0]) == (constraints == 2)


@pytest.mark.parametrize("planner", ["denoise", "score"])
def test_exploring_plans_start_from_noise_on_request_and_others_do_not(generator, planner, monkeypatch):
    """Where all plans are worth the same, denoising leaves the draw of the forward process as it is: std sqrt((1 - alpha_bar)/alpha_bar) = 0.33."""
    state = torch.randn(60, 5, generator=generator)
    spreads, calm = {}, {}
    for start in ("plan", "noise"):
        levels = {"steps": 8, "levels": "betas", "beta_last": 2.5e-2}
        agent = agent_of(replace(TINY, planner=planner, proposals=64, elites=0, policy_rollouts=0, reverse_start=start, **levels))
        monkeypatch.setattr(agent.search, "values", lambda z, plans, *_: torch.zeros(plans.shape[:2]))
        monkeypatch.setattr(agent.search, "score_from_output", lambda x, output, alpha_bar: 0 * x)
        for mode, into in (("explore", spreads), ("deterministic", calm)):
            _, plan = agent.act_on(state, torch.zeros(60, agent.memory_size), mode, torch.Generator().manual_seed(1))
            into[start] = plan
    assert float(spreads["plan"].std()) < 0.1
    assert 0.3 < float(spreads["noise"].std()) < 0.36
    torch.testing.assert_close(calm["plan"], calm["noise"])
    if planner == "score":  # the network is trained at points within the bounds alone
        seen = []
        agent.search.alpha_bar[-1] = 0.5  # a spread of 1
        monkeypatch.setattr("saddlepoint.mbdpo.search.ops.normed_chain", lambda *given: seen.append(float(given[4].abs().max())) or given[4])
        agent.act_on(state, torch.zeros(60, agent.memory_size), "explore", torch.Generator().manual_seed(1))
        assert max(seen) <= 0.5**0.5 + 1e-6  # the process starts at sqrt(alpha_bar) times the clean plan
    with pytest.raises(UserError, match="--reverse-start does nothing here"):
        replace(TINY, planner="mppi").refuse_idle({"reverse_start"})


@pytest.mark.parametrize("name", ["default", "mppi", "score", "policy", "released", "safe"])
def test_save_and_load_to_the_bit(generator, name):
    config = {
        "default": TINY, "safe": TINY, "released": replace(TINY, score_training="released", td_action="prior", planner="score"),
    }.get(name) or replace(TINY, planner=name)  # fmt: skip
    constraints = 2 if name == "safe" else 0
    replay = replay_of(constraints, generator)
    first, second = agent_of(config, constraints), agent_of(config, constraints, seed=7)
    first.update(replay, 3)
    second.load_state_dict(first.state_dict())
    state, memory = torch.randn(3, 5, generator=generator), torch.zeros(3, first.memory_size)
    for mode in ("explore", "deterministic"):
        a, b = (agent.act_on(state, memory, mode, torch.Generator().manual_seed(1)) for agent in (first, second))
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    low, high = torch.tensor(SHAPE.action_low), torch.tensor(SHAPE.action_high)
    assert bool(((a[0] >= low) & (a[0] <= high)).all())
    one, two = first.update(replay, 2), second.update(replay, 2)
    assert one.keys() == two.keys()
    assert all(float(one[k]) == float(two[k]) for k in one)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_a_state_of_another_size_is_refused():
    with pytest.raises(UserError, match="does not fit"):
        agent_of().load_state_dict(agent_of(replace(TINY, width=16)).state_dict())


def test_a_plan_goes_on_from_the_last(generator):
    """The memory is the plan; the next act starts from it moved on by a step, and rows do not mix."""
    agent = agent_of(replace(TINY, action_noise=0.0))
    state, memory = torch.randn(2, 5, generator=generator), torch.rand(2, agent.memory_size, generator=generator)
    action, plan = agent.act_on(state, memory, "explore", torch.Generator().manual_seed(1))
    torch.testing.assert_close(action, plan.view(2, 3, 2)[:, 0] * agent.box.scale + agent.box.bias)
    again, _ = agent.act_on(state, torch.zeros_like(memory), "explore", torch.Generator().manual_seed(1))
    assert not torch.equal(action, again)
    memory[0] = 0
    changed, _ = agent.act_on(state, memory, "explore", torch.Generator().manual_seed(1))
    assert torch.equal(changed[0], again[0])
    assert torch.equal(changed[1], action[1])


@pytest.mark.parametrize("planner", ["denoise", "mppi"])
def test_a_large_multiplier_keeps_plans_out_of_a_costly_half(generator, planner, monkeypatch):
    """Reward grows with the first action; above 0 it costs 1 a step. Without the constraint plans go up, with it they stay below 0."""
    agent = agent_of(replace(TINY, planner=planner, proposals=256, elites=32, policy_rollouts=0, energy_weight=0.0, temperature=0.5), 1)
    model = agent.model

    def imagined(_, z, plans, task, episodic, costly):
        first, steps = plans[..., 0], torch.arange(plans.shape[-2])
        gain, cost = agent.config.gamma**steps * first, agent.config.cost_gamma**steps * (first > 0)
        return Imagined(gain.sum(-1), cost.sum(-1)[None] if costly else None, None, z.expand(*plans.shape[:2], -1))

    monkeypatch.setattr(agent.search, "roll", imagined)
    monkeypatch.setattr(model, "decode_cost", lambda cost: cost)
    monkeypatch.setattr(model, "cost_value_logits", lambda z, a, task: torch.zeros(2, *a.shape[:-1]))
    z = model.encode(torch.randn(1, 5, generator=generator))
    noise = PlanNoise.draw(agent.config, 1, 2, z, generator)
    constraint = Constraint(torch.tensor([50.0]), torch.tensor([0.0]), 1.0, 1.0, torch.ones(1), False)
    with torch.no_grad():
        free, _ = agent.search.plan(z, torch.zeros(1, 3, 2), noise, None, False, None, explore=False)
        held, _ = agent.search.plan(z, torch.zeros(1, 3, 2), noise, None, False, constraint, explore=False)
    assert float(free[0, :, 0].min()) > 0.3
    assert float(held[0, :, 0].max()) < 0.05


def test_the_multiplier_follows_the_violation(generator):
    agent = agent_of(replace(DUAL, multiplier_rate=0.1), 2)
    before = agent.multiplier
    metrics = agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator))
    violation = torch.stack([metrics["violation_0"], metrics["violation_1"]])
    torch.testing.assert_close(agent.multiplier, (before + 0.1 * violation).clamp(min=0))


def test_the_multiplier_follows_what_was_really_paid(generator):
    agent = agent_of(replace(DUAL, multiplier_actions="recent", multiplier_rate=0.1), 1)
    before = agent.multiplier
    agent.update(replay_of(1, generator), 1)  # episodes of 15 steps that cost 1 each, under a budget for 1,000 steps
    paid = 15 / 1000 * (1 - 0.99**1000) / (1 - 0.99)
    torch.testing.assert_close(agent.multiplier, before + 0.1 * (paid - agent.control.budget))


def test_planning_in_bfloat16_is_near_float32(generator):
    """Values of the same plans agree to the precision of bfloat16, also after the weights have moved and after loading."""
    agent = agent_of(replace(TINY, precision="bfloat16"))
    agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator))
    second = agent_of(replace(TINY, precision="bfloat16"), seed=3)
    second.load_state_dict(agent.state_dict())
    z, plans = agent.model.encode(torch.randn(2, 1, 5, generator=generator)), torch.rand(2, 32, 3, 2, generator=generator)
    rest = (torch.randn(2, 32, 2, generator=generator), torch.tensor([0, 1]), None, False, None)
    with torch.no_grad():
        exact = agent.search.values(z, plans, *rest, exact=True)
        for search in (agent.search, second.search):
            torch.testing.assert_close(search.values(z, plans, *rest), exact, rtol=0.05, atol=0.05)


def test_without_weight_there_is_no_energy(generator):
    agent = agent_of(replace(TINY, energy_weight=0.0))
    before = agent.state_dict()
    metrics = agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator))
    assert "contrastive_loss" not in metrics
    after = agent.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if "energy" in k)


def test_several_tasks(generator):
    """Unused action dimensions stay 0; every call takes task numbers; the released leak of a gradient is off by default."""
    agent = agent_of(TINY, tasks=Tasks((1, 2), (100, 500)))
    task = torch.arange(16) % 2
    agent.update_sequences(batch_of(agent, generator, task), UpdateNoise.draw(agent.model, 16, generator))
    assert agent.model.task_table.grad is None
    state, memory = torch.randn(2, 5, generator=generator), torch.zeros(2, agent.memory_size)
    _, plan = agent.act_on(state, memory, "explore", generator, torch.tensor([0, 1]))
    plan = plan.view(2, 3, 2)
    assert float(plan[0, :, 1].abs().max()) == 0
    assert float(plan[1, :, 1].abs().max()) > 0


@pytest.mark.parametrize("pairs", ["aligned", "released"])
def test_negatives_of_the_energy_have_nothing_in_what_a_task_does_not_use(generator, pairs):
    """A task that uses one of two actions: the draws of the other change its negatives only as released, where they would give them away."""
    agent = agent_of(replace(TINY, energy_pairs=pairs), tasks=Tasks((1, 2), (100, 500)))
    with torch.no_grad():
        agent.model.energy_head.weights[-1].normal_(generator=generator)  # at the start the energy is 0 everywhere
    data, noise = batch_of(agent, generator, torch.zeros(16, dtype=torch.int64)), UpdateNoise.draw(agent.model, 16, generator)
    zs = torch.randn(agent.config.horizon, 16, agent.config.latent, generator=generator)
    losses = []
    for shift in (0.0, 0.4):
        moved = (noise.negative_uniform + shift * torch.tensor([0.0, 1.0])) % 1
        shaken = noise.negative_noise + shift * torch.tensor([0.0, 1.0])
        losses.append(contrastive_loss(agent.model, zs, data.action, noise._replace(negative_uniform=moved, negative_noise=shaken), data.task)[0])
    assert bool(losses[0] == losses[1]) == (pairs == "aligned")


def test_target_cost_critics_follow_at_their_own_rate(generator):
    agent = agent_of(replace(TINY, polyak=0.1, cost_polyak=0.5, multiplier_actions="policy"), 1)
    before = {name: value for name, value in agent.state_dict().items() if "target" in name}
    agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator))
    after = agent.state_dict()
    for target, online, rate in (("target_critics", "critics", 0.1), ("target_cost_critics", "cost_critics", 0.5)):
        names = [name for name in before if f".{target}." in name]
        assert names
        for name in names:
            torch.testing.assert_close(after[name], before[name].lerp(after[name.replace(target, online)], rate))


def test_a_violation_moves_lambda_as_if_at_most_so_many_budgets(generator):
    for cap, step in ((2.0, 2.0), (None, 30.0)):
        agent = agent_of(replace(DUAL, multiplier_actions="recent", multiplier_rate=0.1, largest_violation=cap), 1)
        before = agent.multiplier
        agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator), 31 * agent.control.budget)
        torch.testing.assert_close(agent.multiplier, before + 0.1 * step * agent.control.budget)


def test_what_knows_costs_hands_them_on(generator):
    source, target = agent_of(TINY, 1), agent_of(TINY, 1, seed=1)
    source.update_sequences(batch_of(source, generator), UpdateNoise.draw(source.model, 16, generator))
    adopt(target, source, None)
    z, action = torch.randn(4, TINY.latent, generator=generator), torch.randn(4, 2, generator=generator)
    for logits in ("cost_logits", "cost_value_logits"):
        torch.testing.assert_close(getattr(target.model, logits)(z, action), getattr(source.model, logits)(z, action))
    torch.testing.assert_close(target.multiplier, source.multiplier)
    without = agent_of(TINY, 0, seed=1)
    adopt(without, source, None)
    torch.testing.assert_close(without.model.energy(z, action), source.model.energy(z, action))


def test_ends_are_learnt_from_the_first_one_seen(generator):
    agent = agent_of()
    data = batch_of(agent, generator)
    metrics = agent.update_sequences(data._replace(terminated=torch.zeros(3, 16)), UpdateNoise.draw(agent.model, 16, generator))
    assert not agent.episodic
    assert "termination_loss" not in metrics
    metrics = agent.update_sequences(data, UpdateNoise.draw(agent.model, 16, generator))
    assert agent.episodic
    assert "termination_loss" in metrics
    second = agent_of()
    second.load_state_dict(agent.state_dict())
    assert second.episodic


def test_the_score_network_learns_the_planners_mean(generator):
    """With the model held still, its error in units of the plan falls."""
    agent = agent_of()
    agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator))
    data = batch_of(agent, generator)
    zs = agent.model.encode(data.observation[0]).detach()
    optimiser = torch.optim.Adam(agent.model.score_head.parameters(), lr=1e-3)
    history = []
    for _ in range(150):
        noise = UpdateNoise.draw(agent.model, 16, generator).score
        assert noise is not None
        loss = score_loss(agent.search, zs, data.action, noise, None, False, None)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    assert sum(history[-30:]) < 0.6 * sum(history[:5]) * 6


def test_an_unused_score_network_is_not_trained(generator):
    agent = agent_of(replace(TINY, td_action="prior"))
    before = agent.state_dict()
    agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator))
    after = agent.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.startswith("model.score_head"))


def test_what_is_not_finite_is_named(generator):
    agent = agent_of()
    data = batch_of(agent, generator)
    with pytest.raises(NonFiniteError, match="reward loss is not finite at update 0"):
        agent.update_sequences(data._replace(reward=data.reward * torch.nan), UpdateNoise.draw(agent.model, 16, generator))


@pytest.mark.parametrize(("module", "owner"), [("dynamics", "model"), ("policy_head", "policy")])
def test_a_gradient_whose_norm_alone_overflows_is_named_by_its_owner(generator, module, owner):
    agent = agent_of()
    largest = torch.finfo(torch.float32).max
    for parameter in getattr(agent.model, module).parameters():
        parameter.register_hook(lambda gradient: torch.full_like(gradient, largest))
    before = agent.policy_optimiser.state_dict()
    with pytest.raises(NonFiniteError, match=f"^the norm of the {owner}'s gradient is not finite at update 0: lower the learning rate"):
        agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator))
    assert agent.policy_optimiser.state_dict() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 1}, "--steps"), ({"elites": 1000}, "--elites"), ({"latent": 20}, "--simplex"), ({"gamma": 1.5}, "--gamma"),
        ({"score_training": "released"}, "--td-action prior"), ({"learning_rate": float("nan")}, "--learning-rate"),
    ],
)  # fmt: skip
def test_mistakes_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        replace(TINY, **changes).validate()


def test_idle_options_are_refused():
    with pytest.raises(UserError, match="--mppi-iterations does nothing here"):
        TINY.refuse_idle({"mppi_iterations"})
    with pytest.raises(UserError, match="--temperature does nothing here"):
        replace(TINY, planner="policy", td_action="prior").refuse_idle({"temperature"})
    replace(TINY, planner="score").refuse_idle({"proposals", "policy_rollouts", "temperature"})  # of the score's targets
    with pytest.raises(UserError, match="--rho does nothing here: the environment reports no cost"):
        TINY.refuse_cost_options({"rho", "width"})
    for preset in PRESETS.values():
        preset.validate()
    PARITY.refuse_idle({"rollouts"})


def test_a_budget_for_each_constraint():
    with pytest.raises(UserError, match="give one each"):
        MBDPO(TINY, SHAPE, (CostBudget(1.0),))
