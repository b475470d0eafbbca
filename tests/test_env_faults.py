"""Environments that break their word, in training, workers, evaluation and video; what is learnt is kept."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Text, Tuple

from saddlepoint.baselines.config import SACConfig
from saddlepoint.baselines.sac import SAC
from saddlepoint.cli import main
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs import EnvBatch, check_env
from saddlepoint.envs.guarded import GuardedEnv
from saddlepoint.foreign import foreign
from saddlepoint.policies import load_policy
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.evaluate import evaluate
from saddlepoint.train.foresight import Foresight
from saddlepoint.train.log import read_metrics
from saddlepoint.train.signals import Interrupted, stop_on_signal
from saddlepoint.train.start import train
from saddlepoint.train.video import record_video
from saddlepoint.trained_policy import TrainedPolicy
from saddlepoint.types import EnvSetup, EnvShape, ForeignFault, NonFiniteError, NotMade, UserError
from tests.test_envs_snapshot import through_files
from tests.test_train_loop import CONFIG
from tests.toys import BUDGET, Drift, Tiny, TinyConfig

SOUND = 260
"""steps until the fault; the check makes 220 of them"""


class Odd(gym.Env):
    """Right for ``SOUND`` steps, then one part of every answer is ``value``. 12 steps an episode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, part: str = "none", sound: int = SOUND, render_mode: str | None = None) -> None:
        self.part, self.sound, self.render_mode, self.total, self.t = part, sound, render_mode, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.normal(size=2).astype(np.float32)
        answer = self.x.copy(), {}
        if self.total < self.sound:
            return answer
        return {"reset-alone": self.x.copy(), "reset-info": (self.x.copy(), None)}.get(self.part, answer)

    def step(self, action: np.ndarray) -> Any:
        self.t, self.total = self.t + 1, self.total + 1
        self.x = (0.9 * self.x + 0.1 * float(action[0])).astype(np.float32)
        parts = {
            "observation": self.x.copy(), "reward": -1.0, "terminated": False, "truncated": self.t >= 12,
            "info": {"cost": float(self.x[0] > 0)},
        }  # fmt: skip
        if self.total > self.sound:
            if self.part == "exit":
                sys.exit(0)
            if self.part == "keyboard":
                raise KeyboardInterrupt
            if self.part == "four":
                return self.x, 1.0, False, {"cost": 0.0}
            if self.part == "none":
                return tuple(parts.values())
            if self.part in ODD:
                name, value = ODD[self.part]
                parts[name] = value
        return tuple(parts.values())

    def render(self) -> np.ndarray:
        return np.zeros((16, 16, 3), np.uint8)


