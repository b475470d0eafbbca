"""A policy on its own: as an ONNX file, and loaded without the training stack."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import EARLIER, PARITY_VP, ALGDConfig
from saddlepoint.algd.policy import ChainNoise
from saddlepoint.baselines.config import SACConfig
from saddlepoint.cli import main
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.export import OUTPUTS, Deployed, export, to_onnx
from saddlepoint.nn.exportable import ExportMode
from saddlepoint.policies import load_policy
from saddlepoint.systems import SYSTEMS
from saddlepoint.train import best, checkpoint, run
from saddlepoint.train.config import TrainConfig
from saddlepoint.types import EnvShape, UserError

SHAPE = EnvShape(observation=7, action_low=(-1.0, 0.5, -3.0), action_high=(2.0, 0.75, -1.0), constraints=2)
BUDGETS = (CostBudget(2.0, horizon=50), CostBudget(1.0, horizon=50))
SMALL = replace(EARLIER, policy_hidden=(24, 24), critic_hidden=(16, 16), steps=3)  # a first, a middle and a last one: more only take longer to export
VP = replace(SMALL, schedule="vp", prediction="clean")
DDPM = replace(PARITY_VP, policy_hidden=(24, 24), critic_hidden=(16, 16), steps=3)
SIZES = (1, 2, 33)


def make(system: str, config: Any, shape: EnvShape = SHAPE) -> Any:
    return SYSTEMS[system].learner_class()(config, shape, BUDGETS[: shape.constraints], 3, torch.device("cpu"), compile=False)


def session(learner: Any, system: str, mode: ExportMode, opset: int = 18) -> Any:
    import onnxruntime

    exporter = SYSTEMS[system].exporter
    assert exporter is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = to_onnx(exporter(learner, mode), opset).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def require_equal(found: Any, wanted: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
    """onnxruntime's actions are those of ``wanted`` for random inputs (batch, *shape) of several batch sizes, and inside the bounds."""
    low, high = np.array(SHAPE.action_low), np.array(SHAPE.action_high)
    generator = torch.Generator().manual_seed(1)
    for batch in SIZES:
        inputs = [2 * torch.randn(batch, *shape, generator=generator) for shape in shapes]
        names = ["observation", "noise"][: len(inputs)]
        (got,) = found.run(["action"], {name: value.numpy() for name, value in zip(names, inputs)})
        with torch.no_grad():
            np.testing.assert_allclose(got, wanted(*inputs).numpy(), atol=1e-5, rtol=0)
        assert got.shape == (batch, SHAPE.action)
        assert (got >= low - 1e-6).all()
        assert (got <= high + 1e-6).all()


@pytest.mark.parametrize("config", [SMALL, VP, DDPM], ids=["ve", "vp", "ddpm"])
def test_the_denoising_chain_is_unrolled(config: ALGDConfig) -> None:
    pytest.importorskip("onnxruntime")
    agent: ALGD = make("algd", config)

    def sample(observation: Tensor, noise: Tensor) -> Tensor:
        return agent.policy.sample(observation, ChainNoise(noise[:, 0], noise[:, 1:].transpose(0, 1)))

    require_equal(session(agent, "algd", "stochastic"), sample, (7,), (config.steps + 1, 3))
    unused = torch.Generator()
    require_equal(session(agent, "algd", "deterministic"), lambda o: agent.act(o, "deterministic", unused), (7,))


def test_the_best_of_n_is_chosen_inside() -> None:
    pytest.importorskip("onnxruntime")
    agent: ALGD = make("algd", replace(SMALL, evaluation="best_of_n", evaluation_samples=5, multiplier=3.0))

    def act(observation: Tensor, noise: Tensor) -> Tensor:
        rows = noise.permute(2, 1, 0, 3).flatten(1, 2)  # (K + 1, N * batch, action), as ``act`` lays them out
        draw, agent.policy.draw = agent.policy.draw, lambda n, g: ChainNoise(rows[0], rows[1:])  # type: ignore[method-assign]
        try:
            return agent.act(observation, "deterministic", torch.Generator())
        finally:
            agent.policy.draw = draw  # type: ignore[method-assign]

    require_equal(session(agent, "algd", "deterministic"), act, (7,), (5, SMALL.steps + 1, 3))


@pytest.mark.parametrize("system", ["sac-lag", "cal"])
def test_a_gaussian_policy(system: str) -> None:
    pytest.importorskip("onnxruntime")
    agent = make(system, replace(SYSTEMS[system].config_class()(), policy_hidden=(24, 24), critic_hidden=(16, 16)))
    require_equal(session(agent, system, "stochastic"), lambda o, n: agent.policy.sample(agent.encoder(o), n).action, (7,), (3,))
    unused = torch.Generator()
    require_equal(session(agent, system, "deterministic"), lambda o: agent.act(o, "deterministic", unused), (7,))


