"""Throughput of post-training a text-to-image model, against the released program's loop.

    python benchmarks/safediffusion.py [--official PATH] [--pipeline world] [--rounds 7] [--threads 1]

``--official`` is a clone of the authors' repository (MAXNORM8650/SafeDiffusion-R1 on GitHub); none of it is in ours. Its own ``main`` is run as it is: only
what it takes from CUDA, from packages that are not installed here, and its hard-coded latent size are answered at run time. It and ``ours-unet`` train the
whole UNet of one and the same pipeline in float32, on as many images, steps and optimiser steps; ``ours-lora`` trains adapters instead, our default. The
pipeline is the shipped tiny world's, or a random one that is smaller (``tiny``) or larger (``small``). Each has a process of its own and they take turns,
epoch by epoch, so that a noisy machine hits them alike. Seconds are of the processor, all threads of a process together: on a shared core the clock on
the wall measures the neighbours. Medians are printed and kept in benchmarks/results/. The released sampling includes writing its pictures to disk, the
scoring reading them.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
RESULTS = HERE / "results"
SIZE = {"prompts": 4, "group": 4, "update_images": 4, "steps": 10}
PIPELINES = {"tiny": {"width": 8, "side": 8}, "small": {"width": 32, "side": 16}}
"""random ones: channels of the UNet's first level, and the side of its latents"""
SHIPPED = HERE.parent / "models" / "tiny-world"
PHASES = ("sampling", "scoring", "learning")
REPLY = "@ "
"""what a worker's own lines begin with: the released program prints too"""


def reply(**seconds: float) -> None:
    print(REPLY + json.dumps(seconds), flush=True)


# ------------------------------------------------------------------------------------------------ what is timed, one process each


def serve_ours(world: Path, tune: str) -> None:
    """Answer each line on stdin with the seconds of one epoch."""
    import torch
    from accelerate import Accelerator

    from saddlepoint.memory import keep_freed_memory
    from saddlepoint.safediffusion.config import PARITY, RunConfig
    from saddlepoint.safediffusion.pipeline import open_source
    from saddlepoint.safediffusion.start import load_parts, read_sets
    from saddlepoint.safediffusion.trainer import Trainer
    from saddlepoint.train.log import RunLog
    from saddlepoint.train.screen import Screen
    from saddlepoint.train.signals import StopRequest

    keep_freed_memory()  # as a run does
    images = SIZE["prompts"] * SIZE["group"]
    config = replace(
        PARITY, clip=str(world / "clip"), cost="none", steps=SIZE["steps"], group_size=SIZE["group"], images=images, sample_batch=images,
        updates=images // SIZE["update_images"], train_batch=SIZE["update_images"] * (SIZE["steps"] - 1), held_out=0.0, tune=tune,
    )  # fmt: skip
    config.validate()
    run = RunConfig(pipeline=str(world / "pipeline"), prompts=str(world / "prompts.txt"), epochs=10**6)
    learner, studio, scores = load_parts(run, config, open_source(run.pipeline), torch.device("cpu"), None)
    folder = world / f"ours-{tune}"
    folder.mkdir()
    with RunLog(folder, Screen(run.epochs, "epoch", quiet=True)) as log:
        trainer = Trainer(run, config, folder / "samples", read_sets(run, config), studio, scores, learner, Accelerator(cpu=True), log, StopRequest())
        spent = dict.fromkeys(PHASES, 0.0)
        for phase, name in zip(PHASES, ("_sample", "_judge", "_learn")):
            setattr(trainer, name, _timed(getattr(trainer, name), spent, phase))
        reply()
        for _ in sys.stdin:
            began = time.process_time()
            trainer.advance()
            reply(**spent, total=time.process_time() - began)


def _timed(call: Callable[..., Any], spent: dict[str, float], phase: str) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        began = time.process_time()
        value = call(*arguments)
        spent[phase] = time.process_time() - began
        return value

    return timed


