"""The landscape is the energy itself, its paths end in the policy's own actions, and each mistake is one sentence."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from saddlepoint.algd import landscape as view
from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import EARLIER
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.files import SEAL, sealed
from saddlepoint.landscape import landscape_command
from saddlepoint.landscape.picture import panel_svg
from saddlepoint.landscape.slices import KINDS, SAMPLES, energy_plane, landscape, widest
from saddlepoint.landscape.states import choose_states, play
from saddlepoint.policies import load_policy
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.start import train
from saddlepoint.types import EnvShape, UserError

SMALL = replace(EARLIER, critic_hidden=(16, 16), policy_hidden=(16,), batch_size=8, rho=0.7, multiplier=0.9, cost_unit="budget")
SHAPE = EnvShape(4, (-1.0, -2.0, 0.0), (1.0, 0.5, 3.0), 2)
BUDGETS = (CostBudget(5.0), CostBudget(9.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the toy: a policy that knows nothing yet, but a whole checkpoint."""
    config = TrainConfig(
        env="saddlepoint/Toy-v0", total_steps=80, warmup_steps=60, eval_every=1000, replay_size=100, quiet=True,
        out=tmp_path_factory.mktemp("landscape") / "run",
    )  # fmt: skip
    return train(config, ALGD, SMALL)


@pytest.fixture(scope="module")
def agent() -> ALGD:
    """Three actions with uneven bounds, two constraints."""
    return ALGD(SMALL, SHAPE, BUDGETS, seed=3)


def energy_by_hand(agent: ALGD, state: np.ndarray, action: np.ndarray, kind: str) -> np.ndarray:
    """(rows, observation), (rows, action) -> (rows,), from the critics' values and the paper's formulas in numpy."""
    with torch.no_grad():
        rows = (torch.as_tensor(state, dtype=torch.float32), torch.as_tensor(action, dtype=torch.float32)[None])
        reward, cost = (critic(*rows)[:, 0].double().numpy() for critic in (agent.critic, agent.cost_critic))
    total = -reward.min(0)
    for c, (lam, budget) in enumerate(zip(agent.multiplier.numpy(), BUDGETS, strict=True)):
        members = cost[4 * c : 4 * c + 4]
        violation = (members.mean(0) + members.std(0, ddof=1)) / budget.critic - 1  # in budgets, as lambda and rho count
        augmented = (np.maximum(lam + 0.7 * violation, 0) ** 2 - lam**2) / (2 * 0.7)
        total = total + (lam * violation if kind == "plain" else augmented)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_the_plane_holds_the_energy_of_each_of_its_actions(agent: ALGD, kind: str) -> None:
    state, centre = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.3, -0.4, 1.2]])
    plane = energy_plane(agent, state, centre, (2, 0), kind, points=5)  # type: ignore[arg-type]
    across, up = np.linspace(0, 3, 5), np.linspace(-1, 1, 5)
    actions = np.array([[b, -0.4, a] for b in up for a in across])
    wanted = energy_by_hand(agent, state.numpy().repeat(25, 0), actions, kind).reshape(5, 5)
    np.testing.assert_allclose(plane, wanted, rtol=1e-4, atol=1e-4)


def test_excess_is_the_worst_constraints(agent: ALGD) -> None:
    state, action = torch.randn(6, 4), torch.rand(6, 3)
    risk = agent.risk(state, action).numpy() - np.array([[b.critic] for b in BUDGETS])
    np.testing.assert_allclose(view.excess(agent, state, action).numpy(), risk.max(0), rtol=1e-5)


def test_paths_run_from_the_noise_to_the_policys_own_actions(agent: ALGD) -> None:
    state = torch.randn(7, 4)
    noise = agent.policy.draw(7, torch.Generator().manual_seed(5))
    chains = agent.paths(state, noise)
    assert chains.shape == (SMALL.steps + 1, 7, 3)
    actions = agent.act(state, "stochastic", torch.Generator().manual_seed(5))
    assert torch.equal(chains[0], actions)
    low, high = torch.tensor(SHAPE.action_low), torch.tensor(SHAPE.action_high)
    start = torch.tanh(SMALL.sigma_max * noise.start) * (high - low) / 2 + (high + low) / 2
    torch.testing.assert_close(chains[-1], start)


def test_the_widest_dimensions_are_relative_to_their_bounds() -> None:
    samples = np.random.default_rng(0).normal(size=(3, 500, 3)) * [1.0, 5.0, 2.0]
    assert widest(samples, np.array([1.0, 1.0, 1.0])) == (1, 2)
    assert widest(samples, np.array([1.0, 10.0, 3.0])) == (0, 2)