def test_widths_that_native_operations_take_leave_the_batch_free() -> None:
    """The default widths: an export must not ask for the batch that its examples have."""
    pytest.importorskip("onnxruntime")
    for config in (replace(SMALL, policy_hidden=(32, 64), critic_hidden=(32, 32)), replace(ALGDConfig(), policy_hidden=(64, 32))):
        agent = make("algd", config)
        act = partial(agent.act, mode="deterministic", generator=torch.Generator())
        require_equal(session(agent, "algd", "deterministic"), act, (7,))


def write_run(folder: Path, steps: tuple[int, ...] = (100, 200), learner: ALGDConfig = SMALL) -> Path:
    """A run folder as training leaves it, with a policy of its own in each checkpoint."""
    config = TrainConfig(env="saddlepoint/Toy-v0", seed=5)
    resolved = {"device": "cpu", "threads": 1, "compiled": False}
    folder.mkdir()
    run.write(folder, run.describe("algd", config, learner, SHAPE, BUDGETS, resolved))
    for step in steps:
        agent = ALGD(learner, SHAPE, BUDGETS, seed=step)
        checkpoint.save(folder, checkpoint.Checkpoint(step, agent.state_dict(), {"rows": torch.ones(50)}, {"updates": 1}), keep=5)
    return folder


def test_the_file_says_what_it_is_and_computes_what_the_run_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, path = write_run(tmp_path / "run"), tmp_path / "policy.onnx"
    path.write_text("an older file")
    assert main(["export", str(folder), str(path)]) == 0, capsys.readouterr().err
    assert "deterministic policy" in capsys.readouterr().out
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["policy.onnx", "run"]
    found = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [(x.name, x.shape[1:]) for x in found.get_inputs()] == [("observation", [7])]
    properties = found.get_modelmeta().custom_metadata_map
    assert {name: properties[name] for name in ("system", "env", "mode", "step", "seed")} == {
        "system": "algd", "env": "saddlepoint/Toy-v0", "mode": "deterministic", "step": "200", "seed": "5",
    }  # fmt: skip
    assert [CostBudget(**entry) for entry in json.loads(properties["budgets"])] == list(BUDGETS)
    assert json.loads(properties["action_low"]) == list(SHAPE.action_low)
    observation = np.linspace(-1, 1, 7, dtype=np.float32)
    got, valid = found.run(None, {"observation": observation[None]})
    np.testing.assert_allclose(got[0], load_policy(folder).act(observation), atol=1e-5)
    assert valid.tolist() == [True]
    assert {name: json.loads(properties[name]) for name in ("action_repeat", "env_kwargs", "flatten")} == {
        "action_repeat": 0, "env_kwargs": {}, "flatten": False,
    }  # fmt: skip