def serve_official(world: Path, path: Path, side: int) -> None:
    """The same for the released ``main``: its data loader waits for the next line, and its UNet's change to training mode ends the sampling."""
    import torch
    from diffusers import UNet2DConditionModel

    marks: dict[str, float] = {}
    scoring = [0.0]

    class Turns:
        """In place of the data loader: an epoch's prompts for each line on stdin."""

        def __init__(self, dataset: Any, batch_size: int, **_: Any) -> None:
            self.prompts = [dataset[i] for i in range(batch_size)]

        def __iter__(self) -> Iterator[list[str]]:
            reply()
            for _ in sys.stdin:
                scoring[0], began = 0.0, time.process_time()
                yield self.prompts
                ended = time.process_time()
                # The pictures that it writes and reads are counted with its sampling: they are made in the same loop.
                reply(sampling=marks["learning"] - began - scoring[0], scoring=scoring[0], learning=ended - marks["learning"], total=ended - began)

    class OnCPU:
        """torch, but in float32 and with the pipeline's own latent size instead of 64 x 64."""

        bfloat16 = torch.float32

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def randn(size: tuple[int, ...], **options: Any) -> torch.Tensor:
            return torch.randn((*size[:2], side, side), **options)

    class ConfigDict(SimpleNamespace):
        def to_dict(self) -> dict[str, Any]:
            return vars(self)

    def stand_in(name: str, **content: Any) -> ModuleType:
        module = ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module
        return module

    flags = stand_in("ml_collections.config_flags", DEFINE_config_file=lambda *_: None)
    stand_in("ml_collections", ConfigDict=ConfigDict, config_flags=flags)
    stand_in("wandb")
    for name in ("hpsv2", "hpsv2.src"):
        stand_in(name)
    stand_in("hpsv2.src.open_clip", create_model_and_transforms=None, get_tokenizer=None)
    sys.path.insert(0, str(path))
    config = runpy.run_path(str(path / "config" / "base.py"))["get_config"]()
    config.pretrained.model, config.pretrained.revision, config.prompt_file = str(world / "pipeline"), None, str(world / "prompts.txt")
    config.num_generations, config.reward_fn, config.num_epochs, config.save_freq = SIZE["group"], "nsfwv2", 10**6, 10**6
    config.sample.num_steps, config.sample.batch_size, config.train.batch_size = SIZE["steps"], SIZE["prompts"], SIZE["update_images"]

    from accelerate import Accelerator
    from fastvideo import train as released
    from rewards import inference_reward, safety_classifier

    judge = safety_classifier.SafetySteering(*_clip_like_open_clip(world / "clip"), "cpu")
    judge.build_safety_direction()
    inference_reward._CLASSIFIER = judge
    get_reward = inference_reward.get_reward

    def timed_reward(*args: Any, **options: Any) -> Any:
        began = time.process_time()
        value = get_reward(*args, **options)
        scoring[0] += time.process_time() - began
        return value

    inference_reward.get_reward = timed_reward
    change_mode = UNet2DConditionModel.train

    def train(self: Any, mode: bool = True) -> Any:
        if mode:
            marks["learning"] = time.process_time()
        return change_mode(self, mode)

    UNet2DConditionModel.train = train
    taken = ("gradient_accumulation_steps", "project_config")
    released.Accelerator = lambda **options: Accelerator(cpu=True, **{name: options[name] for name in taken})
    released.torch, released.DataLoader, released.FLAGS = OnCPU(), Turns, SimpleNamespace(config=config)
    folder = world / "released"
    folder.mkdir()
    os.chdir(folder)
    released.main(None)


def _clip_like_open_clip(folder: Path) -> tuple[Any, Any, Any]:
    """(model, tokenizer, preprocess) as the released reward calls them, of our CLIP."""
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip import CLIPImageProcessorPil

    clip, words, pictures = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
    model = SimpleNamespace(
        encode_text=lambda tokens: clip.get_text_features(input_ids=tokens).pooler_output,
        encode_image=lambda pixels: clip.get_image_features(pixel_values=pixels).pooler_output,
    )
    limit = clip.config.text_config.max_position_embeddings

    def tokenize(texts: list[str]) -> Any:
        return words(texts, padding="max_length", truncation=True, max_length=limit, return_tensors="pt").input_ids

    return model, tokenize, lambda picture: pictures(picture, return_tensors="pt")["pixel_values"][0]