class Leaving:
    """Ends the program when it is read as a number."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        sys.exit(0)


ODD: dict[str, tuple[str, Any]] = {
    "observation-of-one": ("observation", np.full(1, 7.0, np.float32)),
    "observation-number": ("observation", 7.0),
    "observation-row": ("observation", np.zeros((1, 2), np.float32)),
    "observation-three": ("observation", np.zeros(3, np.float32)),
    "observation-none": ("observation", None),
    "observation-texts": ("observation", np.array(["0.5", "0.5"])),
    "observation-huge": ("observation", np.full(2, 1e300)),
    "observation-masked": ("observation", np.ma.masked_array(np.zeros(2, np.float32), mask=[True, False])),
    "reward-array": ("reward", np.array([1.0, 2.0])),
    "reward-row": ("reward", np.array([1.0])),
    "reward-text": ("reward", "0.5"),
    "reward-none": ("reward", None),
    "reward-huge": ("reward", 1e300),
    "terminated-text": ("terminated", "False"),
    "terminated-none": ("terminated", None),
    "terminated-array": ("terminated", np.array([True, False])),
    "info-none": ("info", None),
    "cost-none": ("info", {"cost": None}),
    "cost-text": ("info", {"cost": "0.5"}),
    "cost-dict": ("info", {"cost": {"hazards": 1.0}}),
    "cost-two": ("info", {"cost": np.array([1.0, 2.0])}),
    "cost-huge": ("info", {"cost": 1e300}),
    "cost-endless": ("info", {"cost": 10**5000}),
    "cost-negative": ("info", {"cost": -1.0}),
    "cost-missing": ("info", {}),
    "cost-masked": ("info", {"cost": np.ma.masked}),
    "success-exits": ("info", {"cost": 0.0, "success": Leaving()}),
}
FAULTS = [*ODD, "four", "exit", "keyboard", "reset-alone", "reset-info"]

for _part in [*FAULTS, "none"]:
    gym.register(f"tests/Odd-{_part}-v0", Odd, kwargs={"part": _part})
    gym.register(f"tests/OddSoon-{_part}-v0", Odd, kwargs={"part": _part, "sound": 222})


def go(out: Path, env: str, resume: bool = False, **changes: Any) -> Path:
    config = replace(
        CONFIG,
        env=env,
        num_envs=1,
        out=out,
        total_steps=120,
        warmup_steps=10,
        checkpoint_every=1000,
        eval_every=1000,
        **changes,
    )
    return train(config, Tiny, TinyConfig(), (BUDGET,), resume=resume)


@pytest.mark.parametrize("part", FAULTS)
def test_a_broken_answer_in_training_is_one_sentence_and_keeps_that_step(part: str, tmp_path: Path) -> None:
    env = f"tests/Odd-{part}-v0"
    with pytest.raises(
        (ForeignFault, NonFiniteError), match=rf"^{env} .*\(step 4\d; the last good checkpoint is of step 4\d\)"
    ):
        go(tmp_path / "run", env)
    saved = load(latest(tmp_path / "run")[0])
    assert 40 <= saved.step <= 48
    assert saved.state["envs"] is None  # a resumed run does not come to the same fault again
    assert all(bool(tensor.isfinite().all()) for tensor in saved.replay.values())


@pytest.mark.parametrize(
    "part", ["observation-of-one", "reward-text", "info-none", "four", "exit", "keyboard", "reset-alone"]
)
def test_the_same_in_workers_evaluation_and_video(part: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    env = f"tests/OddSoon-{part}-v0"
    batch = EnvBatch(env, 1, seed=0, processes=True)
    batch.reset()
    with pytest.raises(ForeignFault, match=f"^{env} "):
        step_often(batch)
    batch.close()
    assert not capfd.readouterr().err
    policy = Tiny(TinyConfig(), EnvShape(2, (-1.0,), (1.0,), 1), (BUDGET,), 3, torch.device("cpu"))
    with stop_on_signal():  # as in a run: Ctrl-C is a wish there, so that a KeyboardInterrupt is the environment's
        with pytest.raises(ForeignFault, match=f"^{env} "):
            evaluate(policy, env, (BUDGET,), 10, seed=0)
        if not part.startswith("reset"):  # an environment of a video makes no check before
            with pytest.raises(ForeignFault, match=f"^{env} "):
                record_video(policy, EnvSetup(env, {"sound": 3}), tmp_path / "1.mp4", seed=0)
    assert not list(tmp_path.iterdir())


def step_often(batch: EnvBatch) -> None:
    for _ in range(30):
        batch.step(np.zeros((1, 1), np.float32))


class Fragile(Odd):
    """Fails in what surrounds a run."""

    made = 0

    def __init__(self, fails: str = "nothing", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        Fragile.made += 1
        self.fails = fails
        if fails in ("ValueError", "OSError", "KeyError", "AssertionError", "SystemExit") and Fragile.made > 1:
            Fragile.made -= 1
            raise {
                "ValueError": ValueError,
                "OSError": OSError,
                "KeyError": KeyError,
                "AssertionError": AssertionError,
                "SystemExit": SystemExit,
            }[fails]("no licence found")

    def close(self) -> None:
        Fragile.made -= 1
        if self.fails == "close":
            raise ConnectionError("simulator already gone")

    def snapshot(self) -> Any:
        if self.fails == "snapshot":
            raise RuntimeError("snapshot is broken")
        return {"x": self.x, "t": self.t, "total": self.total, "rng": self.np_random.bit_generator.state}

    def restore(self, state: Any) -> bool:
        if self.fails == "restore":
            raise RuntimeError("restore is broken")
        self.x, self.t, self.total = np.asarray(state["x"]), state["t"], state["total"]
        self.np_random.bit_generator.state = state["rng"]
        return True


for _fails in (
    "nothing",
    "close",
    "snapshot",
    "restore",
    "ValueError",
    "OSError",
    "KeyError",
    "AssertionError",
    "SystemExit",
):
    gym.register(f"tests/Fragile-{_fails}-v0", Fragile, kwargs={"fails": _fails, "sound": 10**9})


@pytest.mark.parametrize("fails", ["close", "snapshot", "restore"])
def test_what_fails_beside_the_steps_costs_nothing(fails: str, tmp_path: Path) -> None:
    Fragile.made = 0
    env = f"tests/Fragile-{fails}-v0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = go(tmp_path / "run", env)
        assert latest(run)[0].name == "120"
        assert go(run, env, resume=True) == run
        resumed = replace(
            CONFIG,
            env=env,
            num_envs=1,
            out=run,
            total_steps=150,
            warmup_steps=10,
            checkpoint_every=1000,
            eval_every=1000,
        )
        train(resumed, Tiny, TinyConfig(), (BUDGET,), resume=True)
    assert latest(run)[0].name == "150"


@pytest.mark.parametrize("fails", ["ValueError", "OSError", "KeyError", "AssertionError", "SystemExit"])
def test_a_simulator_of_which_only_one_can_be_open(fails: str, tmp_path: Path) -> None:
    Fragile.made = 0
    env = f"tests/Fragile-{fails}-v0"
    with pytest.raises(UserError, match=rf"^{env} could not be made: {fails}: .*no licence found.* --eval-envs 0"):
        go(tmp_path / "run", env)
    assert not (tmp_path / "run").exists()
    assert Fragile.made == 0
    with pytest.raises(NotMade, match="no licence found"):
        EnvBatch(env, 3, seed=0)
    assert Fragile.made == 0  # those that were made are closed
    run = go(tmp_path / "run", env, eval_envs=0)
    assert Fragile.made == 0
    policy = Tiny(TinyConfig(), EnvShape(2, (-1.0,), (1.0,), 1), (BUDGET,), 3, torch.device("cpu"))
    with pytest.warns(UserWarning, match="cannot be made 10 times: its episodes are played one after the other"):
        one = evaluate(policy, env, (BUDGET,), 10, seed=0)
    assert one is not None
    assert one["eval/episodes"] == 10
    assert latest(run)[0].name == "120"


def test_a_maker_that_gives_the_same_object_again(tmp_path: Path) -> None:
    """Its evaluation would reset the episode that is trained in."""
    only = Odd()
    with pytest.raises(UserError, match=r"gave an environment that is open already; make another one at each call, .* --eval-envs 0"):
        go(tmp_path / "run", lambda: only)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    with pytest.raises(NotMade, match="is open already"):
        EnvBatch(lambda: only, 2, seed=0)
    run = go(tmp_path / "run", lambda: only, eval_envs=0)  # type: ignore[arg-type]
    assert latest(run)[0].name == "120"


def test_an_evaluation_in_the_training_environments_disturbs_nothing(tmp_path: Path) -> None:
    env = "tests/Fragile-nothing-v0"
    apart, within = go(tmp_path / "a", env), go(tmp_path / "b", env, eval_envs=0)
    a, b = load(latest(apart)[0]), load(latest(within)[0])
    for name, tensor in a.learner.items():
        assert torch.equal(tensor, b.learner[name]), name
    np.testing.assert_equal(a.state["observation"], b.state["observation"])


class Endless(Odd):
    """Neither terminates nor has a time limit."""

    def step(self, action: np.ndarray) -> Any:
        seen, reward, _, _, info = super().step(action)
        return seen, reward, False, False, info


gym.register("tests/Endless-v0", Endless)


def test_episodes_without_a_time_limit_are_cut_at_the_budget_s_horizon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = Tiny(TinyConfig(), EnvShape(2, (-1.0,), (1.0,), 1), (BUDGET,), 3, torch.device("cpu"))
    budget = CostBudget(2.0, horizon=17)
    got = evaluate(policy, "tests/Endless-v0", (budget,), 10, seed=0)
    assert got is not None
    assert got["eval/length_mean"] == 17
    assert record_video(policy, "tests/Endless-v0", tmp_path / "1.mp4", 0, budgets=(budget,)) == 17
    go(tmp_path / "run", "tests/Endless-v0")
    said = capsys.readouterr().out
    assert "tests/Endless-v0 has no time limit: what has not ended after 12 steps is cut there" in said
    assert "note: this budget" not in said
    go(tmp_path / "other", "tests/Endless-v0", env_kwargs={"max_episode_steps": 20})
    said = capsys.readouterr().out
    assert "note: this budget counts on episodes of 12 steps, and those of tests/Endless-v0 have 20 where nothing ends them before" in said


def bounded(low: Any, high: Any, dtype: Any) -> Odd:
    class Strict(Odd):
        action_space = Box(low, high, (1,), dtype)

        def step(self, action: np.ndarray) -> Any:
            assert self.action_space.contains(action), (
                f"{action.dtype} {float(action[0]):.17g} not in {self.action_space}"
            )
            return super().step(action)

    return Strict(sound=10**9)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-0.1, 0.1, np.float64), (-0.1, 0.1, np.float16), (-0.3, 0.7, np.float32), (0.1, 1 / 3, np.float64)],
)
def test_actions_have_the_space_s_own_type_and_stay_inside(low: float, high: float, dtype: Any) -> None:
    batch = EnvBatch(lambda: bounded(low, high, dtype), 1, seed=0)
    batch.reset()
    for value in (-9.0, low, 0.0, high, 9.0):
        batch.step(np.full((1, 1), value, np.float32))
    shape = batch.shape
    space = bounded(low, high, dtype).action_space
    bold: Any = _Bold(high)
    policy = TrainedPolicy(bold, "x", shape, (), 0, 0, torch.device("cpu"), None, EnvSetup("x"))
    action = policy.act(np.zeros(2, np.float32))
    assert space.contains(action)
    assert action.dtype == dtype


class _Bold:
    def __init__(self, value: float) -> None:
        self.value = value

    def act(self, observation: torch.Tensor, mode: str, generator: torch.Generator) -> torch.Tensor:
        return torch.full((len(observation), 1), self.value * 1.001)


@pytest.mark.parametrize("bound", [np.inf, float(np.finfo(np.float32).max), 1e20, float(np.finfo(np.float64).max)])
def test_bounds_that_are_none_are_refused(bound: float) -> None:
    kind = np.float64 if bound > 1e39 and np.isfinite(bound) else np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=r"unbounded actions|which is no bound"):
            check_env(lambda: bounded(-bound, bound, kind))


class Late(Odd):
    """Draws from elsewhere in the second episode only."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        seen, info = super().reset(seed=seed)
        if seed is None:
            seen = np.random.default_rng().normal(size=2).astype(np.float32)  # as np.random or os.urandom do
        return seen, info