def test_a_sampled_policy_says_how_its_noise_is_carried_on(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, path = write_run(tmp_path / "run", (100,), replace(SMALL, noise_memory=10.0)), tmp_path / "policy.onnx"
    found = {}
    for mode in ("stochastic", "deterministic"):
        export(folder, path, mode)
        found[mode] = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    assert float(found["stochastic"]["noise_correlation"]) == 1 - 20 / 50  # a twentieth of 50 steps
    assert "noise_correlation" not in found["deterministic"]


def test_a_policy_over_its_budget_is_told_of_and_the_best_one_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = write_run(tmp_path / "run", (100,)), tmp_path / "policy.onnx"
    agent = ALGD(SMALL, SHAPE, BUDGETS, seed=100)
    over = {"over": {"step": 200, "costs": "sampled cost 9.00 of 2"}}
    checkpoint.save(folder, checkpoint.Checkpoint(200, agent.state_dict(), {}, {}, over), keep=5)
    best.keep(folder, 100, agent.state_dict(), {}, {})
    with pytest.warns(UserWarning, match=r"at step 200, was over the budget \(sampled cost 9\.00 of 2\): --checkpoint best.* of step 100, which"):
        load_policy(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_policy(folder, checkpoint=100).note is None
        assert load_policy(folder, checkpoint="best").step == 100
    pytest.importorskip("onnxruntime")
    assert main(["export", str(folder), str(path)]) == 0
    assert "warning: the last evaluation before the checkpoint in" in capsys.readouterr().err
    assert main(["export", str(folder), str(path), "--checkpoint", "best"]) == 0
    out, err = capsys.readouterr()
    assert f"the deterministic policy of {folder} after 100 steps" in out
    assert "warning" not in err
    assert main(["export", str(folder), str(path), "--checkpoint", "7"]) == 2
    assert "it keeps 100, 200 and best" in capsys.readouterr().err


@pytest.mark.parametrize("system", ["algd", "sac"])
@pytest.mark.parametrize("mode", ["deterministic", "stochastic"])
def test_actions_never_leave_the_bounds_and_nan_is_flagged(system: str, mode: ExportMode) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    shape = EnvShape(7, (-1.0, -0.3), (1.0, 0.7), 1)
    config = SMALL if system == "algd" else SACConfig(policy_hidden=(16,), critic_hidden=(16,))
    exporter = SYSTEMS[system].exporter
    assert exporter is not None
    exportable = exporter(make(system, config, shape), mode)
    deployed = exportable._replace(module=Deployed(exportable.module, shape, None))
    content = to_onnx(deployed, 18, OUTPUTS).SerializeToString()
    found = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(2)
    inputs = {name: torch.randn(6000, *example.shape[1:], generator=generator) for name, example in exportable.inputs.items()}
    inputs["observation"] *= 1e3  # every tanh is at its end
    inputs["observation"][7, 3], inputs["observation"][9, 0] = torch.nan, torch.inf
    action, valid = found.run(None, {name: value.numpy() for name, value in inputs.items()})
    assert np.flatnonzero(~valid).tolist() == [7, 9]
    assert np.isnan(action[[7, 9]]).all()
    low, high = np.array(shape.action_low, np.float32), np.array(shape.action_high, np.float32)
    assert ((action[valid] >= low) & (action[valid] <= high)).all()
    assert (action[valid] == high).any()


def test_a_faulty_call_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(write_run(tmp_path / "run", steps=(100,)))
    file = str(tmp_path / "policy.onnx")
    for args, words in (
        ([folder], "needs the run folder and the file"),
        ([folder, "--mode", "stochastic"], "needs the run folder and the file"),
        ([str(tmp_path), file], "not a run folder"),
        ([folder, file, "--mode", "best"], "--mode"),
        ([folder, file, "--opset", "7"], "--opset must lie between"),
        ([folder, file, "--opset", "x"], "--opset"),
        ([folder, str(tmp_path)], "is a folder"),
        ([folder, str(tmp_path / "none" / "policy.onnx")], "does not exist"),
        ([folder, str(Path(folder) / "config.json")], "let it end in .onnx"),
    ):
        assert main(["export", *args]) == 2, args
        err = capsys.readouterr().err
        assert words in err, args
        assert len(err.splitlines()) == 1
    monkeypatch.setitem(SYSTEMS, "algd", replace(SYSTEMS["algd"], export=None))
    with pytest.raises(UserError, match="cannot be written as an ONNX file"):
        export(Path(folder), Path(file))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install saddlepoint\[export\]"):
        export(Path(folder), Path(file))
    assert not Path(file).exists()


def test_a_full_disk_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    folder, path = write_run(tmp_path / "run", steps=(100,)), tmp_path / "policy.onnx"
    path.write_text("an older file")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        export(folder, path)
    assert path.read_text() == "an older file"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["policy.onnx", "run"]


def test_a_policy_acts_without_the_training_stack(tmp_path: Path) -> None:
    program = f"""
import sys
import warnings
import numpy as np
from saddlepoint import load_policy
policy = load_policy({str(write_run(tmp_path / "run"))!r})
assert policy.act(np.zeros(7, np.float32)).shape == (3,)
import torch
from saddlepoint.nn.optim import Adam
adam = Adam([torch.ones(1, requires_grad=True)], lr=0.1)
adam.param_groups[0]["params"][0].sum().backward()
adam.step(), adam.zero_grad(), adam.load_state_dict(adam.state_dict())  # as training does
heavy = ("gymnasium", "mujoco", "tensorboard", "rich", "matplotlib", "tyro", "imageio", "pandas", "ray", "onnx")
own = ("saddlepoint.train.loop", "saddlepoint.train.start", "saddlepoint.train.log", "saddlepoint.envs", "saddlepoint.flags", "torch._dynamo")
print([name for name in sys.modules if name.split(".")[0] in heavy or name.startswith(own)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_damaged_replay_stops_resuming_and_not_the_policy(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "checkpoints" / "200" / "replay.safetensors").write_bytes(b"damaged")
    policy = load_policy(folder)
    assert (policy.step, policy.note) == (200, None)
    state = ALGD(SMALL, SHAPE, BUDGETS, seed=200).state_dict()
    for name, tensor in policy.learner.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    path, note = checkpoint.latest(folder)  # what resuming reads
    assert path.name == "100"
    assert note is not None
    assert "replay.safetensors" in note
    (folder / "checkpoints" / "200" / "replay.safetensors").unlink()
    assert load_policy(folder).step == 200
    (folder / "checkpoints" / "200" / "learner.safetensors").write_bytes(b"damaged")
    policy = load_policy(folder)
    assert policy.step == 100
    assert policy.note is not None
    with pytest.raises(UserError, match=r"learner\.safetensors"):
        checkpoint.load_learner(folder / "checkpoints" / "200")
