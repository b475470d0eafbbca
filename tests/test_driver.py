"""The driver: callbacks, the best evaluation within the budget, signals that insist, faults of the machine."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saddlepoint import Callback, StopAfter, StopWhenSafe
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.policies import over_budget, stored_learner
from saddlepoint.train import best
from saddlepoint.train.checkpoint import latest, load, load_learner
from saddlepoint.train.log import RunLog, read_metrics
from saddlepoint.train.signals import Interrupted
from saddlepoint.train.start import train
from saddlepoint.train.verdict import evaluation_in_words, within_budget
from saddlepoint.types import ForeignFault, UserError
from tests.test_train_loop import CONFIG, assert_same_runs
from tests.toys import BUDGET, Tiny, TinyConfig

LOOSE, TIGHT = CostBudget(limit=1e6, horizon=12), CostBudget(limit=0.0, horizon=12)


def go(out: Path, *callbacks: Callback, budget: CostBudget = BUDGET, resume: bool = False, learner: Any = Tiny, **changes: Any) -> Path:
    return train(replace(CONFIG, out=out, **changes), learner, TinyConfig(), budget, resume=resume, callbacks=callbacks)


class Hoarder(Callback):
    """Has a state that no checkpoint can hold."""

    def __init__(self, state: Any) -> None:
        self.state, self.loaded = state, False

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.state, Exception):
            raise self.state
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = True


@pytest.mark.parametrize("state", [object(), RuntimeError("broken"), {1: 2}, [[[]]] * 3, np.array([None]), "\ud800"], ids=lambda state: type(state).__name__)
def test_a_callback_s_state_never_costs_what_is_learnt(state: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = go(tmp_path / "run", Hoarder(state), total_steps=120)
    sound = state == [[[]]] * 3 if isinstance(state, list) else False
    assert ("warning: the state of the callback Hoarder cannot be saved" in capsys.readouterr().out) is not sound
    again = Hoarder(state)
    go(run, again, total_steps=150, resume=True)
    assert again.loaded is sound
    assert latest(run)[0].name == "150"


class Diary(Callback):
    """Writes down what it sees, and counts on from where it was saved."""

    def __init__(self, leave_at: int = -1, say_no: Any = None) -> None:
        self.steps: list[int] = []
        self.seen: list[tuple[str, int]] = []
        self.leave_at, self.say_no = leave_at, say_no

    def on_step(self, run: Any) -> bool | None:
        self.steps.append(run.step)
        if run.step >= self.leave_at > 0:
            if self.say_no is not None:
                return self.say_no
            run.stop("enough")
        return None

    def on_evaluation(self, run: Any, metrics: dict[str, float]) -> None:
        assert metrics["eval/episodes"] == 10
        self.seen.append(("eval", run.step))

    def on_checkpoint(self, run: Any, folder: Path) -> None:
        assert folder.name == str(run.step)
        assert (folder / "manifest.json").is_file()
        self.seen.append(("checkpoint", run.step))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = list(state["steps"])


def test_callbacks_see_every_step_once_and_a_stop_is_resumed_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = Diary()
    whole = go(tmp_path / "whole", everything)
    assert everything.steps == list(range(3, 421, 3))
    assert [step for kind, step in everything.seen if kind == "eval"] == [132, 261, 390, 420]
    assert [step for kind, step in everything.seen if kind == "checkpoint"] == [102, 201, 300, 402, 420]
    for say_no in (None, False, np.bool_(False)):
        run = tmp_path / f"run-{say_no!r}"
        go(run, Diary(leave_at=150, say_no=say_no))
        assert ("the callback Diary asked for it" if say_no is not None else "stopped at step 150: enough") in capsys.readouterr().out
        assert latest(run)[0].name == "150"
        rest = Diary()
        go(run, rest, resume=True)
        assert rest.steps == everything.steps
        assert_same_runs(whole, run)


def test_a_callback_of_another_name_starts_afresh(tmp_path: Path) -> None:
    class Other(Diary):
        pass

    run = go(tmp_path / "run", Diary(), total_steps=60)
    other = Other()
    go(run, other, resume=True, total_steps=66)
    assert other.steps == [63, 66]


def test_a_callback_that_fails_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    class Failing(Callback):
        def on_step(self, run: Any) -> None:
            if run.step == 150:
                raise KeyError("gone")

    with pytest.raises(ForeignFault, match=r"callback Failing raised KeyError: 'gone' \(test_driver.py.*last good checkpoint is of step 150"):
        go(tmp_path / "run", Failing())
    assert latest(tmp_path / "run")[0].name == "150"
    for odd in (Failing, "now"):
        with pytest.raises(UserError, match="callbacks must be instances of Callback"):
            go(tmp_path / "other", odd)  # type: ignore[arg-type]


def test_stop_when_safe_counts_evaluations_in_a_row_over_a_resume(tmp_path: Path) -> None:
    assert latest(go(tmp_path / "loose", StopWhenSafe(2), budget=LOOSE))[0].name == "261"
    assert latest(go(tmp_path / "tight", StopWhenSafe(1), budget=TIGHT))[0].name == "420"

    class Signalled(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            if self.updates == 100:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().update(replay, updates)

    run = tmp_path / "parts"
    with pytest.raises(Interrupted, match="stopped at step 18"):  # after the first evaluation
        go(run, StopWhenSafe(2), budget=LOOSE, learner=Signalled)
    assert latest(go(run, StopWhenSafe(2), budget=LOOSE, resume=True))[0].name == "261"


def test_stop_after(tmp_path: Path) -> None:
    assert latest(go(tmp_path / "steps", StopAfter(steps=100)))[0].name == "102"
    assert latest(go(tmp_path / "metric", StopAfter(metric="eval/return_mean", at_least=-1e9)))[0].name == "132"
    assert latest(go(tmp_path / "hours", StopAfter(hours=1e-9)))[0].name == "6"
    with pytest.raises(UserError, match="needs hours="):
        StopAfter()
    with pytest.raises(UserError, match="no metric 'eval/speed'"):
        go(tmp_path / "odd", StopAfter(metric="eval/speed", at_least=1))


def test_best_is_the_best_evaluation_within_the_budget(tmp_path: Path) -> None:
    run = go(tmp_path / "run", budget=LOOSE)
    found = {line["step"]: line["eval/return_mean"] for line in read_metrics(run) if line["kind"] == "eval"}
    step = max(found, key=lambda step: found[step])
    folder, at = best.read(run)
    assert at == step
    same = load(latest(go(tmp_path / "short", budget=LOOSE, total_steps=step))[0]).learner
    assert all(torch.equal(same[name], tensor) for name, tensor in load_learner(folder).items())
    assert stored_learner(run, "best")[1] == step
    with pytest.raises(UserError, match=r"no checkpoint of step 7: it keeps 402, 420 and best"):
        stored_learner(run, 7)
    none = go(tmp_path / "none", budget=TIGHT)
    with pytest.raises(UserError, match="no evaluation was within the budget yet"):
        best.read(none)


def test_a_newest_policy_over_its_budget_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = iter([True, False, False, False])  # after 132, 261, 390 and 420 steps

    def verdict(metrics: dict[str, float], *_: Any) -> bool:
        return metrics.setdefault("within", float(next(verdicts) if "within" not in metrics else 0)) == 1

    for place in ("driver", "loop"):
        monkeypatch.setattr(f"saddlepoint.train.{place}.within_budget", verdict)
    run = go(tmp_path / "run")
    assert "the last evaluation was over the budget; the best within it, of step 132, is in best/ (--checkpoint best)" in capsys.readouterr().out
    told = over_budget(run, latest(run)[0])
    assert told is not None
    line = next(line for line in read_metrics(run) if line["step"] == 420 and line["kind"] == "eval")
    costs = f"noise-free cost {line['eval/cost_mean']:.2f} of 2, sampled cost {line['eval/stochastic/cost_mean']:.2f} of 2"
    assert told == (f"the last evaluation before the checkpoint in {run}/checkpoints/420, at step 420, was over the budget ({costs}):"
                    ' --checkpoint best, in Python checkpoint="best", is of step 132, which was within it.')  # fmt: skip
    assert over_budget(run, run / "best") is None
    verdicts = iter([False])
    verdicts = iter([False])  # after 132 steps
    again = go(tmp_path / "again", Diary(leave_at=150))
    go(again, Diary(leave_at=170), resume=True)  # evaluates nothing, and still knows
    assert latest(again)[0].name == "171"
    told = str(over_budget(again, latest(again)[0]))
    assert "at step 132, was over the budget" in told
    assert told.endswith("no evaluation of this run was within it yet, so train on.")


def metrics_of(free: float, sampled: float) -> dict[str, float]:
    return {f"{prefix}/{name}": value for prefix, cost in (("eval", free), ("eval/stochastic", sampled))
            for name, value in (("cost_mean", cost), ("return_mean", 7.0), ("violation_rate", 0.3), ("discounted_cost_mean", cost / 2))}  # fmt: skip


@pytest.mark.parametrize(
    ("free", "sampled", "within"),
    [(1.0, 1.0, {"sampled", "noise-free", "both"}), (1.0, 3.0, {"noise-free"}), (3.0, 1.0, {"sampled"}), (3.0, 3.0, set())],
)
def test_which_policy_the_budget_binds(free: float, sampled: float, within: set[str]) -> None:
    for binds in ("sampled", "noise-free", "both"):
        assert within_budget(metrics_of(free, sampled), (BUDGET,), binds) is (binds in within)  # type: ignore[arg-type]
    assert within_budget(metrics_of(free, sampled), (), "both") is None
    words = evaluation_in_words(metrics_of(free, sampled), (BUDGET,), "sampled")
    assert f"sampled return 7.0, cost {sampled:.2f} of 2; {'within' if 'sampled' in within else 'OVER'} budget (the sampled policy" in words


def test_each_of_several_constraints_is_bound_and_named_by_itself() -> None:
    found = {f"{prefix}/cost_{i}_mean": cost for prefix in ("eval", "eval/stochastic") for i, cost in enumerate((27.2, 40.9))}
    found |= {"eval/cost_mean": 68.1, "eval/return_mean": 1.0, "eval/violation_rate": 1.0}
    budgets = (CostBudget(1.0, horizon=10), CostBudget(45.0, horizon=10))
    assert within_budget(found, budgets, "both") is False
    assert "cost 27.20 of 1 and cost 40.90 of 45" in evaluation_in_words(found, budgets, "noise-free")
    assert within_budget(found, (CostBudget(28.0, horizon=10), budgets[1]), "both") is True


def test_a_second_ctrl_c_stops_what_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("saddlepoint.train.signals.GRACE_SECONDS", 0.2)
    hanging = threading.Event()

    def interrupt() -> None:
        hanging.wait()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    class Hanging(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            if self.updates > 90:
                hanging.set()
                while True:
                    time.sleep(0.01)
            return super().update(replay, updates)

    presser = threading.Thread(target=interrupt)
    presser.start()
    try:
        with pytest.raises(Interrupted, match="stopped at once; the last good checkpoint is of step 102"):
            go(tmp_path / "run", learner=Hanging)
        time.sleep(0.01)
    except KeyboardInterrupt:
        pytest.fail("the handler was put back before the signals had ended")
    finally:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        presser.join()
        signal.signal(signal.SIGINT, before)
    assert "Ctrl-C again to stop at once (the last good checkpoint is of step 102)" in capfd.readouterr().err
    assert_same_runs(go(tmp_path / "whole"), go(tmp_path / "run", resume=True))


def test_signals_at_once_are_one_wish(tmp_path: Path) -> None:
    """Launchers send a signal to the process and to its group."""

    class Twice(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            if self.updates == 100:
                for _ in range(3):
                    os.kill(os.getpid(), signal.SIGTERM)
            return super().update(replay, updates)

    with pytest.raises(Interrupted, match="stopped at step 18"):
        go(tmp_path / "run", learner=Twice)


def test_nohup_is_left_alone(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        class Hung(Tiny):
            def update(self, replay: Any, updates: int) -> Any:
                os.kill(os.getpid(), signal.SIGHUP)
                return super().update(replay, updates)

        assert latest(go(tmp_path / "run", learner=Hung, total_steps=60))[0].name == "60"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")])
def test_out_of_memory_names_the_last_checkpoint(tmp_path: Path, error: Exception) -> None:
    class Large(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            if self.updates > 90:
                raise error
            return super().update(replay, updates)

    with pytest.raises(UserError, match=r"not enough memory.*the last good checkpoint is of step 102; go on with --resume"):
        go(tmp_path / "run", learner=Large)


def test_what_a_handler_of_the_script_raises_reaches_the_script_with_the_way_back(tmp_path: Path) -> None:
    def late(number: int, frame: Any) -> None:
        raise TimeoutError("an hour is over")

    class Alarmed(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            if self.updates > 40:
                signal.raise_signal(signal.SIGALRM)
            return super().update(replay, updates)

    before = signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(TimeoutError, match="an hour is over") as caught:
            train(replace(CONFIG, out=tmp_path / "run"), Alarmed, TinyConfig(), (BUDGET,))  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert caught.value.__notes__ == [f"the last good checkpoint is of step {latest(tmp_path / 'run')[0].name}; go on with --resume {tmp_path / 'run'}"]


def test_a_full_disk_is_said_once_and_with_the_way_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunLog, "write", full)
    monkeypatch.setattr("saddlepoint.train.log.MetricsFile.close", full)
    with pytest.raises(UserError, match=r"No space left.*the last good checkpoint is of step 0; go on with --resume"):
        go(tmp_path / "run")


def test_a_disk_that_is_full_for_best_leaves_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saddlepoint.train import checkpoint

    write = checkpoint._write

    def full(folder: Path, content: Any) -> None:
        if folder.name == ".writing-best":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, content)

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(UserError, match=r"step 132 could not be written .*No space left.*go on with --resume"):
        go(tmp_path / "run", budget=LOOSE)
    monkeypatch.undo()
    assert latest(tmp_path / "run")[0].name == "102"
    assert_same_runs(go(tmp_path / "whole", budget=LOOSE), go(tmp_path / "run", budget=LOOSE, resume=True))
    assert best.read(tmp_path / "run")[1] == best.read(tmp_path / "whole")[1]


class Patient(Tiny):
    """Takes its time, so that a signal finds it at work."""

    def update(self, replay: Any, updates: int) -> Any:
        time.sleep(0.01)
        return super().update(replay, updates)


def test_a_terminal_that_closes_ends_with_a_checkpoint(tmp_path: Path) -> None:
    """SIGHUP, and every word that is said from then on fails."""
    import fcntl
    import pty
    import subprocess
    import sys
    import termios

    program = (
        "import sys, torch; torch.set_num_threads(1); from pathlib import Path; from dataclasses import replace\n"
        "from tests.test_driver import CONFIG, BUDGET, Patient, TinyConfig, train\n"
        "from saddlepoint.train.signals import Interrupted\n"
        f"config = replace(CONFIG, out=Path({str(tmp_path / 'run')!r}), total_steps=10**6, quiet=False)\n"
        "try: train(config, Patient, TinyConfig(), BUDGET)\n"
        "except Interrupted: sys.exit(130)\n"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=slave, stdout=slave, stderr=slave, cwd=Path(__file__).parents[1], start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    said = b""
    while not (tmp_path / "run" / "checkpoints" / "102").exists() and process.poll() is None:
        said += os.read(master, 4096)
    os.close(master)
    assert process.wait(timeout=250) == 130, said
    assert int(latest(tmp_path / "run")[0].name) > 102
