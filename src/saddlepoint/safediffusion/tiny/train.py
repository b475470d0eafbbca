"""Training of the tiny world's models: three stages that share a budget of time, go on after an interruption, and leave
a released folder."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from saddlepoint.memory import keep_freed_memory
from saddlepoint.nn.optim import AdamW
from saddlepoint.safediffusion.extras import quiet_libraries
from saddlepoint.safediffusion.tiny.flow import FlowStage, build_transformer
from saddlepoint.safediffusion.tiny.models import build_clip, build_unet, build_vae, load_world, train_tokenizer
from saddlepoint.safediffusion.tiny.release import release, release_flow
from saddlepoint.safediffusion.tiny.stages import ClipStage, Pool, Stage, UnetStage, VaeStage
from saddlepoint.train import checkpoint
from saddlepoint.train import run as run_folder
from saddlepoint.train.signals import Interrupted, StopRequest, stop_on_signal
from saddlepoint.train.threads import use_threads
from saddlepoint.types import NonFiniteError, UserError

SHARES = {"clip": 0.22, "vae": 0.18, "unet": 0.60}
"""of the time"""
FLOW_SHARES = {"transformer": 1.0}
"""of the time of the tiny flow world, whose other models are there already"""
STREAMS = (*SHARES, *FLOW_SHARES)
"""stages by the number of their random stream"""
WARM_UP = 0.02
"""share of a stage's time in which AdamW's step grows"""
EMA = 0.999
SAVE_SECONDS, SAY_SECONDS = 60.0, 20.0
MEASURES = 6
"""of a stage"""
WORK = "training"
"""folder of the checkpoints inside the released one; it may be deleted when all is done"""


@dataclass(frozen=True)
class TinyConfig:
    """Train a tokenizer, a CLIP, a VAE and a UNet on the tiny world, and write them as a pipeline folder with a model
    card; or, with --world, an SD3-like transformer on the CLIP and the VAE of a world that is there (the tiny flow
    world)."""

    out: Path | None = None
    """folder to write; one that holds an interrupted training is gone on with"""
    world: Path | None = None
    """folder of a finished tiny world, such as models/tiny-world: an SD3-like pipeline is trained on its CLIP, VAE,
    prompts and anchors"""
    minutes: float = 60.0
    """of training, over all starts, as the main thread's time on a processor: a busy machine takes longer and learns as
    much. Drawing, measures and writing come on top"""
    seed: int = 0
    """of the weights, the scenes and the captions"""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of the products; bfloat16 is faster only on a CPU that has it in hardware"""
    compile: bool = False
    """of the UNet's training step, which needs a C++ compiler and takes a minute or two at the start"""

    def validate(self) -> None:
        """Raises ``UserError``."""
        if self.out is None:
            raise UserError("training the tiny world needs a folder to write: give --out FOLDER.")
        if not (math.isfinite(self.minutes) and self.minutes > 0):
            raise UserError(f"--minutes must be greater than 0, not {self.minutes}.")
        if self.world is not None and not (self.world / "clip").is_dir():
            raise UserError(
                f"--world {self.world} is not a tiny world (it has no clip folder): give models/tiny-world."
            )
        if self.seed < 0 or self.threads < 0:
            raise UserError("--seed and --threads must not be negative.")

    def flags(self) -> str:
        """What the weights depend on, as flags."""
        said = f"--world {self.world} " if self.world else ""
        said += f"--minutes {self.minutes:g} --seed {self.seed}"
        said += f" --threads {self.threads}" if self.threads else ""
        said += f" --precision {self.precision}" if self.precision != "float32" else ""
        return said + (" --compile" if self.compile else "")


class Progress:
    """How far the training is: what a checkpoint holds beside the weights."""

    def __init__(self, stages: Iterable[str]) -> None:
        self.elapsed = dict.fromkeys(stages, 0.0)
        self.steps = dict.fromkeys(self.elapsed, 0)
        self.history: list[dict[str, Any]] = []

    @property
    def total(self) -> int:
        return sum(self.steps.values())


