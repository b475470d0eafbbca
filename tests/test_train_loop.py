"""The loop's promises: exact resume, clean stops, nothing poisoned, evaluation that disturbs nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import saddlepoint
from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import ALGDConfig
from saddlepoint.baselines.config import SACConfig
from saddlepoint.baselines.sac import SAC
from saddlepoint.files import SEAL, sealed, write_json
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import MBDPOConfig
from saddlepoint.train import loop
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.signals import Interrupted
from saddlepoint.train.start import COMPILE_PAYS_AFTER, CUDA_COMPILE_PAYS_AFTER, compiles, train
from saddlepoint.types import ForeignFault, NonFiniteError, UserError
from tests.toys import BUDGET, ENV, Broken, Drift, Tiny, TinyConfig

PLAIN = TinyConfig()
ROOT = Path(__file__).parents[1]
CONFIG = TrainConfig(
    env=ENV, total_steps=420, warmup_steps=40, updates_per_step=0.7, num_envs=3, replay_size=300, eval_every=130,
    checkpoint_every=100, log_every=60, quiet=True, seed=5,
)  # fmt: skip


def go(
    out: Path, resume: bool = False, learner: Any = Tiny, learner_config: TinyConfig = PLAIN, **changes: Any
) -> Path:
    return train(replace(CONFIG, out=out, **changes), learner, learner_config, (BUDGET,), resume=resume)


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("wall_s") >= 0 for line in lines)
    return lines


def assert_same_runs(a: Path, b: Path) -> None:
    first, second = (load(latest(run)[0]) for run in (a, b))
    assert first.step == second.step
    for part in ("learner", "replay"):
        left, right = vars(first)[part], vars(second)[part]
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), name
    for name, value in first.state.items():
        if name not in ("wall_s", "best"):  # best/ counts the evaluation at an earlier end
            np.testing.assert_equal(value, second.state[name], name)
    assert metrics(a) == metrics(b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run."""
    return go(tmp_path_factory.mktemp("whole") / "run")


def test_the_run_folder_has_what_it_should(whole: Path) -> None:
    lines = metrics(whole)
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [132, 261, 390, 420]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [60, 120, 180, 240, 300, 360, 420]
    assert lines[-1].keys() >= {
        "eval/return_mean", "eval/return_std", "eval/return_min", "eval/return_max", "eval/cost_mean",
        "eval/violation_rate", "eval/discounted_cost_mean", "eval/length_mean", "eval/stochastic/return_mean",
        "eval/stochastic/violation_rate",
    }  # fmt: skip
    assert lines[-2].keys() >= {"train/return_mean", "train/cost_mean", "train/multiplier", "train/updates"}
    assert lines[-2]["train/updates"] == int(0.7 * (420 - 40))
    assert list((whole / "tb").iterdir())
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"402", "420"}


def test_auto_compiles_only_where_it_was_measured_to_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saddlepoint.train.start.shutil.which", lambda name: name)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    cpu, cuda, auto = torch.device("cpu"), torch.device("cuda"), replace(CONFIG, compile="auto", updates_per_step=1.0)
    long = replace(auto, total_steps=CONFIG.warmup_steps + COMPILE_PAYS_AFTER)
    short, longer = (replace(long, total_steps=steps) for steps in (long.total_steps - 1, CONFIG.warmup_steps + CUDA_COMPILE_PAYS_AFTER))
    for config, learner, learner_config, device, wanted in (
        (long, ALGD, ALGDConfig(), cpu, True), (short, ALGD, ALGDConfig(), cpu, False), (long, ALGD, ALGDConfig(precision="bfloat16"), cpu, True),
        (long, ALGD, ALGDConfig(critic_hidden=(100, 100)), cpu, False), (long, SAC, SACConfig(), cpu, True), (short, SAC, SACConfig(), cpu, False),
        (long, MBDPO, MBDPOConfig(), cpu, True), (long, MBDPO, MBDPOConfig(width=100), cpu, False),
        (longer, ALGD, ALGDConfig(), cuda, True), (longer, SAC, SACConfig(), cuda, True), (long, SAC, SACConfig(), cuda, False),
        (replace(short, compile="on"), SAC, SACConfig(), cpu, True), (replace(longer, compile="off"), ALGD, ALGDConfig(), cpu, False),
    ):  # fmt: skip
        chosen: Any = learner
        assert compiles(config, chosen, learner_config, device) is wanted, (config.total_steps, learner.system, device)
    factory: Any = ALGD
    for capability, wanted in (("AVX2", True), ("DEFAULT", False)):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda capability=capability: capability)
        assert compiles(long, factory, ALGDConfig(), cpu) is wanted


