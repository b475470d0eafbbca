"""What acts in MBDPO: averaged weights, the shield, and the plans that TD targets value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import PRESETS, MBDPOConfig
from saddlepoint.mbdpo.losses import UpdateNoise, plans_taken
from saddlepoint.mbdpo.peers import share_noise
from saddlepoint.mbdpo.search import Search, noise_levels
from saddlepoint.mbdpo.shield import Imagined, budget_left, checked, pay
from saddlepoint.mbdpo.transfer import adopt
from saddlepoint.nn.ops import Imagined as Rolled
from saddlepoint.types import UserError
from tests.test_mbdpo import SHAPE, TINY, agent_of, batch_of

AVERAGED = replace(TINY, acting_average=20)


# ---------------------------------------------------------------------------------------------------- averaged weights


def test_the_average_is_the_recurrence_and_acts(generator):
    """w <- w + max(1/N, 1/(1 + n/10)) (online - w); where it acts, the agent does what one with these weights would."""
    agent = agent_of(replace(AVERAGED, acting_average=2), 1)
    assert agent.average is not None
    wanted = {name: value.clone() for name, value in agent.average.model.named_parameters()}
    assert not any("target" in name for name in wanted)
    for n in range(15):
        agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator))
        share, online = max(1 / 2, 1 / (1 + n / 10)), dict(agent.model.named_parameters())
        wanted = {name: value + share * (online[name].detach() - value) for name, value in wanted.items()}
    for name, value in agent.average.model.named_parameters():
        torch.testing.assert_close(value, wanted[name])
    assert share == 0.5
    state, memory = torch.randn(3, 5, generator=generator), torch.zeros(3, agent.memory_size)

    def acted(one: MBDPO, mode) -> Tensor:
        return one.act_on(state, memory, mode, torch.Generator().manual_seed(1))[0]

    plain = agent_of(TINY, 1)
    plain.model.load_state_dict(agent.model.state_dict())
    plain.control.load(agent.control.state_dict())
    online = acted(plain, "explore")
    plain.model.load_state_dict(agent.model.state_dict() | agent.average.model.state_dict())
    averaged = {mode: acted(plain, mode) for mode in ("explore", "deterministic")}
    assert not torch.equal(online, averaged["explore"])
    for use, explored in (("always", averaged["explore"]), ("evaluation", online), ("never", online)):
        other = agent_of(replace(AVERAGED, acting_average=2, average_acts=use), 1)
        other.load_state_dict(agent.state_dict())
        assert torch.equal(acted(other, "explore"), explored)
        assert torch.equal(acted(other, "deterministic"), averaged["deterministic"]) == (use != "never")


def test_an_average_is_handed_on_and_begins_at_the_weights_where_there_is_none(generator):
    source = agent_of(AVERAGED)
    for _ in range(20):
        source.update_sequences(batch_of(source, generator), UpdateNoise.draw(source.model, 16, generator))
    for given, wanted in ((source, source.average), (agent_of(TINY, seed=5), None)):
        target = agent_of(AVERAGED, seed=3)
        adopt(target, given, None)
        assert target.average is not None
        model = given.model if wanted is None else wanted.model
        for name, value in target.average.model.named_parameters():
            assert torch.equal(value, model.get_parameter(name)), name


NETWORKS = {
    "encoder": "denoise", "dynamics": "denoise", "reward_head": "denoise", "energy_head": "denoise", "critics": "denoise", "cost_head": "denoise",
    "cost_critics": "denoise", "policy_head": "policy", "score_head": "score",
}  # fmt: skip
"""networks that act, and a planner whose actions depend on each"""


@pytest.mark.parametrize(("network", "planner"), NETWORKS.items())
def test_the_average_acts_with_every_network_together(generator, network, planner):
    """In an evaluation the agent acts as one whose every network is averaged, whatever plans; leave one network out of the average, and it does not."""
    config = replace(AVERAGED, average_acts="evaluation", energy_weight=1.0, multiplier=1.0, multiplier_actions="policy")
    trained, state = agent_of(config, 1), torch.randn(6, 5, generator=generator)
    for _ in range(30):
        trained.update_sequences(batch_of(trained, generator), UpdateNoise.draw(trained.model, 16, generator))
    assert trained.average is not None
    parameters = {name for name, value in trained.model.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in parameters} == {*NETWORKS, "termination_head"}
    assert parameters == {name for name, _ in trained.average.model.named_parameters()}

    def acted(average: dict[str, Tensor], averaged: bool) -> Tensor:
        agent = agent_of(replace(config, planner=planner), 1) if averaged else agent_of(replace(TINY, planner=planner, energy_weight=1.0, multiplier=1.0), 1)
        saved = trained.state_dict()
        for name, value in average.items():
            saved[f"average.{name}" if averaged else f"model.{name}"] = value
        agent.load_state_dict(saved)
        return agent.act_on(state, torch.zeros(6, agent.memory_size), "stochastic", torch.Generator().manual_seed(1))[0]

    whole = dict(trained.average.model.named_parameters())
    online = dict(trained.model.named_parameters())
    broken = {name: (online if name.startswith(f"{network}.") else whole)[name] for name in whole}
    wanted = acted(whole, averaged=False)
    assert torch.equal(acted(whole, averaged=True), wanted)
    assert not torch.equal(acted(broken, averaged=True), wanted)


# ---------------------------------------------------------------------------------------------------- the shield


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_on_pace_a_plan_and_what_follows_are_worth_exactly_what_is_left(gamma):
    """A cost of c a step under a plain budget of c T: at any age the plan's H steps and its tail are the limit."""
    cost, steps, horizon = 0.5, 40, 3
    budget = CostBudget(cost * steps, horizon=steps, gamma=gamma)
    for age in (0, 10, 36, 37, 39):
        left = budget_left((budget,), torch.full((1, 1), cost * age, dtype=torch.float64), torch.tensor([float(age)], dtype=torch.float64), horizon)
        within = min(horizon, steps - age)
        paid = sum(cost * gamma**t for t in range(within))
        after = cost * (steps - age - within) if gamma == 1 else float(left.tail) * gamma**horizon * cost / (1 - gamma)
        assert paid + after == pytest.approx(float(left.limit))
    over = budget_left((budget,), torch.tensor([[21.0]]), torch.tensor([5.0]), horizon)
    assert float(over.limit) < 0


