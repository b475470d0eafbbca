"""The sweep: its file, what is refused before it starts, retries and resuming, and a whole one on Ray."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saddlepoint.cli import main
from saddlepoint.sweep import pool
from saddlepoint.sweep.check import require_agreement, settle
from saddlepoint.sweep.command import PAUSE_SECONDS, Listed, conduct
from saddlepoint.sweep.outcome import Outcome
from saddlepoint.sweep.plan import Plan, read
from saddlepoint.sweep.progress import Progress
from saddlepoint.sweep.worker import INTERRUPTED, Ending, Job, run_job
from saddlepoint.train import run as run_folder
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.types import UserError

TOY = "saddlepoint/Toy-v0"
TINY = """
[common]
warmup_steps = 60
eval_every = 200
checkpoint_every = 60
log_every = 50
batch-size = 16
critic_hidden = [16, 16]
policy_hidden = [16]
compile = "off"
total_steps = 120
"""
FILE = f"""
out = "sweep"
environments = ["{TOY}", "saddlepoint/HopperVelocity-v0"]
seeds = [3, 1]
{TINY}
[environment."{TOY}"]
total_steps = 130
rho = 3.0
[algorithms.algd]
[algorithms.none]
system = "algd"
energy = "plain"
rho = 2.0
multiplier_rule = "augmented"
[algorithms.none.grid]
gamma = [0.5, 0.75]
policy_hidden = [[8], [8, 8]]
"""


def plan(tmp_path: Path, text: str = FILE) -> Plan:
    path = tmp_path / "file.toml"
    path.write_text(text)
    return read(path, tmp_path / "sweep")


def test_the_file_becomes_trials_in_the_order_of_seeds(tmp_path: Path) -> None:
    trials = plan(tmp_path).trials
    assert len(trials) == 2 * 2 * (1 + 4)
    assert [trial.seed for trial in trials] == [3] * 10 + [1] * 10
    assert trials[0].name == "Toy-v0/algd/seed-3"
    assert trials[0].folder == tmp_path / "sweep" / "Toy-v0" / "algd" / "seed-3"
    assert trials[1].name == "Toy-v0/none-gamma=0.5-policy_hidden=8/seed-3"
    assert trials[4].name == "Toy-v0/none-gamma=0.75-policy_hidden=8x8/seed-3"
    assert trials[5].environment == "saddlepoint/HopperVelocity-v0"
    assert len({trial.folder for trial in trials}) == len(trials)


def test_the_later_of_common_environment_algorithm_and_grid_counts(tmp_path: Path) -> None:
    trials = plan(tmp_path).trials
    algd, none = trials[0].settings, trials[4].settings
    assert (algd["total_steps"], trials[5].settings["total_steps"]) == (130, 120)
    assert (algd["rho"], none["rho"]) == (3.0, 2.0)
    assert (algd["policy_hidden"], none["policy_hidden"]) == ([16], [8, 8])
    assert (algd["threads"], algd["device"]) == (1, "cpu")


def test_the_command_says_what_is_trained(tmp_path: Path) -> None:
    found = plan(tmp_path)
    settled = settle(found)
    trial = found.trials[4]
    config, learner = settled[trial.name].config, settled[trial.name].learner
    assert (config.env, config.seed, config.total_steps, config.threads) == (TOY, 3, 130, 1)
    assert (learner.gamma, learner.policy_hidden, learner.energy, learner.rho) == (0.75, (8, 8), "plain", 2.0)
    assert [budget.gamma for budget in settled[trial.name].budgets] == [learner.cost_gamma]
    variable, program, *rest = shlex.split(trial.command())
    assert (variable, program) == ("OMP_NUM_THREADS=1", "saddlepoint")
    assert rest == trial.train()
    assert trial.train(resume=True)[-2:] == ["--resume", str(trial.folder)]
    assert "--env" not in trial.train(resume=True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('out = "sweep"', "out = 3", "needs a folder"),
        ("seeds = [3, 1]", "seeds = [3, -1]", "negative"),
        ("seeds = [3, 1]", "seeds = [1, 1]", "twice"),
        ("seeds = [3, 1]", "seeds = []", "list of whole numbers"),
        ("seeds = [3, 1]", "seeds = 3", "list of whole numbers"),
        ("seeds = [3, 1]", "seed = [3]", "no key 'seed'"),
        ("seeds = [3, 1]", "seeds = [3, 1]\ngpus = -1", "gpus must be"),
        ('environment."saddlepoint/Toy-v0"', "environment.Toy", "not one of environments"),
        ("rho = 3.0", "seed = 3", "comes from seeds"),
        ("rho = 3.0", "resume = 'x'", "resumed anyway"),
        ("rho = 3.0", "when = 1999-01-01", "must be a number"),
        ("gamma = [0.5, 0.75]", "gamma = 0.5", "must be a list"),
        ("gamma = [0.5, 0.75]", "gamma = [0.5, 0.5]", "share the folder"),
        ("rho = 3.0", "rho = = 3", "cannot be read as the file of a sweep"),
        ("rho = 3.0", f"rho = {'[' * 100_000}", "cannot be read as the file of a sweep"),
        (
            "gamma = [0.5, 0.75]",
            f"gamma = {list(range(10_000))}\nalpha = {list(range(10_000))}",
            "at most 5,000 are taken",
        ),
        ("seeds = [3, 1]", f"seeds = {list(range(20_000))}", "at most 5,000 are taken"),
        (
            "gamma = [0.5, 0.75]",
            f"gamma = [{', '.join(['[' + '0.25, ' * 60 + '0.5]'])}]",
            "cannot be the name of a folder",
        ),
        ("[algorithms.algd]", '[algorithms.".."]', "cannot be the name of a folder"),
        ("[algorithms.algd]", '[algorithms.""]', "cannot be the name of a folder"),
        ("[algorithms.algd]", '[algorithms."a\\u0000b"]', "cannot be the name of a folder"),
    ],
)
def test_a_faulty_file_is_one_sentence(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in FILE
    path = tmp_path / "file.toml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(UserError, match=words) as caught:
        read(path)
    assert "file.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[algorithms.algd]", "[algorithms.agld]", "no system 'agld'"),
        ("rho = 3.0", "rhu = 3.0", "no flag --rhu: did you mean rho"),
        ("rho = 3.0", "rho = -1.0", "--rho must be greater"),
        ("rho = 3.0", 'device = "cuda"', "CUDA|gpus"),
        ("rho = 3.0", 'schedule = "ve"\nbeta_first = 0.1', "does nothing here"),
        ("rho = 3.0", 'preset = "nonsense"', "no preset 'nonsense'"),
        ("total_steps = 130", "total_steps = 10", "leaves nothing"),
        ("HopperVelocity-v0", "HoperVelocity-v0", "did you mean"),
    ],
)
def test_every_trial_is_checked_before_the_first_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    assert old in FILE
    path = tmp_path / "file.toml"
    path.write_text(FILE.replace(old, new))
    assert main(["sweep", str(path), "--out", str(tmp_path / "sweep"), "--quiet"]) == 2
    assert re.fullmatch(f".*({words}).*\n", capsys.readouterr().err)  # one line
    assert not (tmp_path / "sweep").exists()


def test_a_dry_run_only_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(tmp_path)
    assert main(["sweep", str(found.file), "--out", str(found.out), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [trial.command() for trial in found.trials]
    assert not found.out.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "needs its file"),
        (["--quiet"], "needs its file"),
        (["nowhere.toml"], "cannot be read"),
        (["f", "--jobs", "-1"], "negative"),
    ],
)
def test_a_faulty_call_is_one_sentence(capsys: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    assert main(["sweep", *args]) == 2
    assert words in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["sweep", str(plan(tmp_path).file)]) == 2
    assert "pip install saddlepoint[sweep]" in capsys.readouterr().err


class Scripted:
    """A pool that ends each job at once, as told: by trial and attempt, an ending and what the run leaves behind."""

    def __init__(self, script: Callable[[Path, int], tuple[Ending, bool]]) -> None:
        self.script = script
        self.jobs: list[Job] = []
        self.most = 0
        self.open: list[int] = []
        self.stopped = False

    def submit(self, job: Job) -> int:
        self.jobs.append(job)
        self.open.append(len(self.jobs) - 1)
        self.most = max(self.most, len(self.open))
        return len(self.jobs) - 1

    def wait(self, seconds: float) -> list[tuple[int, Ending]]:
        handle = self.open.pop(0)
        folder = Path(self.jobs[handle].args[-1])
        attempt = sum(Path(job.args[-1]) == folder for job in self.jobs[: handle + 1])
        ending, begun = self.script(folder, attempt)
        if begun:
            (folder / "checkpoints" / "60").mkdir(parents=True, exist_ok=True)
            (folder / "config.json").touch()
        return [(handle, ending)]

    def stop(self) -> None:
        self.stopped = True


ONE = f"""
environments = ["{TOY}"]
seeds = [0, 1, 2]
{TINY}
[algorithms.algd]
"""
DONE = Ending(0, 2.0, "")


def run_scripted(
    found: Plan, pool: Scripted, retries: int = 1, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """States, attempts and seconds by seed, as sweep.json has them."""
    found.out.mkdir(exist_ok=True)
    outcome = Outcome(found, {trial.name: 120 for trial in found.trials})
    todo = [trial for trial in found.trials if outcome.records[trial.name].state != "finished"]
    with Progress("sweep", outcome.records.values(), quiet=True) as progress:
        conduct(Listed(todo), outcome, pool, 2, retries, progress, stop)
    written = json.loads((found.out / "sweep.json").read_text())
    return {entry["seed"]: (entry["state"], entry["attempts"], entry["wall_s"]) for entry in written["trials"]}


def test_what_the_task_decides_is_no_contradiction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Navigation holds actions and cuts episodes by itself, and the warm-up is a tenth of the run: a finished trial that leaves these open is gone on with."""
    task = TINY.replace("warmup_steps = 60", 'env_kwargs = "max_episode_steps=40"').replace("total_steps = 120", "total_steps = 40")
    found = plan(tmp_path, f'environments = ["saddlepoint/PointGoal1-v0"]\nseeds = [0]\n{task}\n[algorithms.algd]\n')
    (trial,) = found.trials
    assert main(trial.train()) == 0, capsys.readouterr()
    kept = run_folder.read(trial.folder)["train"]
    assert (kept["action_repeat"], kept["episode_steps"], kept["warmup_steps"]) == (4, 100, 4)
    require_agreement(trial, settle(found)[trial.name])


