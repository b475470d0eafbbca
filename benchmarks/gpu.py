"""ALGD, MBDPO and a post-training epoch on a GPU: times, losses beside the CPU's, and exact resume on one device.

    python benchmarks/gpu.py [--device cuda] [--rounds 20] [--small]

Untested on hardware: no GPU was at hand when this was written. It was run with ``--device cpu --small``, which compares
the CPU with itself.
Times are medians of synchronised calls after a warm-up in which PyTorch compiles; ``tests/gpu/`` holds the same checks
as tests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from saddlepoint.algd.agent import ALGD  # noqa: E402
from saddlepoint.algd.config import ALGDConfig  # noqa: E402
from saddlepoint.constrained.budget import CostBudget  # noqa: E402
from saddlepoint.mbdpo.agent import MBDPO  # noqa: E402
from saddlepoint.mbdpo.config import PRESETS, MBDPOConfig  # noqa: E402
from saddlepoint.mbdpo.losses import Sequences, UpdateNoise  # noqa: E402
from saddlepoint.types import Batch, EnvShape  # noqa: E402

SHAPE = EnvShape(60, (-1.0, -1.0), (1.0, 1.0), 1)
BUDGETS = (CostBudget(25.0),)
TOLERANCE = 2e-2
"""of losses, relative: a GPU may multiply float32 in TF32, and sums in another order"""


def moved(tree: Any, device: torch.device | str) -> Any:
    """The tensors of nested named tuples on another device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    return type(tree)(*(moved(part, device) for part in tree)) if isinstance(tree, tuple) else tree


def algd(device: str, small: bool, compile: bool = True) -> ALGD:
    config = replace(ALGDConfig(), precision="float32")
    if small:
        config = replace(config, critic_hidden=(32, 32), policy_hidden=(32, 32), batch_size=16)
    return ALGD(config, SHAPE, BUDGETS, seed=0, device=device, compile=compile)


def algd_batch(rows: int, generator: torch.Generator) -> Batch:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Batch(
        draw(rows, 60), draw(rows, 2).tanh(), draw(rows), draw(rows, 1).abs(), draw(rows, 60), (draw(rows) > 1).float()
    )


def algd_update(agent: ALGD, batch: Batch, noise: Any) -> dict[str, float]:
    recent = torch.zeros(1, dtype=torch.float64) if agent.config.multiplier_actions == "recent" else None
    return {name: float(value) for name, value in agent.update_batch(batch, noise, recent).items()}


def mbdpo(device: str, small: bool, compile: bool = True) -> MBDPO:
    config: MBDPOConfig = replace(PRESETS["small" if small else "default"], precision="float32")
    if small:
        config = replace(
            config,
            width=32,
            latent=32,
            encoder_width=32,
            proposals=16,
            elites=4,
            policy_rollouts=2,
            steps=3,
            batch_size=8,
            score_states=2,
        )
    return MBDPO(config, SHAPE._replace(constraints=0), (), seed=0, device=device, compile=compile)


def mbdpo_batch(agent: MBDPO, generator: torch.Generator) -> Sequences:
    h, b = agent.config.horizon, agent.config.batch_size
    action = torch.rand(h, b, 2, generator=generator) * 2 - 1
    return Sequences(
        torch.randn(h + 1, b, 60, generator=generator),
        action,
        action.sum(-1),
        torch.zeros(0, h, b),
        torch.zeros(h, b),
        None,
    )


def mbdpo_update(agent: MBDPO, batch: Sequences, noise: UpdateNoise) -> dict[str, float]:
    return {name: float(value) for name, value in agent.update_sequences(batch, noise).items()}


def median_ms(work: Callable[[], Any], device: str, rounds: int) -> float:
    times = []
    for round_ in range(rounds + 3):
        if device != "cpu":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        if round_ >= 3:
            times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def parity(device: str, small: bool) -> dict[str, float]:
    """The largest relative difference of the losses of three updates from the same weights, batches and noise on the
    CPU and on ``device``."""
    found = {}
    cpu, other = algd("cpu", small, compile=False), algd(device, small)
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for _ in range(3):
        batch, noise = algd_batch(cpu.config.batch_size, generator), cpu.draw(cpu.config.batch_size)
        worst = max(
            worst,
            difference(algd_update(cpu, batch, noise), algd_update(other, moved(batch, device), moved(noise, device))),
        )
    found["algd"] = worst
    one, two = mbdpo("cpu", small, compile=False), mbdpo(device, small)
    worst = 0.0
    for _ in range(3):
        data, drawn = mbdpo_batch(one, generator), UpdateNoise.draw(one.model, one.config.batch_size, generator)
        worst = max(
            worst,
            difference(mbdpo_update(one, data, drawn), mbdpo_update(two, moved(data, device), moved(drawn, device))),
        )
    found["mbdpo"] = worst
    return found