def test_a_discounted_budget_is_left_as_it_stands(generator):
    """h - sum_t gamma^t c_t in the units of now, and never more than h; ``pay`` keeps both kinds of sum."""
    budgets = (CostBudget(5.0, discounted=True, horizon=40, gamma=0.9), CostBudget(5.0, horizon=40, gamma=0.9))
    costs, spent, age = torch.rand(6, 1, 2, generator=generator), torch.zeros(1, 2), torch.zeros(1)
    for cost in costs:
        spent, age = pay(budgets, spent, age, cost), age + 1
    discounted = float((0.9 ** torch.arange(6) * costs[:, 0, 0]).sum())
    torch.testing.assert_close(spent, torch.tensor([[discounted, float(costs[:, 0, 1].sum())]]))
    left = budget_left(budgets, spent, age, 3)
    assert float(left.limit[0]) == pytest.approx(min((5 - discounted) / 0.9**6, 5.0))
    assert float(budget_left(budgets, spent + 5, age, 3).limit[0]) == pytest.approx(-discounted / 0.9**6, rel=1e-5)


def test_the_check_is_numpys(generator):
    """The found plan where it fits, the best that fits, the least costly where none does; two constraints; what is not finite is never taken."""
    budgets = (CostBudget(10.0, horizon=40, gamma=0.9), CostBudget(2.0, horizon=40, gamma=0.9))
    rows, plans = 30, 20
    left = budget_left(budgets, torch.rand(rows, 2, generator=generator) * torch.tensor([12.0, 2.4]), torch.full((rows,), 8.0), 3)

    def some(count: int) -> Imagined:
        sizes = (torch.rand(rows, count, 3, 2, generator=generator), torch.randn(rows, count, generator=generator))
        return Imagined(*sizes, torch.rand(2, rows, count, generator=generator) * torch.tensor([4.0, 0.8]).view(2, 1, 1))

    found, others = some(1), [some(plans), some(plans)]
    others[0].gain[0] = torch.nan
    others[1].risk[0, 1] = torch.nan
    got, changed = checked(found, others, left)
    kinds = set()
    for row in range(rows):
        gain = np.concatenate([part.gain[row].numpy() for part in (found, *others)])
        risk = np.concatenate([part.risk[:, row].numpy() for part in (found, *others)], axis=1)
        every = np.concatenate([part.plans[row].numpy() for part in (found, *others)])
        excess = (np.maximum(risk - left.limit[:, row, None].numpy(), 0) / np.array([[b.critic] for b in budgets])).sum(0)
        fits = (excess == 0) & np.isfinite(gain)
        if fits[0]:
            kind, chosen = "found", 0
        elif fits.any():
            kind, chosen = "best", int(np.where(fits, gain, -np.inf).argmax())
        else:
            kind, chosen = "least", int(np.where(np.isfinite(excess), excess, np.inf).argmin())
        kinds.add(kind)
        np.testing.assert_array_equal(got[row].numpy(), every[chosen])
        assert bool(changed[row]) == (chosen != 0)
    assert kinds == {"found", "best", "least"}


