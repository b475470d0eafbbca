"""Where environments come from: arguments, classes, functions, modules, several parts; and machines without GL."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.cli import main
from saddlepoint.commands import BudgetFlags, Launch, train_flags
from saddlepoint.envs import EnvBatch, check_env, env_spec, make_env
from saddlepoint.envs.listing import list_in_words
from saddlepoint.flags import Parsed, parse, parse_with_file
from saddlepoint.train import run as run_folder
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.start import train
from saddlepoint.types import EnvSetup, ForeignFault, UserError
from tests.test_train_loop import CONFIG, assert_same_runs
from tests.toys import BUDGET, Drift, Tiny, TinyConfig

TOY = "saddlepoint/Toy-v0"


def parsed(*args: str) -> Parsed:
    flags = train_flags(ALGDConfig)
    return parse(flags, flags(Launch(), TrainConfig(env=""), ALGDConfig(), BudgetFlags()), args, "prog")


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (
            ["--env-kwargs", "wind=0.5", "name=reach", "sizes=[1,2]", "on=true"],
            {"wind": 0.5, "name": "reach", "sizes": [1, 2], "on": True},
        ),
        (["--env-kwargs", '{"wind": {"x": 1}}'], {"wind": {"x": 1}}),
        (["--env-kwargs=a=b=c"], {"a": "b=c"}),
        ([], {}),
    ],
)
def test_arguments_of_the_environment_on_the_command_line(args: list[str], wanted: dict[str, Any]) -> None:
    got = parsed("--env", TOY, *args)
    assert got.values.run.env_kwargs == wanted
    assert ("env_kwargs" in got.given) == bool(args)


def test_wrong_arguments_are_one_sentence(tmp_path: Path) -> None:
    for args, words in (
        (["wind"], "wind is not NAME=VALUE"),
        (['{"wind": '], "is not JSON"),
        (["=3"], "is not NAME=VALUE"),
    ):
        with pytest.raises(UserError, match=words):
            parsed("--env-kwargs", *args)
    for kwargs, words in (
        ({"x": object()}, "env_kwargs must hold numbers"), ({"x": float("nan")}, "env_kwargs must hold numbers"), ([1], "one object"),
        ({"render_mode": "human"}, "render_mode"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            TrainConfig(env=TOY, env_kwargs=kwargs).validate()  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nonsense"):
        train(replace(CONFIG, env=TOY, env_kwargs={"nonsense": 1}, out=tmp_path / "run"), Tiny, TinyConfig())
    with pytest.raises(UserError, match="at least one step, not 'many'"):
        env_spec(EnvSetup(TOY, {"max_episode_steps": "many"}))
    assert not list(tmp_path.iterdir())


def test_a_file_of_settings_has_them_as_an_object(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"env": TOY, "env_kwargs": {"jitter": [0.0, 0.1]}}))
    flags = train_flags(ALGDConfig)
    default = flags(Launch(), TrainConfig(env=""), ALGDConfig(), BudgetFlags())
    assert parse_with_file(flags, default, ["--config", str(path)], "prog").values.run.env_kwargs == {
        "jitter": [0.0, 0.1]
    }


def test_a_time_limit_among_them_changes_horizon_and_budget() -> None:
    spec = env_spec(EnvSetup(TOY, {"max_episode_steps": 30}, action_repeat=4))
    assert (spec.horizon, spec.budgets[0].horizon, spec.budgets[0].limit) == (8, 8, 1.0)


class Windy(Drift):
    """A class to be given itself."""

    def __init__(self, wind: float = 0.0) -> None:
        super().__init__()
        self.wind = wind

    def step(self, action: np.ndarray) -> Any:
        self.x += self.wind
        return super().step(action)


def limited(wind: float = 0.0) -> gym.Env[Any, Any]:
    return gym.wrappers.TimeLimit(Windy(wind), 9)


@pytest.mark.parametrize("maker", [limited, "tests.test_env_sources:limited"])
def test_what_makes_an_environment_trains_and_resumes(maker: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, env=maker, env_kwargs={"wind": 0.2})
    whole = train(replace(config, out=tmp_path / "whole"), Tiny, TinyConfig(), (BUDGET,))
    part = train(replace(config, out=tmp_path / "part", total_steps=200), Tiny, TinyConfig(), (BUDGET,))
    assert run_folder.setup_of(run_folder.read(part)) == EnvSetup(
        "tests.test_env_sources:limited", {"wind": 0.2}, action_repeat=1
    )
    train(replace(config, out=part, env="tests.test_env_sources:limited"), Tiny, TinyConfig(), (BUDGET,), resume=True)
    assert_same_runs(whole, part)


def test_a_maker_that_no_other_program_finds_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = functools.partial(limited, wind=0.1)
    run = train(
        replace(CONFIG, env=make, out=tmp_path / "run", total_steps=60, quiet=True), Tiny, TinyConfig(), (BUDGET,)
    )
    assert "was given in Python: to resume and evaluate this run, give the same there again" in capsys.readouterr().out
    with pytest.raises(UserError, match="was made in Python, by what no other program can import"):
        make_env(run_folder.read(run)["train"]["env"])
    train(replace(CONFIG, env=make, out=run, total_steps=90, quiet=True), Tiny, TinyConfig(), (BUDGET,), resume=True)
    assert EnvBatch(make, 1, seed=0).spec.horizon == 9
    with pytest.raises(UserError, match="cannot be a Windy object: give its id, or the class or function"):
        TrainConfig(env=Windy()).validate()  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"could not be made: .*int"):
        EnvBatch(lambda: 3, 1, seed=0)


def test_unknown_ids_say_first_how_to_register_and_last_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError,
        match=r"'mine/Hopper-v0': if it is your own, name the module .* --env my_module:mine/Hopper-v0 .*; did you mean .*\?$",
    ):
        env_spec("mine/Hopper-v0")
    (tmp_path / "registers_mine.py").write_text(
        "import gymnasium\ngymnasium.register('mine/Known-v0', 'tests.toys:Drift', max_episode_steps=12)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SADDLEPOINT_ENV_MODULES", "registers_mine")
    assert env_spec("mine/Known-v0").horizon == 12
    (tmp_path / "raises_mine.py").write_text("raise KeyError('no such thing')\n")
    with pytest.raises(UserError, match=r"'raises_mine' .* cannot be imported \(KeyError: .*raises_mine.py, line 1"):
        env_spec("raises_mine:X-v0")


OWN = """
import gymnasium, numpy
class Arm(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (2,), numpy.float64)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), numpy.float64)
    def __init__(self, gain=1.0):
        self.gain = gain
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.normal(size=2)
        return self.x, {}
    def step(self, action):
        assert self.action_space.contains(action)
        self.t, self.x = self.t + 1, self.x * 0.9 + self.gain * action[0]
        return self.x, 1.0, False, False, {"cost": 0.5}
