"""A film of one episode, also on machines without a screen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from saddlepoint.train.acting import Actor
from saddlepoint.types import ActMode, Policy


def render_headless() -> None:
    """Let MuJoCo draw without a screen where there is none. To be called before ``mujoco`` is imported."""
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")


def record_video(
    policy: Policy, env: str, path: Path, seed: int, mode: ActMode = "deterministic", device: torch.device | str = "cpu"
) -> int:
    """Write one episode as an mp4 file and return its number of steps.

    Raises ``UserError`` when the environment cannot be drawn here, with what to install.
    """
    render_headless()
    import imageio.v2 as imageio

    from saddlepoint.envs.make import make_env
    from saddlepoint.envs.pixels import first_picture

    generator = torch.Generator(device=device).manual_seed(seed)
    actor = Actor(policy, 1, device)
    temporary = path.with_name(f".writing-{path.name}")
    game = make_env(env, render_mode="rgb_array")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        observation, _ = game.reset(seed=seed)
        first = first_picture(game.render, env)
        steps, ended = 0, False
        fps = int(game.metadata.get("render_fps") or 30)
        film: Any = imageio.get_writer(temporary, format="FFMPEG", fps=fps, macro_block_size=2)
        with film:
            film.append_data(first)
            while not ended:
                action = actor.act(observation[None], mode, generator)[0]
                observation, _, terminated, truncated, _ = game.step(action)
                film.append_data(game.render())
                steps, ended = steps + 1, bool(terminated or truncated)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        game.close()
    return steps
