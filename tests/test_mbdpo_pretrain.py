"""Pretraining on several tasks, and what is made of it: single-task agents, evaluation, training that goes on online; one process against two."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saddlepoint import load_policy
from saddlepoint.cli import main
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import PRESETS, MBDPOConfig, heuristic_discount
from saddlepoint.mbdpo.losses import Sequences, UpdateNoise
from saddlepoint.mbdpo.search import PlanNoise
from saddlepoint.mbdpo.tasks import Task, model_tasks, padded_shape
from saddlepoint.mbdpo.transfer import Pretrained, adopt, specialise, task_config
from saddlepoint.nn import ops
from saddlepoint.offline.config import PretrainConfig
from saddlepoint.offline.dataset import Dataset, Writer
from saddlepoint.offline.evaluate import over_tasks
from saddlepoint.offline.loop import Pretraining
from saddlepoint.offline.pretrain import _compiles, _require_even, pretrain
from saddlepoint.offline.processes import Processes
from saddlepoint.policies import start_from
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.log import RunLog, read_metrics
from saddlepoint.train.processes import leave_processes
from saddlepoint.train.screen import Screen
from saddlepoint.train.signals import StopRequest
from saddlepoint.train.start import COMPILE_PAYS_AFTER
from saddlepoint.types import EnvShape, ForeignFault, NonFiniteError, UserError
from tests.ranks import end_well, start_two

SILENT = RunLog(None, Screen(1, silent=True))
TINY = replace(
    PRESETS["small"], width=16, latent=16, encoder_width=16, proposals=8, elites=3, policy_rollouts=2, steps=3, batch_size=8, score_states=4,
    score_proposals=4, critics=2, bins=11, time_embedding=4, task_embedding=5,
)  # fmt: skip
FLAGS = [word for name in ("width", "latent", "encoder_width", "proposals", "elites", "policy_rollouts", "steps", "batch_size", "score_states",
    "score_proposals", "critics", "bins", "time_embedding", "task_embedding") for word in ("--" + name.replace("_", "-"), str(vars(TINY)[name]))]  # fmt: skip
PENDULUM, TOY = "tests/PretrainPendulum-v0", "tests/PretrainToy-v0"
gym.register(PENDULUM, "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=5)
gym.register(TOY, "saddlepoint.envs.toy:ToyEnv", max_episode_steps=4)
TASKS = (Task("swing", PENDULUM, 3, (-2.0,), (2.0,), 5), Task("toy", TOY, 6, (-1.0, -1.0), (1.0, 1.0), 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Random episodes whose reward is the sum of the actions."""
    rng = np.random.default_rng(0)
    with Writer(tmp_path_factory.mktemp("offline") / "data", 6, 2) as writer:
        for number, task in enumerate(TASKS):
            steps, actions = task.episode_length, len(task.action_low)
            action = rng.uniform(-1, 1, (10, steps, actions))
            writer.add(np.full(10, number), rng.normal(size=(10, steps + 1, task.observation)), action, action.sum(-1), np.zeros((10, steps)))
        writer.tasks = TASKS
    return writer.folder


def config(folder: Path, out: Path, **changes) -> PretrainConfig:
    base = PretrainConfig(data=str(folder), seed=3, total_updates=6, eval_every=0, checkpoint_every=4, log_every=2, threads=1, out=out, quiet=True)
    return replace(base, **changes)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """The run of ``config`` in one go, without evaluation."""
    return pretrain(config(folder, tmp_path_factory.mktemp("runs") / "whole"), TINY)


