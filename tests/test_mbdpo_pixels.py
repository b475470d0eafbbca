"""MBDPO from pictures: how they are made, kept and moved, what reads them, and a run of them through the whole house."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from saddlepoint import TrainConfig, load_policy, train
from saddlepoint.cli import main
from saddlepoint.envs import EnvBatch, check_env, env_spec, make_env
from saddlepoint.envs.pixels import PixelObservation, resized
from saddlepoint.envs.snapshot import restore, rng_state, snapshot
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import PRESETS
from saddlepoint.mbdpo.encoder import ImageEncoder, random_shift
from saddlepoint.mbdpo.losses import UpdateNoise
from saddlepoint.mbdpo.peers import share_noise
from saddlepoint.policies import start_from
from saddlepoint.replay import Replay
from saddlepoint.train import run
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.types import EnvShape, UserError

IMAGE, SIZE = (9, 64, 64), 9 * 64 * 64
SHAPE = EnvShape(SIZE, (-1.0,), (1.0,), 0, IMAGE)
TINY = replace(
    PRESETS["small"], width=16, latent=16, encoder_width=16, encoder_channels=4, proposals=8, elites=3, policy_rollouts=2, steps=3, batch_size=8,
    score_states=2, score_proposals=4, critics=2, bins=11, time_embedding=4,
)  # fmt: skip
FLAGS = [
    "--width", "16", "--latent", "16", "--encoder-width", "16", "--encoder-channels", "4", "--proposals", "8", "--elites", "3", "--policy-rollouts", "2",
    "--steps", "3", "--batch-size", "8", "--score-states", "2", "--score-proposals", "4", "--critics", "2", "--bins", "11", "--total-steps", "60",
    "--warmup-steps", "40", "--eval-every", "100000", "--replay-size", "100", "--threads", "1", "--compile", "off", "--quiet",
]  # fmt: skip


class Bar(gym.Env):
    """A bar that ends at x, which its picture shows and its observation hides; the reward is (1 + x) / 2."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode, self.x = render_mode, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.x = float(np.clip(self.x + 0.3 * action[0], -1, 1))
        return np.zeros(2, np.float32), (1 + self.x) / 2, False, False, {}

    def render(self):
        picture = np.full((12, 16, 3), 20, np.uint8)
        picture[2:10, : round(8 + 8 * self.x)] = (250, 120, 60)
        return picture

    def snapshot(self):
        return {"x": self.x, "rng": rng_state(self.np_random)["generator"]}

    def restore(self, state):
        self.reset(seed=0)
        self.x, self.np_random.bit_generator.state = state["x"], _whole(state["rng"])


def _whole(state):
    """Undo what JSON cannot hold: integers of more than 63 bits."""
    if isinstance(state, dict):
        return {name: _whole(value) for name, value in state.items()}
    return int(state[4:]) if isinstance(state, str) and state.startswith("int:") else state


class Large(Bar):
    """The same, drawn at the size that is asked for."""

    def picture(self, height, width):
        return np.full((height, width, 3), round(127 * (1 + self.x)), np.uint8)


class Blank(Bar):
    def render(self):
        return None


class Hidden(Bar):
    metadata = {"render_modes": []}  # noqa: RUF012


class Modeless(Bar):
    def __init__(self):
        super().__init__()


BAR = "tests/Bar-v0"
for env in (Bar, Large, Blank, Hidden, Modeless):
    gym.register(f"tests/{env.__name__}-v0", env, max_episode_steps=7)


def pictures(generator: torch.Generator, *lead: int) -> torch.Tensor:
    return torch.randint(0, 256, (*lead, SIZE), dtype=torch.uint8, generator=generator)


# ------------------------------------------------------------------------------------------------ the environment


@pytest.mark.parametrize(("old", "new"), [((10, 6), (4, 9)), ((12, 16), (64, 64)), ((130, 70), (64, 64))])
def test_a_new_pixel_is_the_mean_of_the_area_it_covers(old, new):
    picture = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    fine = picture.astype(np.float64)
    for axis in (0, 1):  # every old pixel as ``new`` thin ones, of which ``old`` make a new pixel
        fine = np.repeat(fine, new[axis], axis)
        fine = np.stack([part.mean(axis) for part in np.split(fine, new[axis], axis)], axis)
    got = resized(picture, *new)
    assert got.dtype == np.uint8
    assert np.abs(got - fine).max() < 0.501  # what rounding may take
    np.testing.assert_array_equal(resized(picture, *old), picture)


