"""The noise of samples, ALGD's and the baselines', goes from step to step of an episode, and from a checkpoint to the run that goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import EARLIER, PARITY, PARITY_VP, ALGDConfig
from saddlepoint.baselines.config import CAL_RELEASED, SAC_LAG_PRESETS, SACLagConfig
from saddlepoint.baselines.constrained import CAL, SACLag
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.nn.noise import carried, correlation
from saddlepoint.policies import load_policy
from saddlepoint.train.acting import Actor
from saddlepoint.train.at_budget import at_budget
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.start import train
from saddlepoint.types import EnvShape, UserError
from tests.test_algd_training import SMALL, config

SHAPE = EnvShape(3, (-1.0, -1.0), (1.0, 1.0), 1)


def agent(shape: EnvShape = SHAPE, **changes: Any) -> ALGD:
    return ALGD(ALGDConfig(critic_hidden=(8,), policy_hidden=(8,), **changes), shape, (CostBudget(1.0, horizon=100_000),))


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_stays_standard_normal_and_decays_geometrically() -> None:
    learner, generator, seen = agent(noise_memory=5.0), numbers(), torch.zeros(4000, 3)
    memory, drawn = torch.zeros(4000, learner.memory_size), []
    for _ in range(4):
        _, memory = learner.act_on(seen, memory, "explore", generator)
        drawn.append(memory[:, :-1].numpy().ravel())
    assert drawn[0].size == 4000 * 6 * 2  # the start and five steps of two actions
    for lag in range(4):
        assert np.corrcoef(drawn[0], drawn[lag])[0, 1] == pytest.approx(0.8**lag, abs=0.02)
        assert drawn[lag].mean() == pytest.approx(0, abs=0.02)
        assert drawn[lag].std() == pytest.approx(1, abs=0.02)


def test_the_carried_noise_is_an_autoregressive_process() -> None:
    drawn = np.random.default_rng(0).normal(size=(30, 2, 3)).astype(np.float32)
    memory, wanted = torch.zeros(2, 4), drawn[0].copy()
    for t in range(30):
        if t == 20:  # another episode begins in the second environment
            memory[1] = 0
        noise, memory = carried(torch.from_numpy(drawn[t]), memory, 0.6)
        wanted = np.where([[t > 0], [t not in (0, 20)]], 0.6 * wanted + 0.8 * drawn[t], drawn[t])
        np.testing.assert_allclose(noise.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["algd", "sac-lag"])
def test_the_first_action_of_an_episode_is_that_of_act(kind: str) -> None:
    learner: Any = agent(noise_memory=5.0)
    if kind == "sac-lag":
        learner = SACLag(SACLagConfig(critic_hidden=(8,), policy_hidden=(8,), noise_memory=5.0), SHAPE, (CostBudget(1.0, horizon=1000),))
    seen = torch.randn(5, 3, generator=numbers(1))
    first, memory = learner.act_on(seen, torch.zeros(5, learner.memory_size), "stochastic", numbers())
    assert torch.equal(first, learner.act(seen, "stochastic", numbers()))
    second, _ = learner.act_on(seen, memory, "stochastic", numbers(2))
    assert not torch.allclose(second, learner.act(seen, "stochastic", numbers(2)))
    free, kept = learner.act_on(seen, memory, "deterministic", numbers())
    assert torch.equal(free, learner.act(seen, "deterministic", numbers()))
    assert torch.equal(kept, memory)


@pytest.mark.parametrize("make", [*((ALGD, each) for each in (EARLIER, PARITY, PARITY_VP)), (CAL, CAL_RELEASED), (SACLag, SAC_LAG_PRESETS["earlier"])])
def test_the_released_agents_draw_all_noise_anew(make: tuple[Any, Any]) -> None:
    learner = make[0](make[1], SHAPE, (CostBudget(1.0, horizon=10),))
    assert learner.memory_size == 0
    actor, seen = Actor(learner, 2, "cpu"), np.zeros((2, 3), np.float32)
    assert actor.state_dict() == {}
    generator, other = numbers(), numbers()
    for _ in range(2):
        assert np.array_equal(actor.act(seen, "explore", generator), learner.act(torch.as_tensor(seen), "explore", other).numpy())


def test_an_episode_that_ends_forgets_its_noise() -> None:
    learner = agent(noise_memory=1000.0)
    actor, seen, generator = Actor(learner, 2, "cpu"), np.zeros((2, 3), np.float32), numbers()
    first = actor.act(seen, "explore", generator)
    actor.restart(np.array([True, False]))
    second = actor.act(seen, "explore", generator)
    assert np.abs(second - first)[1].max() < 0.1 < np.abs(second - first)[0].max()


def test_a_policy_of_many_budgets_carries_its_noise_too() -> None:
    learner = agent(SHAPE._replace(observation=4, budget_range=(1.0, 5.0)), noise_memory=1000.0)
    actor, seen, generator = Actor(at_budget(learner, 2.0, learner.shape), 2, "cpu"), np.zeros((2, 3), np.float32), numbers()
    assert np.abs(actor.act(seen, "explore", generator) - actor.act(seen, "explore", generator)).max() < 0.1


def test_checkpoints_hold_the_noise_and_those_of_before_load(tmp_path: Path) -> None:
    run = train(config("saddlepoint/Toy-v0", out=tmp_path / "run", total_steps=130), ALGD, SMALL)
    memory = load(latest(run)[0]).state["memory"]
    assert memory.shape == (1, (SMALL.steps + 1) * 2 + 1)
    assert memory[0, -1] == 1
    actor = Actor(agent(), 1, "cpu")
    actor.load_state_dict({})  # nothing is known of the noise: the next action begins anew
    assert not actor.memory.any()


def test_a_trained_policy_can_draw_all_noise_anew(tmp_path: Path) -> None:
    run = train(config("saddlepoint/Toy-v0", out=tmp_path / "run", total_steps=70), ALGD, SMALL)
    seen = np.zeros(load_policy(run).shape.observation, np.float32)
    steps = {}
    for memory in (10.0, 1.0):  # of 60 steps an episode: three are remembered
        policy = load_policy(run, acting={"noise_memory": memory})
        actions = np.array([policy.act(seen, "stochastic") for _ in range(300)])
        steps[memory] = np.square(np.diff(actions, axis=0)).mean() / actions.var(0).mean()
    assert steps[1.0] == pytest.approx(2, abs=0.3)  # of independent draws
    assert steps[10.0] < 1.2  # 2 (1 - rho), rho = 2/3, of a latent that is squashed later


def test_noise_is_remembered_for_a_twentieth_of_an_episode_at_most() -> None:
    for memory, horizon, wanted in ((10, 1000, 0.9), (10, 60, 2 / 3), (10, None, 0.9), (1, 1000, 0), (10, 12, 0)):
        rho = correlation(memory, horizon)
        assert rho == pytest.approx(wanted)
        assert sum(rho**k for k in range(400)) == pytest.approx(max(1, min(memory, (horizon or 1e9) / 20)))
    with pytest.raises(UserError, match=r"--noise-memory must be at least 1, not 0\.5"):
        agent(noise_memory=0.5)
