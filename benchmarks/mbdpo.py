"""Time of one MBDPO action and of one update, against the released program.

    python benchmarks/mbdpo.py [--official PATH --official-python PYTHON] [--threads 2] [--rounds 20] [--compiled] [--label MACHINE]

``--official`` is a clone of the authors' repository (Edmond1Cheng/MBDPO on GitHub); none of it is in ours. It needs tensordict, which ours does not:
``--official-python`` is the interpreter of an environment that has it. Every variant lives in a process of its own and they take turns, so that a noisy
machine hits them alike; medians and ratios of medians are printed, and kept in benchmarks/results/ when there is something to compare with.
Ours includes all noise, and for an update the batch from the replay; the released update is given a ready batch. Size: 5M, 512 proposals, 20 levels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from interleave import Work, Worker, interleaved, provenance, serve  # noqa: E402

RESULTS = HERE / "results"
OBSERVATION, ACTION = 24, 6  # as walker-walk

VARIANTS: dict[str, dict[str, Any]] = {
    "parity": {"preset": "parity"},
    "parity, score network": {"preset": "parity", "planner": "score"},
    "default": {},
    "default, bfloat16": {"precision": "bfloat16"},
    "default, learning in bfloat16": {"learning_precision": "bfloat16"},
    "default, score network": {"planner": "score"},
    "td-mpc2": {"preset": "td-mpc2"},
    "small": {"preset": "small"},
    "default, one constraint": {"constraints": 1},
}


def gigaflop(proposals: int = 512, levels: int = 19, horizon: int = 3, width: int = 512, latent: int = 512, bins: int = 101) -> float:
    """Multiply-adds (times two) of the proposals of one action, in 1e9: dynamics, reward and energy at each step, the prior and two critics at the end."""
    first, inner = (latent + ACTION) * width, width * width
    step = 3 * (first + inner) + width * (latent + bins + 1)
    end = latent * width + inner + 2 * ACTION * width + 2 * (first + inner + width * bins)
    return 2 * levels * proposals * (horizon * step - 3 * latent * width + end) / 1e9


# ------------------------------------------------------------------------------------------------ what is timed, one process each


def ours(preset: str = "default", compiled: bool = False, constraints: int = 0, **changes: Any) -> Work:
    import numpy as np
    import torch

    from saddlepoint.constrained.budget import CostBudget
    from saddlepoint.mbdpo.agent import MBDPO
    from saddlepoint.mbdpo.config import PRESETS
    from saddlepoint.memory import keep_freed_memory
    from saddlepoint.replay import Replay
    from saddlepoint.types import EnvShape

    keep_freed_memory()
    shape = EnvShape(OBSERVATION, (-1.0,) * ACTION, (1.0,) * ACTION, constraints)
    agent = MBDPO(replace(PRESETS[preset], **changes), shape, (CostBudget(25),) * constraints, compile=compiled)
    rng = np.random.default_rng(0)
    replay = Replay(20_000, OBSERVATION, ACTION, constraints, num_envs=100)
    for _ in range(100):
        observation, following = rng.normal(size=(2, 100, OBSERVATION)).astype(np.float32)
        action, reward = rng.uniform(-1, 1, (100, ACTION)).astype(np.float32), rng.normal(size=100).astype(np.float32)
        cost, never = rng.random((100, constraints)).astype(np.float32), np.zeros(100, bool)
        replay.add(observation, action, reward, cost, following, never, never)
    generator, state = torch.Generator().manual_seed(0), torch.randn(1, OBSERVATION)
    memory = torch.zeros(1, agent.memory_size)
    return {"update": lambda: agent.update(replay, 1), "act": lambda: agent.act_on(state, memory, "explore", generator)}


def official(path: str, score: bool) -> Work:
    """The released agent on the CPU: its hard-coded device is answered with another, and Adam's CUDA-only mode is switched off."""
    sys.path.insert(0, str(Path(path) / "MBDPO"))
    import torch
    from common import scale as scale_module
    from common.world_model import WorldModel

    import mbdpo as module  # type: ignore[import-not-found]

    class OnCPU:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def device(*_: Any) -> torch.device:
            return torch.device("cpu")

    module.torch = scale_module.torch = OnCPU()
    WorldModel.to = lambda self, *_, **__: self  # it is on the CPU already, and fails on its meta tensors with a current tensordict
    config = SimpleNamespace(
        obs="state", obs_shape={"state": (OBSERVATION,)}, action_dim=ACTION, multitask=False, tasks=["task"], task_dim=0, episodic=False, compile=False,
        episode_length=500, latent_dim=512, mlp_dim=512, enc_dim=256, num_enc_layers=2, num_q=5, num_bins=101, vmin=-10, vmax=10, bin_size=0.2,
        dropout=0.01, simnorm_dim=8, log_std_min=-10, log_std_max=2, entropy_coef=1e-4, horizon=3, batch_size=256, lr=3e-4, enc_lr_scale=0.3,
        grad_clip_norm=20, tau=0.01, rho=0.5, reward_coef=0.1, value_coef=0.1, termination_coef=1, consistency_coef=20, contrastive_eta=0.01,
        discount_denom=5, discount_min=0.95, discount_max=0.995, diffusion_steps=20, diffusion_beta0=1e-4, diffusion_betaT=1e-2,
        diffusion_num_samples=512, diffusion_num_elites=64, diffusion_num_pi_trajs=24, diffusion_temperature=0.5, diffusion_action_noise=0.05,
        diffusion_eval_compile=False, diffusion_time_embed_dim=64, use_score_network=score, score_only_inference=score, score_loss_coef=1.0,
    )  # fmt: skip
    agent = module.MBDPO(config)
    for optimiser in (agent.optim, agent.pi_optim):
        for group in optimiser.param_groups:
            group["capturable"] = False
    b, h = config.batch_size, config.horizon
    batch = (torch.randn(h + 1, b, OBSERVATION), torch.rand(h, b, ACTION) * 2 - 1, torch.randn(h, b, 1), torch.zeros(h, b, 1))
    state = torch.randn(OBSERVATION)
    return {"update": lambda: agent._update(*batch), "act": lambda: agent.act(state)}


