"""A film of one episode, also on machines without a screen."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.files import replacing
from saddlepoint.train.acting import Actor
from saddlepoint.types import ActMode, EnvSetup, Policy

FASTEST = 1000
"""frames a second that a film may have"""


def render_headless() -> None:
    """Let MuJoCo draw without a screen where there is none. To be called before ``mujoco`` is imported."""
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")


def record_video(
    policy: Policy, env: str | Callable[..., Any] | EnvSetup, path: Path, seed: int, mode: ActMode = "deterministic",
    device: torch.device | str = "cpu", budgets: tuple[CostBudget, ...] = (),
) -> int:  # fmt: skip
    """Write one episode as an mp4 file, a picture for each simulator step, and return its number of steps.

    An episode without a time limit is cut as in an evaluation within ``budgets``. Raises ``UserError`` when the
    environment cannot be drawn here, with what to install, and for what it answers wrongly.
    """
    render_headless()
    import imageio.v2 as imageio

    from saddlepoint.envs.drawing import first_picture, require_picture
    from saddlepoint.envs.guarded import GuardedEnv
    from saddlepoint.train.evaluate import longest_episode, require_finite_action

    setup = EnvSetup.of(env)
    setup = replace(setup, longest=setup.longest or longest_episode(budgets))
    generator = torch.Generator(device=device).manual_seed(seed)
    actor = Actor(policy, 1, device)
    game = GuardedEnv.open(setup, "rgb_array")
    game.needs_cost = actor.counts_cost
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        observation = game.reset(seed)
        first = require_picture(first_picture(game.env.render, setup.name), setup.name)
        with replacing(path) as temporary:
            film: Any = imageio.get_writer(temporary, format="FFMPEG", fps=_frame_rate(game.env.metadata), macro_block_size=2)
            with film:
                film.append_data(first)
                game.on_step = lambda: film.append_data(require_picture(game.draw(), setup.name, first.shape))
                ended = False
                while not ended:
                    action = actor.act(observation[None], mode, generator)
                    require_finite_action(action)
                    answer = game.step(action[0])
                    actor.pay(answer.cost[None])
                    observation, ended = answer.observation, answer.ended
            _require_whole(temporary)
    finally:
        game.close()
    return game.age


def _frame_rate(metadata: dict[str, Any] | None) -> int:
    """Frames a second, as an environment's metadata says; 30 where it does not say so in a number that a film can have."""
    try:
        rate = float((metadata or {}).get("render_fps") or 30)
    except (TypeError, ValueError, OverflowError):
        rate = 0.0
    return round(rate) if 1 <= rate <= FASTEST else 30


def _require_whole(film: Path) -> None:
    """Raises ``OSError`` unless the parts of an mp4 file fill it, with the index among them: ffmpeg also ends well where the disk is full."""
    size, at, kinds = film.stat().st_size, 0, set()
    with film.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[8:16] if head[:4] == b"\0\0\0\1" else head[:4])
            if length < 8:
                break
            kinds.add(head[4:8])
            at += length
    if at != size or b"moov" not in kinds:
        raise OSError(0, "the film was cut short")