@pytest.mark.parametrize("stop", [39, 200, 390])
def test_n_then_m_is_n_plus_m(whole: Path, tmp_path: Path, stop: int) -> None:
    run = go(tmp_path / "run", total_steps=max(stop, 41))
    assert_same_runs(whole, go(run, resume=True))


class Suicidal(Tiny):
    """Dies as by kill -9 in the middle of an update."""

    def update(self, replay: Any, updates: int) -> Any:
        if self.updates >= 190:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(replay, updates)


def test_kill_9_and_resume_is_the_uninterrupted_run(whole: Path, tmp_path: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=go, args=(tmp_path / "run",), kwargs={"learner": Suicidal})
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    run = tmp_path / "run"
    assert max(line["step"] for line in metrics(run)) == 300  # written after the checkpoint of step 300 at the earliest
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 309, "wall_s": 1.0, "kind": "tr')  # and a line cut by the kill
    assert_same_runs(whole, go(run, resume=True))


def test_damaged_newest_checkpoint_still_ends_in_the_same_run(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = go(tmp_path / "run", total_steps=250)
    newest = run / "checkpoints" / "252"
    (newest / "learner.safetensors").write_bytes((newest / "learner.safetensors").read_bytes()[:-1])
    go(run, resume=True)
    assert "going on from the checkpoint of step 201, because that of step 252 is not whole" in capsys.readouterr().out
    assert_same_runs(whole, run)


def test_evaluation_disturbs_nothing(whole: Path, tmp_path: Path) -> None:
    other = load(latest(go(tmp_path / "run", eval_every=37, eval_episodes=13))[0])
    for name, tensor in load(latest(whole)[0]).learner.items():
        assert torch.equal(tensor, other.learner[name]), name


class Signalled(Tiny):
    """Sends its own process a signal in the middle of an update."""

    number = signal.SIGINT

    def update(self, replay: Any, updates: int) -> Any:
        if self.updates == 100:
            os.kill(os.getpid(), self.number)
        return super().update(replay, updates)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_in_a_checkpoint_and_resumes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(Signalled, "number", number)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"stopped at step \d+; go on with --resume"):
        go(tmp_path / "run", learner=Signalled)
    assert signal.getsignal(signal.SIGINT) is before
    assert 183 <= int(latest(tmp_path / "run")[0].name) <= 186
    assert_same_runs(whole, go(tmp_path / "run", resume=True))


def test_a_signal_during_evaluation_makes_up_for_it(whole: Path, tmp_path: Path) -> None:
    class Impatient(Tiny):
        def act(self, observation: Any, mode: Any, generator: Any) -> Any:
            if mode == "stochastic" and self.updates > 150:
                os.kill(os.getpid(), signal.SIGINT)
            return super().act(observation, mode, generator)

    with pytest.raises(Interrupted, match="step 261"):
        go(tmp_path / "run", learner=Impatient)
    assert_same_runs(whole, go(tmp_path / "run", resume=True))


