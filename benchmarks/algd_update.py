"""Time of one ALGD update and of acting, against the released program and against size.

    python benchmarks/algd_update.py [--official PATH] [--threads 2] [--rounds 15] [--compiled] [--label MACHINE]
    python benchmarks/algd_update.py --scaling [--compiled] (--redraw draws its figure again, from the numbers that it left)

``--official`` is a clone of the authors' repository (Wenxuan52/ALGD on GitHub); none of it is in ours. Every variant lives in a process of its own and they
take turns, so that a noisy machine hits them alike; medians and ratios of medians, by the clock and in the processor's time, are printed and kept in
benchmarks/results/. The presets ``parity`` and ``earlier`` have the networks and the batch of the release, ``default`` is today's with its own.
Ours includes drawing the batch from the replay and all noise; the released time is its ``update_parameters`` on a ready numpy batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from interleave import Times, Work, Worker, interleaved, provenance, serve  # noqa: E402

RESULTS = HERE / "results"
SIZES = {"observation": 60, "action": 2, "batch": 256, "steps": 5, "proposals": 4, "members": 4}
"""the release's; also of the presets with its networks"""
DEFAULT = SIZES | {"batch": 128, "members": 2}
"""today's default"""


def gigaflop(size: dict[str, int], hidden: int = 256, policy: int = 128, embedding: int = 16, views: int = 1, chains: int = 2) -> float:
    """Multiply-adds (times two) that one update must do, in 1e9: both critics' targets, forward, weight gradients; the energy forward and back to the
    action on (1 + N) rows, the state's part of the first layer once; ``chains`` forward and one back. Networks see ``views`` numbers for each of an
    observation's."""
    nets, s, a, b = 2 + size["members"], views * size["observation"], size["action"], size["batch"]
    inner, first = hidden * hidden + hidden, (s + a) * hidden
    critics = b * nets * (2 * (first + inner) + (first + 2 * inner))
    rows = b * (1 + size["proposals"])
    energy = nets * (b * s * hidden + rows * (2 * a * hidden + 2 * inner))
    layer = (s + a + embedding) * policy + 2 * policy * policy + policy * a
    chain = b * layer * (size["steps"] * chains + (size["steps"] + 1) * 2)
    return 2 * (critics + energy + chain) / 1e9


# ------------------------------------------------------------------------------------------------ what is timed, one process each


def ours(preset: str, precision: str, compiled: bool, limit: float, size: dict[str, int]) -> Work:
    import torch

    from saddlepoint.algd.agent import ALGD
    from saddlepoint.algd.config import PRESETS
    from saddlepoint.constrained.budget import CostBudget
    from saddlepoint.memory import keep_freed_memory
    from saddlepoint.replay import Replay
    from saddlepoint.types import EnvShape

    keep_freed_memory()
    config = replace(
        PRESETS[preset],
        precision=precision,
        batch_size=size["batch"],
        steps=size["steps"],
        proposals=size["proposals"],
        cost_members=size["members"],
    )
    shape = EnvShape(size["observation"], (-1.0,) * size["action"], (1.0,) * size["action"], 1)
    agent = ALGD(config, shape, (CostBudget(limit),), compile=compiled)
    rng = np.random.default_rng(0)
    replay = Replay(100_000, size["observation"], size["action"], 1, num_envs=100)
    never = np.zeros(100, bool)
    for _ in range(200):
        observation, following = rng.normal(size=(2, 100, size["observation"])).astype(np.float32)
        action, reward = rng.uniform(-1, 1, (100, size["action"])).astype(np.float32), rng.normal(size=100).astype(np.float32)
        replay.add(observation, action, reward, rng.random((100, 1)).astype(np.float32), following, never, never)
        agent.observe(torch.from_numpy(observation))
    generator, state = torch.Generator().manual_seed(0), torch.randn(1, size["observation"])
    return {"update": lambda: agent.update(replay, 1), "act": lambda: agent.act(state, "explore", generator)}


def official(path: str, size: dict[str, int]) -> Work:
    """The released VE-SDE agent on the CPU: only its hard-coded device is answered with another."""
    sys.path.insert(0, path)
    sys.argv = ["main.py"]
    import torch
    from agents.algd import ALGD_VESDE as module
    from configs.algd_vesde import ALGD_VESDE_Parser

    class OnCPU:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def device(*_: Any) -> torch.device:
            return torch.device("cpu")

    module.torch = OnCPU()
    args = ALGD_VESDE_Parser()
    args.diffusion_steps_K, args.score_mc_samples, args.qc_ens_size, args.cost_lim = (
        size["steps"],
        size["proposals"],
        size["members"],
        25.0,
    )
    bound = np.ones(size["action"], np.float32)
    agent = module.ALGDAgent(
        size["observation"], SimpleNamespace(shape=(size["action"],), high=bound, low=-bound), args
    )
    rng, b = np.random.default_rng(0), size["batch"]
    state, following = rng.normal(size=(2, b, size["observation"]))
    memory = (
        state,
        rng.uniform(-1, 1, (b, size["action"])),
        np.stack([rng.normal(size=b), rng.random(b)], 1),
        following,
        np.ones(b),
    )
    calls = iter(range(10**9))
    return {
        "update": lambda: agent.update_parameters(memory, next(calls)),
        "act": lambda: agent.select_action(state[0]),
    }