class TinyTraining:
    """All models and where their training stands. Batches are functions of the seed, the stage and the step; how many
    steps there are is up to the clock, so two runs are alike, not equal to the bit."""

    def __init__(self, config: TinyConfig, stop: StopRequest) -> None:
        assert config.out is not None
        self.config, self.stop, self.folder = config, stop, config.out / WORK
        self.shares = FLOW_SHARES if config.world else SHARES
        self.progress = Progress(self.shares)
        saved = self._saved()
        self.models: dict[str, Any]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if config.world:
                self.models = {"transformer": build_transformer()}
            else:
                self.tokenizer = train_tokenizer(config.out / "clip", config.seed)
                self.models = {"clip": build_clip(self.tokenizer), "vae": build_vae(), "unet": build_unet()}
        for model in self.models.values():
            model.eval().requires_grad_(False)  # until its stage
        self.average = {
            f"{name}.{key}": value.detach().clone()
            for name, model in self.models.items()
            for key, value in model.named_parameters()
        }
        self.optimiser: torch.optim.AdamW | None = None
        self.restored: dict[str, Tensor] = {}  # moments of the stage that was interrupted
        if saved is not None:
            self._take_up(saved)

    def run(self) -> None:
        """All stages, then the released folder."""
        cfg = self.config
        assert cfg.out is not None
        print("drawing scenes", flush=True)
        pool = Pool(cfg.seed)
        if cfg.world:
            flow = FlowStage(self.models["transformer"], *load_world(cfg.world), pool, cfg.compile)
            self._train("transformer", lambda: flow)
            print("measuring and writing the release", flush=True)
            release_flow(cfg.out, cfg.world, flow, self._told())
            return
        clip, vae, unet = (self.models[name] for name in SHARES)
        self._train("clip", lambda: ClipStage(clip, self.tokenizer, pool))
        self._train("vae", lambda: VaeStage(vae, pool))
        self._train("unet", lambda: UnetStage(unet, clip, vae, self.tokenizer, pool, self.config.compile))
        print("measuring and writing the release", flush=True)
        final = UnetStage(unet, clip, vae, self.tokenizer, pool)
        stages: list[Stage] = [ClipStage(clip, self.tokenizer, pool), VaeStage(vae, pool)]
        measured = {name: value for stage in stages for name, value in stage.measure().items()}
        release(cfg.out, final, measured, self._told())

    def _told(self) -> str:
        """The command, and what each stage was given, for the card."""
        config, progress = self.config, self.progress
        stages = ", ".join(
            f"{progress.steps[name]:,} steps of the {name} in {progress.elapsed[name] / 60:.1f} min"
            for name in self.shares
        )
        lowered = any(progress.elapsed[name] > 1.1 * 60 * config.minutes * share for name, share in self.shares.items())
        note = " An earlier start of the same training had more minutes to share." if lowered else ""
        command = f"python -m saddlepoint.safediffusion.tiny --out FOLDER {config.flags()}"
        return f"`{command}`: {stages} (of the main thread).{note}"

    def _train(self, name: str, build: Callable[[], Stage]) -> None:
        """One stage until its time is over; then its averaged weights are its weights."""
        budget = 60 * self.config.minutes * self.shares[name]
        progress, model = self.progress, self.models[name]
        if progress.elapsed[name] >= budget:
            return
        stage = build()
        model.train().requires_grad_(True)
        self.optimiser = AdamW(model.parameters(), lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)
        self._restore_moments(model)
        saved = said = time.monotonic()
        next_measure = math.floor(progress.elapsed[name] / budget * MEASURES) + 1
        while progress.elapsed[name] < budget:
            before = time.thread_time()
            loss, norm = self._step(stage, progress.elapsed[name] / budget)
            progress.elapsed[name] += time.thread_time() - before
            now = time.monotonic()
            if now - said > SAY_SECONDS:
                said = now
                share = progress.elapsed[name] / budget
                left = (budget - progress.elapsed[name]) / 60
                print(
                    f"{name}: {100 * share:.0f}%  step {progress.steps[name]:,}  loss {loss:.4f}"
                    f"  gradient {norm:.2f}  {left:.1f} min left",
                    flush=True,
                )
            if progress.elapsed[name] >= budget * next_measure / MEASURES and next_measure < MEASURES:
                next_measure += 1
                self._measure(stage)
            if self.stop() or now - saved > SAVE_SECONDS:
                self._save(model, name)
                saved = time.monotonic()
                if self.stop():
                    raise Interrupted(f"stopped in the training of the {name}; the same command goes on with it")
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(self.average[f"{name}.{key}"])
        model.eval().requires_grad_(False)
        self._measure(stage)
        self.optimiser = None
        self._save(model, name)

    def _step(self, stage: Stage, share: float) -> tuple[float, float]:
        """One step of AdamW: a short rise, then a cosine to nothing. Returns the loss and the gradient's norm."""
        assert self.optimiser is not None
        number = self.progress.steps[stage.name]
        place = [self.config.seed, 2, STREAMS.index(stage.name), number]
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        for group in self.optimiser.param_groups:
            group["lr"] = (
                stage.rate * min(1.0, (share + 1e-3) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
            )
        lowered = (
            torch.autocast("cpu", torch.bfloat16) if self.config.precision == "bfloat16" else contextlib.nullcontext()
        )
        with lowered:
            loss = stage.loss(np.random.default_rng(place), generator)
        if not bool(loss.isfinite()):
            raise NonFiniteError(f"the loss of the {stage.name} is not finite at step {number}: try another --seed.")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(stage.model.parameters(), 1.0)
        self.optimiser.step()
        self.progress.steps[stage.name] = number + 1
        decay = min(EMA, (1 + number) / (10 + number))
        with torch.no_grad():
            for key, parameter in stage.model.named_parameters():
                self.average[f"{stage.name}.{key}"].lerp_(parameter, 1 - decay)
        return float(loss.detach()), float(norm)

    def _measure(self, stage: Stage) -> None:
        """Measure the averaged weights."""
        parameters = dict(stage.model.named_parameters())
        kept = {key: value.detach().clone() for key, value in parameters.items()}
        training = stage.model.training
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(self.average[f"{stage.name}.{key}"])
        stage.model.eval()
        found = stage.measure()
        stage.model.train(training)
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(kept[key])
        self.progress.history.append({"stage": stage.name, "step": self.progress.steps[stage.name]} | found)
        print(
            f"{stage.name} after {self.progress.steps[stage.name]:,} steps: "
            + ", ".join(f"{k} {v:.3g}" for k, v in found.items()),
            flush=True,
        )

    def _save(self, model: torch.nn.Module, name: str) -> None:
        state = {
            f"{which}.{key}": value for which, one in self.models.items() for key, value in one.state_dict().items()
        }
        state |= {f"average.{key}": value for key, value in self.average.items()}
        if self.optimiser is not None:
            for key, parameter in model.named_parameters():
                state |= {
                    f"adam.{part}.{key}": torch.as_tensor(value)
                    for part, value in self.optimiser.state.get(parameter, {}).items()
                }
        content = {
            "seed": self.config.seed,
            "elapsed": self.progress.elapsed,
            "steps": self.progress.steps,
            "history": self.progress.history,
        }
        checkpoint.save(self.folder, checkpoint.Checkpoint(self.progress.total, state, {}, content), keep=1)

    def _saved(self) -> checkpoint.Checkpoint | None:
        """The newest whole checkpoint of an interrupted training. Raises ``UserError`` when that had another seed,
        before anything is written."""
        if not (self.folder / "checkpoints").exists():
            return None
        path, note = checkpoint.latest(self.folder)
        if note:
            print(f"warning: {note}")
        saved = checkpoint.load(path)
        if saved.state["seed"] != self.config.seed:
            raise UserError(
                f"{self.folder} was started with --seed {saved.state['seed']}: give that, or another --out."
            )
        return saved

    def _take_up(self, saved: checkpoint.Checkpoint) -> None:
        for which, one in self.models.items():
            one.load_state_dict(
                {
                    key.removeprefix(f"{which}."): value
                    for key, value in saved.learner.items()
                    if key.startswith(f"{which}.")
                }
            )
        self.average = {
            key.removeprefix("average."): value for key, value in saved.learner.items() if key.startswith("average.")
        }
        self.restored = {key: value for key, value in saved.learner.items() if key.startswith("adam.")}
        self.progress.elapsed, self.progress.steps = saved.state["elapsed"], saved.state["steps"]
        self.progress.history = saved.state["history"]
        print(f"going on after {self.progress.total:,} steps", flush=True)

    def _restore_moments(self, model: torch.nn.Module) -> None:
        assert self.optimiser is not None
        for key, parameter in model.named_parameters():
            moments = {part: self.restored.get(f"adam.{part}.{key}") for part in ("step", "exp_avg", "exp_avg_sq")}
            if all(value is not None for value in moments.values()):
                self.optimiser.state[parameter] = moments
        self.restored = {}


def train_tiny(config: TinyConfig) -> Path:
    """Train, or go on training, and return the released folder: ``pipeline/``, ``clip/``, ``prompts/``, ``anchors/``,
    two ``samples-*.png``, ``README.md``.

    Raises ``UserError`` for a configuration that cannot work, ``Interrupted`` on SIGINT or SIGTERM, after a checkpoint.
    """
    config.validate()
    quiet_libraries()
    assert config.out is not None
    keep_freed_memory()
    use_threads(config.threads)
    if config.out.exists() and any(config.out.iterdir()) and not (config.out / WORK).is_dir():
        raise UserError(
            f"{config.out} is not empty and holds no interrupted training of the tiny world: choose another --out."
        )
    with stop_on_signal() as stop, run_folder.only_writer(config.out / WORK):
        TinyTraining(config, stop).run()
    return config.out