def test_where_ray_does_not_start_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nMore of it.")

    monkeypatch.setattr("ray.init", slow)
    with pytest.raises(UserError, match=r"^Ray cannot be started \(.*timed out.*\): .* run the same command again\.$"):
        pool.RayPool(None, 1, 0.0)


def test_a_killed_trial_resumes_and_a_failing_one_does_not_stop_the_others(tmp_path: Path) -> None:
    found = plan(tmp_path, ONE)

    def script(folder: Path, attempt: int) -> tuple[Ending, bool]:
        if folder.name == "seed-0":
            return (Ending(-9, 1.0, "killed"), True) if attempt == 1 else (DONE, True)
        return (Ending(2, 1.0, "the disk is full."), False) if folder.name == "seed-1" else (DONE, True)

    pool = Scripted(script)
    states = run_scripted(found, pool)
    assert states == {0: ("finished", 2, 3.0), 1: ("failed", 2, 2.0), 2: ("finished", 1, 2.0)}
    assert pool.most == 2
    by_folder = [(Path(job.args[-1]).name, job.args[-2], job.pause) for job in pool.jobs]
    assert ("seed-0", "--out", 0.0) in by_folder
    assert ("seed-0", "--resume", PAUSE_SECONDS) in by_folder
    assert by_folder.count(("seed-1", "--out", PAUSE_SECONDS)) == 1  # it had left nothing to resume
    trial = found.trials[0]
    assert trial.folder.with_name("seed-0.command").read_text() == trial.command() + "\n"

    again = Scripted(lambda folder, attempt: (DONE, True))  # started again: only what is not finished
    assert run_scripted(found, again) == {0: ("finished", 0, 3.0), 1: ("finished", 1, 4.0), 2: ("finished", 0, 2.0)}
    assert [Path(job.args[-1]).name for job in again.jobs] == ["seed-1"]


