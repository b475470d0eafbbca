"""`saddlepoint collect RUN... --out FOLDER`: a data set of several tasks from runs of the project's own, each run's
environment a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from saddlepoint.envs import EnvBatch, env_spec
from saddlepoint.flags import parse
from saddlepoint.mbdpo.tasks import Task
from saddlepoint.offline.convert import chunks_and_flags
from saddlepoint.offline.dataset import Dataset, Writer
from saddlepoint.options import require_episodes, require_seed
from saddlepoint.policies import load_policy, of_other_settings
from saddlepoint.replay import saved_position
from saddlepoint.train import checkpoint, run
from saddlepoint.train.acting import Actor
from saddlepoint.train.evaluate import MAX_ENVS, longest_episode, require_finite_action
from saddlepoint.types import EnvSetup, EnvShape, UserError

PROG = "saddlepoint collect RUN..."


@dataclass(frozen=True)
class CollectFlags:
    """Make a data set of what runs have met: their replays, or new episodes of their policies. Costs are left out."""

    out: Path | None = None
    """folder of the data set, which must not exist yet"""
    episodes: int = 0
    """whole episodes that each run's policy plays; 0 takes the replay of its newest whole checkpoint instead"""
    mode: Literal["explore", "stochastic", "deterministic"] = "explore"
    """how the policy acts in those episodes"""
    seed: int = 2_000_000
    """seed of the environments and of the policy in those episodes"""


class Episode(NamedTuple):
    """An unbroken piece of an episode, in the environment's own units."""

    observation: np.ndarray  # (steps + 1, observation)
    action: np.ndarray  # (steps, action)
    reward: np.ndarray  # (steps,)
    terminated: np.ndarray  # (steps,) float


def collect_command(args: list[str]) -> None:
    """Everything after `saddlepoint collect`. Raises ``UserError``."""
    runs, rest = chunks_and_flags(args)
    parsed = parse(CollectFlags, CollectFlags(), rest, PROG)
    flags: CollectFlags = parsed.values
    if not runs:
        raise UserError("collect needs run folders: `saddlepoint collect RUN... --out FOLDER`.")
    if flags.out is None:
        raise UserError("collect needs a folder for the data set: give --out FOLDER.")
    require_episodes(flags.episodes, 0)
    require_seed(flags.seed)
    for name in ("mode", "seed"):
        if name in parsed.given and not flags.episodes:
            raise UserError(
                f"--{name} does nothing here: without --episodes the stored replay is taken. Leave it out, or give"
                " --episodes."
            )
    data = collect([Path(folder).absolute() for folder in runs], flags.out.absolute(), flags.episodes, flags.mode, flags.seed)
    for task in data.tasks:
        print(f"task {task.name}: {len(task.action_low)} actions, episodes of {task.episode_length} steps")
    print(
        f"{flags.out}: {len(data):,} episodes and {data.steps:,} steps; learn from it with `saddlepoint pretrain"
        f" mbdpo --data {flags.out}`"
    )


def collect(
    runs: list[Path], out: Path, episodes: int = 0, mode: Literal["explore", "stochastic", "deterministic"] = "explore", seed: int = 2_000_000
) -> Dataset:  # fmt: skip
    """The data set ``out`` from the runs' replays, or with ``episodes`` from that many new episodes of each run's
    policy.

    Runs of one environment are one task. Raises ``UserError`` for a folder that is no run of one environment, before
    anything is written.
    """
    twice = [folder for i, folder in enumerate(runs) if folder.resolve() in [other.resolve() for other in runs[:i]]]
    if twice:
        raise UserError(f"{twice[0]} is given twice, and its episodes would be stored twice: leave one out.")
    shapes: dict[str, EnvShape] = {}
    sources: list[tuple[Path, str]] = []
    for folder in runs:
        content = run.read(folder)
        if "env" not in content["train"] or "shape" not in content:
            raise UserError(f"{folder} is not a run on one environment: collect from runs of `saddlepoint train`.")
        env, shape = content["train"]["env"], run.shape_of(content)._replace(constraints=0)
        if shape.image is not None:
            raise UserError(
                f"{folder} was trained on pictures ({env}), and a data set holds vectors of observations: leave that"
                " run out."
            )
        if shapes.setdefault(env, shape) != shape:
            raise UserError(f"{folder} has other spaces than another run on {env}: leave one of them out.")
        if run.setup_of(content) != EnvSetup(env):
            raise UserError(
                f"{folder} was trained with --env-kwargs, --flatten or --action-repeat, which a data set does not"
                " keep: leave that run out."
            )
        sources.append((folder, env))
    names = list(shapes)
    with Writer(
        out, max(shape.observation for shape in shapes.values()), max(shape.action for shape in shapes.values())
    ) as writer:
        longest = dict.fromkeys(names, 0)
        for folder, env in sources:
            pieces = played(folder, env, episodes, mode, seed) if episodes else stored(folder, shapes[env])
            low, high = (np.array(bound, np.float32) for bound in (shapes[env].action_low, shapes[env].action_high))
            for piece in pieces:
                longest[env] = max(longest[env], len(piece.reward))
                scaled = ((2 * piece.action - (high + low)) / (high - low)).clip(-1, 1)
                writer.add(
                    np.array([names.index(env)]),
                    piece.observation[None],
                    scaled[None],
                    piece.reward[None],
                    piece.terminated[None],
                )
        writer.tasks = tuple(_task(env, shapes[env], longest[env]) for env in names)
    return Dataset(out, verify=False)