def toy_model(agent: MBDPO, monkeypatch, unavoidable: float = 0.0) -> None:
    """A world that pays the first action of each step and charges its positive part and what is unavoidable, and nothing after a plan."""

    def imagined(_, z, plans, task, episodic, costly):
        first, steps = plans[..., 0], torch.arange(plans.shape[-2])
        gain, cost = agent.config.gamma**steps * first, agent.config.cost_gamma**steps * (first.clamp(min=0) + unavoidable)
        return Rolled(gain.sum(-1), cost.sum(-1)[None] if costly else None, None, z.expand(*plans.shape[:2], -1))

    for search in (agent.search, agent.averaged_search, agent.targets.planner):
        if search is not None:
            monkeypatch.setattr(search, "roll", imagined)
    monkeypatch.setattr(agent.model, "decode_cost", lambda cost: cost)
    monkeypatch.setattr(agent.model, "cost_value_logits", lambda z, a, task: torch.zeros(agent.config.cost_members, *a.shape[:-1]))


SHIELDED = replace(TINY, proposals=128, elites=16, policy_rollouts=0, energy_weight=0.0, multiplier=1e-9, shield=True)


def test_where_every_plan_costs_too_much_the_least_costly_acts(generator, monkeypatch):
    """Each step costs 1/2 whatever is done and the positive part of the action beside it, and 20 steps may cost 5. Until what is left cannot be kept to the
    shield lets actions pay; from then on none adds to the cost that nothing avoids."""
    agent = MBDPO(SHIELDED, SHAPE._replace(constraints=1), (CostBudget(5.0, horizon=20),))
    toy_model(agent, monkeypatch, unavoidable=0.5)
    state, memory, extra = torch.randn(4, 5, generator=generator), torch.zeros(4, agent.memory_size), []
    for _ in range(20):
        action, memory = agent.act_on(state, memory, "deterministic", generator)
        extra.append(((action - agent.box.bias) / agent.box.scale)[:, :1].clamp(min=0))
        memory = agent.paid(memory, extra[-1] + 0.5)
    assert float(extra[0].max()) > 0.1
    hopeless = torch.stack(extra[8:])  # 12 steps cost 6 at least
    assert float(hopeless.max()) < 0.02


@pytest.mark.parametrize("discounted", [False, True])
@pytest.mark.parametrize("planner", ["denoise", "mppi"])
def test_with_a_true_model_no_episode_costs_more_than_its_budget(generator, planner, discounted, monkeypatch):
    """20 steps that may cost 5: without the shield each costs nearly 1; with it the sum stays below 5 and comes near it, with no multiplier at all."""
    spent = {}
    config = replace(SHIELDED, planner=planner)
    for shield in (False, True):
        agent = MBDPO(replace(config, shield=shield), SHAPE._replace(constraints=1), (CostBudget(5.0, horizon=20, discounted=discounted),))
        toy_model(agent, monkeypatch)
        state, memory, spent[shield] = torch.randn(4, 5, generator=generator), torch.zeros(4, agent.memory_size), torch.zeros(4, 1)
        for step in range(20):
            action, memory = agent.act_on(state, memory, "deterministic", generator)
            cost = ((action - agent.box.bias) / agent.box.scale)[:, :1].clamp(min=0)
            spent[shield] += cost * (0.99**step if discounted else 1.0)
            memory = agent.paid(memory, cost)
        if shield:
            torch.testing.assert_close(memory[:, -2:], torch.cat([spent[True], torch.full((4, 1), 20.0)], 1))
    assert float(spent[False].min()) > 10
    assert float(spent[True].max()) <= 5 + 1e-5
    assert float(spent[True].min()) > 2.5


