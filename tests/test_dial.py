"""One policy for every budget: the interpolation, the relabelling, the prices, and a whole run that is resumed, turned and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.losses import effective_multiplier
from saddlepoint.baselines.config import SACLagConfig
from saddlepoint.baselines.constrained import SACLag
from saddlepoint.cli import main
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.constrained.dial import KNOTS, Dial, hats
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.policies import load_policy
from saddlepoint.replay import Replay
from saddlepoint.train.at_budget import AtBudget
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.dialled import GOLDEN, DialledEnvs
from saddlepoint.train.start import train
from saddlepoint.types import EnvShape, UserError
from tests.test_train_loop import assert_same_runs

TOY = "saddlepoint/Toy-v0"
SPAN = (2.0, 32.0)
BUDGET = (CostBudget(8.0, horizon=100, gamma=0.9),)
SMALL: dict[str, Any] = {"critic_hidden": (16, 16), "policy_hidden": (16, 16), "batch_size": 16}


def dial() -> Dial:
    return Dial.of(SPAN, BUDGET)


def test_hats_interpolate() -> None:
    place, values = torch.linspace(0, 1, 33, dtype=torch.float64), torch.tensor([1.0, -2.0, 5.0, 0.5], dtype=torch.float64)
    weights = hats(place, 4)
    assert torch.allclose(weights.sum(-1), torch.ones(33, dtype=torch.float64))
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights @ values, np.interp(place.numpy() * 3, np.arange(4), values.numpy()), atol=1e-12)


def test_budgets_are_even_in_their_logarithm() -> None:
    limits = torch.tensor([2.0, 4.0, 8.0, 16.0, 32.0, 1.0, 64.0])
    torch.testing.assert_close(dial().place(limits), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(dial().limit(dial().place(limits[:5])), limits[:5])


def test_prices_are_interpolated_in_the_log() -> None:
    multipliers = torch.tensor([0.4, 0.1, 0.1], dtype=torch.float64)
    got = dial().price(multipliers, torch.tensor([2.0, 4.0, 8.0, 20.0]))
    np.testing.assert_allclose(got, [0.4, 0.2, 0.1, 0.1], rtol=1e-6)


def test_overspending_by_hand() -> None:
    """Three quarters of the steps at 2 (a step may cost 0.02), the others at 32 (0.32); nothing was tried near the middle."""
    cost, limit = torch.tensor([0.06, 0.0, 0.03, 0.16]), torch.tensor([2.0, 2.0, 2.0, 32.0])
    np.testing.assert_allclose(dial().overspent(cost, limit, 0.8), [1.5 - 0.8, 0.0, 0.5 - 0.8], atol=1e-6)
    halfway = torch.tensor([4.0])  # serves the lower two knots alike
    np.testing.assert_allclose(dial().overspent(torch.tensor([0.04]), halfway, 0.8), [0.2, 0.2, 0.0], atol=1e-6)


def replay(limit: float) -> Replay:
    ring, rng = Replay(64, 4, 2, 1), np.random.default_rng(0)
    for _ in range(64):
        observation, following = rng.normal(size=(2, 1, 4)).astype("f")
        observation[:, -1] = following[:, -1] = limit
        action, reward, cost = rng.uniform(-1, 1, (1, 2)), rng.normal(size=1), rng.random((1, 1))
        ring.add(observation, action.astype("f"), reward.astype("f"), cost.astype("f"), following, np.zeros(1, bool), np.zeros(1, bool))
    return ring


def agent(**options: Any) -> ALGD:
    shape = EnvShape(4, (-1.0, -1.0), (1.0, 1.0), 1, budget_range=SPAN)
    made = ALGD(ALGDConfig(**SMALL, encoding="raw", cost_gamma=0.9, **options), shape, BUDGET)
    made.observe(torch.zeros(1, 4))
    return made


def test_relabelling_changes_the_budget_alone() -> None:
    batch, ahead = replay(5.0).sample_ahead(32, 3, 0.9, torch.Generator().manual_seed(0))
    new, further = dial().relabelled(batch, ahead, torch.Generator().manual_seed(1))
    assert further is not None
    limit = new.observation[:, -1]
    assert torch.equal(limit, new.next_observation[:, -1])
    assert torch.equal(limit, further.observation[:, -1])
    assert (limit >= 2).all()
    assert (limit <= 32).all()
    assert limit.unique().numel() > 20
    assert torch.equal(new.observation[:, :-1], batch.observation[:, :-1])
    assert torch.equal(further.observation[:, :-1], ahead.observation[:, :-1])
    assert torch.equal(new.reward, batch.reward)
    assert torch.equal(further.cost, ahead.cost)


def test_what_was_collected_at_one_budget_teaches_all() -> None:
    """The learnt weights do not depend on the budget at which the data was collected, as long as lambda stands still."""
    learnt = []
    for limit in (2.0, 32.0):
        made = agent(multiplier_rate=1e-12, proportional=0.0)
        made.update(replay(limit), 2)
        learnt.append({name: value for name, value in made.state_dict().items() if not name.startswith("multiplier.")})
    assert all(torch.equal(a, b) for a, b in zip(learnt[0].values(), learnt[1].values()))


def test_each_state_is_held_to_its_own_budget() -> None:
    """The energy of a batch of budgets is that of each state by itself, under the constraint of its own budget and price."""
    made = agent()
    made.multiplier_state = made.multiplier_state | {"value": torch.tensor([0.4, 0.2, 0.1], dtype=torch.float64)}
    state, actions = torch.randn(5, 4), torch.rand(3, 5, 2)
    state[:, -1] = torch.tensor([2.0, 4.0, 8.0, 16.0, 32.0])
    together = made.energies(state, actions)
    alone = torch.cat([made.energies(state[i : i + 1], actions[:, i : i + 1]) for i in range(5)], 1)
    torch.testing.assert_close(together, alone)
    constraint = made.constraint(state)
    torch.testing.assert_close(constraint.budget[0], state[:, -1] * BUDGET[0].critic / 8)
    np.testing.assert_allclose(constraint.multiplier[0], [0.4, 0.4 * 0.5**0.5, 0.2, 0.2 * 0.5**0.5, 0.1], rtol=1e-6)


def test_effective_multiplier_of_several_budgets_is_the_mean_of_each() -> None:
    made = agent()
    state, reward, cost = torch.randn(4, 4), torch.randn(2, 1, 4), torch.rand(2, 1, 4)
    state[:, -1] = torch.tensor([2.0, 6.0, 10.0, 32.0])
    got = effective_multiplier(made.energy, reward, cost, made.constraint(state))
    each = [effective_multiplier(made.energy, reward[..., i : i + 1], cost[..., i : i + 1], made.constraint(state[i : i + 1])) for i in range(4)]
    torch.testing.assert_close(got, torch.stack(each).mean(0))


def test_lambda_rises_only_where_too_much_was_spent() -> None:
    """Costs of 0.5 a step: far over a budget of 2 (0.02 a step), and nothing is known of the others."""
    made = agent()
    before = made.multiplier_state["value"].clone()
    metrics = made.update(replay(2.0), 3)
    after = made.multiplier_state["value"]
    assert after[0] > before[0]
    assert torch.equal(after[1:], before[1:])
    assert len(after) == KNOTS
    assert float(metrics["multiplier"]) == pytest.approx(float(before[1]))  # that of the stated limit of 8


def test_budgets_cover_the_range_and_stay_for_an_episode() -> None:
    envs = DialledEnvs(EnvBatch(TOY, 2, seed=0), (1.0, 16.0), seed=3)
    seen = [envs.reset()[:, -1]]
    assert envs.shape.observation == envs.envs.shape.observation + 1
    for _ in range(60 * 6):
        before = envs.observation[:, -1]
        step = envs.step(np.zeros((2, 2), np.float32))
        np.testing.assert_array_equal(step.next_observation[:, -1], before)
        ended = step.terminated | step.truncated
        np.testing.assert_array_equal(step.observation[~ended, -1], before[~ended])
        if ended.any():
            seen.append(step.observation[ended, -1])
    drawn = np.concatenate(seen)
    start = np.random.default_rng(3).random()
    np.testing.assert_allclose(drawn, 16.0 ** ((start + GOLDEN * np.arange(len(drawn))) % 1), rtol=1e-6)
    assert len(np.unique(np.floor(np.log2(drawn[:8])))) == 4  # eight in a row meet every quarter


CONFIG: dict[str, Any] = {
    "env": TOY, "budget_range": (1.0, 16.0), "total_steps": 260, "warmup_steps": 60, "eval_every": 130, "checkpoint_every": 130, "threads": 1,
    "compile": "off", "replay_size": 300, "quiet": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(TrainConfig(**CONFIG, out=tmp_path_factory.mktemp("dial") / "run"), ALGD, ALGDConfig(**SMALL), CostBudget(4.0))


def test_a_resumed_run_is_the_unbroken_one(run: Path, tmp_path: Path) -> None:
    half = CONFIG | {"total_steps": 130}
    config = TrainConfig(**half, out=tmp_path / "run")
    train(config, ALGD, ALGDConfig(**SMALL), CostBudget(4.0))
    train(TrainConfig(**CONFIG, out=config.out), ALGD, ALGDConfig(**SMALL), CostBudget(4.0), resume=True)
    assert config.out is not None
    assert_same_runs(run, config.out)


def test_a_policy_is_turned(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = load_policy(run)
    assert plain.budgets[0].limit == 4.0
    assert plain.shape.observation == EnvBatch(TOY, 1, seed=0).shape.observation
    observation = np.random.default_rng(0).normal(size=plain.shape.observation).astype(np.float32)
    generator = torch.Generator()
    for limit in (1.0, 3.0, 16.0):
        policy = load_policy(run, budget=limit)
        assert isinstance(policy.learner, AtBudget)
        assert policy.budgets[0].limit == limit
        told = torch.cat([torch.from_numpy(observation), torch.tensor([limit])])[None]
        wanted = policy.learner.learner.act(told, "deterministic", generator)[0]
        np.testing.assert_array_equal(policy.act(observation), wanted)
    np.testing.assert_array_equal(plain.act(observation), load_policy(run, budget=4).act(observation))
    main(["evaluate", str(run), "--budget", "1", "16", "--episodes", "10", "--threads", "1"])
    said = capsys.readouterr().out
    assert "at most 1 per episode" in said
    assert "at most 16 per episode" in said
    assert (run / "evaluation-260-budget=16.json").is_file()


def test_an_exported_file_has_the_dial(run: Path, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    main(["export", str(run), str(tmp_path / "policy.onnx")])
    session = ort.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    policy = load_policy(run, budget=2.5)
    observation = np.random.default_rng(1).normal(size=(6, policy.shape.observation)).astype(np.float32)
    budget = np.array([2.5] * 4 + [0.5, np.nan], np.float32)
    action, valid = session.run(["action", "valid"], {"observation": observation, "budget": budget})
    np.testing.assert_allclose(action[:4], policy.act(observation[:4]), atol=1e-5)
    assert valid.tolist() == [True] * 4 + [False] * 2
    assert np.isnan(action[4:]).all()


@pytest.mark.parametrize(
    ("change", "learner", "config", "says"),
    [
        ({"budget_range": (16.0, 1.0)}, ALGD, ALGDConfig(), "0 < LOW < HIGH"),
        ({"budget_range": (0.0, 1.0)}, ALGD, ALGDConfig(), "0 < LOW < HIGH"),
        ({"budget_range": (8.0, 16.0)}, ALGD, ALGDConfig(), "must lie within --budget-range"),
        ({"env": "saddlepoint/ToyTwo-v0"}, ALGD, ALGDConfig(), "turns one budget"),
        ({"normalise_observations": True}, ALGD, ALGDConfig(), "--normalise-observations"),
        ({}, ALGD, ALGDConfig(multiplier_actions="policy"), "--multiplier-actions"),
        ({}, SACLag, SACLagConfig(), "--budget-range is for algd"),
    ],
)
def test_what_cannot_be_turned_is_one_sentence(change: dict[str, Any], learner: Any, config: Any, says: str, tmp_path: Path) -> None:
    budgets = (CostBudget(4.0),) * (2 if "env" in change else 1)
    with pytest.raises(UserError, match=says):
        train(TrainConfig(**(CONFIG | change), out=tmp_path / "run"), learner, config, budgets)
    assert not (tmp_path / "run").exists()


def test_a_policy_of_one_budget_cannot_be_turned(tmp_path: Path, run: Path) -> None:
    folder = train(TrainConfig(**(CONFIG | {"budget_range": None}), out=tmp_path / "run"), ALGD, ALGDConfig(**SMALL), CostBudget(4.0))
    with pytest.raises(UserError, match="trained for one budget, 4"):
        load_policy(folder, budget=3.0)
    with pytest.raises(UserError, match=r"from 1 to 16, not 17"):
        load_policy(run, budget=17)
    for odd in ("3", True, [3.0]):
        with pytest.raises(UserError, match=r"the budget cannot be .*: give a number"):
            load_policy(run, budget=odd)  # type: ignore[arg-type]
    assert load_policy(run, budget=np.float32(3)).budgets == load_policy(run, budget=3.0).budgets  # type: ignore[arg-type]