def test_each_trial_keeps_the_commits_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(tmp_path, ONE)

    def commits(source: str, pool: Scripted) -> tuple[str, dict[int, list[str]]]:
        monkeypatch.setattr("saddlepoint.sweep.outcome.commit", lambda: source)
        run_scripted(found, pool, retries=0)
        written = json.loads((found.out / "sweep.json").read_text())
        return written["commit"], {entry["seed"]: entry["commits"] for entry in written["trials"]}

    def first(
        folder: Path, attempt: int
    ) -> tuple[Ending, bool]:  # one is finished, one is killed after a checkpoint, one before
        return (DONE, True) if folder.name == "seed-0" else (Ending(-9, 1.0, "killed"), folder.name == "seed-1")

    done = Scripted(lambda folder, attempt: (DONE, True))
    assert commits("one", Scripted(first)) == ("one", {0: ["one"], 1: ["one"], 2: ["one"]})
    assert commits("two-dirty", done) == ("two-dirty", {0: ["one"], 1: ["one", "two-dirty"], 2: ["two-dirty"]})

    path = found.out / "sweep.json"  # as it was written before there were commits
    old = json.loads(path.read_text())
    old["trials"] = [{name: value for name, value in entry.items() if name != "commits"} for entry in old["trials"]]
    old["trials"][1]["state"] = "failed"
    old.pop("sha256")
    path.write_text(json.dumps(old))
    assert commits("three", done) == ("three", {0: [], 1: ["unknown", "three"], 2: []})