def test_a_shield_that_nothing_calls_for_changes_nothing(generator):
    agents = [agent_of(replace(TINY, shield=shield), 1) for shield in (False, True)]
    state = torch.randn(3, 5, generator=generator)
    acted = [agent.act_on(state, torch.zeros(3, agent.memory_size), "explore", torch.Generator().manual_seed(1)) for agent in agents]
    assert torch.equal(acted[0][0], acted[1][0])  # a new cost critic expects nothing
    assert torch.equal(acted[0][1], acted[1][1][:, :-2])


@pytest.mark.parametrize(
    ("config", "constraints", "said"),
    [
        (replace(TINY, shield=True), 0, "--shield does nothing here: it holds plans to a cost budget"),
        (replace(TINY, shield=True, planner="score"), 1, "--planner score imagines none"),
        (replace(TINY, acting_average=-1), 0, "--acting-average -1 must be"),
    ],
)
def test_mistakes_are_named(config, constraints, said):
    with pytest.raises(UserError, match=said):
        agent_of(config, constraints)


# ---------------------------------------------------------------------------------------------------- targets


def test_plans_taken_are_the_actions_that_followed():
    actions = torch.arange(1.0, 4.0).view(3, 1, 1).expand(3, 2, 1)  # a_t = t + 1
    plans = plans_taken(actions).view(3, 2, 3)
    assert plans[:, 0].tolist() == [[2.0, 3.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert torch.equal(plans[:, 0], plans[:, 1])


def targets_of(config: MBDPOConfig, generator: torch.Generator, monkeypatch, actions: Tensor | None = None) -> tuple[Tensor, MBDPO]:
    """The first action dimension that the TD target values, (horizon, batch), in the toy's world."""
    agent = agent_of(config)
    toy_model(agent, monkeypatch)
    data = batch_of(agent, generator)
    data = data if actions is None else data._replace(action=actions)
    valued = {}
    values = agent.model.values

    def noting(z, action, *rest, **more):
        valued.setdefault(more.get("target", False), action)
        return values(z, action, *rest, **more)

    monkeypatch.setattr(agent.model, "values", noting)
    agent.targets.make(data, UpdateNoise.draw(agent.model, config.batch_size, generator), False, None)
    return valued[True][..., 0], agent


def test_targets_of_the_search_itself_find_what_pays(generator, monkeypatch):
    """Whose plans pay more the larger the first action is; those of the score network start from nothing, or from what was done."""
    quiet = replace(TINY, action_noise=0.0, energy_weight=0.0, score_proposals=64, elites=8, td_levels=4)
    found, agent = targets_of(replace(quiet, td_action="plan"), generator, monkeypatch)
    assert not agent.config.trains_score
    assert float(found.mean()) > 0.3
    monkeypatch.setattr(Search, "amortised", lambda search, z, start, task, levels: start)
    for name, first in (("search", [0.0, 0.0, 0.0]), ("stored", [0.4, 0.4, 0.0])):
        got, agent = targets_of(replace(quiet, td_action=name), generator, monkeypatch, torch.full((3, 16, 2), 0.4))
        assert agent.config.trains_score
        torch.testing.assert_close(got, torch.tensor(first)[:, None].expand(3, 16))


def test_targets_of_the_small_preset_reach_what_pays_most(generator, monkeypatch):
    """In the toy's world the best first action is 1. Seven levels that cross the box come to it from nothing; two levels with the first version's betas to
    0.40, so that TD targets valued a far weaker policy than the one that acts."""
    small = PRESETS["small"]
    quiet = replace(
        TINY, td_action="plan", action_noise=0.0, energy_weight=0.0, steps=8, proposals=small.proposals, elites=small.elites, policy_rollouts=0,
        score_proposals=small.score_proposals,
    )  # fmt: skip
    reached = {}
    for name, config in (
        ("small", replace(quiet, levels=small.levels, spread_first=small.spread_first, spread_last=small.spread_last, td_levels=small.td_levels)),
        ("first version", replace(quiet, levels="betas", beta_last=2.5e-2, td_levels=2)),
    ):
        reached[name] = float(targets_of(config, generator, monkeypatch, torch.zeros(3, 16, 2))[0].mean())
    assert reached["small"] > 0.95
    assert reached["first version"] < 0.5


def test_geometric_levels_spread_by_one_factor():
    config = replace(TINY, levels="geometric", steps=8, spread_first=0.03, spread_last=1.7)
    alpha_bar = noise_levels(config).alpha_bar.numpy()
    np.testing.assert_allclose(np.sqrt((1 - alpha_bar) / alpha_bar), np.geomspace(0.03, 1.7, 8))
    for first, last in ((2.0, 1.7), (1.0, 1.0), (0.0, 1.0), (1e-12, 1.0), (0.03, 1e9), (0.03, 1e200)):
        with pytest.raises(UserError, match=r"--spread-first .* must satisfy 1e-6 <= first < last <= 1e6"):
            replace(config, spread_first=first, spread_last=last).validate()


def test_shares_of_the_targets_noise_make_the_whole(generator):
    agent = agent_of(replace(TINY, td_action="plan"))
    noise = UpdateNoise.draw(agent.model, 16, generator)
    z = torch.randn(3, 16, TINY.latent, generator=generator)
    data = batch_of(agent, generator)
    whole = agent.targets.plans(z.flatten(0, 1), data, noise, False, None).view(3, 16, 3, 2)
    for rank in range(2):
        mine = share_noise(noise, rank, 2)
        part = agent.targets.plans(z[:, rank::2].flatten(0, 1), data._replace(action=data.action[:, rank::2]), mine, False, None)
        torch.testing.assert_close(part.view(3, 8, 3, 2), whole[:, rank::2])


def test_options_that_need_others_are_refused():
    for given, config in (
        ("average_acts", TINY), ("td_levels", replace(TINY, td_action="prior")), ("score_weight", replace(TINY, td_action="plan")),
        ("spread_last", replace(TINY, levels="betas")), ("beta_last", TINY),
    ):  # fmt: skip
        with pytest.raises(UserError, match="does nothing here"):
            config.refuse_idle({given})
    replace(TINY, td_action="plan").refuse_idle({"score_proposals", "td_levels", "action_noise"})


# ---------------------------------------------------------------------------------------------------- the price of costs


def test_lambda_moves_as_algds(generator):
    """lambda = m exp(Kp v), m <- max(m exp(rate v), start), v = (cost - 0.8 h)/h and at most 1; it is a share of the size of values."""
    config = replace(TINY, multiplier_actions="recent", multiplier_rate=0.1, proportional=0.5)
    agent, memory = agent_of(config, 1), 0.01
    for paid in (0.5, 1.0, 5.0, 0.9):  # in budgets
        metrics = agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator), paid * agent.control.budget)
        violation = min(paid - 0.8, 1.0)
        memory = max(memory * np.exp(0.1 * violation), 0.01)
        torch.testing.assert_close(agent.multiplier, torch.tensor([memory * np.exp(0.5 * violation)], dtype=torch.float64))
    size = agent.control.value_size.value
    assert float(metrics["value_size"]) == size != 1
    held = agent.constraint()
    assert held is not None
    torch.testing.assert_close(held.multiplier, agent.multiplier * size)
    h = float(agent.control.budget)
    cost = torch.linspace(0, 3 * h, 5).view(1, 1, 5).expand(2, 1, 5)  # two members that agree
    wanted = float(held.multiplier) * (np.maximum(1 + 0.3 * (cost[0, 0].numpy() - h) / h, 0) ** 2 - 1) / 0.6
    penalty, risk = held.penalty(cost)
    np.testing.assert_allclose(penalty[0].numpy(), wanted, rtol=1e-5)
    torch.testing.assert_close(risk[0], cost[0])
    other = agent_of(config, 1, seed=4)
    other.load_state_dict(agent.state_dict())
    assert other.control.value_size.value == size


def test_predictions_are_of_the_weights_that_are_evaluated(generator):
    agent = agent_of(replace(AVERAGED, acting_average=3), 2)
    for _ in range(5):
        agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, 16, generator))
    observation, action = torch.randn(4, 5, generator=generator), torch.rand(4, 2, generator=generator)
    found = agent.predict(observation, action)
    assert found["cost"].shape == (4, 2)
    model = agent.average.model if agent.average is not None else agent.model
    z, inside = model.encode(observation), action / torch.tensor([2.0, 0.5]) - torch.tensor([0.0, 1.0])
    torch.testing.assert_close(found["reward"], model.values(z, inside).min(0).values)
    members = model.decode_cost(model.cost_value_logits(z, inside)).view(2, 2, 4)
    torch.testing.assert_close(found["cost"], members.mean(1).T)