def products(precision: str, size: dict[str, int], gigaflop: float) -> Work:
    """The arithmetic of one update in nothing but products of the energy's shape, (rows, hidden) @ (hidden, hidden): what no update can be faster than."""
    import torch

    from saddlepoint.nn.products import affine

    dtype, rows, hidden = getattr(torch, precision), size["batch"] * (1 + size["proposals"]), 256
    x, weight = torch.randn(rows, hidden, dtype=dtype), torch.randn(hidden, hidden, dtype=dtype)
    count = round(gigaflop * 1e9 / (2 * rows * hidden * hidden))

    def update() -> None:
        for _ in range(count):
            affine(x, weight, None)

    return {"update": update}


# ------------------------------------------------------------------------------------------------ the comparisons


def timed(variants: dict[str, dict[str, Any]], threads: int, rounds: int, tasks: dict[str, int]) -> Times:
    workers = {name: Worker(__file__, variant, threads) for name, variant in variants.items()}
    return interleaved(workers, rounds, tasks)


PENALTIES = {"active": 0.0, "idle": 1e6}
"""limits by which the penalty pushes everywhere, and nowhere: lambda is 0 and no cost gradient is needed"""


def our(preset: str, precision: str, compiled: bool = False, limit: float = 0.0, size: dict[str, int] = SIZES) -> dict[str, Any]:
    return {"kind": "ours", "preset": preset, "precision": precision, "compiled": compiled, "limit": limit, "size": size}


def precisions() -> tuple[str, ...]:
    """bfloat16 too where the processor multiplies it; elsewhere it takes four times as long as float32, and --precision auto never chooses it."""
    from saddlepoint.nn.ops.native.support import bfloat16_products

    return ("float32", "bfloat16") if bfloat16_products() else ("float32",)


def variants_of(presets: Sequence[str], compiled: bool) -> dict[str, dict[str, Any]]:
    """By name. The penalty of the released multiplier, and of today's default, never rests."""
    found = {}
    for preset, precision, path in itertools.product(presets, precisions(), ("eager", "compiled") if compiled else ("eager",)):
        name = f"{preset} {precision} {path}"
        if preset == "earlier":
            for penalty, limit in PENALTIES.items():
                found[f"{name}, penalty {penalty}"] = our(preset, precision, path == "compiled", limit)
        elif preset == "parity":
            found[name] = our(preset, precision, path == "compiled")
        else:
            found[name] = our(preset, precision, path == "compiled", 25.0, DEFAULT)
    return found


def compare(arguments: argparse.Namespace) -> None:
    presets = arguments.preset or ("parity", "earlier", "default")
    variants = variants_of(presets, arguments.compiled)
    variants = {name: variant for name, variant in variants.items() if name in (arguments.only or variants)}
    if arguments.official:
        variants = {"released": {"kind": "official", "path": arguments.official, "size": SIZES}} | variants
    work = {"release": gigaflop(SIZES), "default": gigaflop(DEFAULT, views=3, chains=3)}
    sizes = {"release": SIZES, "default": DEFAULT}
    bare = {
        f"{name} in {dtype} products": {"kind": "products", "precision": dtype, "size": sizes[name], "gigaflop": work[name]}
        for name, dtype in itertools.product([name for name in work if name == "release" or name in presets], precisions())
    }
    times = timed(variants, arguments.threads, arguments.rounds, {"update": 4, "act": 40})
    of_products = timed(bare, arguments.threads, arguments.rounds, {"update": 4})
    result = {"command": "python benchmarks/algd_update.py " + " ".join(sys.argv[1:]), "threads": arguments.threads, **provenance(),
              "size": SIZES, "default_size": DEFAULT, "gigaflop": work["release"], "default_gigaflop": work["default"],
              "ms": times.wall, "cpu_ms": times.cpu,
              "bare_products_ms": {name: ms["update"] for name, ms in of_products.wall.items()},
              "bare_products_cpu_ms": {name: ms["update"] for name, ms in of_products.cpu.items()}}  # fmt: skip
    print(f"{'':44s}" + "".join(f"{task + ' ' + kind:>14s}{'ratio':>8s}" for task in ("update", "act") for kind in ("ms", "cpu ms")))
    for name in times.wall:
        row = ""
        for task, found in itertools.product(("update", "act"), times):
            base = found.get("released")
            row += f"{found[name][task]:14.3f}{f'{base[task] / found[name][task]:.2f}x' if base else '':>8s}"
        print(f"{name:44s}{row}")
    for name in bare:
        wall, cpu = (found[name]["update"] for found in of_products)
        print(f"{'the arithmetic of ' + name:44s}{wall:14.3f}{'':8s}{cpu:14.3f}")
    if not arguments.official:
        return  # the committed files hold comparisons only
    RESULTS.mkdir(exist_ok=True)
    label = f"_{arguments.label}" if arguments.label else ""
    (RESULTS / f"algd_update_{arguments.threads}threads{label}.json").write_text(json.dumps(result, indent=1))


