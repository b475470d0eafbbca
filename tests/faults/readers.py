"""One small file of every kind that saddlepoint reads, and its reader."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saddlepoint import files
from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import ALGDConfig
from saddlepoint.flags import parse_with_file
from saddlepoint.mbdpo.tasks import Task
from saddlepoint.offline.convert import convert
from saddlepoint.offline.dataset import Dataset, Writer
from saddlepoint.policies import load_policy
from saddlepoint.report.runs import find_runs
from saddlepoint.sweep.outcome import Outcome
from saddlepoint.sweep.plan import read as read_plan
from saddlepoint.train.checkpoint import latest
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.start import train
from tests.faults.fuzz import Reader, reseal_checkpoint, reseal_dataset, reseal_json
from tests.test_offline_convert import entries

CONFIG = TrainConfig(
    env="saddlepoint/Toy-v0",
    total_steps=80,
    warmup_steps=60,
    eval_every=1000,
    checkpoint_every=40,
    log_every=20,
    threads=1,
    compile="off",
    quiet=True,
)
LEARNER = ALGDConfig(batch_size=8, critic_hidden=(8, 8), policy_hidden=(8,), steps=3)
RESUMED, LOADED = 150, 30
"""files of a run that is resumed for each, and of models that are loaded for each"""
SWEEP = """
out = "sweep"
environments = ["saddlepoint/Toy-v0"]
seeds = [3, 1]
common = { total_steps = 100, critic_hidden = [16, 16] }
[environment."saddlepoint/Toy-v0"]
rho = 3.0
[algorithms.algd.grid]
gamma = [0.5, 0.75]
"""


def trained(folder: Path) -> Path:
    """The smallest run."""
    return train(replace(CONFIG, out=folder), ALGD, LEARNER)


def data_set(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    with Writer(folder, 3, 2) as writer:
        writer.add(
            np.array([0, 1]),
            rng.normal(size=(2, 5, 3)),
            rng.uniform(-1, 1, (2, 4, 2)),
            rng.normal(size=(2, 4)),
            np.zeros((2, 4)),
        )
        writer.tasks = (Task("a", "a", 3, (-1.0,) * 2, (1.0,) * 2, 4), Task("b", "b", 2, (-1.0,), (1.0,), 4))
    return folder


def readers(home: Path) -> list[Reader]:
    """The readers of files in ``home``, which is filled with one file of each kind."""
    run = trained(home / "run")
    newest, _ = latest(run)
    other = home / "resumed"
    shutil.copytree(run, other)
    for path in other.glob("checkpoints/*"):
        if path.name != newest.name:
            shutil.rmtree(path)
    checkpoint = other / "checkpoints" / newest.name

    def resume() -> None:
        train(replace(CONFIG, out=other), ALGD, LEARNER, resume=True)

    def report() -> None:
        (found,) = find_runs([run])
        found.evaluations(), found.settings, found.budgets, found.series("train/updates")

    def alone(name: str) -> Path:
        (home / name.partition(".")[2]).mkdir(exist_ok=True)
        return home / name.partition(".")[2] / name

    data = data_set(home / "data")
    torch.save(entries([0, 1]), alone("chunk.pt"))

    def convert_chunk() -> None:
        try:
            convert([alone("chunk.pt")], home / "converted")
        finally:
            shutil.rmtree(home / "converted", ignore_errors=True)

    (alone("sweep.toml")).write_text(SWEEP)
    plan = read_plan(alone("sweep.toml"), home / "sweep")
    plan.out.mkdir()
    steps = {trial.name: 100 for trial in plan.trials}
    Outcome(plan, steps).save()
    files.write_json(
        alone("settings.json"),
        {"total_steps": 100, "batch-size": 32, "critic_hidden": [16, 16], "compile": "off", "gamma": 0.9},
    )
    files.write_tensors(alone("a.safetensors"), {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)})
    files.write_arrays(alone("a.npz"), {"a": np.arange(6.0), "b": np.zeros((2, 0), np.uint8)})
    np.save(alone("a.npy"), np.arange(6).reshape(2, 3))

    def settings() -> None:
        from saddlepoint.commands import BudgetFlags, Launch, train_flags

        flags = train_flags(ALGDConfig)
        parse_with_file(
            flags,
            flags(Launch(), TrainConfig(env=""), ALGDConfig(), BudgetFlags()),
            ["--config", str(alone("settings.json"))],
            "prog",
        )

    return [
        Reader("config.json, policy", run / "config.json", lambda: load_policy(run), reseal_json),
        Reader("config.json, resume", other / "config.json", resume, reseal_json, other, RESUMED),
        Reader("config.json, report", run / "config.json", report, reseal_json),
        Reader("metrics.jsonl, report", run / "metrics.jsonl", report),
        Reader("metrics.jsonl, resume", other / "metrics.jsonl", resume, None, other, RESUMED),
        Reader("manifest.json", checkpoint / "manifest.json", resume, reseal_json, other, RESUMED),
        Reader("state.json", checkpoint / "state.json", resume, reseal_checkpoint, other, RESUMED),
        Reader("arrays.npz", checkpoint / "arrays.npz", resume, reseal_checkpoint, other, RESUMED),
        Reader("learner.safetensors", checkpoint / "learner.safetensors", resume, reseal_checkpoint, other, RESUMED),
        Reader("replay.safetensors", checkpoint / "replay.safetensors", resume, reseal_checkpoint, other, RESUMED),
        Reader("dataset.json", data / "dataset.json", lambda: Dataset(data), reseal_json),
        Reader("episodes.npy", data / "episodes.npy", lambda: Dataset(data), reseal_dataset),
        Reader("chunk .pt", alone("chunk.pt"), convert_chunk),
        Reader("sweep's TOML", alone("sweep.toml"), lambda: read_plan(alone("sweep.toml"), home / "sweep")),
        Reader("sweep.json", plan.out / "sweep.json", lambda: Outcome(plan, steps), reseal_json),
        Reader("settings of --config", alone("settings.json"), settings),
        Reader("safetensors", alone("a.safetensors"), lambda: files.read_tensors(alone("a.safetensors"), "a test")),
        Reader("npz", alone("a.npz"), lambda: files.read_arrays(alone("a.npz"), "a test")),
        Reader("npy", alone("a.npy"), lambda: files.read_array(alone("a.npy"), "a test")),
    ]


def picture_readers(home: Path) -> list[Reader]:
    """The same for text-to-image models and their prompts; of all files of settings in their folders."""
    from saddlepoint.safediffusion.clip import CLIPEncoder, check_clip
    from saddlepoint.safediffusion.pipeline import load_pipeline, open_source
    from saddlepoint.safediffusion.prompts import read_prompts
    from tests.tiny_pipeline import write_clip, write_pipeline

    model, clip = write_pipeline(home / "pipeline"), write_clip(home / "clip")

    def load_clip() -> None:
        check_clip(str(clip))
        CLIPEncoder(str(clip), torch.device("cpu"))

    found: list[Reader] = []
    for path in sorted(model.rglob("*.json")):
        name = f"pipeline's {path.relative_to(model)}"
        found.append(Reader(name, path, lambda: open_source(str(model)), None, model))
        found.append(Reader(f"{name}, loaded", path, lambda: load_pipeline(open_source(str(model))), None, model, LOADED))
    for path in sorted(clip.glob("*.*")):
        found.append(Reader(f"CLIP's {path.name}", path, load_clip, None, clip, LOADED))
    (home / "prompts").mkdir()
    for name, content in (
        ("a.jsonl", '{"prompt": "a red square", "unsafe": true}\n{"prompt": "b"}\n'),
        ("a.csv", "prompt,unsafe\na,1\nb,0\n"),
        ("a.txt", "a red square\nb\n"),
    ):
        path = home / "prompts" / name
        path.write_text(content)
        found.append(Reader(f"prompts {path.suffix}", path, lambda path=path: read_prompts(path)))
    return found