def _task(env: str, shape: EnvShape, longest: int) -> Task:
    return Task(env, env, shape.observation, shape.action_low, shape.action_high, env_spec(env).horizon or longest)


def stored(folder: Path, shape: EnvShape) -> Iterator[Episode]:
    """The replay of a run's newest whole checkpoint, cut into episodes; the oldest and the newest of each environment
    may be parts of one.

    Raises ``UserError`` when there is none, or one that does not fit the environment's ``shape``.
    """
    path, note = checkpoint.latest(folder)
    for said in (note, of_other_settings(folder, run.read(folder), path)):
        if said:
            print(f"warning: {said}")
    replay = checkpoint.load(path).replay
    if "position" not in replay:
        raise UserError(f"{folder} keeps no replay: collect with --episodes, or from another run.")
    rows, num_envs, head, filled = saved_position(replay)
    widths = {"observation": shape.observation, "action": shape.action, "next_observation": shape.observation}
    if any(
        replay[name].shape[1:] != ((widths[name],) if name in widths else ())
        for name in ("reward", "terminated", "age", *widths)
    ):
        raise UserError(
            f"{path} holds a replay of other sizes than the environment of {folder} has: it is damaged, collect from"
            " another run."
        )
    order = np.arange(filled) if filled < rows else (head + np.arange(rows)) % rows
    fields: dict[str, Any] = {
        name: replay[name].numpy()
        for name in ("observation", "action", "reward", "next_observation", "terminated", "age")
    }
    for env in range(num_envs):
        slots = order * num_envs + env
        starts = np.flatnonzero(fields["age"][slots] == 0)
        for piece in np.split(slots, starts[starts > 0]):
            if len(piece):
                observation = np.concatenate([fields["observation"][piece], fields["next_observation"][piece[-1:]]])
                yield Episode(
                    observation, fields["action"][piece], fields["reward"][piece], fields["terminated"][piece]
                )


def played(
    folder: Path, env: str, episodes: int, mode: Literal["explore", "stochastic", "deterministic"], seed: int
) -> Iterator[Episode]:
    """``episodes`` new episodes of a run's policy. Environments play one each and are then seeded anew, so that
    short ones do not come more often."""
    policy = load_policy(folder)
    slots = min(episodes, MAX_ENVS)
    envs = EnvBatch(EnvSetup(env, longest=longest_episode(policy.budgets)), slots, seed=seed, needs_cost=bool(policy.budgets))
    generator = torch.Generator().manual_seed(seed)
    try:
        actor = Actor(policy.learner, slots, "cpu")
        for first in range(0, episodes, slots):
            observation = envs.reset(seed + first)
            actor.restart()
            playing = np.arange(slots) < episodes - first
            tracks: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(slots)]
            while playing.any():
                action = actor.act(observation, mode, generator)
                require_finite_action(action)
                step = envs.step(action)
                ended = step.terminated | step.truncated
                actor.follow(step.cost, ended)
                for i in np.flatnonzero(playing):
                    tracks[i].append(
                        tuple(
                            np.copy(part[i])
                            for part in (observation, action, step.reward, step.terminated, step.next_observation)
                        )
                    )
                    if ended[i]:
                        yield _episode(tracks[i])
                playing &= ~ended
                observation = step.observation
    finally:
        envs.close()


def _episode(track: list[tuple[np.ndarray, ...]]) -> Episode:
    before, action, reward, terminated, after = (np.stack(part).astype(np.float32) for part in zip(*track))
    return Episode(np.concatenate([before, after[-1:]]), action, reward, terminated)