def test_an_observation_is_the_last_three_pictures():
    env, twin = make_env(f"{BAR}@pixels"), make_env(BAR, render_mode="rgb_array")
    assert env.observation_space == Box(0, 255, (SIZE,), np.uint8)
    first, _ = env.reset(seed=3)
    twin.reset(seed=3)
    seen = [resized(twin.render(), 64, 64)] * 3
    np.testing.assert_array_equal(first.reshape(IMAGE), np.concatenate(seen, 2).transpose(2, 0, 1))
    for action in (0.5, -1.0, 1.0, 0.2):
        observation, reward, *_ = env.step(np.array([action], np.float32))
        assert reward == twin.step(np.array([action], np.float32))[1]
        seen = [*seen[1:], resized(twin.render(), 64, 64)]
        assert observation.dtype == np.uint8
        np.testing.assert_array_equal(observation.reshape(IMAGE), np.concatenate(seen, 2).transpose(2, 0, 1))
    np.testing.assert_array_equal(env.render(), twin.render())  # a film is of the environment's own size
    large = make_env("tests/Large-v0@pixels")
    assert (large.reset(seed=0)[0] == round(127 * (1 + large.unwrapped.x))).all()


def test_its_shape_and_its_task():
    assert check_env(f"{BAR}@pixels", needs_cost=False) == SHAPE
    assert check_env(BAR, needs_cost=False) == EnvShape(2, (-1.0,), (1.0,), 0)
    spec = env_spec("saddlepoint/ToyTwo-v0@pixels")
    assert (spec.id, spec.pixels, spec.budgets) == ("saddlepoint/ToyTwo-v0@pixels", True, env_spec("saddlepoint/ToyTwo-v0").budgets)


@pytest.mark.parametrize(("id", "processes"), [(f"{BAR}@pixels", False), (f"{BAR}@pixels", True), ("saddlepoint/Toy-v0@pixels", False)])
def test_a_batch_is_restored_in_mid_episode(id, processes):
    batch, other = (EnvBatch(id, 2, seed=seed, processes=processes, needs_cost=False) for seed in (5, 6))
    assert batch.reset().dtype == np.uint8
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 2, batch.shape.action)).astype(np.float32)
    for action in actions[:3]:
        batch.step(action)
    assert other.restore(json_like(batch.snapshot()))
    np.testing.assert_array_equal(other.observation, batch.observation)
    for action in actions[3:]:
        for one, two in zip(batch.step(action), other.step(action)):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
    assert batch.observation.dtype == np.uint8
    batch.close()
    other.close()


def json_like(state):
    """What files make of a state: texts and numbers by way of JSON, arrays as they are."""
    if isinstance(state, dict):
        return {name: json_like(value) for name, value in state.items()}
    return state if isinstance(state, np.ndarray) else json.loads(json.dumps(state))


def test_the_control_suite_draws_itself_at_that_size():
    pytest.importorskip("dm_control")
    env, twin = (make_env("dmc/cartpole-swingup@pixels") for _ in range(2))
    first, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first.reshape(IMAGE)[-3:].transpose(1, 2, 0), env.unwrapped.physics.render(64, 64, camera_id=0))
    assert first.std() > 5
    action = np.ones(1, np.float32)
    for _ in range(4):
        env.step(action)
    assert restore(twin, json_like(snapshot(env)))
    for _ in range(3):
        one, two = env.step(action), twin.step(action)
        np.testing.assert_array_equal(one[0], two[0])
        assert one[1] == two[1]
    env.close()
    twin.close()


# ------------------------------------------------------------------------------------------------ the replay