def test_what_a_run_left_that_was_killed_while_it_started_is_begun_anew(tmp_path: Path) -> None:
    found = plan(tmp_path, ONE)
    stillborn, foreign, begun = (trial.folder for trial in found.trials)
    for folder in (stillborn, foreign, begun):
        (folder / "checkpoints" / ".writing-0").mkdir(parents=True)
        (folder / "metrics.jsonl").touch()
    (foreign / "thesis.tex").touch()
    (begun / "metrics.jsonl").write_text('{"step": 50, "kind": "train"}\n')
    pool = Scripted(lambda folder, attempt: (DONE, False))
    run_scripted(found, pool)
    assert [job.args[-2] for job in pool.jobs] == ["--out", "--out", "--resume"]
    run_folder.require_new(stillborn)  # the command that starts the trial begins it anew
    assert (foreign / "thesis.tex").exists()
    assert (begun / "metrics.jsonl").exists()


def test_when_asked_to_stop_it_waits_for_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    found = plan(tmp_path, ONE)
    pool = Scripted(lambda folder, attempt: (Ending(INTERRUPTED, 1.0, "interrupted"), True))
    states = run_scripted(found, pool, stop=lambda: len(pool.jobs) == 2)
    assert pool.stopped
    assert {seed: state for seed, (state, *_) in states.items()} == {0: "interrupted", 1: "interrupted", 2: "waiting"}


