"""A small animated picture of one episode of a trained policy, for the README.

    python benchmarks/film.py RUN OUT.gif [--seed 1000000] [--every 5] [--width 200] [--colours 96] [--frames 80]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
from PIL import Image

from saddlepoint import load_policy
from saddlepoint.train.video import record_video, render_headless


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the episode; the evaluation's own by default")
    parser.add_argument("--every", type=int, default=5, help="keep one frame of so many")
    parser.add_argument("--width", type=int, default=200)
    parser.add_argument("--colours", type=int, default=96)
    parser.add_argument("--frames", type=int, default=80, help="at most so many, from the start of the episode")
    arguments = parser.parse_args()
    render_headless()
    policy = load_policy(arguments.run)
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "episode.mp4"
        steps = record_video(policy.learner, policy.env, film, arguments.seed)
        reader: Any = imageio.get_reader(film)
        rate = reader.get_meta_data()["fps"]
        frames = [Image.fromarray(frame) for i, frame in enumerate(reader) if i % arguments.every == 0]
    frames = frames[: arguments.frames]
    height = round(frames[0].height * arguments.width / frames[0].width)
    small = [f.resize((arguments.width, height), Image.Resampling.LANCZOS) for f in frames]
    shown = small[:: max(1, len(small) // 8)]  # the palette must hold what comes into view later
    strip = Image.new("RGB", (arguments.width * len(shown), height))
    for i, frame in enumerate(shown):
        strip.paste(frame, (i * arguments.width, 0))
    palette = strip.quantize(arguments.colours, dither=Image.Dither.NONE)
    small = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in small]
    small[0].save(arguments.out, save_all=True, append_images=small[1:], duration=1000 * arguments.every / rate, loop=0, optimize=True)
    print(f"{arguments.out}: {len(small)} of {steps} steps, {arguments.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
