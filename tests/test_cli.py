"""The command line: what it runs, and one sentence with exit code 2 for each mistake."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import PRESETS, ALGDConfig
from saddlepoint.cli import main
from saddlepoint.commands import BudgetFlags, Launch, budgets_from, train_flags
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.tasks import list_envs, register_task
from saddlepoint.files import SEAL, FileFault, sealed
from saddlepoint.flags import Parsed, parse, parse_with_file
from saddlepoint.options import restore
from saddlepoint.policies import load_policy
from saddlepoint.systems import SYSTEMS
from saddlepoint.train import run
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.config import TrainConfig
from saddlepoint.types import UserError

TOY = "saddlepoint/Toy-v0"
SMALL = [
    "--env", TOY, "--warmup-steps", "60", "--eval-every", "100", "--checkpoint-every", "60", "--batch-size", "16",
    "--quiet", "--critic-hidden", "16", "16", "--policy-hidden", "16", "--threads", "1", "--compile", "off",
]  # fmt: skip
Run = Callable[..., tuple[int, str, str]]
register_task("tests/Costless-v0", "a task without a cost", (), 10, entry_point="gymnasium.envs.classic_control:PendulumEnv")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "algd", *SMALL, "--total-steps", "120", "--out", str(folder)]) == 0
    return folder


def train_parsed(*args: str) -> Parsed:
    flags = train_flags(ALGDConfig)
    return parse(flags, flags(Launch(), TrainConfig(env=""), ALGDConfig(), BudgetFlags()), args, "prog")


def test_help_version_and_envs(command: Run) -> None:
    assert command("--help")[:1] == (0,)
    assert command("--version")[1].startswith("saddlepoint 0.")
    code, out, _ = command("envs", "toy")
    assert code == 0
    assert TOY in out
    assert "budget: at most 1 per episode, undiscounted = 1 an episode of 60 steps = 0.01667 a step\n" in out
    assert "82.75 discounted by 0.99" in command("envs", "hopper", "speed")[1]
    assert {task.id for task in list_envs()} <= set(command("envs")[1].split())  # none is broken at its hyphens


def test_names_come_before_descriptions(command: Run) -> None:
    ids = [line for line in command("envs", "velocity")[1].splitlines() if not line.startswith(" ")]
    assert ids
    assert all("Velocity" in id for id in ids)  # not the tasks whose vases cost by their velocity
    assert "saddlepoint/CarGoal2-v0" in command("envs", "vases", "velocity")[1]


def test_examples_are_listed_and_copied(command: Run, tmp_path: Path) -> None:
    code, out, _ = command("examples")
    assert code == 0
    named = [line.split()[0] for line in out.splitlines()[:-2]]
    assert {"arm.py", "newcomer.sh", "own_algorithm.py", "search.toml", "sweeps", "tiny-world"} <= set(named)
    assert all(line[len(max(named, key=len)) :].strip() for line in out.splitlines()[:-2])  # each with a sentence
    assert command("examples", "arm.py", "sweeps", "--out", tmp_path / "new")[0] == 0
    root = Path(__file__).parents[1]
    assert (tmp_path / "new/arm.py").read_text() == (root / "examples/arm.py").read_text()
    assert (tmp_path / "new/sweeps/toy.toml").is_file()
    for words, said in ((["arm.py"], "is there already"), (["nothing.py"], "no example 'nothing.py'")):
        code, _, err = command("examples", *words, "--out", tmp_path / "new")
        assert code == 2
        assert said in err


def test_help_is_quick_because_it_loads_no_torch() -> None:
    program = "import sys; from saddlepoint.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    module = subprocess.run([sys.executable, "-m", "saddlepoint", "--version"], check=True, capture_output=True, text=True)
    assert module.stdout.startswith("saddlepoint 0.")


@pytest.mark.parametrize("args", [["envs"], ["--help"], ["train", "algd", "--help"]], ids=lambda args: args[0])
def test_output_that_nobody_reads_ends_quietly(args: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nowhere:
        done = subprocess.run([sys.executable, "-m", "saddlepoint.cli", *args], stdout=nowhere, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_training_goes_on_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", "saddlepoint.cli", "train", "algd", *SMALL, "--total-steps", "120", "--out", str(tmp_path / "run")]
    with os.fdopen(writing, "wb") as nowhere:
        done = subprocess.run(program, stdout=nowhere, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "run" / "checkpoints" / "120" / "manifest.json").is_file()


def test_another_broken_pipe_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(args: list[str]) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("saddlepoint.commands.envs_command", broken)
    with (tmp_path / "out").open("w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert main(["envs"]) == 2
    assert "Broken pipe (test_cli.py, line" in capsys.readouterr().err


def test_every_field_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "algd", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for config in (TrainConfig(env=""), ALGDConfig(), BudgetFlags(), Launch()):
        for name in vars(config):
            assert f"--{name.replace('_', '-')}" in text
    heads = [line for line in text.splitlines() if line[:1].isupper()]
    assert "The flags that matter first" in heads
    assert "Presets of algd, for --preset: default, earlier, parity, parity-vp." in heads
    assert len(heads) > 6  # groups


MISTAKES: list[tuple[list[str], str]] = [
    (["fly"], "no verb 'fly'"),
    (["train"], "train needs a system"),
    (["train", "ppo"], "no system 'ppo'"),
    (["train", "algd"], "give --env"),
    (["train", "algd", "--env", TOY, "--total-step", "5"], "no flag --total-step: did you mean total-steps?"),
    (["train", "algd", "--env", TOY, "--no-seed"], "--no-seed"),
    (["train", "algd", "--env", TOY, "--rho", "x"], "--rho: could not convert"),
    (["train", "algd", "--env", TOY, "--seed"], "--seed"),
    (["train", "algd", "--env", TOY, "--energy", "dark"], "dark"),
    (["train", "algd", "--env", TOY, "stray"], "'stray'"),
    (["train", "algd", "--env", TOY, "--preset", "best"], "no preset 'best'"),
    (["train", "algd", "--env", TOY, "--rho", "-1"], "--rho must be"),
    (["train", "algd", "--env", TOY, "--warmup-steps", "100000"], "--warmup-steps"),
    (["train", "algd", "--env", TOY, "--cost-limit", "-3"], "cost limit must be"),
    (["train", "algd", "--env", TOY, "--cost-limit", "1", "2"], "1 constraints, not 2"),
    (["train", "algd", "--env", TOY, "--cost-limit"], "--cost-limit needs a number for each constraint"),
    (["train", "mbdpo", "--env", TOY, "--cost-limit"], "--cost-limit needs a number for each constraint"),
    (["train", "sac", "--env", TOY, "--cost-limit"], "--cost-limit needs a number for each constraint"),
    (["train", "algd", "--env", TOY, "--config", "none.json"], "cannot be read"),
    (["train", "algd", "--env", TOY, "--out", ""], "--out is given an empty name"),
    (["report", "nowhere", "--out", ""], "--out is given an empty name"),
    (["train", "algd", "--env", TOY, "--seed", "9" * 26], "--seed must lie from 0 to"),
    (["evaluate", "nowhere", "--seed", "9" * 26], "--seed must lie from 0 to"),
    (["evaluate", "nowhere", "--episodes", "9" * 26], "--episodes must lie from 1 to 1,000,000"),
    (["train", "algd", "--env", TOY, "--eval-episodes", "9" * 26], "--eval-episodes must lie from 10 to 1,000,000"),
    (["train", "algd", "--env", TOY, "--steps", "1000000000"], "--steps must be at most 1,000 diffusion steps"),
    (["train", "mbdpo", "--env", TOY, "--steps", "1000000000"], "--steps must be at most 1,000 noise levels"),
    (["train", "algd", "--env", "Toy-v9"], "no environment is called"),
    (["train", "algd", "--env", "CartPole-v1", "--cost-limit", "1"], "Discrete"),
    (["train", "algd", "--env", "Pendulum-v1"], "declares no cost budget of its own: give one with --cost-limit"),
    (["train", "algd", "--env", "Pendulum-v1", "--cost-limit", "1"], 'no "cost"'),
    (["train", "algd", "--env", "tests/Costless-v0"], "Costless-v0 reports no cost, which this system needs: train "),
    (["train", "algd", "--env", "tests/Costless-v0", "--cost-limit", "1"], "reports no cost"),
    (["train", "algd", "--resume", "nowhere"], "not a run folder"),
    (["train", "--resume"], "--resume needs the run folder: "),
    (["evaluate"], "needs the run folder"),
    (["evaluate", "nowhere"], "not a run folder"),
    (["evaluate", "/dev/null"], "/dev/null is not a run folder"),
    (["evaluate", "nowhere", "--episode", "3"], "no flag --episode: did you mean episodes?"),
    (["envs", "nosuchtask"], "no task has"),
    (["envs", "--all"], "has no flag --all"),
]


@pytest.mark.parametrize(("args", "words"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    command: Run, tmp_path: Path, args: list[str], words: str
) -> None:
    code, _, err = command(*args)
    assert code == 2
    assert err.startswith("saddlepoint: error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_training_leaves_a_run_folder_that_says_what_was_run(trained: Path) -> None:
    content = {k: v for k, v in json.loads((trained / "config.json").read_text()).items() if k != SEAL}
    assert content["system"] == "algd"
    assert content["train"]["env"] == TOY
    assert content["learner"]["critic_hidden"] == [16, 16]
    assert content["resolved"] == {"device": "cpu", "threads": 1, "compiled": False}
    assert run.budgets_of(content)[0].limit > 0
    assert latest(trained)[0].name == "120"
    kinds = [json.loads(line)["kind"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["eval", "train", "eval"]


def test_a_used_folder_is_refused_with_both_choices(command: Run, trained: Path) -> None:
    code, _, err = command("train", "algd", *SMALL, "--out", trained)
    assert code == 2
    assert f"--resume {trained}" in err
    assert "another --out" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rho", "3"], "--rho 0.3 and cannot go on with 3.0"),
        (["--seed", "3"], "--seed 0 and cannot go on with 3"),
        (["--env", "saddlepoint/ToyTwo-v0"], f"--env {TOY} and cannot go on with saddlepoint/ToyTwo-v0"),
        (["--cost-limit", "77"], "another cost budget"),
        (["--out", "x"], "leave out --out"),
        (["--preset", "parity"], "leave out --preset"),
        (["--total-steps", "100"], "already made 120 steps"),
    ],
)
def test_resume_refuses_what_would_change_the_run(command: Run, trained: Path, args: list[str], words: str) -> None:
    code, _, err = command("train", "algd", "--resume", trained, "--quiet", *args)
    assert code == 2
    assert words in err


@pytest.mark.parametrize(("part", "flag"), [("learner", "--nonnegative-costs"), ("train", "--env-processes")])
def test_resuming_a_run_that_is_older_than_an_option_says_so(command: Run, trained: Path, tmp_path: Path, part: str, flag: str) -> None:
    content = {k: v for k, v in json.loads((trained / "config.json").read_text()).items() if k != SEAL}
    del content[part][flag[2:].replace("-", "_")]
    (tmp_path / "config.json").write_text(json.dumps(sealed(content)))
    code, _, err = command("train", "algd", "--resume", tmp_path, "--quiet", "--total-steps", "200")
    assert code == 2
    assert f"was written by a version of saddlepoint without {flag}: finish it with that version, or start a new run with --out." in err


def test_resume_goes_on_as_one_run(command: Run, trained: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert command("train", "algd", *SMALL, "--total-steps", "150", "--out", once)[0] == 0
    assert command("train", "algd", *SMALL, "--total-steps", "95", "--out", twice)[0] == 0
    assert command("train", "algd", "--resume", twice, "--total-steps", "150", "--rho", "0.3")[0] == 0
    a, b = (load(latest(folder)[0]) for folder in (once, twice))
    for part in ("learner", "replay"):
        for name, tensor in vars(a)[part].items():
            assert torch.equal(tensor, vars(b)[part][name]), name


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    program = [sys.executable, "-m", "saddlepoint.cli", "train", "algd", *SMALL, "--total-steps", "1000000"]
    program += ["--out", str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "checkpoints" / "60").exists() and process.poll() is None:  # pytest-timeout ends the test
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert f"go on with --resume {folder}" in err
    assert "Traceback" not in err
    assert int(latest(folder)[0].name) > 60


def test_evaluate_prints_and_keeps_what_the_policy_does(command: Run, trained: Path) -> None:
    code, out, _ = command("evaluate", trained, "--episodes", "3", "--video", "--threads", "1")
    assert code == 0
    assert "noise-free policy: return" in out
    assert "sampled policy: return" in out
    kept = json.loads((trained / "evaluation-120.json").read_text())
    assert kept["eval/episodes"] == 3
    assert (trained / "videos" / "120.mp4").stat().st_size > 0


def test_a_run_that_may_only_be_read_is_evaluated_all_the_same(command: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, content: object) -> None:
        raise FileFault(f"{path} cannot be written (Permission denied)")

    monkeypatch.setattr("saddlepoint.evaluate.write_json", forbidden)
    code, out, err = command("evaluate", trained, "--episodes", "2", "--threads", "1")
    assert (code, err) == (0, "")
    assert "verdict: " in out
    assert "note: the numbers are not kept: " in out


def test_a_trained_policy_may_act_by_other_settings(command: Run, trained: Path) -> None:
    plain, best = load_policy(trained), load_policy(trained, acting={"evaluation": "best_of_n", "evaluation_samples": 64})
    state = torch.randn(200, plain.shape.observation, generator=torch.Generator().manual_seed(0))
    energies = []
    for policy in (plain, best):
        agent = cast(ALGD, policy.learner)
        action = torch.as_tensor(policy.act(state.numpy()))
        energies.append(agent.energies(state, action[None]).mean())
    assert energies[1] < energies[0]
    assert command("evaluate", trained, "--episodes", "2", "--acting", "evaluation=best_of_n", "evaluation_samples=4", "--threads", "1")[0] == 0
    assert json.loads((trained / "evaluation-120-evaluation=best_of_n-evaluation_samples=4.json").read_text())["acting"] == [
        "evaluation=best_of_n", "evaluation_samples=4",
    ]  # fmt: skip
    for words, said in (
        (["evaluation"], "--acting evaluation: give NAME=VALUE"), (["rho=2"], "rho is no setting of acting of algd: take one of evaluation, "),
        (["evaluation=worst"], "acting: invalid choice 'worst' for argument 'evaluation'"),
        (["evaluation_sample=3"], "--acting evaluation_sample: algd has no such setting: take one of evaluation, "),
        (["evaluation_samples=3"], "acting: evaluation_samples does nothing here: it needs evaluation best_of_n"),
        (["evaluation=best_of_n", "evaluation_samples=0"], "acting: evaluation_samples must be greater than 0, not 0"),
    ):  # fmt: skip
        code, _, err = command("evaluate", trained, "--acting", *words)
        assert code == 2
        assert said in err


def test_load_policy_acts_on_one_and_on_many(trained: Path) -> None:
    policy = load_policy(trained)
    observations = np.random.default_rng(0).normal(size=(5, policy.shape.observation)).astype(np.float32)
    many = policy.act(observations)
    assert many.shape == (5, policy.shape.action)
    np.testing.assert_allclose(policy.act(observations[2]), many[2], rtol=1e-5)
    sampled = []
    for seed in (1, 1, 2):
        policy.reset()  # the noise of the first step of an episode follows no other
        sampled.append(policy.act(observations, "stochastic", torch.Generator().manual_seed(seed)))
    assert (sampled[0] == sampled[1]).all()
    assert (sampled[0] != sampled[2]).any()
    policy.reset()
    own = policy.act(observations, "stochastic")  # from a generator of its own, of the run's seed
    policy.reset()
    assert (own == policy.act(observations, "stochastic", torch.Generator().manual_seed(policy.seed))).all()
    with pytest.raises(UserError, match=r"one vector, not a Dict: give gymnasium.spaces.flatten"):
        policy.act({"place": np.zeros(2)})  # type: ignore[arg-type]
    for wrong in (observations[:, 1:], observations[2, 1:], observations[None], np.float32(1.0)):
        with pytest.raises(UserError, match=rf"takes an observation of shape \({policy.shape.observation},\)"):
            policy.act(wrong)


def test_load_policy_refuses_other_runs(trained: Path, tmp_path: Path) -> None:
    content = {k: v for k, v in json.loads((trained / "config.json").read_text()).items() if k != SEAL}
    for change, words in (
        ({"system": "ppo"}, "trained with ppo"),
        ({"format": 9}, "not written by this version"),
        ({"learner": {"eta": 1.0}}, "another version"),
        ({"learner": {**content["learner"], "rho": "two"}}, "damaged .--rho cannot be 'two'"),
        ({"learner": {**content["learner"], "batch_size": 16.5}}, "damaged .--batch-size cannot be 16.5"),
        ({"learner": {**content["learner"], "critic_hidden": [16, True]}}, "damaged .--critic-hidden cannot be"),
        ({"learner": {**content["learner"], "schedule": "dark"}}, "damaged .--schedule cannot be 'dark'"),
        ({"learner": None}, "damaged .it has no whole 'learner'"),
        ({"learner": ...}, "damaged .it has no whole 'learner'"),
        ({"train": ...}, "damaged .it has no whole 'train'"),
        ({"train": {"seed": 0}}, "damaged .it has no whole 'train'"),
        ({"shape": ...}, "damaged .it has no whole 'shape'"),
        ({"budgets": [{"bound": 1.0}]}, "damaged .it has no whole 'budgets'"),
    ):
        changed = {name: value for name, value in (content | change).items() if value is not ...}  # ... takes a part away
        (tmp_path / "config.json").write_text(json.dumps(sealed(changed)))
        with pytest.raises(UserError, match=words):
            load_policy(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_policy(tmp_path)


def test_a_checkpoint_of_another_run_is_told_of(command: Run, trained: Path, tmp_path: Path) -> None:
    """As when files of two runs were exchanged: whole, and not of each other."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    assert load_policy(folder).note is None
    content = json.loads((folder / "config.json").read_text())
    content["budgets"][0]["limit"] *= 100
    (folder / "config.json").write_text(json.dumps(sealed({name: part for name, part in content.items() if name != SEAL})))
    for args in (["evaluate", folder, "--episodes", "1"], ["collect", folder, "--out", tmp_path / "data"]):
        code, out, err = command(*args)
        assert code == 0
        assert f"warning: {folder}/config.json is not the one that the checkpoint in {folder}/checkpoints/120 was made with" in out + err
    (folder / "checkpoints/120").rename(folder / "checkpoints/61")
    with pytest.raises(UserError, match="does not describe it"):
        load_policy(folder, checkpoint=61)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_preset_is_read_back_as_it_was_written(name: str) -> None:
    system = SYSTEMS[name]
    for preset in system.presets().values():
        written = json.loads(json.dumps(asdict(preset)))
        assert restore(system.config_class(), written, Path("config.json")) == preset


