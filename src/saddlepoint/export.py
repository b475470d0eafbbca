"""`saddlepoint export`: a run's policy as an ONNX file, with all between the observation and the action inside."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import saddlepoint
from saddlepoint.files import atomic_write
from saddlepoint.flags import parse
from saddlepoint.nn.exportable import Exportable, ExportMode
from saddlepoint.nn.normaliser import NormalisedLearner
from saddlepoint.policies import load_policy
from saddlepoint.systems import find, find_system, verbs_of_run
from saddlepoint.train import run
from saddlepoint.train.at_budget import AtBudget
from saddlepoint.trained_policy import TrainedPolicy
from saddlepoint.types import EnvShape, UserError

if TYPE_CHECKING:
    import onnx

OUTPUTS = ["action", "valid"]
EXAMPLES = 3
"""rows of the example inputs: not 1, which would be taken for a constant"""
OPSETS = range(18, 24)
"""those that PyTorch's exporter writes itself"""
TOLERANCE = 1e-5
"""largest difference from the torch policy, as a share of the action's range"""


@dataclass(frozen=True)
class ExportFlags:
    """The policy of a run as an ONNX file: observations in, actions in the environment's own units out, any batch size."""

    mode: ExportMode = "deterministic"
    """the noise-free action, or a sample, whose standard normal noise is then an input"""
    checkpoint: str | None = None
    """which checkpoint: a step, or best (the best evaluation within the budget); by default the newest whole one"""
    opset: int = 18
    """version of ONNX's operators"""


def export_command(args: list[str]) -> None:
    """`saddlepoint export RUN FILE ...`"""
    helping = bool(args) and args[0] in ("-h", "--help")
    if not helping and (len(args) < 2 or any(arg.startswith("-") for arg in args[:2])):
        raise UserError("export needs the run folder and the file: `saddlepoint export RUN policy.onnx`, with --help for its flags.")
    if not helping and (own := find(verbs_of_run(Path(args[0])).export)) is not None:  # such as a pipeline, not a policy
        own(args)
        return
    flags = parse(ExportFlags, ExportFlags(), args if helping else args[2:], "saddlepoint export RUN FILE").values
    folder, path = Path(args[0]), Path(args[1])
    policy = export(folder, path, flags.mode, flags.opset, checkpoint=flags.checkpoint)
    print(f"{path}: the {flags.mode} policy of {folder} after {policy.step} steps, {path.stat().st_size:,} bytes; compared with PyTorch's")