class LateStep(Odd):
    def step(self, action: np.ndarray) -> Any:
        if self.t > 10:
            self.x = np.random.default_rng().normal(size=2).astype(np.float32)
        return super().step(action)


def endless_late() -> gym.Env[Any, Any]:
    class EndlessLate(Late):
        def step(self, action: np.ndarray) -> Any:
            seen, reward, _, _, info = super().step(action)
            return seen, reward, False, False, info

    return EndlessLate(sound=10**9)


def test_starts_and_steps_that_are_drawn_from_elsewhere_are_noticed() -> None:
    for make in (lambda: Late(sound=10**9), lambda: LateStep(sound=10**9), endless_late):
        with pytest.warns(UserWarning, match="does not repeat its episodes"):
            check_env(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(lambda: Odd(sound=10**9))


def test_learnt_statistics_of_a_wrapper_are_told_of_truthfully() -> None:
    for wrapper in (gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward):
        with pytest.warns(UserWarning, match=f"wrapped in {wrapper.__name__}, which learns statistics") as caught:
            check_env(lambda: wrapper(Odd(sound=10**9)))  # noqa: B023
        assert len(caught) == 1


@pytest.mark.parametrize("wrapper", [gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward])
@pytest.mark.filterwarnings("ignore")
def test_learnt_statistics_of_a_wrapper_are_restored_to_the_bit(wrapper: Any) -> None:
    def make() -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(wrapper(Drift()), 9)

    first, second = EnvBatch(make, 2, seed=0), EnvBatch(make, 2, seed=5)
    actions = np.random.default_rng(0).uniform(-1, 0.5, (40, 2, 1)).astype(np.float32)
    first.reset()
    for action in actions[:25]:
        first.step(action)
    assert second.restore(through_files(first.snapshot()))
    for action in actions[25:]:
        for a, b in zip(first.step(action), second.step(action)):
            np.testing.assert_array_equal(a, b)


def test_ctrl_c_stays_ctrl_c_and_an_exit_is_a_fault() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
    try:
        with pytest.raises(KeyboardInterrupt):  # Python's own handler stands: it may have been Ctrl-C
            foreign("x", interrupt)
        signal.signal(signal.SIGINT, lambda number, frame: None)
        with pytest.raises(ForeignFault, match="x raised KeyboardInterrupt"):
            foreign("x", interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ForeignFault, match="x raised SystemExit: 3"):
        foreign("x", sys.exit, 3)
    with pytest.raises(ForeignFault) as caught:
        foreign("x", lambda: (_ for _ in ()).throw(ValueError("one\ntwo\x1b[31m" + "y" * 5000)))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_success_that_cannot_be_read_is_told_once_and_left_out() -> None:
    class Praised(Drift):
        def step(self, action: np.ndarray) -> Any:
            *rest, info = super().step(action)
            return *rest, info | {"success": "yes"}

    env = GuardedEnv(Praised(), "praised")
    env.reset(seed=0)
    with pytest.warns(UserWarning, match=r'praised gives info\["success"\] of type str') as told:
        answers = [env.step(np.zeros(1, np.float32)) for _ in range(3)]
    assert len(told) == 1
    assert all(np.isnan(answer.success) for answer in answers)


class Panic(BaseException):
    """As a simulator written in Rust raises."""


@pytest.mark.parametrize("kind", [Panic, asyncio.CancelledError, GeneratorExit, StopIteration, MemoryError, BrokenPipeError])
def test_whatever_is_raised_is_a_fault_of_the_environment(kind: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        raise kind("gone")

    with pytest.raises(ForeignFault, match=f"x raised {kind.__name__}: gone"):
        foreign("x", fail)

    class Failing(Drift):
        def step(self, action: np.ndarray) -> Any:
            if self.steps >= SOUND:
                fail()
            return super().step(action)

    with pytest.raises(ForeignFault, match=rf"raised {kind.__name__}: gone .* the last good checkpoint is of step 40\)"):
        go(tmp_path / "run", lambda: Failing())  # type: ignore[arg-type]
    assert latest(tmp_path / "run")[0].name == "40"


class Meddling(Drift):
    """Changes what belongs to the whole process: when it is made, at a reset, or at a step that the check does not come to."""

    def __init__(self, what: str = "folder", when: str = "made") -> None:
        super().__init__()
        self.what, self.when = what, when
        self.meddle("made")

    def reset(self, **arguments: Any) -> Any:
        self.meddle("reset")
        return super().reset(**arguments)

    def step(self, action: np.ndarray) -> Any:
        self.meddle("step" if self.steps > 240 else "before")
        return super().step(action)

    def meddle(self, when: str) -> None:
        if when == self.when:
            MEDDLES[self.what]()


def at_random() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002


MEDDLES: dict[str, Any] = {
    "folder": lambda: os.chdir("/"),
    "gradients": lambda: torch.set_grad_enabled(False),
    "numbers": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("meta"),
    "seeds": at_random,
    "errors": lambda: np.seterr(all="raise"),
    "bits": lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
}
for _what in MEDDLES:
    for _when in ("made", "reset", "step"):
        gym.register(f"tests/Meddling-{_what}-{_when}-v0", Meddling, max_episode_steps=12, kwargs={"what": _what, "when": _when})
gym.register("tests/Quiet-v0", Meddling, max_episode_steps=12, kwargs={"what": "", "when": "never"})


@pytest.fixture
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    errors, dtype = np.geterr(), torch.get_default_dtype()
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    torch.set_autocast_enabled("cpu", False)
    np.seterr(**errors)


def short_run(env: str, out: Path) -> Path:
    quick = {"total_steps": 60, "warmup_steps": 30, "num_envs": 1, "checkpoint_every": 1000, "eval_every": 1000}
    learner = SACConfig(critic_hidden=(8,), policy_hidden=(8,), batch_size=8)
    return train(replace(CONFIG, env=env, out=out, **quick), SAC, learner, (BUDGET,))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run beside an environment that leaves the process alone."""
    return short_run("tests/Quiet-v0", tmp_path_factory.mktemp("quiet") / "run")


@pytest.mark.parametrize("when", ["made", "reset", "step"])
@pytest.mark.parametrize("what", MEDDLES)
@pytest.mark.usefixtures("as_before")
def test_what_an_environment_does_to_the_process_changes_no_run(what: str, when: str, quiet: Path, tmp_path: Path) -> None:
    """The run lies in the folder that was named, and learns to the bit what it learns beside a quiet environment."""
    assert short_run(f"tests/Meddling-{what}-{when}-v0", Path(when)) == tmp_path / when
    wanted, meddled = (load(latest(run)[0]) for run in (quiet, tmp_path / when))
    for part in ("learner", "replay"):
        for name, tensor in vars(wanted)[part].items():
            assert torch.equal(vars(meddled)[part][name], tensor), name
    policy = load_policy(tmp_path / when)
    assert np.isfinite(policy.act(np.zeros(2, np.float32))).all()


@pytest.mark.usefixtures("as_before")
def test_what_critics_predict_is_asked_with_the_usual_settings() -> None:
    class Constant:
        config = SACConfig()

        def predict(self, observation: torch.Tensor, action: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"reward": torch.ones(len(observation))}

    MEDDLES["device"]()
    MEDDLES["numbers"]()
    found = Foresight(Constant(), (), torch.device("cpu")).expect(np.zeros((2, 3)), np.zeros((2, 1)))
    np.testing.assert_array_equal(found, np.ones((2, 1), np.float32))
    assert found.dtype == np.float32


@pytest.mark.usefixtures("as_before")
def test_the_commands_keep_to_their_folders_where_an_environment_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--total-steps 40 --warmup-steps 30 --batch-size 8 --critic-hidden 8 --policy-hidden 8 --cost-limit 2 --quiet --compile off".split()
    assert main(["train", "sac", "--env", "tests/Meddling-folder-made-v0", *small, "--out", "run"]) == 0
    assert "finished: run; " in capsys.readouterr().out
    os.chdir(tmp_path)
    assert main(["train", "--resume", "run", "--total-steps", "50"]) == 0
    os.chdir(tmp_path)
    assert main(["evaluate", "run"]) == 0
    assert {"config.json", "evaluation-50.json"} <= set(os.listdir(tmp_path / "run"))
    os.chdir(tmp_path)
    assert main(["collect", "run", "--episodes", "2", "--out", "data"]) == 0
    assert (tmp_path / "data" / "dataset.json").is_file()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system copies no processes")
def test_a_copy_of_the_process_writes_nothing(tmp_path: Path) -> None:
    copies = []

    class Forking(Drift):
        def step(self, action: np.ndarray) -> Any:
            if self.steps == 250:
                copies.append(os.fork())
            return super().step(action)

    go(tmp_path / "run", lambda: Forking())  # type: ignore[arg-type]
    assert os.waitstatus_to_exitcode(os.waitpid(copies[0], 0)[1]) == 2
    lines = read_metrics(tmp_path / "run")
    assert len({(line["step"], line["kind"]) for line in lines}) == len(lines) > 1


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, lambda number, frame: None])
def test_signals_are_taken_back_from_an_environment(handler: Any, tmp_path: Path) -> None:
    class Selfish(Drift):
        def reset(self, **arguments: Any) -> Any:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, handler)
            return super().reset(**arguments)

        def step(self, action: np.ndarray) -> Any:
            if self.steps == 250:
                threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
                time.sleep(0.1)
            return super().step(action)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped at step"):
        go(tmp_path / "run", lambda: Selfish())  # type: ignore[arg-type]
    assert int(latest(tmp_path / "run")[0].name) >= 30
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("space", "value", "words"),
    [
        (Dict({}), {}, "observations without a number"), (Tuple(()), (), "observations without a number"),
        (Dict({"a": Box(0, 1, (0,))}), {"a": np.zeros(0, np.float32)}, "observations without a number"),
        (Dict({"a": Tuple(())}), {"a": ()}, "observations without a number"), (None, None, "NoneType observations"), ([1], None, "list observations"),
    ],
    ids=str,
)  # fmt: skip
def test_spaces_without_a_number_are_refused(space: Any, value: Any, words: str) -> None:
    class Empty(Drift):
        observation_space = space

        def _observation(self) -> Any:
            return value

    with pytest.raises(UserError, match=words):
        check_env(EnvSetup(lambda: Empty(), flatten=True))


def test_texts_of_an_observation_are_flattened() -> None:
    class Saying(Drift):
        observation_space = Dict({"said": Text(4, charset="abc"), "x": Box(-9, 9, (1,), np.float32)})  # type: ignore[assignment]

        def _observation(self) -> Any:
            return {"said": "cab", "x": np.zeros(1, np.float32)}

    batch = EnvBatch(EnvSetup(lambda: Saying(), flatten=True), 1, seed=0)
    np.testing.assert_array_equal(batch.reset()[0], gym.spaces.flatten(Saying.observation_space, Saying()._observation()))


@pytest.mark.parametrize("name", ["action_space", "observation_space"])
def test_a_space_that_raises_is_a_fault(name: str) -> None:
    def broken(self: Any) -> None:
        raise RuntimeError("not connected")

    kind = type("Unready", (Drift,), {name: property(broken)})
    with pytest.raises(UserError, match="raised RuntimeError: not connected"):
        check_env(EnvSetup(lambda: kind()))


def test_a_range_that_float32_cannot_divide_is_refused() -> None:
    class Narrow(Drift):
        action_space = Box(0, np.float32(1e-45), (1,), np.float32)

    with pytest.raises(UserError, match="whose low is not below its high"):
        check_env(lambda: Narrow())