def several(seed: int = 0) -> MBDPO:
    """An agent of both tasks whose heads are not at zero, one of whose embeddings is too long."""
    agent = MBDPO(TINY, padded_shape(6, 2), (), seed, tasks=model_tasks(TASKS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        agent.model.task_table[0] *= 3 / agent.model.task_table[0].norm()
        agent.model.energy_mean.fill_(0.3)
        agent.model.value_scale.fill_(2.0)
    return agent


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def assert_runs_equal(one: Path, two: Path) -> None:
    assert same(*(load(latest(run)[0]).learner for run in (one, two)))


# ------------------------------------------------------------------------------------------------ one task of several


@pytest.mark.parametrize("number", [0, 1])
def test_a_specialised_agent_is_the_same_function(number, generator):
    """Every network, at observations and actions that are padded for the one and not for the other."""
    agent, task = several(), TASKS[number]
    table = agent.model.task_table.detach().clone()
    single = specialise(agent, number, task)
    assert torch.equal(agent.model.task_table, table)
    assert single.config.gamma == heuristic_discount(task.episode_length)
    o, a, h = task.observation, len(task.action_low), TINY.horizon
    observation, action = torch.randn(7, o, generator=generator), torch.rand(7, a, generator=generator) * 2 - 1
    wide_o, wide_a = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x, width in ((observation, 6), (action, 2)))
    tasks = torch.full((7,), number)
    ours, theirs = single.model, agent.model
    z = ours.encode(observation)
    torch.testing.assert_close(z, theirs.encode(wide_o, tasks))
    for name in ("next", "reward_logits", "energy", "value_logits"):
        torch.testing.assert_close(getattr(ours, name)(z, action), getattr(theirs, name)(z, wide_a, tasks), msg=name)
    torch.testing.assert_close(ours.value_logits(z, action, target=True), theirs.value_logits(z, wide_a, tasks, target=True))
    torch.testing.assert_close(ours.termination_logit(z), theirs.termination_logit(z, tasks))
    noise = torch.randn(7, 2, generator=generator)
    one, two = ours.policy(z, noise[:, :a]), theirs.policy(z, noise, tasks)
    for name in ("action", "mean", "log_std"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name)[:, :a])
    x = torch.zeros(7, h, 2)
    x[..., :a] = torch.randn(7, h, a, generator=generator)
    level = torch.full((7,), 1)
    torch.testing.assert_close(ours.score_output(z, x[..., :a], level), theirs.score_output(z, x, level, tasks)[..., :a])
    for name in ("energy_mean", "energy_std", "value_scale"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_a_specialised_agent_plans_as_the_whole_one(generator):
    """The toy uses the whole padded action, so that both plan from the same noise. In float64: a plan repeats the roundings of a dozen passes."""
    agent = several()
    single = specialise(agent, 1, TASKS[1])
    z = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    noise, start, task = PlanNoise.draw(TINY, 3, 2, z, generator), z.new_zeros(3, 3, 2), torch.full((3,), 1)
    for model, tasks in ((single, None), (agent, task)):
        model.model.double()
        model.model.gamma.fill_(0.95)
        plan = model.search.plan(z, start, noise, tasks, False, None, True)
        if tasks is None:
            first = plan
    torch.testing.assert_close(first, plan)


def test_a_learner_that_starts_from_stored_weights_trains_all_of_them(generator):
    """Its optimisers hold every parameter, the score network's among them, with no moments of before."""
    agent = several()
    start = Pretrained(agent, 0)
    learner = start(replace(task_config(agent.config, TASKS[0]), learning_rate=0.01), TASKS[0].shape, (), 5, torch.device("cpu"), compile=False)
    assert same(specialise(agent, 0, TASKS[0]).model.state_dict(), learner.model.state_dict())
    assert not learner.model_optimiser.state
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    action = torch.rand(3, 8, 1, generator=generator) * 2 - 1
    data = Sequences(torch.randn(4, 8, 3, generator=generator), action, action.sum(-1), torch.zeros(0, 3, 8), torch.zeros(3, 8), None)
    learner.update_sequences(data, UpdateNoise.draw(learner.model, 8, generator))
    moved = {name.split(".")[0] for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved >= {"encoder", "dynamics", "reward_head", "energy_head", "critics", "target_critics", "policy_head", "score_head"}


def test_weights_that_do_not_fit_are_refused():
    agent = several()
    with pytest.raises(UserError, match="trained with --width 16, not 32"):
        adopt(MBDPO(replace(TINY, width=32), TASKS[0].shape, ()), agent, 0)
    with pytest.raises(UserError, match="for 6 observation entries and this environment has 9"):
        adopt(MBDPO(TINY, TASKS[0].shape._replace(observation=9), ()), agent, 0)
    with pytest.raises(UserError, match="for 3 observation entries and this environment has 2"):
        adopt(MBDPO(TINY, TASKS[0].shape._replace(observation=2), ()), specialise(agent, 0, TASKS[0]), None)


# ------------------------------------------------------------------------------------------------ runs


def test_stopped_and_resumed_runs_equal_one_in_one_go(folder, whole, tmp_path):
    pretrain(config(folder, tmp_path / "parts", total_updates=3), TINY)
    pretrain(config(folder, tmp_path / "parts"), TINY, resume=True)
    assert_runs_equal(whole, tmp_path / "parts")
    lines = [[{k: v for k, v in line.items() if k != "wall_s"} for line in read_metrics(run)] for run in (whole, tmp_path / "parts")]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [2, 4, 6]
    assert lines[0][-1].keys() >= {"train/reward_loss", "train/value_loss", "train/score_loss", "train/updates"}


@pytest.mark.skipif(not ops.native_supported(), reason="there are no native operations for this processor")
def test_compiled_pretraining_is_the_eager_one_and_goes_on_to_the_bit(folder, tmp_path):
    wide = replace(TINY, width=32, latent=32, encoder_width=32, precision="float32")
    eager = pretrain(config(folder, tmp_path / "eager"), wide)
    compiled = pretrain(config(folder, tmp_path / "compiled", compile="on", eval_every=6), wide)
    assert [json.loads((run / "config.json").read_text())["resolved"]["compiled"] for run in (eager, compiled)] == [False, True]
    states = [load(latest(run)[0]).learner for run in (eager, compiled)]
    assert not same(*states)
    for name, value in states[0].items():
        if name.startswith("model."):  # Adam moves a weight by its whole step where rounding decides the sign of a gradient near zero
            torch.testing.assert_close(states[1][name], value, rtol=2e-3, atol=wide.learning_rate)
    pretrain(config(folder, tmp_path / "parts", compile="on", total_updates=3), wide)
    assert_runs_equal(compiled, pretrain(config(folder, tmp_path / "parts", compile="on"), wide, resume=True))
    assert load_policy(compiled, task="swing", compile=True).learner.compiled


def test_auto_compiles_long_pretraining():
    pays = COMPILE_PAYS_AFTER
    for updates, widths, wanted in ((pays, {}, ops.native_wins(32)), (pays - 1, {}, False), (pays, {"width": 48}, False)):
        found = _compiles(PretrainConfig(total_updates=updates), MBDPOConfig(**widths), torch.device("cpu"))
        assert found is wanted, (updates, widths)


def test_losses_fall_and_every_task_has_its_discount(folder, tmp_path):
    learner_config = replace(TINY, learning_rate=1e-2, batch_size=32)
    data = Dataset(folder)
    agent = MBDPO(learner_config, padded_shape(6, 2), (), 0, tasks=model_tasks(data.tasks))
    np.testing.assert_allclose(agent.model.gamma, [heuristic_discount(task.episode_length) for task in TASKS], rtol=1e-6)
    loop = Pretraining(config(folder, tmp_path), data, agent, [], Processes("cpu"), SILENT, StopRequest())
    history = []
    for _ in range(25):
        loop.advance()
        history.append(float(loop.metrics["reward_loss"]))
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])