class Worker:
    def __init__(self, variant: str, arguments: argparse.Namespace, world: Path) -> None:
        command = [sys.executable, __file__, "--serve", variant, "--world", str(world), "--threads", str(arguments.threads)]
        command += ["--pipeline", arguments.pipeline]
        command += ["--official", str(arguments.official)] if arguments.official else []
        self.variant, self.errors = variant, (world / f"{variant}.log").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        self._read()

    def epoch(self) -> dict[str, float]:
        assert self.process.stdin
        print("epoch", file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(REPLY):
                return json.loads(line.removeprefix(REPLY))
        self.errors.seek(0)
        sys.exit(f"the process of {self.variant} ended:\n{self.errors.read()[-2000:]}")


# ------------------------------------------------------------------------------------------------ the comparison


def compare(arguments: argparse.Namespace) -> None:
    from tests.tiny_pipeline import write_clip, write_pipeline

    from interleave import provenance

    names = ["ours-unet", "ours-lora", *(["official"] if arguments.official else [])]
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as home:
        world = Path(home)
        if arguments.pipeline == "world":
            for part in ("pipeline", "clip"):
                shutil.copytree(SHIPPED / part, world / part)
        else:
            write_pipeline(world, **PIPELINES[arguments.pipeline])
            write_clip(world)
        (world / "prompts.txt").write_text("".join(f"a {colour} square\n" for colour in ("red", "green", "blue", "calm")))
        workers = {name: Worker(name, arguments, world) for name in names}
        for turn in range(arguments.rounds + 1):
            for name, worker in workers.items():
                found = worker.epoch()
                if turn:  # the first is for warming up
                    times[name].append(found)
        for worker in workers.values():
            worker.close()
    image_steps = SIZE["prompts"] * SIZE["group"] * SIZE["steps"]
    medians = {name: {phase: statistics.median(one[phase] for one in found) for phase in (*PHASES, "total")} for name, found in times.items()}
    ratios = {name: {phase: medians["official"][phase] / value for phase, value in found.items()} for name, found in medians.items() if "official" in medians}
    print(f"{'seconds an epoch':20s}" + "".join(f"{phase:>18s}" for phase in (*PHASES, "total")) + f"{'images x steps / s':>20s}")
    for name, found in medians.items():
        against = [f" ({ratios[name][phase]:.2f}x)" if ratios else "" for phase in found]
        print(f"{name:20s}" + "".join(f"{f'{value:.3f}{note}':>18s}" for value, note in zip(found.values(), against)) + f"{image_steps / found['total']:20.0f}")
    if not arguments.official:
        return  # the committed files hold comparisons only
    result = {
        "command": "python benchmarks/safediffusion.py " + " ".join(sys.argv[1:]), "threads": arguments.threads, **provenance(),
        "size": SIZE | PIPELINES.get(arguments.pipeline, {}), "pipeline": arguments.pipeline, "seconds": medians, "rounds": times, "ratio": ratios,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"safediffusion_{arguments.pipeline}_{arguments.threads}threads.json").write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="clone of the authors' repository")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pipeline", choices=["world", *PIPELINES], default="world")
    parser.add_argument("--serve", choices=["ours-unet", "ours-lora", "official"], help=argparse.SUPPRESS)
    parser.add_argument("--world", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.serve:
        compare(arguments)
        return
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.serve == "official":
        unet = json.loads((arguments.world / "pipeline" / "unet" / "config.json").read_text())
        serve_official(arguments.world, arguments.official.resolve(), unet["sample_size"])
    else:
        serve_ours(arguments.world, arguments.serve.removeprefix("ours-"))


if __name__ == "__main__":
    main()