SWEEPS = {
    "batch": (64, 128, 256, 512, 1024),
    "steps": (2, 5, 10, 20),
    "proposals": (1, 2, 4, 8, 16),
    "members": (1, 2, 4, 8),
    "observation": (17, 60, 120, 350),
}


def scaling(arguments: argparse.Namespace) -> None:
    """How the cost grows, beside the arithmetic it must do; and the replay's memory."""
    from saddlepoint.replay import Replay

    result: dict[str, Any] = {
        "command": "python benchmarks/algd_update.py " + " ".join(sys.argv[1:]),
        "threads": arguments.threads,
        **provenance(),
        "sweeps": {},
    }
    for name, values in SWEEPS.items():
        ms = timed(
            {str(v): our("default", "bfloat16", arguments.compiled, size=SIZES | {name: v}) for v in values},
            arguments.threads,
            arguments.rounds,
            {"update": 5},
        ).wall
        times, work = [ms[str(v)]["update"] for v in values], [gigaflop(SIZES | {name: v}) for v in values]
        result["sweeps"][name] = {"values": values, "ms": times, "gigaflop": work}
        print(name, [f"{v}: {t:.1f} ms, {w:.2f} GFLOP" for v, t, w in zip(values, times, work)], flush=True)
    sizes = (10_000, 100_000, 1_000_000)
    result["replay_bytes"] = {str(n): Replay.bytes_needed(n, SIZES["observation"], SIZES["action"], 1) for n in sizes}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "algd_scaling.json").write_text(json.dumps(result, indent=1))
    draw_scaling(result)


def draw_scaling(result: dict[str, Any]) -> None:
    """The figure of what ``scaling`` found, with a tick at each size that was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter

    from saddlepoint import figures

    with figures.style():
        figure, grid = plt.subplots(2, 3, figsize=(11.5, 6.2))
        axes = grid.ravel()
        for axis, (name, sweep) in zip(axes, result["sweeps"].items()):
            values, times, work = sweep["values"], sweep["ms"], sweep["gigaflop"]
            anchor = values.index(SIZES[name])
            axis.plot(values, times, "o-", color=figures.COLOURS[0], ms=4, label="measured")
            expected = [times[anchor] * w / work[anchor] for w in work]
            axis.plot(values, expected, "--", color=figures.COLOURS[1], label="in proportion to the arithmetic (GFLOP)")
            axis.set(xlabel=name, ylabel="ms an update", xscale="log", yscale="log", title=f"Update against {name}")
            axis.set_xticks(values, [str(value) for value in values])
            axis.set_xticks([], minor=True)
            axis.yaxis.set_major_formatter(LogFormatter())  # 28, not 2.8 x 10^1
            axis.yaxis.set_minor_formatter(LogFormatter())
        memory = {int(transitions): size / 1e9 for transitions, size in result["replay_bytes"].items()}
        axes[-1].plot(memory.keys(), memory.values(), "o-", color=figures.COLOURS[0], ms=4)
        axes[-1].set(xlabel="transitions", ylabel="GB", xscale="log", yscale="log", title="Replay memory (observation 60)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.savefig(RESULTS / "algd_scaling.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", help="clone of the authors' repository")
    parser.add_argument("--label", default="", help="the machine's name, at the end of the file's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiled", action="store_true", help="also time the compiled update (a minute each)")
    parser.add_argument(
        "--preset", action="append", choices=["parity", "earlier", "default"], help="only this preset (may be repeated)"
    )
    parser.add_argument("--only", action="append", help="only this variant of ours, by its row's name (may be repeated)")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--redraw", action="store_true", help="only draw the figure of the last --scaling again")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        import torch

        torch.set_num_threads(arguments.threads)
        variant = json.loads(arguments.serve)
        serve({"ours": ours, "official": official, "products": products}[variant.pop("kind")](**variant), warm_up=5)
    elif arguments.redraw:
        draw_scaling(json.loads((RESULTS / "algd_scaling.json").read_text()))
    elif arguments.scaling:
        scaling(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