def test_fewer_steps_than_were_made_are_refused_and_more_are_made(tmp_path: Path) -> None:
    found = plan(tmp_path, ONE)
    run_scripted(found, Scripted(lambda folder, attempt: (DONE, True)))
    name = found.trials[0].name
    steps = {trial.name: 120 for trial in found.trials}
    assert Outcome(found, steps | {name: 200}).records[name].state == "waiting"
    with pytest.raises(UserError, match="already made 120 steps"):
        Outcome(found, steps | {name: 100})
    (found.out / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as the record of a sweep"):
        Outcome(found, steps)


def job(tmp_path: Path, *args: str) -> Job:
    return Job(args, str(tmp_path / "log"), str(tmp_path), threads=1, pause=0.0)


def test_an_attempt_ends_with_the_error_s_own_sentence(tmp_path: Path) -> None:
    ending = run_job(job(tmp_path, "train", "nonsense"))
    assert ending.code == 2
    assert ending.sentence.startswith("there is no system 'nonsense'")


def test_an_attempt_that_is_killed_says_so_and_a_cancelled_one_ends_its_run(tmp_path: Path) -> None:
    program = f"""
import os, signal, threading, _thread
import saddlepoint.sweep.worker as worker
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a process that a shell started with &
started = worker._start
def start(job):
    child = started(job)
    act = child.kill if job.args[-1] == "kill" else _thread.interrupt_main
    threading.Timer(0.3, act).start()
    return child
worker._start = start
for last in ("kill", "cancel"):
    print(worker.run_job(worker.Job(("train", last), {str(tmp_path / "log")!r}, {str(tmp_path)!r}, 1, 0.0)).code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-9", "-15"], done.stderr


def alive(word: str) -> list[str]:
    """Command lines of processes that have ``word`` in them."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return [line for line in lines if word in line]


REAL = f"""
environments = ["{TOY}"]
seeds = [0]
{TINY.replace("total_steps = 120", "total_steps = STEPS")}
[algorithms.algd]
"""


def test_a_whole_sweep_on_ray_and_a_file_that_contradicts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    path, out = tmp_path / "file.toml", tmp_path / "sweep"
    path.write_text(REAL.replace("STEPS", "80"))
    command = ["sweep", str(path), "--out", str(out), "--jobs", "1", "--quiet", "--retries", "0"]
    assert main(command) == 0, capsys.readouterr()
    assert "finished: 1 trials" in capsys.readouterr().out
    written = json.loads((out / "sweep.json").read_text())
    assert (written["states"], written["trials"][0]["wall_s"] > 0) == ({"finished": 1}, True)
    assert latest(out / "Toy-v0" / "algd" / "seed-0")[0].name == "80"
    assert not alive(str(tmp_path))
    path.write_text(REAL.replace("STEPS", "80").replace("[algorithms.algd]", "[algorithms.algd]\nrho = 9.0"))
    assert main(command) == 2
    assert "was started with --rho 0.3 and cannot go on with 9.0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_survives_kill_9_and_ctrl_c_and_equals_an_unbroken_run(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path, out, alone = tmp_path / "file.toml", tmp_path / "sweep", tmp_path / "alone"
    path.write_text(REAL.replace("STEPS", "1500"))
    trial = read(path, out).trials[0]
    command = [sys.executable, "-m", "saddlepoint.cli", "sweep", str(path), "--out", str(out), "--jobs", "1", "--quiet"]

    def begin(beyond: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        while not any(int(p.name) > beyond for p in (trial.folder / "checkpoints").glob("[0-9]*")):
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.1)
        return process

    process = begin(0)
    process.kill()
    process.wait()
    while any("sweep.leash" in line for line in alive(str(tmp_path))):  # else pytest-timeout ends the test
        time.sleep(0.2)

    process = begin(int(latest(trial.folder)[0].name))  # goes on; this time the training run itself is killed
    run = next(
        int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline")
        if b"saddlepoint.sweep.leash" in p.read_bytes() and str(tmp_path).encode() in p.read_bytes()
    )  # fmt: skip
    os.kill(run, signal.SIGKILL)
    begun = int(latest(trial.folder)[0].name)
    while int(latest(trial.folder)[0].name) <= begun:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "killed by SIGKILL" in output
    assert json.loads((out / "sweep.json").read_text())["states"] == {"interrupted": 1}
    assert not alive(str(tmp_path))

    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.count("finished") == 2
    reproduced = [*trial.train()[:-1], str(alone)]
    subprocess.run([sys.executable, "-m", "saddlepoint.cli", *reproduced], check=True, capture_output=True)
    one, two = (load(latest(folder)[0]) for folder in (trial.folder, alone))
    assert one.step == two.step == 1500
    for name, tensor in one.learner.items():
        assert torch.equal(tensor, two.learner[name]), name


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"waiting"', '"finished"', 1), lambda text: text.replace('"seed": 3', '"seed": "3"'),
        lambda text: text.replace('"attempts"', '"attempt"', 1), lambda text: text.replace('"trials": [', '"trials": 5, "x": ['),
        lambda text: "[" * 100_000, lambda text: "null", lambda text: text[:-20], lambda text: text.replace("wall_s", "walls", 1),
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_sentence(tmp_path: Path, change: Callable[[str], str]) -> None:
    found = plan(tmp_path)
    found.out.mkdir(parents=True)
    steps = {trial.name: 130 for trial in found.trials}
    Outcome(found, steps).save()
    path = found.out / "sweep.json"
    Outcome(found, steps)
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(
        UserError, match=r"sweep.json (has changed|cannot be read).*remove it; the trials below it"
    ) as caught:
        Outcome(found, steps)
    assert "\n" not in str(caught.value)


def test_a_temporary_folder_whose_path_is_too_long_for_sockets_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("job" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = pool._short_folder()
    os.rmdir(folder)
    assert len(os.path.dirname(folder)) <= pool.MOST_PATH
    monkeypatch.setattr(pool, "SHORT_PLACES", ())
    with pytest.raises(UserError, match="set TMPDIR to a short one"):
        pool._short_folder()
    assert not list(long.iterdir())


def test_a_cluster_that_does_not_answer_is_noticed_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(tmp_path)
    assert main(["sweep", str(found.file), "--out", str(found.out), "--address", "127.0.0.1:1"]) == 2
    assert "no Ray cluster answers" in capsys.readouterr().err
    assert not found.out.exists()