def test_a_settings_file_is_read_as_flags_are(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    settings = {"env": TOY, "seed": 4, "critic-hidden": [32, 8], "detach_point": False, "cost_limit": [3.5], "rho": 2}
    path.write_text(json.dumps(settings))
    flags = train_flags(ALGDConfig)
    default = flags(Launch(), TrainConfig(env=""), ALGDConfig(), BudgetFlags())
    args = ["--config", str(path), "--seed", "9"]
    parsed = parse_with_file(flags, default, args, "saddlepoint train algd")
    assert parsed.values.run == TrainConfig(env=TOY, seed=9)
    assert parsed.values.system == ALGDConfig(critic_hidden=(32, 8), detach_point=False, rho=2.0)
    assert parsed.values.budget.cost_limit == (3.5,)
    assert parsed.given == {"config", "env", "seed", "critic_hidden", "detach_point", "cost_limit", "rho"}
    for content, words in (
        ('{"sed": 1}', "no setting 'sed': did you mean seed"), ('{"config": "x"}', "no setting 'config'"),
        ("[1]", "one object"), ("{", "line 1 column 2|cannot be read as the settings of --config"), ('{"env": null}', "must be a number"),
        ('{"quiet": "yes"}', r"settings.json: the setting 'quiet' must be true or false, not \"yes\""),
        ('{"rho": true}', "'rho' must be a number, .* not true"),
        ('{"total_steps": "many"}', r"settings.json: .*--total-steps: many is not a whole number"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(UserError, match=words):
            parse_with_file(flags, default, args, "saddlepoint train algd")


def test_flags_go_over_the_preset() -> None:
    parsed = train_parsed("--env", TOY, "--preset", "parity", "--rho", "2", "--entropy", "none")
    assert parsed.over(parsed.values.system, PRESETS["parity"]) == replace(PRESETS["parity"], rho=2.0, entropy="none")


@pytest.mark.parametrize(
    ("env", "args", "wanted"),
    [
        ("saddlepoint/HalfCheetahVelocity-v0", [], CostBudget(25.0, horizon=1000)),
        ("saddlepoint/HalfCheetahVelocity-v0", ["--cost-limit", "10"], CostBudget(10.0, horizon=1000)),
        ("saddlepoint/HalfCheetahVelocity-v0", ["--cost-discounted"], CostBudget(25.0, discounted=True, horizon=1000)),
        ("saddlepoint/HalfCheetahVelocity-v0", ["--cost-horizon", "300"], CostBudget(25.0, horizon=300)),
        ("HalfCheetah-v5", ["--cost-limit", "0.2", "--cost-per", "step"], CostBudget(0.2, "step", horizon=1000)),
        ("Pendulum-v1", ["--cost-limit", "7", "--no-cost-discounted"], CostBudget(7.0, horizon=200)),
    ],
)
def test_budget_flags_change_the_tasks_own(env: str, args: list[str], wanted: CostBudget) -> None:
    assert budgets_from(train_parsed("--env", env, *args), env, 0.99) == (wanted,)
    if not wanted.discounted:
        assert budgets_from(train_parsed("--env", env, *args), env, 0.9) == (replace(wanted, gamma=0.9),)