gymnasium.register("mine/Arm-v0", Arm, max_episode_steps=8)
"""


@pytest.mark.parametrize(("env", "more"), [("my_arm:mine/Arm-v0", []), ("my_arm:Arm", ["--cost-horizon", "8"])])
def test_a_module_in_the_working_directory_trains_and_is_evaluated(
    env: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_arm.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "my_arm", raising=False)
    small = ["--policy-hidden", "8", "--critic-hidden", "8", "--batch-size", "4", "--compile", "off", "--threads", "1"]
    steps = ["--total-steps", "60", "--warmup-steps", "50", "--action-repeat", "2", "--env-kwargs", "gain=0.5"]
    assert (
        main(["train", "sac-lag", "--env", env, *steps, *small, *more, "--cost-limit", "3", "--out", "r", "--quiet"])
        == 0
    )
    assert main(["evaluate", "r", "--episodes", "2"]) == 0
    out = capsys.readouterr().out
    assert f"2 episodes of {env} (gain=0.5, each action held for 2 simulator steps)" in out
    assert "of 3" in out


PARTS = Dict(
    {
        "position": Box(-np.inf, np.inf, (2,), np.float64),
        "phase": Discrete(3),
        "touch": Tuple((MultiBinary(2), Box(0, 255, (2, 1), np.uint8))),
    }
)


class Parted(Drift):
    observation_space = PARTS  # type: ignore[assignment]

    def __init__(self, odd: Any = None) -> None:
        super().__init__()
        self.odd = odd

    def _observation(self) -> Any:
        seen = {
            "position": np.array([self.x, 0.5]), "phase": np.int64(abs(int(3 * self.x)) % 3),
            "touch": (np.array([1, 0], np.int8), np.full((2, 1), 9, np.uint8)),
        }  # fmt: skip
        if self.odd is not None and self.steps > 2:
            seen |= self.odd
        return seen


gym.register("tests/Parted-v0", Parted, max_episode_steps=12)


def test_several_parts_are_one_vector_as_gymnasium_s() -> None:
    with pytest.raises(UserError, match="Dict observations, but a Box is needed: give --flatten"):
        check_env("tests/Parted-v0")
    wanted = gym.wrappers.FlattenObservation(gym.make("tests/Parted-v0"))
    batch = EnvBatch(EnvSetup("tests/Parted-v0", flatten=True), 1, seed=3)
    single = make_env("tests/Parted-v0", flatten=True)
    seed = int(np.random.SeedSequence(3).generate_state(1)[0])
    first, _ = wanted.reset(seed=seed)
    np.testing.assert_array_equal(batch.reset()[0], np.float32(first))
    np.testing.assert_array_equal(single.reset(seed=seed)[0], np.float32(first))
    for _ in range(5):
        action = np.full((1, 1), 0.3, np.float32)
        seen, *_ = wanted.step(action[0])
        np.testing.assert_array_equal(batch.step(action).next_observation[0], np.float32(seen))
        assert single.step(action[0])[0].dtype == np.float32
    assert batch.shape.observation == 2 + 3 + 2 + 2


@pytest.mark.parametrize(
    "odd",
    [
        {"position": np.zeros(3)}, {"position": np.array(["1", "2"])}, {"position": 3.0}, {"position": np.full(2, np.nan)}, {"phase": 3},
        {"phase": "1"}, {"phase": None}, {"touch": (np.array([1, 0], np.int8),)}, {"touch": 3}, {"more": 1},
        {"touch": (np.array([1, 2], np.int8), np.full((2, 1), 9, np.uint8))},
    ],
)  # fmt: skip
def test_each_part_is_checked(odd: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"returns .*observation") as caught:
        EnvBatch(EnvSetup(lambda: Parted(odd), flatten=True), 1, seed=0)
    assert isinstance(caught.value, ForeignFault) or "not finite" in str(caught.value)


def test_the_listing_is_short_and_grouped_and_words_choose() -> None:
    short = list_in_words([])
    assert len(short) < 60
    assert any(line.startswith("Toy: ") for line in short)
    assert any("saddlepoint/HopperVelocity-v0" in line for line in short)
    found = [line for line in list_in_words(["hopper", "VELOCITY"]) if not line.startswith(" ")]
    assert found == ["saddlepoint/HopperVelocity-v0"]
    with pytest.raises(UserError, match="no task has 'nosuch'"):
        list_in_words(["nosuch"])


def program(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, capture_output=True, text=True, check=False
    )


DRAWING = """
from pathlib import Path
import torch
from saddlepoint.envs import EnvBatch
from saddlepoint.train.video import record_video
from saddlepoint.types import UserError
envs = EnvBatch('saddlepoint/HopperVelocity-v0', 1, seed=0)
envs.reset()
print('stepped')
class Still:
    def act(self, observation, mode, generator):
        return torch.zeros(len(observation), 3)
try:
    if 'HOW' == 'pixels':
        EnvBatch('saddlepoint/HopperVelocity-v0@pixels', 1, seed=0)
    else:
        record_video(Still(), 'saddlepoint/HopperVelocity-v0', Path('FOLDER/x.mp4'), 0)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("back_end", "how"),
    [("nonsense", "film"), ("nonsense", "pixels"), ("osmesa", "film"), ("glfw", "film"), ("glfw", "pixels")],
)
def test_a_back_end_that_does_not_work_stops_only_what_is_drawn(back_end: str, how: str, tmp_path: Path) -> None:
    done = program(DRAWING.replace("FOLDER", str(tmp_path)).replace("HOW", how), MUJOCO_GL=back_end)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == "stepped"
    assert len(lines) == 2 if back_end == "nonsense" else len(lines) in (1, 2)  # a machine may have the others
    assert all("cannot be drawn" in line and line.startswith("saddlepoint/HopperVelocity-v0") for line in lines[1:]), (
        lines
    )
    assert "Traceback" not in done.stderr