def test_bytes_stay_bytes_in_the_replay(generator):
    replay = Replay(12, SIZE, 1, 0, num_envs=2, dtype=torch.uint8)
    seen, ended = pictures(generator, 10, 2), np.zeros(2, bool)
    for t in range(9):
        replay.add(seen[t].numpy(), np.full((2, 1), t), np.full(2, t), np.zeros((2, 0)), seen[t + 1].numpy(), ended, ended)
    batch = replay.sample(30, generator)
    times = batch.reward.long()
    assert batch.observation.dtype == batch.next_observation.dtype == torch.uint8
    assert all(any(torch.equal(got, seen[t, env]) for env in range(2)) for got, t in zip(batch.observation, times))
    batch = replay.sample_sequences(20, 3, generator)
    assert batch.observation.dtype == torch.uint8
    assert torch.equal(batch.observation[:, 1:], batch.next_observation[:, :-1])
    state = replay.state_dict()
    rings = [tensor for name, tensor in state.items() if name not in ("next_age", "position")]
    assert Replay.bytes_needed(12, SIZE, 1, 0, torch.uint8) == sum(tensor.numel() * tensor.element_size() for tensor in rings)
    again = Replay(12, SIZE, 1, 0, num_envs=2, dtype=torch.uint8)
    again.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    with pytest.raises(UserError, match="shape or type"):
        Replay(12, SIZE, 1, 0, num_envs=2).load_state_dict(state)


def test_the_bound_is_of_bytes():
    with pytest.raises(UserError, match=r"needs 73\.74 GB and 1\.00 GB are available"):
        Replay(1_000_000, SIZE, 1, 0, memory_limit=10**9, dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------ the learner


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_shift_is_an_edge_padded_crop(generator, kind):
    image, most = (2, 7, 5), 3
    x = torch.randint(0, 256, (3, 4, 70), generator=generator).to(kind)
    shift = torch.randint(-most, most + 1, (3, 4, 2), generator=generator)
    got = random_shift(x, shift, image)
    assert (got.dtype, got.shape) == (kind, x.shape)
    for i in np.ndindex(3, 4):
        padded = np.pad(x[i].view(image).numpy(), ((0, 0), (most, most), (most, most)), mode="edge")
        down, right = (shift[i] + most).tolist()
        np.testing.assert_array_equal(got[i].view(image).numpy(), padded[:, down : down + 7, right : right + 5])


def test_the_draws_of_a_shift_reach_both_bounds_and_are_shared_by_rows(generator):
    agent = MBDPO(replace(TINY, batch_size=64), SHAPE, ())
    noise = UpdateNoise.draw(agent.model, 64, generator)
    assert noise.shift.shape == (TINY.horizon + 1, 64, 2)
    assert noise.shift.unique().tolist() == list(range(-3, 4))
    assert torch.equal(share_noise(noise, 1, 2).shift, noise.shift[:, 1::2])
    still = MBDPO(replace(TINY, random_shift=0), SHAPE, ())
    assert UpdateNoise.draw(still.model, 8, generator).shift is None


def test_the_encoder_reads_bytes_and_floats_alike_and_learns(generator):
    agent = MBDPO(TINY, SHAPE, ())
    encoder, x = agent.model.encoder, pictures(generator, 2, 3)
    assert isinstance(encoder, ImageEncoder)
    z = agent.model.encode(x)
    assert z.shape == (2, 3, TINY.latent)
    torch.testing.assert_close(z.unflatten(-1, (-1, TINY.simplex)).sum(-1), torch.ones(2, 3, TINY.latent // TINY.simplex))
    assert torch.equal(z, agent.model.encode(x.float()))
    torch.testing.assert_close(z[1, 2], agent.model.encode(x[1, 2]))
    z[..., 0].sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())
    group = agent.model_optimiser.param_groups[0]
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in encoder.parameters()}
    assert group["lr"] == TINY.learning_rate * TINY.encoder_rate


def test_the_encoder_is_four_strided_convolutions(generator):
    """Against sums over windows, at a few places of each layer."""
    encoder = MBDPO(TINY, SHAPE, ()).model.encoder.double()
    with torch.no_grad():
        x = (pictures(generator, 1).double().view(1, *IMAGE) / 255 - 0.5).numpy()[0]
        sides = []
        for kernel, bias, stride in zip(encoder.kernels, encoder.biases, (2, 2, 2, 1)):
            k = kernel.shape[-1]
            windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]
            x = np.maximum(np.einsum("chwij,ocij->ohw", windows, kernel.numpy()) + bias.numpy()[:, None, None], 0)
            sides.append(x.shape[1])
        z = encoder.head(torch.from_numpy(x.reshape(-1)))
        torch.testing.assert_close(z, encoder(pictures(torch.Generator().manual_seed(0), 1).double())[0])
    assert sides == [29, 13, 6, 4]