def test_ctrl_c_writes_a_checkpoint(folder, whole, tmp_path, monkeypatch, capsys):
    advance = Pretraining.advance

    def interrupted(self):
        advance(self)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Pretraining, "advance", interrupted)
    args = ["pretrain", "mbdpo", "--preset", "small", *FLAGS, "--data", str(folder), "--total-updates", "6", "--eval-every", "0", "--seed", "3", "--quiet"]
    assert main([*args, "--threads", "1", "--out", str(tmp_path / "run")]) == 130
    assert "stopped at update 3" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["pretrain", "mbdpo", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert_runs_equal(whole, tmp_path / "run")


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(folder, tmp_path, monkeypatch):
    sequences = Pretraining.sequences

    def broken(self, windows):
        data = sequences(self, windows)
        return data._replace(reward=data.reward * torch.nan) if self.step == 5 else data

    monkeypatch.setattr(Pretraining, "sequences", broken)
    with pytest.raises(NonFiniteError, match=r"update 5; the last good checkpoint is of update 4"):
        pretrain(config(folder, tmp_path / "run"), TINY)


def test_an_evaluation_that_fails_loses_nothing(folder, tmp_path, monkeypatch):
    whole = pretrain(config(folder, tmp_path / "whole", eval_every=3, checkpoint_every=100, eval_tasks=("swing",)), TINY)

    sequences = Pretraining.sequences

    def stall(self, action):
        raise ZeroDivisionError("stalled")

    def stall_from_now_on(self, windows):  # not yet when the environments are looked at, before the first update
        patched.setattr("gymnasium.envs.classic_control.PendulumEnv.step", stall)
        return sequences(self, windows)

    with monkeypatch.context() as patched:
        patched.setattr(Pretraining, "sequences", stall_from_now_on)
        with pytest.raises(ForeignFault, match=r"^in an evaluation, .* raised ZeroDivisionError: stalled .*last good checkpoint is of update 3\)\.$"):
            pretrain(config(folder, tmp_path / "run", eval_every=3, checkpoint_every=100, eval_tasks=("swing",)), TINY)
    assert_runs_equal(whole, pretrain(config(folder, tmp_path / "run", eval_every=3, checkpoint_every=100, eval_tasks=("swing",)), TINY, resume=True))


def test_a_trained_agent_may_plan_otherwise(whole):
    """By denoising as it was trained to, by its score network, by MPPI: from one observation, three actions within the bounds."""
    observation = np.array([1.0, 0.0, 0.5], np.float32)
    actions = [load_policy(whole, task="swing", acting={"planner": planner}).act(observation) for planner in ("denoise", "score", "mppi")]
    assert np.array_equal(actions[0], load_policy(whole, task="swing").act(observation))
    assert len({float(action[0]) for action in actions}) == 3
    assert all(abs(action[0]) <= 2 for action in actions)
    for acting, sentence in (
        ({"horizon": 2}, "horizon is no setting of acting of mbdpo: take one of action_noise, average_acts, elites"),
        ({"planner": "foo"}, "acting: planner cannot be 'foo'"),
        ({"proposals": "64"}, "proposals cannot be '64'"), ({"planner": "score", "temperature": 1.0}, "temperature does nothing here"),
        ({"planner": "mppi", "action_noise": 0.1}, "action_noise does nothing here"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            load_policy(whole, task="swing", acting=acting)


def test_a_score_network_that_was_not_trained_does_not_act(folder, tmp_path):
    run = pretrain(config(folder, tmp_path / "prior", total_updates=1), replace(TINY, td_action="prior"))
    with pytest.raises(UserError, match="acts by the score network, and this agent has trained none"):
        load_policy(run, task="swing", acting={"planner": "score"})


def test_lambda_goes_on_unless_another_is_asked_for():
    budget, shape = CostBudget(5.0, horizon=10), EnvShape(3, (-1.0,), (1.0,), 1)
    source = MBDPO(TINY, shape, (budget,))
    source.control.state = {name: torch.full_like(value, 7.0) for name, value in source.control.state.items()}
    for own, wanted in ((TINY.multiplier, 7.0), (0.25, 0.25)):
        target = MBDPO(replace(TINY, multiplier=own), shape, (budget,))
        adopt(target, source, None)
        assert float(target.multiplier) == pytest.approx(wanted)

def test_evaluation_of_each_task_and_going_on_online(folder, whole, tmp_path, capsys):
    """Offline, each task by its name or environment, then online from the weights: with a cost there, and resumed."""
    run = tmp_path / "run"
    pretrain(config(folder, run, eval_every=5, eval_tasks=("swing",)), TINY)
    evaluations = [line for line in read_metrics(run) if line["kind"] == "eval"]
    assert [line["step"] for line in evaluations] == [5, 6]
    assert evaluations[0]["eval/return_mean"] == evaluations[0]["eval/swing/return_mean"]
    assert evaluations[0]["eval/swing/length_mean"] == 5
    assert_runs_equal(run, whole)  # evaluation touches nothing
    assert main(["evaluate", str(run), "--task", TOY]) == 0
    assert "10 episodes of tests/PretrainToy-v0" in capsys.readouterr().out
    assert (run / "evaluation-6-tests-PretrainToy-v0.json").exists()
    assert main(["evaluate", str(run)]) == 2
    assert "has 2 tasks: name one with --task: swing, toy" in capsys.readouterr().err
    policy = load_policy(run, task="swing")
    assert (policy.env, policy.step, policy.seed) == (PENDULUM, 6, 3)
    assert abs(policy.act(np.zeros(3, np.float32))) <= 2

    train_flags = ["--total-steps", "40", "--warmup-steps", "20", "--eval-every", "1000", "--threads", "1", "--compile", "off", "--quiet"]
    online = ["train", "mbdpo", "--start-from", str(run), "--start-task", "toy", "--env", TOY, "--cost-limit", "3", *train_flags]
    assert main([*online, "--out", str(tmp_path / "online")]) == 0
    assert main(["train", "mbdpo", "--resume", str(tmp_path / "online"), "--total-steps", "44", "--quiet"]) == 0
    settings = json.loads((tmp_path / "online" / "config.json").read_text())
    assert settings["learner"]["gamma"] == heuristic_discount(4)
    assert settings["train"]["warmup_actions"] == "policy"
    learner, base, _ = start_from(tmp_path / "online", None)  # a run on one environment can be started from too
    fresh = learner(base, load_policy(tmp_path / "online").shape._replace(constraints=0), (), 0, torch.device("cpu"), compile=False)
    assert torch.equal(fresh.model.encoder.first[0], load_policy(tmp_path / "online").learner.model.encoder.first[0])

    for args, said in (
        (["train", "mbdpo", "--resume", str(run)], "is a run of `saddlepoint pretrain`"),
        ([*online, "--preset", "small"], "leave out --preset"),
        (["train", "mbdpo", "--env", TOY, "--start-task", "toy"], "--start-task does nothing here"),
        (["train", "algd", *online[2:]], "was trained with mbdpo, not algd"),
        ([*online, "--width", "32", "--out", str(tmp_path / "x")], "trained with --width 16, not 32"),
        (["train", "mbdpo", "--env", TOY, "--start-from", str(tmp_path / "online"), "--start-task", "toy"], "leave out --start-task"),
        (["evaluate", str(tmp_path / "online"), "--task", "toy"], "leave out --task"),
    ):
        assert main(args) == 2, args
        assert said in capsys.readouterr().err


def test_the_success_rate_is_over_the_tasks_that_report_one():
    tasks = [Task(name, name, 1, (-1.0,), (1.0,), 10) for name in ("a", "b", "c")]
    metrics = {f"eval/{task.name}/{mode}return_mean": float(i) for i, task in enumerate(tasks) for mode in ("", "stochastic/")}
    assert "eval/success_rate" not in over_tasks(metrics, tasks)
    found = over_tasks(metrics | {"eval/a/success_rate": 0.4, "eval/c/success_rate": 0.8, "eval/c/stochastic/success_rate": 0.1}, tasks)
    assert found["eval/return_mean"] == 1.0
    assert found["eval/success_rate"] == pytest.approx(0.6)
    assert found["eval/stochastic/success_rate"] == 0.1


def test_mistakes(folder, tmp_path, capsys):
    run = tmp_path / "run"
    pretrain(config(folder, run, total_updates=1), TINY)
    data = ["--data", str(folder)]
    for args, said in (
        ([], "pretraining is for world models"),
        (["mbdpo"], "give --data FOLDER"),
        (["mbdpo", "--data", str(tmp_path)], "is not a data set"),
        (["mbdpo", *data, "--seed", "9" * 26], "--seed must lie from 0"),
        (["mbdpo", *data, "--eval-episodes", "9"], "--eval-episodes must lie from 10"),
        (["mbdpo", *data, "--gamma", "0.9"], "--gamma does nothing here: each task has"),
        (["mbdpo", *data, "--rho", "2"], "costs are not part of the data"),
        (["mbdpo", *data, "--eval-tasks", "other"], "has no task 'other': name one with --eval-tasks"),
        (["mbdpo", *data, "--eval-every", "0", "--eval-tasks", "toy"], "--eval-tasks does nothing"),
        (["mbdpo", *data, "--horizon", "6", "--out", str(tmp_path / "long")], "no episode of 6 steps"),
        (["mbdpo", *data, "--out", str(run)], "already holds a run"),
        (["mbdpo", "--resume", str(run), "--seed", "4"], "leave out --seed"),
        (["mbdpo", "--resume", str(tmp_path / "nowhere")], "is not a run folder"),
    ):
        assert main(["pretrain", *args]) == 2, args
        assert said in capsys.readouterr().err, args
    assert not (tmp_path / "long").exists()
    with Writer(tmp_path / "other", 6, 2) as writer:
        writer.add(np.array([0]), np.zeros((1, 6, 3)), np.zeros((1, 5, 1)), np.zeros((1, 5)), np.zeros((1, 5)))
        writer.tasks = TASKS
    assert main(["pretrain", "mbdpo", "--resume", str(run), "--total-updates", "2", "--data", str(tmp_path / "other")]) == 2
    assert "is not the data set that" in capsys.readouterr().err
    with Writer(tmp_path / "wrong", 6, 2) as writer:
        writer.add(np.array([0]), np.zeros((1, 6, 6)), np.zeros((1, 5, 2)), np.zeros((1, 5)), np.zeros((1, 5)))
        writer.tasks = (replace(TASKS[0], env=TOY),)
    with pytest.raises(UserError, match="does not fit the 3 and 1 of swing"):
        pretrain(config(tmp_path / "wrong", tmp_path / "x", eval_every=2), TINY)


# ------------------------------------------------------------------------------------------------ two processes


def float64_updates(folder: Path, out: Path) -> None:
    """Six updates in float64, where rounding cannot hide a wrong share; the state to ``out``."""
    processes = Processes("cpu")
    agent = MBDPO(TINY, padded_shape(6, 2), (), 0, dtype=torch.float64, tasks=model_tasks(TASKS))
    with torch.no_grad():
        agent.model.task_table[0] *= 30  # too long, so that looking it up rescales it
    agent.peers = processes
    loop = Pretraining(config(folder, out), Dataset(folder), agent, [], processes, SILENT, StopRequest())
    for _ in range(6):
        loop.advance()
    if processes.main:
        save_file(agent.state_dict(), out)


def in_one_of_two_processes(folder: Path, out: Path) -> None:
    float64_updates(folder, out / "updates")
    pretrain(config(folder, out / "run", device="cpu"), TINY)
    leave_processes()
    threads = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), f"threads that can abort the end of the process: {threads}"


def test_two_gloo_processes_equal_one(folder, whole, tmp_path):
    """The same windows and noise, in two halves; gradients, energy statistics, value scale and embeddings as of the whole batch."""
    float64_updates(folder, tmp_path / "alone")
    end_well(start_two(in_one_of_two_processes, folder, tmp_path))
    alone, shared_state = (load_file(tmp_path / name) for name in ("alone", "updates"))
    assert alone.keys() == shared_state.keys()
    for name, value in alone.items():
        torch.testing.assert_close(shared_state[name], value, atol=1e-9, rtol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
    # In float32 Adam makes much of gradients that are only rounding, up to a share of its step of 3e-4.
    one, two = (load(latest(run)[0]).learner for run in (whole, tmp_path / "run"))
    for name, value in one.items():
        if name.startswith("model."):
            torch.testing.assert_close(two[name], value, atol=3e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [2, 4, 6]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]["processes"] == 2


def test_what_processes_cannot_share_is_refused():
    _require_even(TINY, 2)
    for changes, said in (
        ({"batch_size": 9}, "batch-size 9 evenly"),
        ({"score_states": 3}, "score-states"),
        ({"score_training": "released", "td_action": "prior", "planner": "score"}, "score's training"),
        ({"leak_task_gradient": True}, "for one process"),
    ):
        with pytest.raises(UserError, match=said):
            _require_even(replace(TINY, **changes), 2)
        _require_even(replace(TINY, **changes), 1)
