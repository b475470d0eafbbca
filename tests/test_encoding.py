"""Encodings of observations against numpy, and through training: saved, exported, acted with."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.export import export_module
from saddlepoint.baselines import export as baseline_export
from saddlepoint.baselines.config import SACLagConfig
from saddlepoint.baselines.constrained import SACLag
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.envs.make import make_env
from saddlepoint.envs.navigation.lidar import lidar
from saddlepoint.nn.encoding import Objects, Raw, Zoom, make_encoder
from saddlepoint.train.run import require_same
from saddlepoint.types import Batch, EnvSetup, EnvShape, UserError


def test_zoom_shows_both_ends_of_the_range_seen_so_far(generator):
    rows = torch.randn(50, 3, generator=generator)
    rows[:, 2] = 4.0  # an entry that never moves
    zoom, split = Zoom(3), 20
    for part in (rows[:split], rows[split:]):
        zoom.observe(part)
    x = rows.numpy()
    low, high = x.min(0), x.max(0)
    u = np.full_like(x, 0.5)
    u[:, :2] = ((x - low) / np.where(high > low, high - low, 1))[:, :2]
    wanted = np.concatenate([x, np.clip((u - 0.9) / 0.1, 0, 1), np.clip((0.1 - u) / 0.1, 0, 1)], -1)
    np.testing.assert_allclose(zoom(rows).numpy(), wanted, atol=1e-5)
    assert zoom.outputs == 9
    assert float(zoom(rows)[:, 3:5].amax()) == 1.0
    torch.testing.assert_close(Zoom(3)(rows)[:, 3:], torch.zeros(50, 6))  # nothing seen yet: no ends


@pytest.mark.parametrize("high", [1e-42, 3e38])
def test_an_entry_whose_range_cannot_be_divided_by_has_no_ends(high):
    rows = torch.tensor([[-high, 0.0], [high, 1.0]])
    zoom = Zoom(2)
    zoom.observe(rows)
    torch.testing.assert_close(zoom(rows)[:, 2:], torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]))


def test_raw_is_the_observation(generator):
    rows = torch.randn(5, 3, generator=generator)
    assert torch.equal(Raw(3)(rows), rows)


def readings(bearing: np.ndarray, distance: np.ndarray, bins: int = 16) -> torch.Tensor:
    """What a lidar reads (rows, bins) of objects (rows, objects) in polar coordinates about the robot."""
    centres = np.stack([distance * np.cos(bearing), distance * np.sin(bearing)], -1)
    rows, objects = bearing.shape
    place, rotation = np.zeros((rows, 3)), np.broadcast_to(np.eye(3), (rows, 3, 3))
    return torch.from_numpy(lidar(place, rotation, centres, np.zeros(objects, int), 1, bins)[:, 0]).float()


def wanted_of(bearing: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """w (1, cos, sin) of objects (rows, objects) in reach, w = 1 and clip((v - 1 + s)/s, 0, 1), v = 1 - distance/3: (rows, objects * (1 + shares) * 3)."""
    shares = np.array([np.inf, 1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05])
    near = np.clip(1 - distance[..., None] / 3 / shares, 0, 1)
    towards = np.stack([np.ones_like(bearing), np.cos(bearing), np.sin(bearing)], -1)
    return (near[..., None] * towards[..., None, :]).reshape(len(bearing), -1)


@pytest.mark.parametrize("bins", [8, 16])
def test_objects_of_a_lidar_are_where_they_were_put(bins):
    rng = np.random.default_rng(0)
    bearing, distance = rng.uniform(0, 2 * np.pi, (200, 2)), np.sort(rng.uniform(0.05, 2.8, (200, 2)))
    bearing[:, 1] = bearing[:, 0] + rng.uniform(0.75, 1.25, 200) * np.pi  # far enough apart to share no sector
    rows = torch.cat([torch.full((200, 1), 7.0), readings(bearing, distance, bins), torch.full((200, 1), -7.0)], -1)
    encoder = Objects(bins + 2, [(1, bins)])
    seen = encoder(rows)
    assert seen.shape == (200, encoder.outputs)
    assert torch.equal(seen[:, :2], rows[:, [0, -1]])
    np.testing.assert_allclose(seen[:, 6:].numpy(), wanted_of(bearing, distance), atol=2e-5)


def test_a_lidar_that_sees_nothing_or_one_object_shows_no_second(generator):
    bearing, distance = np.array([[1.0]]), np.array([[0.5]])
    one = Objects(16, [(0, 16)])(readings(bearing, distance))
    np.testing.assert_allclose(one.numpy(), np.pad(wanted_of(bearing, distance), ((0, 0), (0, 24))), atol=2e-5)
    assert not Objects(16, [(0, 16)])(torch.zeros(3, 16)).any()
    rows = torch.rand(2, 5, 40, generator=generator)  # more axes, and rings of different lengths
    encoder = Objects(40, [(2, 16), (30, 8), (22, 8)])
    torch.testing.assert_close(encoder(rows), torch.stack([encoder(rows[0]), encoder(rows[1])]))


def test_without_a_lidar_objects_are_a_zoom(generator):
    assert isinstance(make_encoder("objects", 3, ()), Zoom)
    assert isinstance(make_encoder("objects", 20, ((2, 16),)), Objects)
    assert isinstance(make_encoder("zoom", 20, ((2, 16),)), Zoom)


class Shows(gym.Env):
    """An environment that says where its lidars are."""

    observation_space, action_space = Box(0, 1, (20,)), Box(-1, 1, (2,))

    def __init__(self, lidar_entries: object) -> None:
        self.lidar_entries = lidar_entries

    def reset(self, *, seed=None, options=None):
        return np.zeros(20, np.float32), {}

    def step(self, action):
        return np.zeros(20, np.float32), 0.0, False, True, {"cost": 0.0}


def hides(lidar_entries: object) -> gym.Env:
    return FilterObservation(Shows(lidar_entries))


class FilterObservation(gym.ObservationWrapper):
    observation_space = Box(0, 1, (19,))

    def observation(self, observation):
        return observation[1:]


def shape_of(setup: EnvSetup, **options) -> EnvShape:
    envs = EnvBatch(setup, 2, seed=0, **options)
    try:
        return envs.shape
    finally:
        envs.close()


def test_environments_say_where_their_lidars_are():
    task = "saddlepoint/PointGoal1-v0"
    rings = ((12, 16), (28, 16), (44, 16))
    for repeat, options in ((1, {}), (4, {}), (4, {"processes": True})):
        assert shape_of(EnvSetup(task, action_repeat=repeat), **options).lidars == rings
    assert [name for name in make_env(task).unwrapped.task.parts if name.endswith("lidar")] == ["goal_lidar", "hazards_lidar", "vases_lidar"]
    for other in ("saddlepoint/Toy-v0", "saddlepoint/PointButton1-fixed-v0"):
        assert shape_of(EnvSetup(other)).lidars == ()
    assert shape_of(EnvSetup(Shows, {"lidar_entries": [[4, np.int64(16)]]})).lidars == ((4, 16),)
    assert shape_of(EnvSetup(hides, {"lidar_entries": ((4, 16),)})).lidars == ()  # the wrapper has other observations


def test_a_run_does_not_go_on_where_lidars_have_moved(tmp_path):
    shape = {"observation": 20, "action_low": [-1.0], "action_high": [1.0], "constraints": 1}
    saved, moved = ({"system": "algd", "train": {}, "learner": {}, "resolved": {"device": "cpu"}, "budgets": [], "shape": shape | {"lidars": [[first, 16]]}}
                    for first in (0, 4))  # fmt: skip
    require_same(saved, saved, tmp_path)
    with pytest.raises(UserError, match="has other spaces"):
        require_same(saved, moved, tmp_path)
    require_same(saved | {"shape": shape}, moved, tmp_path)  # a run that is older than lidars, which sees their readings


@pytest.mark.parametrize("said", [3, "ab", [3], [(5, 16)], [(-1, 16)], [(0, 3)], [(0, 16), (8, 8)], [(0.0, 16)], [(0, 16, 1)]])
def test_what_is_no_lidar_is_refused(said):
    with pytest.raises(UserError, match=r"Shows has lidar_entries .* a pair for each lidar"):
        shape_of(EnvSetup(Shows, {"lidar_entries": said}))


def batch(generator) -> Batch:
    state, following = torch.randn(2, 16, 4, generator=generator)
    return Batch(state, torch.rand(16, 2, generator=generator), torch.randn(16), torch.rand(16, 1), following, torch.zeros(16))


@pytest.mark.parametrize("encoding", ["zoom", "objects"])
@pytest.mark.parametrize("kind", ["algd", "sac-lag"])
def test_learners_save_the_range_that_they_saw_act_and_export(kind, encoding, generator):
    shape, budgets = EnvShape(4, (-1.0, -1.0), (1.0, 1.0), 1, lidars=((0, 3),) if encoding == "objects" else ()), (CostBudget(5.0),)
    small = {"critic_hidden": (16, 16), "policy_hidden": (16, 16), "batch_size": 16, "encoding": encoding, "multiplier_actions": "policy"}
    make, config = {"algd": (ALGD, ALGDConfig()), "sac-lag": (SACLag, SACLagConfig())}[kind]
    agent, other = (make(replace(config, **small), shape, budgets, seed=seed) for seed in (1, 2))
    for _ in range(3):
        agent.observe(torch.randn(7, 4, generator=generator) * 3)
        agent.update_batch(batch(generator), agent.draw(16))
    other.load_state_dict(agent.state_dict())
    state = torch.randn(9, 4, generator=generator) * 3
    actions = [each.act(state, "deterministic", generator) for each in (agent, other)]
    assert torch.equal(*actions)
    module = (export_module if kind == "algd" else baseline_export.export_module)(agent, "deterministic").module
    torch.testing.assert_close(module(state), actions[0])
    assert agent.predict(state, actions[0])["cost"].shape == (9, 1)
    agent.observe(torch.full((1, 4), 50.0))  # the range moves: so do the actions
    assert not torch.equal(agent.act(state, "deterministic", generator), actions[0])