def compare(arguments: argparse.Namespace) -> None:
    """Every round visits all variants in turn; the median over rounds of each."""
    variants = {name: {"kind": "ours", "compiled": arguments.compiled, **own} for name, own in VARIANTS.items() if name in (arguments.only or VARIANTS)}
    pythons = dict.fromkeys(variants, sys.executable)
    if arguments.official:
        theirs = {"released": False}
        theirs |= {"released, score network": True} if any("score" in name for name in variants) else {}
        variants = {name: {"kind": "official", "path": arguments.official, "score": score} for name, score in theirs.items()} | variants
        pythons |= dict.fromkeys(theirs, arguments.official_python)
    workers = {name: Worker(__file__, variant, arguments.threads, pythons[name]) for name, variant in variants.items()}
    times = interleaved(workers, arguments.rounds, {"update": 1, "act": 3})
    print(f"{arguments.threads} threads; {gigaflop():.0f} GFLOP in the proposals of an action at the default size")
    print(f"{'':32s}" + "".join(f"{task + ' ' + kind:>14s}{'ratio':>8s}" for task in ("update", "act") for kind in ("ms", "cpu ms")))
    for name in variants:
        row = ""
        for task, found in itertools.product(("update", "act"), times):
            base = found.get("released, score network" if "score" in name else "released")
            row += f"{found[name][task]:14.2f}{f'{base[task] / found[name][task]:.2f}x' if base else '':>8s}"
        print(f"{name:32s}{row}")
    if not arguments.official:
        return  # the committed files hold comparisons only
    RESULTS.mkdir(exist_ok=True)
    result = {"command": "python benchmarks/mbdpo.py " + " ".join(sys.argv[1:]), "threads": arguments.threads, **provenance(),
              "gigaflop": gigaflop(), "ms": times.wall, "cpu_ms": times.cpu}  # fmt: skip
    label = f"_{arguments.label}" if arguments.label else ""
    (RESULTS / f"mbdpo_{arguments.threads}threads{label}.json").write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", help="clone of the authors' repository")
    parser.add_argument("--official-python", default=sys.executable, help="interpreter of an environment with tensordict")
    parser.add_argument("--label", default="", help="the machine's name, at the end of the file's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--compiled", action="store_true", help="compile the imagined steps (about 20 s each)")
    parser.add_argument("--only", action="append", choices=list(VARIANTS), help="only this variant of ours (may be repeated)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        import torch

        torch.set_num_threads(arguments.threads)
        variant = json.loads(arguments.serve)
        serve(ours(**variant) if variant.pop("kind") == "ours" else official(**variant), warm_up=2)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