def test_a_signal_that_breaks_the_step_leaves_the_last_checkpoint(whole: Path, tmp_path: Path) -> None:
    class Compiling(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            if self.updates > 150:
                os.kill(os.getpid(), signal.SIGINT)
                raise RuntimeError("the compiler was interrupted")
            return super().update(replay, updates)

    with pytest.raises(Interrupted, match=r"last good checkpoint is of step 201; go on with --resume"):
        go(tmp_path / "run", learner=Compiling)
    assert_same_runs(whole, go(tmp_path / "run", resume=True))


def test_the_warm_up_s_updates_can_be_made_up_for_and_interrupted(tmp_path: Path) -> None:
    changes = {"warmup_steps": 180, "catch_up": True}  # metrics and an evaluation are due at the very step
    whole = go(tmp_path / "whole", **changes, eval_every=90)
    trained = [line for line in metrics(whole) if line["kind"] == "train"]
    assert [line["train/updates"] for line in trained] == [0, 0] + [int(0.7 * line["step"]) for line in trained[2:]]

    class Halted(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            if self.updates == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return super().update(replay, updates)

    with pytest.raises(Interrupted, match="stopped at step 180;"):
        go(tmp_path / "run", learner=Halted, **changes, eval_every=90)
    assert metrics(tmp_path / "run")[-1]["step"] == 120
    assert load(latest(tmp_path / "run")[0]).state["updates"] == 64 < int(0.7 * 180)
    assert_same_runs(whole, go(tmp_path / "run", resume=True, **changes, eval_every=90))


@pytest.mark.parametrize("changes", [{}, {"warmup_steps": 240, "catch_up": True, "total_steps": 240 + 3}])
def test_what_a_stop_in_the_last_step_left_over_is_kept_when_it_is_made_up_for(changes: dict[str, Any], tmp_path: Path) -> None:
    """Stopped before the last updates, stopped again among them, killed before the checkpoint that follows, and resumed when all is done."""
    whole = go(tmp_path / "whole", **changes)

    class Leaving(Tiny):
        leave_at = int(whole_updates(whole)) - 1

        def observe(self, observation: Any) -> None:
            super().observe(observation)
            if self.updates >= self.leave_at - 70:
                os.kill(os.getpid(), signal.SIGINT)  # between the environments' step and its updates

    run, starts = tmp_path / "run", 0
    while True:
        try:
            go(run, resume=starts > 0, learner=Leaving, **changes)
            break
        except Interrupted:
            starts += 1
            assert starts < 200
    assert starts >= 1
    assert_same_runs(whole, run)
    assert_same_runs(whole, go(run, resume=True, **changes))


def whole_updates(run: Path) -> int:
    return load(latest(run)[0]).state["updates"]


def test_the_policy_can_act_in_the_warm_up(tmp_path: Path) -> None:
    class Constant(Tiny):
        def act(self, observation: Any, mode: Any, generator: Any) -> Any:
            return torch.full((len(observation), 1), 0.25)

    for actions, distinct in (("policy", 1), ("random", 40)):
        run = go(tmp_path / actions, learner=Constant, warmup_actions=actions, total_steps=60, warmup_steps=40)
        taken = load(latest(run)[0]).replay["action"].flatten()
        assert len(taken[:40].unique()) == distinct
        assert (taken[42:] == 0.25).all()


def test_held_actions_stand_at_a_bound_for_twenty_steps_and_through_a_resume(tmp_path: Path) -> None:
    changes = {"warmup_actions": "held", "warmup_steps": 180, "total_steps": 240, "num_envs": 3}
    whole = go(tmp_path / "whole", **changes)
    taken = load(latest(whole)[0]).replay["action"].view(-1, 3)[:60]
    space = Drift.action_space
    assert sorted(taken.unique().tolist()) == pytest.approx([float(space.low[0]), float(space.high[0])])
    assert (taken != taken[:, :1]).any()  # not all environments alike
    blocks = taken.view(3, 20, 3)
    assert (blocks == blocks[:, :1]).all()
    assert len({tuple(block[0].tolist()) for block in blocks}) > 1
    stopped = tmp_path / "stopped"

    class Stopping(Tiny):
        def observe(self, observation: torch.Tensor) -> None:
            super().observe(observation)
            if len(observation) == 3 and (count := getattr(self, "looked", 0) + 1) == 31:  # in the middle of a held action
                os.kill(os.getpid(), signal.SIGINT)
            self.looked = count

    with pytest.raises(Interrupted, match="stopped at step 90"):
        go(stopped, learner=Stopping, **changes)
    assert_same_runs(whole, go(stopped, resume=True, **changes))


class Dull(Drift):
    """Earns the same whatever is done."""

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, 0.0, *rest


gym.register("tests/Dull-v0", Dull, max_episode_steps=50)


@pytest.mark.parametrize(("env", "random_too"), [(ENV, True), ("tests/Dull-v0", False)])
def test_held_and_random_actions_take_turns_once_rewards_are_not_rare(tmp_path: Path, monkeypatch: Any, env: str, random_too: bool) -> None:
    """Turns of 40 steps: held, random, held; held throughout where all rewards are the same. A run stopped in a random turn draws what is left of it."""
    monkeypatch.setattr(loop, "TURN_STEPS", 40)
    changes = {"warmup_actions": "turns", "warmup_steps": 240, "total_steps": 260, "num_envs": 2, "env": env}
    whole = go(tmp_path / "whole", **changes)
    taken = load(latest(whole)[0]).replay["action"].view(-1, 2)[:120]
    space = Drift.action_space
    at_bounds = ((taken == float(space.low[0])) | (taken == float(space.high[0]))).all(1).view(3, 40)
    assert at_bounds[0].all()
    assert at_bounds[2].all()
    assert bool(at_bounds[1].all()) != random_too
    blocks = taken.view(6, 20, 2)
    assert (blocks[[0, 1, 4, 5]] == blocks[[0, 1, 4, 5], :1]).all()

    class Stopping(Tiny):
        def observe(self, observation: torch.Tensor) -> None:
            super().observe(observation)
            if len(observation) == 2 and (count := getattr(self, "looked", 0) + 1) == 51:
                os.kill(os.getpid(), signal.SIGINT)
            self.looked = count

    with pytest.raises(Interrupted, match="stopped at step 100"):
        go(tmp_path / "stopped", learner=Stopping, **changes)
    assert_same_runs(whole, go(tmp_path / "stopped", resume=True, **changes))


class Late(Drift):
    """Earns nothing until it ``pays``."""

    pays = False

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward if Late.pays else 0.0, *rest


gym.register("tests/Late-v0", Late, max_episode_steps=50)


def test_a_turn_looks_at_what_was_before_it_in_a_replay_that_overwrites_it(tmp_path: Path, monkeypatch: Any) -> None:
    """The first 40 steps earn nothing, so the second 40 hold their actions, and go on when the replay of 60 steps fills with rewards."""

    class Waking(Tiny):
        def observe(self, observation: torch.Tensor) -> None:
            super().observe(observation)
            self.looked = getattr(self, "looked", 0) + (len(observation) == 2)
            Late.pays = self.looked > 45

    monkeypatch.setattr(loop, "TURN_STEPS", 40)
    monkeypatch.setattr(Late, "pays", False)
    changes = {"warmup_actions": "turns", "warmup_steps": 240, "total_steps": 260, "num_envs": 2, "replay_size": 120}
    replay = load(latest(go(tmp_path / "run", env="tests/Late-v0", learner=Waking, **changes))[0]).replay
    taken, reward = (replay[name].view(60, 2)[10:20] for name in ("action", "reward"))  # steps 70 to 79 of 130
    space = Drift.action_space
    assert reward.all()
    assert ((taken == float(space.low[0])) | (taken == float(space.high[0]))).all()


def test_another_thread_can_train(tmp_path: Path) -> None:
    thread = threading.Thread(target=go, args=(tmp_path / "run",), kwargs={"total_steps": 60})
    thread.start()
    thread.join()
    assert latest(tmp_path / "run")[0].name == "60"


def test_nan_reward_names_itself_and_loses_nothing(tmp_path: Path) -> None:
    words = r"tests/Poison-v0 returns the reward nan at step .*last good checkpoint is of step 327\)"
    with pytest.raises(NonFiniteError, match=words):
        go(tmp_path / "run", env="tests/Poison-v0")
    saved = load(latest(tmp_path / "run")[0])
    assert saved.step == 327
    assert saved.replay["reward"].isfinite().all()
    run = go(tmp_path / "run", resume=True, env="tests/Poison-v0")
    assert latest(run)[0].name == "420"


def test_an_environment_that_fails_is_one_sentence_and_the_run_goes_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stalling(Tiny):
        def act(self, observation: Any, mode: Any, generator: Any) -> Any:
            if mode == "explore" and self.updates > 100:
                monkeypatch.setattr(Broken, "breaks", True)
            return super().act(observation, mode, generator)

    sentence = r"^tests/Broken-v0 raised ZeroDivisionError: the motor stalled \(toys.py, line \d+, in step\): correct it \(step 1\d\d; the "
    with pytest.raises(ForeignFault, match=sentence + r"last good checkpoint is of step 1\d\d\)\.$") as caught:
        go(tmp_path / "run", learner=Stalling, env="tests/Broken-v0")
    at = int(latest(tmp_path / "run")[0].name)
    assert f"(step {at}; the last good checkpoint is of step {at})" in str(caught.value)
    assert at % CONFIG.checkpoint_every
    monkeypatch.setattr(Broken, "breaks", False)
    run = go(tmp_path / "run", resume=True, env="tests/Broken-v0")
    assert [line["step"] for line in metrics(run) if line["kind"] == "eval"] == [132, 261, 390, 420]


def test_an_evaluation_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = go(tmp_path / "whole", env="tests/Broken-v0")

    class Stalling(Tiny):
        def act(self, observation: Any, mode: Any, generator: Any) -> Any:
            monkeypatch.setattr(Broken, "breaks", mode == "stochastic")
            return super().act(observation, mode, generator)

    with pytest.raises(ForeignFault, match=r"^in an evaluation, tests/Broken-v0 raised .*last good checkpoint is of step 132\)\.$"):
        go(tmp_path / "run", learner=Stalling, env="tests/Broken-v0")
    monkeypatch.setattr(Broken, "breaks", False)
    assert_same_runs(whole, go(tmp_path / "run", resume=True, env="tests/Broken-v0"))


def test_nan_loss_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"weight_loss is not finite.*last good checkpoint is of step 102"):
        go(tmp_path / "run", learner_config=TinyConfig(poison_after=90))
    assert latest(tmp_path / "run")[0].name == "102"


def test_silent_nan_weights_are_not_saved(tmp_path: Path) -> None:
    class Silent(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            self.seen = self.seen * float("nan") if self.updates > 90 else self.seen
            return super().update(replay, updates)

        def act(self, observation: Any, mode: Any, generator: Any) -> Any:
            return super().act(observation, mode, generator).nan_to_num()

    with pytest.raises(NonFiniteError, match=r"the learner's \w+ is not finite"):
        go(tmp_path / "run", learner=Silent, eval_every=10_000)
    assert latest(tmp_path / "run")[0].name == "102"


def test_what_cannot_be_restored_starts_anew_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = go(tmp_path / "run", env="tests/Forgetful-v0", total_steps=200)
    go(run, resume=True, env="tests/Forgetful-v0", total_steps=300)
    assert "each starts a new episode" in capsys.readouterr().out
    saved = load(latest(run)[0])
    age, row = saved.replay["age"].view(-1, 3), 201 // 3
    assert (age[row] == 0).all()
    assert (age[row + 1] == 1).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 6}, "--seed 5 and cannot go on with 6"),
        ({"num_envs": 2}, "--num-envs 3"),
        ({"eval_every": 10}, "--eval-every 130"),
        ({"learner_config": TinyConfig(rate=0.1)}, "--rate 0.05"),
        ({"total_steps": 100}, "has already made 120 steps"),
    ],
)
def test_resume_with_another_configuration_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    run = go(tmp_path / "run", total_steps=120)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "tb" not in path.parts}
    with pytest.raises(UserError, match=words):
        go(run, resume=True, **{"total_steps": 120, **changes})
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_says_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def made_with() -> list[dict[str, str]]:
        return json.loads((run / "config.json").read_text())["made_with"]

    run = go(tmp_path / "run", total_steps=60)
    (here,) = made_with()
    assert (here["saddlepoint"], here["torch"], here["python"]) == (saddlepoint.__version__, str(torch.__version__), platform.python_version())
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    assert here.get("commit", "")[:7] == head[:7]
    go(run, resume=True, total_steps=90)
    assert made_with() == [here]
    monkeypatch.setattr("saddlepoint.train.run.versions", lambda: here | {"torch": "3.0"})
    go(run, resume=True, total_steps=120)
    assert made_with() == [here, here | {"torch": "3.0"}]
    assert f"note: torch 3.0 instead of {torch.__version__}: this run was made with other versions" in capsys.readouterr().out