def difference(one: dict[str, float], two: dict[str, float]) -> float:
    """Of the losses in two updates' metrics, relative to the larger of the loss and 0.01."""
    return max(abs(one[name] - two[name]) / max(abs(one[name]), 1e-2) for name in one if name.endswith("loss"))


def resumes(device: str, small: bool) -> dict[str, bool]:
    """Whether an agent that is saved and loaded after an update goes on to the bit, with its own generator's draws."""
    found = {}
    generator = torch.Generator().manual_seed(2)
    first, second = algd(device, small), algd(device, small)
    batches = [moved(algd_batch(first.config.batch_size, generator), device) for _ in range(2)]
    algd_update(first, batches[0], first.draw(first.config.batch_size))
    second.load_state_dict(first.state_dict())
    for agent in (first, second):
        algd_update(agent, batches[1], agent.draw(agent.config.batch_size))
    found["algd"] = same(first.state_dict(), second.state_dict())
    one, two = mbdpo(device, small), mbdpo(device, small)
    data = [moved(mbdpo_batch(one, generator), device) for _ in range(2)]
    mbdpo_update(one, data[0], UpdateNoise.draw(one.model, one.config.batch_size, one.generator))
    two.load_state_dict(one.state_dict())
    for agent in (one, two):
        mbdpo_update(agent, data[1], UpdateNoise.draw(agent.model, agent.config.batch_size, agent.generator))
    found["mbdpo"] = same(one.state_dict(), two.state_dict())
    return found


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def times(device: str, small: bool, rounds: int) -> dict[str, float]:
    """Median milliseconds of an update and of an action in one environment."""
    agent, generator = algd(device, small), torch.Generator(device).manual_seed(0)
    batch, state = (
        moved(algd_batch(agent.config.batch_size, torch.Generator().manual_seed(0)), device),
        torch.randn(1, 60),
    )
    planner = mbdpo(device, small)
    data = moved(mbdpo_batch(planner, torch.Generator().manual_seed(0)), device)
    memory = torch.zeros(1, planner.memory_size)
    work: dict[str, Callable[[], Any]] = {
        "algd update": lambda: algd_update(agent, batch, agent.draw(agent.config.batch_size)),
        "algd act": lambda: agent.act(state, "explore", generator),
        "mbdpo update": lambda: mbdpo_update(
            planner, data, UpdateNoise.draw(planner.model, planner.config.batch_size, generator)
        ),
        "mbdpo act": lambda: planner.act_on(state, memory, "explore", generator),
    }
    return {name: median_ms(call, device, rounds) for name, call in work.items()}


def posttraining_epoch(device: str) -> float:
    """Seconds of an epoch of the tiny world's post-training, from the run's own log; the first epoch, which warms up,
    is left out."""
    from saddlepoint.cli import main as saddlepoint
    from saddlepoint.train.log import read_metrics

    world = HERE.parent / "models" / "tiny-world"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        places = {
            "--pipeline": "pipeline",
            "--clip": "clip",
            "--prompts": "prompts/training.csv",
            "--anchors": "anchors",
        }
        sources = [word for flag, place in places.items() for word in (flag, str(world / place))]
        flags = [
            "--preset",
            "tiny",
            "--reward",
            "steered",
            "--epochs",
            "3",
            "--eval-every",
            "3",
            "--held-out-images",
            "16",
        ]
        if code := saddlepoint(
            ["train", "safediffusion", *sources, *flags, "--device", device, "--quiet", "--out", str(run)]
        ):
            sys.exit(code)
        walls = [line["wall_s"] for line in read_metrics(run) if line["kind"] == "train"]
    return (walls[-1] - walls[0]) / (len(walls) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="tiny networks: to see that the script works")
    parser.add_argument("--without-posttraining", action="store_true")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here: install a CUDA build of PyTorch on a machine that has one.")
    name = "cpu" if options.device == "cpu" else torch.cuda.get_device_name()
    found: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "parity": parity(options.device, options.small),
    }
    found["resumes to the bit"] = resumes(options.device, options.small)
    found["median ms"] = times(options.device, options.small, options.rounds)
    if not options.without_posttraining:
        found["post-training epoch, s"] = posttraining_epoch(options.device)
    print(json.dumps(found, indent=1))
    wrong = [system for system, value in found["parity"].items() if not value <= TOLERANCE]
    wrong += [f"{system}: resume" for system, value in found["resumes to the bit"].items() if not value]
    if wrong:
        sys.exit(f"not as on the CPU: {', '.join(wrong)}")
    if options.device != "cpu":
        (HERE / "results" / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
