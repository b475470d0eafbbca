"""From a configuration to a running trainer: everything that needs no model is checked first, and everything is built
before the first file is written."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from saddlepoint.memory import keep_freed_memory
from saddlepoint.safediffusion.clip import check_clip
from saddlepoint.safediffusion.config import RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.extras import require_extra
from saddlepoint.safediffusion.families import Request
from saddlepoint.safediffusion.learner import Learner, prepare_network
from saddlepoint.safediffusion.memory import estimate
from saddlepoint.safediffusion.pipeline import Source, load_pipeline, open_source, source_files
from saddlepoint.safediffusion.prompts import PromptSets, read_prompts, split
from saddlepoint.safediffusion.reward import Scores, build_scores, check_scores, read_anchors
from saddlepoint.safediffusion.rollout import Studio, build_studio
from saddlepoint.safediffusion.trainer import Trainer
from saddlepoint.safediffusion.weights import changed_file
from saddlepoint.train import run as run_folder
from saddlepoint.train.contract import checked
from saddlepoint.train.driver import RunDriver
from saddlepoint.train.log import RunLog
from saddlepoint.train.processes import join_processes
from saddlepoint.train.schedule import Schedule
from saddlepoint.train.screen import Screen
from saddlepoint.train.signals import stop_on_signal
from saddlepoint.train.threads import use_threads
from saddlepoint.types import UserError

C = TypeVar("C", RunConfig, SafeDiffusionConfig)

SYSTEM = "safediffusion"
OPERATIONAL = frozenset({"epochs", "out", "quiet", "keep_checkpoints", "checkpoint_every", "threads", "pipeline"})
"""fields of ``RunConfig`` that may differ on resume: they do not change what is learnt (threads: the last bits;
pipeline: one that has moved, which is compared file by file)"""


def post_train(run: RunConfig, config: SafeDiffusionConfig, *, resume: bool = False) -> Path:
    """Train until ``epochs`` and return the run folder: ``post_train(RunConfig(pipeline=..., prompts=...),
    SafeDiffusionConfig())``.

    With ``resume`` the run in ``run.out`` goes on from its newest whole checkpoint: N + M epochs are N, a resume and M,
    to the bit on a CPU with the same number of threads and processes. Under ``accelerate launch`` several processes
    share each epoch's prompts.

    Raises ``UserError`` for a configuration that cannot work, before a model is loaded or a file written, and for a
    fault on the way, after which the last checkpoint stands; ``Interrupted`` on SIGINT or SIGTERM, after a checkpoint.
    """
    run, config = checked(run), checked(config)
    require_extra()
    folder = run.out or Path("runs") / f"{SYSTEM}-{run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    if resume and run.out is None:
        raise UserError("resuming needs the run folder: give it as --resume RUN.")
    run, config = _absolute(run, "pipeline", "prompts", "held_out_prompts"), _absolute(config, "clip", "anchors")
    saved = run_folder.read(folder) if resume else None
    prompts = read_sets(run, config)
    check_scores(config)
    if config.uses_clip:
        check_clip(config.clip)
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto.")
    pinned = {name: of.get("revision") for name, of in saved["resolved"].get("weights", {}).items()} if saved else {}
    source = open_source(run.pipeline, pinned.get("pipeline"))
    clip = source_files(config.clip, pinned.get("clip")) if config.uses_clip else {}
    check_request(source, config)
    accelerator = join_processes(run.device)
    keep_freed_memory()
    # After the accelerator, which sets them too; a resumed run keeps its own, because they decide the last bits.
    use_threads(run.threads or (saved["resolved"]["threads"] if saved else 0))
    if config.prompts % accelerator.num_processes:
        raise UserError(
            f"{accelerator.num_processes} processes cannot share the {config.prompts} prompt(s) of an epoch (--images"
            " / --group-size) evenly: change --images."
        )
    if not resume and accelerator.is_main_process:
        run_folder.require_new(folder)
    accelerator.wait_for_everyone()
    device = accelerator.device
    low_precision = resolve_precision(config.precision, device)
    content = _describe(run, config, prompts, source, clip, device, low_precision, accelerator.num_processes)
    if saved:
        _require_same(saved, content, folder)
    main = accelerator.is_main_process
    if main:
        print(estimate(source, config, low_precision), flush=True)
    learner, studio, scores = load_parts(run, config, source, device, low_precision, clip.get("revision"))
    schedule = Schedule(run.epochs, 1, run.eval_every, run.checkpoint_every, run.keep_checkpoints, evaluate_first=True)
    with (
        stop_on_signal() as stop,
        run_folder.opened(folder, saved, main),
        RunLog(folder if main else None, Screen(run.epochs, Trainer.unit, quiet=run.quiet, silent=not main)) as log,
    ):
        trainer = Trainer(
            run, config, folder / "samples" if main else None, prompts, studio, scores, learner, accelerator, log, stop
        )
        digest = run_folder.settings_digest(content, OPERATIONAL)
        driver = RunDriver(trainer, schedule, folder, log, stop, peers=trainer.peers, config_digest=digest)
        learning = sum(p.numel() for p in learner.parameters.values())
        log.say(
            f"{learning:,} learning parameters on {device}; {len(prompts.training)} prompts to learn from,"
            f" {len(prompts.held_out)} held out"
        )
        for remark in (*source.remarks(config.guidance), studio.embeddings.cut([prompt.text for part in prompts for prompt in part])):
            if remark:
                log.say(f"note: {remark}")
        if config.unsafe_budget is not None:
            log.say(f"cost budget: a mean {config.cost} of at most {config.unsafe_budget:g} an image")
        if saved:
            for name in ("threads", "processes"):
                before, after = saved["resolved"][name], content["resolved"][name]
                if before != after:
                    log.say(f"note: {after} {name} instead of {before}, so the last bits may differ")
            driver.resume()
        if main and (note := run_folder.write(folder, content)):
            log.say(note)
        driver.run()
    return folder


def request_of(config: SafeDiffusionConfig) -> Request:
    """What a run asks of its pictures."""
    return Request(config.steps, config.height, config.width, config.text_tokens)


def check_request(source: Source, config: SafeDiffusionConfig) -> None:
    """Raises ``UserError`` for steps, sizes or options that this pipeline's family does not have; no model is loaded."""
    source.check(request_of(config))
    if config.sde == "flow" and not source.family.flow:
        raise UserError(
            f"--sde flow is of flow-matching pipelines, and {source.place} is {source.family.title}: leave it out."
        )


