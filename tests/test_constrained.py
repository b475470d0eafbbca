"""Budgets, penalties, risks and multipliers against closed forms and an independent numpy line."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saddlepoint.algd.energy import Constraint, augmented, relative
from saddlepoint.constrained.budget import (
    CostBudget,
    at_discount,
    discounted_budget,
    geometric_sum,
    require_fitting,
    spent,
)
from saddlepoint.constrained.lagrangian import MultiplierUpdate, augmented_penalty, effective_multiplier, plain_penalty
from saddlepoint.constrained.risk import ensemble_risk
from saddlepoint.constrained.units import ValueSize
from saddlepoint.types import UserError

F64 = torch.float64
gammas, horizons, limits = st.floats(0.5, 1.0), st.integers(1, 2000), st.floats(0, 1e4)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


# ---------------------------------------------------------------------------------------------------- budgets


def test_the_specs_own_number():
    assert discounted_budget(10, 0.99, 400) == pytest.approx(2.455123616812385, abs=1e-15)


@given(gammas, horizons)
def test_geometric_sum_is_the_sum(gamma, horizon):
    assert geometric_sum(gamma, horizon) == pytest.approx(float(np.sum(gamma ** np.arange(horizon))), rel=1e-6)


@given(limits, st.sampled_from(["episode", "step"]), st.booleans(), horizons, gammas)
def test_every_equivalent_says_the_same_of_an_even_cost(limit, per, discounted, horizon, gamma):
    """A cost spread evenly exactly at the limit meets all equivalents with equality."""
    budget = CostBudget(limit, per, discounted, horizon, gamma)
    cost = np.full(horizon, budget.step)
    assert cost.sum() == pytest.approx(budget.episode, rel=1e-9, abs=1e-12)
    assert (cost * gamma ** np.arange(horizon)).sum() == pytest.approx(budget.critic, rel=1e-6, abs=1e-9)
    stated = budget.critic if discounted else budget.episode
    share = 1.0 if per == "episode" else (geometric_sum(gamma, horizon) if discounted else horizon)
    assert stated == pytest.approx(limit * share, rel=1e-9, abs=1e-12)
    again = CostBudget(budget.critic, "episode", True, horizon, gamma)
    assert again.episode == pytest.approx(budget.episode, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.float16, np.float32, np.longdouble, int])
def test_a_budget_of_numpy_numbers_is_that_of_pythons(kind):
    """int8 ends at 127, and float16 has three digits."""
    assert CostBudget(kind(25), per="step", horizon=kind(100)).episode == 2500.0
    given, wanted = CostBudget(kind(25), horizon=kind(100), gamma=np.float64(0.97)), CostBudget(25.0, horizon=100, gamma=0.97)
    assert given.equivalents() == wanted.equivalents()
    assert repr(given) == repr(wanted)
    assert CostBudget(10**40).limit == 1e40


def test_violation_follows_the_stated_semantics():
    plain, discounted = CostBudget(5), CostBudget(5, discounted=True)
    episode, present = np.array([4.0, 5.0, 6.0]), np.array([6.0, 5.0, 4.0])
    assert plain.violated(episode, present).tolist() == [False, False, True]
    assert discounted.violated(episode, present).tolist() == [True, False, False]


@pytest.mark.parametrize(
    "bad", [{"limit": -1}, {"limit": float("nan")}, {"limit": 1, "horizon": 0}, {"limit": 1, "gamma": 1.5}]
)
def test_impossible_budgets_are_refused(bad):
    with pytest.raises(UserError):
        CostBudget(**bad)


# ---------------------------------------------------------------------------------------------------- penalties


@given(st.floats(-20, 20), st.floats(0, 20), st.floats(0.01, 50))
def test_augmented_penalty_and_its_slope(violation, multiplier, rho):
    v = tensor(violation).requires_grad_()
    value = augmented_penalty(v, tensor(multiplier), rho)
    wanted = (max(multiplier + rho * violation, 0.0) ** 2 - multiplier**2) / (2 * rho)
    assert value.item() == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    value.sum().backward()
    assert v.grad.item() == pytest.approx(effective_multiplier(v.detach(), multiplier, rho).item(), rel=1e-9, abs=1e-9)


def test_augmented_penalty_tends_to_the_plain_one_and_bounds_it_from_above():
    violation, multiplier = torch.linspace(-3, 3, 61, dtype=F64), tensor(2.0)
    plain = plain_penalty(violation, multiplier)
    torch.testing.assert_close(augmented_penalty(violation, multiplier, 1e-6), plain, atol=1e-4, rtol=0)
    inside = multiplier + 1.0 * violation >= 0
    assert (augmented_penalty(violation, multiplier, 1.0) >= plain - 1e-12)[inside].all()


def test_the_paper_claim_in_one_dimension():
    """min -x^2/2 subject to x <= 1 on the line: the plain Lagrangian is concave, the augmented one convex where the penalty is active (rho > 1)."""
    x = torch.linspace(0.5, 3, 200, dtype=F64)
    multiplier, objective = tensor(1.0), -x.square() / 2
    bend = {}
    for name, penalty in (
        ("plain", plain_penalty(x - 1, multiplier)),
        ("augmented", augmented_penalty(x - 1, multiplier, 3.0)),
    ):
        value = objective + penalty
        bend[name] = value[2:] - 2 * value[1:-1] + value[:-2]
        if name == "augmented":
            assert x[value.argmin()].item() == pytest.approx(1.0, abs=0.02)
    active = (x[1:-1] - 1) * 3 + 1 > 0.1
    assert (bend["plain"] < 0).all()
    assert (bend["augmented"][active] > 0).all()


# ---------------------------------------------------------------------------------------------------- risk


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0, 3))
def test_risk_is_mean_plus_k_unbiased_std(members, batch, k):
    values = np.random.default_rng(members * 10 + batch).normal(size=(members, batch))
    wanted = values.mean(0) + (k * values.std(0, ddof=1) if members > 1 else 0)
    torch.testing.assert_close(ensemble_risk(torch.tensor(values), k), torch.tensor(wanted))


@pytest.mark.parametrize("k", [0.0, 1.0])
def test_agreeing_members_have_a_finite_slope(k):
    values = torch.ones(4, 3, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(ensemble_risk(values, k).sum(), values)
    torch.testing.assert_close(slope, torch.full((4, 3), 0.25, dtype=F64))


# ---------------------------------------------------------------------------------------------------- multipliers


def test_log_adam_is_torchs_adam_on_log_lambda():
    rule = MultiplierUpdate("log_adam", rate=0.01)
    state = rule.start(0.6931, 2)
    log = state["log"].clone().requires_grad_()
    adam = torch.optim.Adam([log], lr=0.01)
    for violation in torch.randn(20, 2, dtype=F64, generator=torch.Generator().manual_seed(0)):
        adam.zero_grad()
        (-log.exp() * violation).sum().backward()
        adam.step()
        state = rule.step(state, violation)
    torch.testing.assert_close(rule.value(state), log.detach().exp(), rtol=1e-9, atol=1e-12)


def minimise(rule: MultiplierUpdate, calls: int) -> tuple[float, float]:
    """min x^2 subject to 1 - x <= 0 by exact inner minimisation: x* = 1, lambda* = 2.

    Plain Lagrangian x = lambda / 2; augmented (rho = 1): x^2 + [lambda + 1 - x]_+^2 / 2 is least at x = (lambda + 1) / 3.
    """
    state = rule.start(0.1, 1)
    x = 0.0
    for _ in range(calls):
        multiplier = float(rule.value(state))
        x = (multiplier + 1) / 3 if rule.rule == "augmented" else multiplier / 2
        state = rule.step(state, tensor(1 - x))
    return x, float(rule.value(state))


@pytest.mark.parametrize(
    ("rule", "calls"),
    [
        (MultiplierUpdate("dual_ascent", rate=0.1), 400),
        (MultiplierUpdate("augmented", rho=1.0, interval=1), 60),
        (MultiplierUpdate("pid", rate=0.05, smoothing=0.5), 1500),
        (MultiplierUpdate("log_adam", rate=0.01), 3000),
    ],
)
def test_every_rule_finds_the_multiplier_of_a_quadratic_programme(rule, calls):
    x, multiplier = minimise(rule, calls)
    assert x == pytest.approx(1.0, abs=0.02)
    assert multiplier == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("rule", ["dual_ascent", "augmented", "pid"])
def test_slack_constraints_let_the_multiplier_go_to_zero_and_no_further(rule):
    update = MultiplierUpdate(rule, rate=0.1, interval=1)
    state = update.start(1.0, 2)
    for _ in range(200):
        state = update.step(state, tensor(-1.0, 0.5))
    slack, tight = update.value(state).tolist()
    assert slack == 0
    assert tight > 1


def test_the_interval_of_the_augmented_rule():
    update = MultiplierUpdate("augmented", rho=2.0, interval=3)
    state = update.start(1.0, 1)
    values = []
    for _ in range(6):
        state = update.step(state, tensor(0.5))
        values.append(float(update.value(state)))
    assert values == [1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("discounted", [False, True])
def test_spent_is_an_episodes_cost_as_the_budget_states_it(discounted):
    """Whole episodes of lengths 3, 5 and 4, written in one stream: the mean of their sums, in the units of h."""
    rng, lengths, gamma = np.random.default_rng(0), (3, 5, 4), 0.9
    episodes = [rng.random(length) for length in lengths]
    budget = CostBudget(2.0, discounted=discounted, horizon=5, gamma=gamma)
    sums = [float((gamma ** np.arange(len(c)) * c).sum() if discounted else c.sum()) for c in episodes]
    cost = torch.tensor(np.concatenate(episodes)).view(-1, 1, 1)
    age = torch.cat([torch.arange(length) for length in lengths]).view(-1, 1)
    wanted = np.mean(sums) * (1 if discounted else budget.critic / 2.0)
    assert spent((budget,), cost, age).tolist() == pytest.approx([wanted])


def test_spent_of_episodes_that_end_early_is_less_than_an_even_rate_says():
    """A cost of 1 a step in episodes of 10 steps under a budget of 25 in 1,000: ten an episode, well within it."""
    budget = CostBudget(25.0)
    age = torch.arange(2000).view(-1, 1) % 10
    assert spent((budget,), torch.ones(2000, 1, 1), age).item() == pytest.approx(10 / 25 * budget.critic)


def test_one_early_end_does_not_stand_for_environments_that_have_not_ended():
    """16 environments, 312 steps at a cost of 1, episodes of 1,000: one of them fell after 10 steps."""
    budget = CostBudget(25.0, horizon=1000)
    age = torch.arange(312).view(-1, 1).repeat(1, 16)
    age[10:, 0] = torch.arange(302)
    assert spent((budget,), torch.ones(312, 16, 1), age).item() == pytest.approx(1000 / 25 * budget.critic)
    age[20:] = torch.arange(292).view(-1, 1)  # all have: episodes cost what was spent over how many began
    assert spent((budget,), torch.ones(312, 16, 1), age).item() == pytest.approx(312 * 16 / 33 / 25 * budget.critic)


def test_spent_in_unfinished_episodes_takes_the_mean_step_for_the_rest():
    """Sixteen environments, 300 steps of their first episodes of 1,000: 0.05 a step is 50 an episode; and each constraint by itself."""
    budgets = (CostBudget(25.0), CostBudget(5.0))
    cost = torch.tensor([0.05, 0.01]).expand(300, 16, 2)
    found = spent(budgets, cost, torch.arange(300).view(-1, 1).expand(300, 16))
    assert found.tolist() == pytest.approx([2 * budgets[0].critic, 2 * budgets[1].critic])


# ---------------------------------------------------------------------------------------------------- prices in what is earned


def test_the_exponential_rule_is_proportional_integral_control_of_log_lambda() -> None:
    rule = MultiplierUpdate("exponential", rate=0.1, proportional=0.5)
    state, total = rule.start(0.01, 1), 0.0
    for violation in (1.0, 0.4, 1.0, -0.2):
        state = rule.step(state, torch.tensor([violation]))
        total += violation
        assert float(rule.value(state)) == pytest.approx(0.01 * math.exp(0.1 * total + 0.5 * violation))
    for _ in range(500):  # nothing winds up below the first lambda, so that the answer to what comes next is as quick as the first
        state = rule.step(state, torch.tensor([-0.8]))
    assert float(state["memory"]) == pytest.approx(0.01)
    assert float(rule.value(rule.step(state, torch.tensor([1.0])))) == pytest.approx(0.01 * math.exp(0.6))


def test_the_relative_energy_is_the_augmented_one_with_rho_times_lambda() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, cost = (torch.randn(heads, 3, 5, dtype=torch.float64, generator=generator) for heads in (2, 4))
    multiplier, budget, unit = (torch.tensor(x, dtype=torch.float64) for x in ([0.02, 0.5], [0.3, 1.0], [0.3, 2.0]))
    found = relative(reward, cost, Constraint(multiplier, budget, unit, rho=0.7, risk_std=0.0))
    one = [augmented(torch.zeros_like(reward), cost[2 * c : 2 * c + 2], Constraint(multiplier[c : c + 1], budget[c : c + 1], unit[c : c + 1],
                     rho=0.7 * float(multiplier[c]), risk_std=0.0)) for c in range(2)]  # fmt: skip
    torch.testing.assert_close(found, one[0] + one[1] - reward.amin(0))


def test_the_size_of_values_follows_and_comes_back() -> None:
    size, off = ValueSize(True), ValueSize(False)
    for _ in range(50):
        size.follow(torch.full((64,), -20.0))
        off.follow(torch.full((64,), -20.0))
    assert size.value == pytest.approx(20)
    assert off.value == 1
    assert off.state() == {}
    about_zero = ValueSize(True)
    about_zero.follow(torch.linspace(-10, 10, 1001))
    assert about_zero.value == pytest.approx(18)  # from the 5th to the 95th percentile
    other = ValueSize(True)
    other.load(size.state())
    assert (other.value, other.count) == (size.value, 50)


def test_a_plain_sum_takes_the_critics_discount_and_a_discounted_one_keeps_its_own() -> None:
    plain, speed = CostBudget(25.0), CostBudget(80.0, discounted=True)
    assert at_discount((plain, speed), 0.97) == (CostBudget(25.0, gamma=0.97), speed)
    with pytest.raises(UserError, match=r"discounted by 0\.99"):
        require_fitting((speed,), 1, 0.97)