def test_states_are_those_that_the_policy_meets(run: Path) -> None:
    policy = load_policy(run)
    agent = policy.learner
    assert isinstance(agent, ALGD)
    met = play(agent, policy.env, 11)
    assert [len(episode) for episode in met] == [60] * 4
    chosen = choose_states(agent, policy.env, 5, 11)
    places = {state.title: (state.episode, state.step) for state in chosen}
    rest = {"start": (0, 0), "middle": (0, 30), "25 % of an episode": (0, 15), "75 % of an episode": (0, 45)}
    assert places.items() >= rest.items()
    for state in chosen:
        np.testing.assert_array_equal(state.observation, met[state.episode][state.step])
    rows = torch.as_tensor(np.concatenate(met))
    over = view.excess(agent, rows, agent.act(rows, "deterministic", torch.Generator()))
    worst = next(state for state in chosen if state.title == "largest risk")
    assert worst.excess == pytest.approx(float(over.max()), rel=1e-5)
    assert [s.step for s in choose_states(agent, policy.env, 1, 11)] == [worst.step]


def test_a_landscape_is_repeatable_and_agrees_with_the_agent(run: Path) -> None:
    first, second = (landscape(run, 2, 4) for _ in range(2))
    agent = load_policy(run).learner
    assert isinstance(agent, ALGD)
    assert first.step == 80
    assert first.rho == 0.7
    assert first.multiplier == tuple(agent.multiplier.tolist())
    for one, other in zip(first.slices, second.slices, strict=True):
        assert one.dims == (0, 1)
        assert one.paths.shape == (SMALL.steps + 1, SAMPLES, 2)
        np.testing.assert_array_equal(one.paths, other.paths)
        state = torch.as_tensor(one.state.observation)[None]
        np.testing.assert_array_equal(one.action, agent.policy.mean_action(state)[0].detach().numpy())
        for kind in KINDS:
            np.testing.assert_array_equal(one.energy[kind], other.energy[kind])
            corner = torch.tensor([[one.axes[0][3], one.axes[1][70]]], dtype=torch.float32)
            direct = float(agent.energies(state, corner[None], kind))
            assert one.energy[kind][70, 3] == pytest.approx(direct, rel=1e-4, abs=1e-4)
    swapped = landscape(run, 1, 4, dims=(1, 0)).slices[0]
    assert swapped.dims == (1, 0)


def test_panels_fit_into_one_page(run: Path) -> None:
    part = landscape(run, 1, 0).slices[0]
    texts = [panel_svg(part, kind, f"{kind} <of> a&b", 5.0) for kind in KINDS]
    ids = []
    for text in texts:
        tree = ElementTree.fromstring(text)
        assert tree.get("aria-label", "").endswith("<of> a&b")
        assert "font-family" not in text
        assert "<style" not in text
        assert "currentColor" in text
        own = [node.get("id") for node in tree.iter() if node.get("id")]
        ids += own
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) == set(own)
    assert len(ids) == len(set(ids))


def test_the_command_writes_a_picture(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    landscape_command([str(run), "--states", "1", "--out", str(tmp_path / "a.svg")])
    ElementTree.parse(tmp_path / "a.svg")
    landscape_command([str(run), "--states", "1", "--dims", "1", "0"])
    assert (run / "landscape-80.png").read_bytes().startswith(b"\x89PNG")
    assert "λ = " in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "needs the run folder first"),
        (["{tmp}/none"], "is not a run folder"),
        (["{run}", "--states", "0"], "--states must be from 1 to 9"),
        (["{run}", "--dims", "0", "0"], "two different action dimensions"),
        (["{run}", "--dims", "0", "2"], "from 0 to 1"),
        (["{run}", "--out", "{tmp}/a.gif"], "must end in one of .png, .svg, .pdf"),
        (["{run}", "--out", "{tmp}/none/a.png"], "there is no folder"),
        (["{run}", "--seed", "-1"], "must lie from 0 to 2,147,483,647"),
        (["{other}"], "trained with cal, which has no energy over actions"),
    ],
)
def test_each_mistake_is_one_sentence(run: Path, tmp_path: Path, args: list[str], sentence: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    content = {k: v for k, v in json.loads((run / "config.json").read_text()).items() if k != SEAL} | {"system": "cal"}
    (other / "config.json").write_text(json.dumps(sealed(content)))
    places = {"{tmp}": str(tmp_path), "{run}": str(run), "{other}": str(other)}
    filled = [re.sub(r"\{\w+\}", lambda match: places[match[0]], arg) for arg in args]
    with pytest.raises(UserError, match=sentence) as error:
        landscape_command(filled)
    assert "\n" not in str(error.value)


def test_one_action_dimension_is_too_few(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = EnvShape(4, (-1.0,), (1.0,), 2)
    policy = replace(load_policy(run), learner=ALGD(SMALL, shape, BUDGETS), env="tests/One-v0")
    monkeypatch.setattr("saddlepoint.landscape.slices.load_policy", lambda folder: policy)
    with pytest.raises(UserError, match="tests/One-v0 has one action dimension"):
        landscape(run, 1, 0)