def filled(generator: torch.Generator) -> Replay:
    """300 random steps of ``Bar``."""
    envs = EnvBatch(f"{BAR}@pixels", 4, seed=0, needs_cost=False)
    replay = Replay(300, SIZE, 1, 0, num_envs=4, dtype=torch.uint8)
    observation = envs.reset()
    for _ in range(75):
        action = 2 * torch.rand(4, 1, generator=generator).numpy() - 1
        step = envs.step(action)
        replay.add(observation, action, step.reward, step.cost, step.next_observation, step.terminated, step.truncated)
        observation = step.observation
    envs.close()
    return replay


def test_updates_move_the_encoder_and_losses_fall(generator):
    replay = filled(generator)
    agent = MBDPO(replace(TINY, learning_rate=3e-3), SHAPE, (), 1)
    before = {name: parameter.detach().clone() for name, parameter in agent.model.encoder.named_parameters()}
    history = [agent.update(replay, 1) for _ in range(50)]
    for name in ("consistency_loss", "reward_loss"):
        early, late = (np.mean([float(m[name]) for m in part]) for part in (history[:10], history[-10:]))
        assert late < 0.7 * early, name
    assert all(not torch.equal(parameter, before[name]) for name, parameter in agent.model.encoder.named_parameters())


def test_the_model_learns_what_only_the_pictures_show(generator):
    """The reward depends on where the bar ends. Its loss alone is asked for, so that this is a regression, on pictures that are moved at random."""
    replay = filled(generator)
    alone = replace(
        TINY, learning_rate=3e-3, encoder_rate=1.0, batch_size=16, bins=41, latent=32, width=32, encoder_width=32, reward_weight=1.0, consistency_weight=0.0,
        value_weight=0.0, energy_weight=0.0, td_action="prior", horizon=1,
    )  # fmt: skip
    agent = MBDPO(alone, SHAPE, (), 1)
    agent.update(replay, 160)
    batch = replay.sample(200, generator)
    with torch.no_grad():
        guess = agent.model.reward(agent.model.encode(batch.observation), batch.action).numpy()
    assert np.corrcoef(guess, batch.reward.numpy())[0, 1] > 0.8


# ------------------------------------------------------------------------------------------------ the house