def load_parts(
    run: RunConfig, config: SafeDiffusionConfig, source: Source, device: torch.device, low_precision: torch.dtype | None,
    clip_revision: str | None = None,
) -> tuple[Learner, Studio, Scores]:  # fmt: skip
    """The models of a run, on their device, once a step has gone through them; a CLIP of the hub as it was at ``clip_revision``. Raises ``UserError``."""
    family = source.family
    pipeline = load_pipeline(source, low_precision=low_precision is not None and config.tune == "lora")
    prepare_network(getattr(pipeline, family.network), config, run.seed, family.adapted)
    pipeline.to(device)
    studio = build_studio(
        pipeline,
        request_of(config),
        config.guidance,
        config.resolved_eta(family.flow),
        device,
        low_precision,
        sde=config.sde,
        noisy=config.noisy_steps,
    )
    if config.method == "grpo" and not studio.policy.learnt:
        raise UserError(
            "none of these steps can be learnt from: what noise they add cannot be seen. Widen --noisy-steps, or give"
            " --sde flow."
        )
    return Learner(config, studio.policy, family.network), studio, build_scores(config, device, clip_revision)


def read_sets(run: RunConfig, config: SafeDiffusionConfig) -> PromptSets:
    """The run's prompts, as training and held-out ones. Raises ``UserError``."""
    prompts = read_prompts(run.prompts)
    if run.held_out_prompts:
        return PromptSets(prompts, read_prompts(run.held_out_prompts))
    return split(prompts, config.held_out, run.seed)


def resolve_precision(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype | None:
    """The dtype of the UNet's products and the stored latents, None for float32."""
    if precision == "auto":
        return (
            torch.bfloat16
            if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            else None
        )
    return torch.bfloat16 if precision == "bfloat16" else None


def _absolute(config: C, *names: str) -> C:
    """``config`` with paths that do not depend on where the command was given: a run may be resumed from elsewhere. Hub
    ids stay."""
    found = {
        name: str(Path(vars(config)[name]).resolve())
        for name in names
        if vars(config)[name] and Path(vars(config)[name]).exists()
    }
    return replace(config, **found)  # type: ignore[arg-type]


def _describe(
    run: RunConfig,
    config: SafeDiffusionConfig,
    prompts: PromptSets,
    source: Source,
    clip: dict[str, str],
    device: torch.device,
    low_precision: torch.dtype | None,
    processes: int,
) -> dict[str, Any]:
    """The content of config.json, as it will be read back."""
    resolved = {
        "device": device.type,
        "precision": "bfloat16" if low_precision else "float32",
        "threads": torch.get_num_threads(),
        "processes": processes,
        "prompts_sha256": prompts.digest(),
        "anchors": read_anchors(config.anchors) if config.uses_anchors else None,
        "family": source.family.pipeline_class,
        "eta": config.resolved_eta(source.family.flow),
        "weights": {"pipeline": source_files(run.pipeline, source.revision), "clip": clip},
    }
    content = {
        "format": run_folder.FORMAT,
        "system": SYSTEM,
        "train": asdict(run),
        "learner": asdict(config),
        "resolved": resolved,
    }
    return json.loads(json.dumps(content, default=str))


def _require_same(saved: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises ``UserError`` naming the first thing in which a resumed run differs from the saved one."""
    run_folder.require_same_settings(saved, now, folder, OPERATIONAL)
    if saved["resolved"]["prompts_sha256"] != now["resolved"]["prompts_sha256"]:
        raise UserError(
            f"the prompt files of {folder} have changed since it started: restore them, or start a new run with --out."
        )
    before, after = saved["resolved"], now["resolved"]
    if "anchors" in before and before["anchors"] != after["anchors"]:  # older runs did not keep them
        raise UserError(
            f"the phrases of --anchors of {folder} have changed since it started: restore them, or start a new run"
            " with --out."
        )
    for name in before.get("weights", {}):
        if changed := changed_file(before["weights"][name], after["weights"][name]):
            raise UserError(
                f"the weights or configs of --{name} of {folder} have changed since it started ({changed}): restore"
                " them, or start a new run with --out."
            )
    for name in ("device", "precision"):
        if saved["resolved"][name] != now["resolved"][name]:
            raise UserError(
                f"{folder} ran on {saved['resolved'][name]}, not {now['resolved'][name]}: resume it on such a machine."
            )