def export(
    folder: Path, path: Path, mode: ExportMode = "deterministic", opset: int = 18, *, checkpoint: int | str | None = None
) -> TrainedPolicy:  # fmt: skip
    """Write the policy of the run ``folder``, of a ``checkpoint`` as ``load_policy`` takes it, to ``path``, atomically, and return it.

    Inputs are ``observation`` (batch, observation), of a run with --budget-range ``budget`` (batch,) in the units of
    --cost-limit, and, for a sample, ``noise`` (batch, ...); outputs are ``action``
    (batch, action), all float32 and inside the bounds to the bit, and ``valid`` (batch,) bool, false where the
    observation is not finite or the budget outside of its range: the action is then NaN. What the policy is stands in the file's ``metadata_props``.
    Raises ``UserError``.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"exporting needs {' and '.join(missing)}, which is an extra: pip install saddlepoint[export].")
    if opset not in OPSETS:
        raise UserError(f"--opset must lie between {OPSETS[0]} and {OPSETS[-1]}, not {opset}.")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise UserError(f"the file {path} {what}: name a file in an existing one.")
    if path.suffix.lower() != ".onnx":  # it may be a run's own file
        raise UserError(f"the file {path} is not named as an ONNX file: let it end in .onnx.")
    policy = load_policy(folder, checkpoint=checkpoint)
    content = run.read(folder)
    system = content["system"]
    exporter = find_system(system, content.get("module"), folder).exporter
    if exporter is None:
        raise UserError(f"{folder} was trained with {system}, whose policy cannot be written as an ONNX file.")
    learner: Any = policy.learner
    normaliser, dial = None, policy.budget_range
    if isinstance(learner, AtBudget):
        learner = learner.learner
    if isinstance(learner, NormalisedLearner):
        learner, normaliser = learner.inner, learner.normaliser
    exportable = exporter(learner, mode)
    if isinstance(exportable, nn.Module):  # of observations alone
        exportable = Exportable(exportable, {"observation": torch.zeros(EXAMPLES, policy.shape.observation)}, "")
    inputs = exportable.inputs
    if dial is not None:
        own = {"observation": torch.zeros(EXAMPLES, policy.shape.observation), "budget": torch.full((EXAMPLES,), dial[0])}
        inputs = own | {name: value for name, value in inputs.items() if name not in own}
    exportable = exportable._replace(module=deployed(exportable.module, policy.shape, normaliser, dial), inputs=inputs)
    model = to_onnx(exportable, opset, OUTPUTS)
    properties = _properties(policy, system, mode, exportable.noise)
    if mode == "stochastic":
        properties["noise_correlation"] = str(getattr(learner, "noise_correlation", 0.0))
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    _require_equal(exportable, content, policy)
    atomic_write(path, content)
    return policy


class Deployed(nn.Module):
    """observation, ... -> action inside the bounds, and whether the observation was finite: (batch, action), (batch,) bool."""

    def __init__(self, policy: nn.Module, shape: EnvShape, normaliser: nn.Module | None) -> None:
        super().__init__()
        self.policy, self.normaliser = policy, normaliser
        self.low, self.high = torch.tensor(shape.action_low), torch.tensor(shape.action_high)

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        valid = torch.isfinite(observation).all(dim=-1)
        finite = torch.where(valid.unsqueeze(-1), observation, 0.0)
        seen = finite if self.normaliser is None else self.normaliser(finite)
        action = self.policy(seen) if noise is None else self.policy(seen, noise)
        # A tanh of another library may exceed 1 by a bit.
        inside = torch.minimum(torch.maximum(action, self.low), self.high)
        return torch.where(valid.unsqueeze(-1), inside, torch.nan), valid


class DeployedDial(nn.Module):
    """``Deployed`` of a policy whose observations end with a budget: observation, budget (batch,), ...; a budget that is not in the range is not ``valid``."""

    def __init__(self, inner: Deployed, span: tuple[float, float]) -> None:
        super().__init__()
        self.inner, self.span = inner, span

    def forward(self, observation: Tensor, budget: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, high = self.span
        known = torch.where((budget >= low) & (budget <= high), budget, torch.nan)
        return self.inner(torch.cat([observation, known.unsqueeze(-1)], -1), noise)


def deployed(policy: nn.Module, shape: EnvShape, normaliser: nn.Module | None, span: tuple[float, float] | None) -> nn.Module:
    """What an ONNX file holds."""
    inner = Deployed(policy, shape, normaliser)
    return inner if span is None else DeployedDial(inner, span)


def to_onnx(exportable: Exportable, opset: int, outputs: Sequence[str] = OUTPUTS[:1]) -> onnx.ModelProto:
    """The module as an ONNX model whose leading axes are all the same free ``batch``."""
    batch = {0: torch.export.Dim("batch")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says which of torchvision's operators it does without
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's to its own developers; what was written is compared below
        program = torch.onnx.export(
            exportable.module.eval(), tuple(exportable.inputs.values()), input_names=list(exportable.inputs), output_names=list(outputs),
            opset_version=opset, dynamo=True, dynamic_shapes=tuple(batch for _ in exportable.inputs), verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _properties(policy: TrainedPolicy, system: str, mode: ExportMode, noise: str) -> dict[str, str]:
    """The file's metadata; what is not a text is JSON."""
    properties = {
        "saddlepoint": saddlepoint.__version__, "system": system, "env": policy.env, "mode": mode,
        "step": str(policy.step), "seed": str(policy.seed),
        "budgets": json.dumps([asdict(budget) for budget in policy.budgets]),
        "action_repeat": str(policy.setup.action_repeat), "env_kwargs": json.dumps(dict(policy.setup.kwargs)),
        "flatten": json.dumps(policy.setup.flatten), "action_dtype": policy.shape.action_dtype,
        "action_low": json.dumps(policy.shape.action_low), "action_high": json.dumps(policy.shape.action_high),
    }  # fmt: skip
    if policy.budget_range is not None:
        properties["budget_range"] = json.dumps(policy.budget_range)
    return properties | ({"noise": f"standard normal, {noise}"} if noise else {})


def _require_equal(exportable: Exportable, content: bytes, policy: TrainedPolicy) -> None:
    """Raises ``UserError`` when onnxruntime does not compute what PyTorch does, for a batch of random inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(7, *example.shape[1:], generator=generator) for name, example in exportable.inputs.items()}
    inputs["observation"][5] *= 1e3
    inputs["observation"][6] *= torch.nan
    if policy.budget_range is not None:
        inputs["budget"] = torch.linspace(*policy.budget_range, 7)
    with torch.no_grad():
        wanted, _ = exportable.module(*inputs.values())
    got, valid = session.run(OUTPUTS, {name: value.numpy() for name, value in inputs.items()})
    low, high = torch.tensor(policy.shape.action_low), torch.tensor(policy.shape.action_high)
    action = torch.from_numpy(got[:6])
    worst = float(((action - wanted[:6])[:5].abs() / (high - low)).max())
    if not worst <= TOLERANCE:
        raise UserError(f"onnxruntime's actions differ from PyTorch's by {worst:.1e} of their range: try another --opset; nothing was written.")
    if valid.tolist() != [True] * 6 + [False] or not ((action >= low) & (action <= high)).all():
        raise UserError(
            "onnxruntime's actions leave the bounds, or take an observation that is not finite: try another --opset;"
            " nothing was written."
        )