@pytest.mark.parametrize("odd", ["3.0", {"torch": "2.0"}, [3], 7, None])
def test_a_damaged_note_of_what_a_run_was_made_with_stops_no_run(odd: object, tmp_path: Path) -> None:
    run = go(tmp_path / "run", total_steps=60)
    content = json.loads((run / "config.json").read_text())
    content.pop(SEAL)
    write_json(run / "config.json", sealed(content | {"made_with": odd}))
    go(run, resume=True, total_steps=90)
    assert json.loads((run / "config.json").read_text())["made_with"][-1] == content["made_with"][0]


def test_resume_of_a_finished_run_changes_nothing(whole: Path, tmp_path: Path) -> None:
    run = go(tmp_path / "run")
    assert_same_runs(whole, go(run, resume=True))


def test_what_does_not_matter_may_change_on_resume(whole: Path, tmp_path: Path) -> None:
    run = go(tmp_path / "run", total_steps=200, keep_checkpoints=1, checkpoint_every=50)
    assert_same_runs(whole, go(run, resume=True, keep_checkpoints=3, checkpoint_every=80))


def test_a_folder_is_used_once_and_by_one(tmp_path: Path) -> None:
    run = go(tmp_path / "run", total_steps=60)
    with pytest.raises(UserError, match=r"already holds a run: go on with --resume .* or choose another --out"):
        go(run)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        go(tmp_path / "full")

    class Twice(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            with pytest.raises(UserError, match="another process is training"):
                go(run, resume=True, total_steps=90)
            return super().update(replay, updates)

    go(run, resume=True, learner=Twice, total_steps=63)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup_steps": 420}, "--warmup-steps 420 leaves nothing"),
        ({"updates_per_step": 0.0}, "--updates-per-step"),
        ({"updates_per_step": float("nan")}, "--updates-per-step"),
        ({"eval_episodes": 9}, "--eval-episodes must lie from 10 to"),
        ({"num_envs": 0}, "--num-envs must be at least 1"),
        ({"replay_size": 2}, "--replay-size 2"),
        ({"replay_size": 10**14}, r"needs \d+.* GB and .* lower --replay-size"),
        ({"env": "tests/Nowhere-v0"}, "no environment is called"),
        ({"threads": 100_000}, "--threads 100000 is far more than"),
        ({"env": "CartPole-v1"}, "Discrete"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        go(tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_budgets_must_fit(tmp_path: Path) -> None:
    for budgets, words in (((), "no cost budget"), ((BUDGET, BUDGET), "1 constraints, not 2")):
        with pytest.raises(UserError, match=words):
            train(replace(CONFIG, out=tmp_path / "run"), Tiny, TinyConfig(), budgets)
    assert not (tmp_path / "run").exists()
