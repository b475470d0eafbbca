"""What C++ computes between the networks' passes (algd/formulas.cpp) against PyTorch's formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.energy import Penalty
from saddlepoint.algd.formulas import Formulas
from saddlepoint.algd.fused_formulas import FusedFormulas, formulas, library
from saddlepoint.algd.policy import ChainNoise, DiffusionPolicy
from saddlepoint.nn.layers import ActionBox
from saddlepoint.types import Batch

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")
ROWS, SIZE, CONSTRAINTS, PROPOSALS = 37, 3, 2, 5
VARIANTS = [
    {}, {"entropy": "none"}, {"schedule": "vp"}, {"cost_bootstrap": "own"}, {"cost_bootstrap": "pair"},
    {"nonnegative_costs": False, "cost_members": 1}, {"cost_through_termination": True, "cost_members": 3}, {"score_loss_scale": "one", "score_weight": 0.7},
    {"prediction": "clean", "steps": 1, "schedule": "vp"},
]  # fmt: skip


def pair(change: dict[str, object]) -> tuple[Formulas, Formulas]:
    """PyTorch's, and those in C++."""
    found = []
    for fused in (False, True):
        config, box = ALGDConfig(**change), ActionBox.from_bounds(torch.tensor([-1.0, -2.0, 0.0]), torch.tensor([1.0, 0.5, 3.0]))  # type: ignore[arg-type]
        policy = DiffusionPolicy(config, 4, box, torch.Generator().manual_seed(0))
        found.append(formulas(config, policy, CONSTRAINTS, fused))
    assert isinstance(found[1], FusedFormulas)
    return found[0], found[1]


def close(one: object, two: object) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(two, one, rtol=2e-4, atol=2e-5, equal_nan=True)
    elif one is not None:
        for a, b in zip(one, two, strict=True):  # type: ignore[call-overload]
            close(a, b)


@pytest.mark.parametrize("change", VARIANTS)
def test_the_formulas_are_pytorchs(change):
    generator, found = torch.Generator().manual_seed(1), []
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    exact, fused = pair(change)
    members = exact.config.cost_members * CONSTRAINTS
    drawn = [draw(2, ROWS), draw(members, ROWS), draw(ROWS), draw(ROWS, CONSTRAINTS), (draw(ROWS) > 0).float(), draw(PROPOSALS, ROWS, SIZE),
             draw(ROWS, SIZE), draw(ROWS, SIZE), draw(2, 1 + PROPOSALS, ROWS), draw(members, 1 + PROPOSALS, ROWS), draw(1 + PROPOSALS, ROWS, SIZE),
             draw(exact.config.steps + 1, ROWS, SIZE), draw(exact.config.steps, ROWS, SIZE), draw(ROWS, SIZE)]  # fmt: skip
    tau = torch.randint(exact.config.steps, (ROWS,), generator=generator)
    for each in (exact, fused):
        reward, cost, earned, paid, ended, noise, point, output, rewards, costs, of_action, latents, steps, start = drawn
        beta, level = torch.tensor(0.3), each.policy.level(tau)
        state = torch.zeros(ROWS, 4)
        action = each.policy.box.squash(latents[0])
        results = [each.bellman(Batch(state, action, earned, paid, state, ended), reward, cost)]
        proposals = each.propose(point, action, level, noise)
        for kind in ("augmented", "plain", "none"):
            prices = [torch.tensor(numbers) for numbers in ((0.4, 2.0), (0.1, -0.5), (1.0, 3.0))]
            energy = each.lagrangian(rewards, costs, Penalty(kind, *prices, 0.7, 1.5))
            results += [[t.clone() for t in energy], each.means(energy)]
            weights, where = each.weigh(energy, proposals, beta / 20)  # may write into the slopes
            results.append([weights, *(t.clone() for t in where)])
        weights, _ = each.weigh(energy, proposals, beta)
        target = each.target(proposals, weights, of_action, beta)
        results += [proposals.candidates, proposals.actions, proposals.log_jacobian, weights, target, each.match(output, point, level, target, beta)]
        results.append(each.upstream(latents, ChainNoise(start, steps), action, of_action[0], beta))
        found.append(results)
    for one, two in zip(*found, strict=True):
        close(one, two)


@pytest.mark.parametrize("bootstrap", ["own", "largest"])
def test_what_is_not_a_number_stays_so(bootstrap):
    _, fused = pair({"cost_bootstrap": bootstrap})
    rows, members = 4, CONSTRAINTS * fused.config.cost_members
    for head in (0, 1):
        reward, cost = torch.zeros(2, rows), torch.zeros(members, rows)
        reward[head, 1] = cost[1, 2] = math.nan
        batch = Batch(torch.zeros(rows, 4), torch.zeros(rows, SIZE), torch.zeros(rows), torch.zeros(rows, CONSTRAINTS), torch.zeros(rows, 4), torch.zeros(rows))
        of_reward, of_cost = fused.bellman(batch, reward, cost)
        assert of_reward.isnan().tolist() == [False, True, False, False]
        assert of_cost[1].isnan().tolist() == [False, False, True, False]


def test_other_scores_stay_with_pytorch():
    box = ActionBox.from_bounds(-torch.ones(SIZE), torch.ones(SIZE))
    for change in ({"score_space": "action", "entropy": "none"}, {"score_form": "mean"}):
        config = ALGDConfig(**change)  # type: ignore[arg-type]
        found = formulas(config, DiffusionPolicy(config, 4, box, torch.Generator()), CONSTRAINTS, True)
        assert type(found) is Formulas