def config(out: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        env=f"{BAR}@pixels", out=out, total_steps=80, warmup_steps=40, updates_per_step=0.25, eval_every=10_000, checkpoint_every=60, log_every=50,
        replay_size=100, threads=1, compile="off", quiet=True, seed=3, num_envs=2,
    )  # fmt: skip
    return replace(base, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run of ``config`` in one go."""
    return train(config(tmp_path_factory.mktemp("pixels") / "whole"), MBDPO, TINY)


def test_stopped_and_resumed_runs_equal_one_in_one_go(whole, tmp_path):
    """Stopped in mid-episode, so that the pictures in the stack matter."""
    train(config(tmp_path / "parts", total_steps=54), MBDPO, TINY)
    train(config(tmp_path / "parts"), MBDPO, TINY, resume=True)
    one, two = (load(latest(folder)[0]) for folder in (whole, tmp_path / "parts"))
    assert one.replay["observation"].dtype == torch.uint8
    for part in ("learner", "replay"):
        left, right = vars(one)[part], vars(two)[part]
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    np.testing.assert_array_equal(one.state["observation"], two.state["observation"])
    np.testing.assert_array_equal(one.state["memory"], two.state["memory"])


def test_the_command_line(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "mbdpo", "--env", f"{BAR}@pixels", *FLAGS, "--out", str(folder)]) == 0
    assert "replay: 0.01 GB on cpu when its 100 transitions are there" in capsys.readouterr().out
    assert main(["train", "mbdpo", "--resume", str(folder), "--total-steps", "64", "--quiet"]) == 0
    assert main(["evaluate", str(folder), "--video"]) == 0
    assert "videos/64.mp4 (7 steps)" in capsys.readouterr().out
    assert run.shape_of(run.read(folder)) == SHAPE
    started = ["train", "mbdpo", "--start-from", str(folder), "--env", f"{BAR}@pixels", "--total-steps", "50", "--warmup-steps", "40"]
    assert main([*started, "--replay-size", "100", "--threads", "1", "--quiet", "--out", str(tmp_path / "on")]) == 0


def test_a_loaded_policy_acts_on_what_the_environment_gives(whole):
    policy, env = load_policy(whole), make_env(f"{BAR}@pixels")
    assert policy.shape == SHAPE
    observation, _ = env.reset(seed=0)
    action = policy.act(observation)
    assert env.action_space.contains(action)
    policy.reset()
    np.testing.assert_array_equal(policy.act(np.stack([observation, observation]))[0].shape, action.shape)


def test_a_learner_starts_from_stored_convolutions(whole):
    factory, base, _ = start_from(whole, None)
    learner = factory(base, SHAPE, (), 9, torch.device("cpu"), compile=False)
    stored = load_policy(whole).learner.model.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in learner.model.state_dict().items())
    with pytest.raises(UserError, match=r"read pictures and this environment's observations are vectors"):
        factory(base, EnvShape(2, (-1.0,), (1.0,), 0), (), 9, torch.device("cpu"), compile=False)
    with pytest.raises(UserError, match="--encoder-channels 4, not 8"):
        factory(replace(base, encoder_channels=8), SHAPE, (), 9, torch.device("cpu"), compile=False)


def test_runs_that_are_older_than_pictures_are_read():
    content = {"shape": {"observation": 2, "action_low": [-1.0], "action_high": [1.0], "constraints": 0}}
    assert run.shape_of(content) == EnvShape(2, (-1.0,), (1.0,), 0)


@pytest.mark.parametrize(
    ("id", "words"),
    [
        (f"{BAR}@pixel", f"cannot be observed as 'pixel': write {BAR}@pixels"),
        ("tests/Dit-v0@pixels", "did you mean"),
        ("tests/Hidden-v0@pixels", "tests/Hidden-v0 has no render mode rgb_array.*leave out @pixels"),
        ("tests/Modeless-v0@pixels", "tests/Modeless-v0 has no render mode rgb_array.*leave out @pixels"),
        ("tests/Blank-v0@pixels", r"must give \(height, width, 3\) uint8, and gives NoneType"),
    ],
)
def test_what_cannot_be_seen_is_said_in_a_sentence(id, words):
    with pytest.raises(UserError, match=words) as caught:
        make_env(id).reset()
    assert "\n" not in str(caught.value)


def test_wrong_uses(whole, tmp_path, capsys):
    for args, words in (
        (["train", "sac", "--env", "saddlepoint/Toy-v0@pixels"], "sac has no encoder of pictures"),
        (["train", "algd", "--env", "saddlepoint/Toy-v0@pixels"], "algd has no encoder of pictures"),
        (["train", "mbdpo", "--env", BAR, "--random-shift", "2"], "--random-shift does nothing here"),
        (["train", "mbdpo", "--env", f"{BAR}@pixels", "--random-shift", "17"], "--random-shift 17 must lie between 0 and 16"),
        (["train", "mbdpo", "--env", f"{BAR}@pixels"], "lower --replay-size to at most"),
        (["train", "mbdpo", "--env", BAR, "--start-from", str(whole)], "start from a run that fits it"),
        (["collect", str(whole), "--out", str(tmp_path / "data")], "was trained on pictures"),
    ):
        out = [] if args[0] == "collect" else ["--out", str(tmp_path / "never"), "--threads", "1"]
        if "lower" in words:
            out += ["--replay-size", "900000000"]
        assert main([*args, *out]) == 2, args
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
        assert not (tmp_path / "never").exists()
    with pytest.raises(UserError, match="render mode 'human'"):
        make_env(f"{BAR}@pixels", render_mode="human")
    assert isinstance(make_env(f"{BAR}@pixels", render_mode="rgb_array"), PixelObservation)
