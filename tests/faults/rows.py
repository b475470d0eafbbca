"""The rows of the table: each injects one fault many times and says what came of it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from saddlepoint.cli import VERBS
from saddlepoint.offline.dataset import Dataset
from saddlepoint.train.log import read_metrics
from tests.faults.fuzz import fuzz
from tests.faults.harness import Ended, copy, run, same_run, start
from tests.faults.readers import data_set, picture_readers, readers, trained

NETWORKS = "--policy-hidden 8 --critic-hidden 8 8 --batch-size 8".split()
PLAIN = "--quiet --threads 1 --compile off".split()
OFTEN = "--env saddlepoint/Toy-v0 --warmup-steps 60 --checkpoint-every 20 --eval-every 100 --log-every 20".split()
TOY = [*OFTEN, *NETWORKS, *PLAIN]
ALGD = ["train", "algd", *TOY, "--steps", "3", "--total-steps", "200"]
SAC = ["train", "sac-lag", *TOY, "--total-steps", "200"]
HOPPER = ["--env", "saddlepoint/HopperVelocity-v0", *OFTEN[2:], *NETWORKS, *PLAIN]
WORKERS = ["train", "sac-lag", *HOPPER, "--total-steps", "200", "--num-envs", "2", "--env-processes"]
MODEL = (
    "--preset small --width 16 --latent 16 --encoder-width 16 --proposals 8 --elites 3 --policy-rollouts 2 --steps 3"
    " --batch-size 8"
    " --score-states 4 --score-proposals 4 --critics 2 --bins 11 --time-embedding 4"
).split()
MBDPO = ["train", "mbdpo", *OFTEN, *MODEL, *PLAIN, "--total-steps", "90", "--eval-every", "1000", "--eval-envs", "10"]
PRETRAIN_STEPS = ["--total-updates", "60", "--checkpoint-every", "10", "--log-every", "10", "--eval-every", "0"]


@dataclass
class Row:
    """One line of the table."""

    fault: str
    how: str
    tried: int = 0
    well: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, outcome: str, fault: str = "") -> None:
        """One try; ``fault`` says what was wrong with it."""
        self.tried += 1
        if fault:
            self.wrong.append(fault)
        else:
            self.well += 1
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


class Lab:
    """A folder, the numbers of tries, and unbroken runs to compare with."""

    def __init__(self, home: Path, share: float, seed: int = 0) -> None:
        self.home, self.share, self.short, self.rng = home, share, share < 0.05, random.Random(seed)
        self._whole: dict[str, tuple[Path, float]] = {}
        for module, _ in VERBS.values():
            import_module(module)
        with contextlib.redirect_stdout(io.StringIO()):
            trained(home / "warm")  # so that the children, which are forked, have all that is imported late

    def count(self, full: int) -> int:
        """Tries of a row: all of ``full``, or a share of them."""
        return max(round(full * self.share), 1)

    def whole(self, args: list[Any]) -> tuple[Path, float]:
        """The run of ``args`` that nothing disturbs, and its seconds; made once."""
        key = " ".join(map(str, args))
        if key not in self._whole:
            folder = self.home / f"whole-{len(self._whole)}"
            begun = time.monotonic()
            ended = run([*args, "--out", folder], self.home)
            assert ended.code == 0, ended.said
            self._whole[key] = folder, time.monotonic() - begun
        return self._whole[key]

    def finish(self, args: list[Any], folder: Path, row: Row, outcome: str) -> None:
        """Go on with what is in ``folder``, or begin anew where there is no checkpoint, and compare with the
        unbroken run."""
        whole, _ = self.whole(args)
        begun = any((folder / "checkpoints").glob("[0-9]*"))
        ended = run(
            [*args[:1], *([] if args[0] == "train" else args[1:2]), "--resume", folder]
            if begun
            else [*args, "--out", folder],
            self.home,
        )
        fault = _unclean(ended, (0,)) or same_run(whole, folder)
        row.add(
            outcome
            if begun
            else "killed before its first checkpoint, begun anew by the same command: equal to the bit",
            fault,
        )
        if not fault:
            shutil.rmtree(folder, ignore_errors=True)


def _unclean(ended: Ended, codes: tuple[int, ...]) -> str:
    """What is wrong with how a command ended; empty where nothing is."""
    if ended.code not in codes:
        return f"exit {ended.code} instead of {codes}: {ended.said[-600:]}"
    return f"a traceback: {ended.said[-1500:]}" if ended.traceback else ""


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
EXACT = "resumed, equal to the bit to the unbroken run, each line of metrics once"


def kills(lab: Lab) -> Iterator[Row]:
    data = data_set(lab.home / "data")
    pretrain = ["pretrain", "mbdpo", "--data", data, *PRETRAIN_STEPS, *MODEL, *PLAIN]
    some = (
        ("ALGD", ALGD, 20),
        ("pretraining", pretrain, 8),
        ("SAC-Lagrangian in two workers", WORKERS, 6),
        ("MBDPO", MBDPO, 6),
    )
    for name, args, full in some[: 2 if lab.short else None]:
        row = Row(f"kill -9, {name}", "at a random moment of the run")
        _, seconds = lab.whole(args)
        for number in range(lab.count(full)):
            folder = lab.home / f"kill-{name.split()[0]}-{number}"
            command = start([*args, "--out", folder], lab.home)
            time.sleep(lab.rng.uniform(0.05, 1.0) * seconds)
            command.signal(signal.SIGKILL, group=True)
            command.end()
            lab.finish(args, folder, row, EXACT)
        yield row


def signals(lab: Lab) -> Iterator[Row]:
    for name, args, times in (("one process", SAC, 3), ("two workers", WORKERS, 2)):
        for group in (args is WORKERS,) if lab.short else (False, True):
            row = Row(
                f"TERM, INT, HUP, USR1, USR2, {name}",
                f"to {'the whole process group' if group else 'the process'}, at a random moment",
            )
            whole, _ = lab.whole(args)
            seconds = read_metrics(whole)[-1]["wall_s"]  # without what comes before the first checkpoint
            some = lab.rng.sample(SIGNALS, 2) if lab.short else SIGNALS
            for number in some * lab.count(times):
                folder = lab.home / f"signal-{number}-{row.tried}"
                command = start([*args, "--out", folder], lab.home)
                while command.running() and not any((folder / "checkpoints").glob("[0-9]*")):
                    time.sleep(0.02)
                time.sleep(lab.rng.uniform(0.0, 0.8) * seconds)
                command.signal(number, group)
                ended = command.end()
                if fault := _unclean(ended, (0, 130)):
                    row.add("", f"signal {number}: {fault}")
                    continue
                lab.finish(args, folder, row, f"checkpoint, exit 130; {EXACT}" if ended.code else "came after the end")
            yield row


def full_disk(lab: Lab) -> Iterator[Row]:
    row = Row(
        "disk full",
        "a small tmpfs filled at a random moment, emptied, resumed"
        if os.geteuid() == 0
        else "RLIMIT_FSIZE, lifted, resumed",
    )
    with _small_disk(lab.home / "disk") as disk:
        _, seconds = lab.whole(ALGD)
        for number in range(lab.count(10)):
            folder = (disk or lab.home) / f"full-{number}"
            limit = (
                None if disk else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            )
            command = start([*ALGD, "--out", folder], lab.home, limit)
            time.sleep(lab.rng.uniform(0.1, 0.9) * seconds)
            if disk:
                _fill(disk)
            ended = command.end()
            if disk:
                (disk / "filler").unlink(missing_ok=True)
            if fault := _unclean(ended, (0, 2)):
                row.add("", fault)
            else:
                lab.finish(ALGD, folder, row, f"exit 2, one sentence; {EXACT}")
            shutil.rmtree(folder, ignore_errors=True)
    yield row


@contextmanager
def _small_disk(place: Path) -> Iterator[Path | None]:
    """A file system of 6 MB, where this process may make one."""
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", place], capture_output=True).returncode
    ):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def _fill(disk: Path) -> None:
    try:
        with (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass


def flips(lab: Lab) -> Iterator[Row]:
    """Bits of every file of a run folder, then the run is resumed for 20 steps more, evaluated and reported."""
    base, _ = lab.whole(ALGD)
    longer = [*ALGD[:-1], "220"]
    whole, _ = lab.whole(longer)
    files = sorted(
        path.relative_to(base)
        for path in base.rglob("*")
        if path.is_file() and path.stat().st_size and path.name != ".lock"
    )
    for name in (
        "config.json",
        "metrics.jsonl",
        "learner.safetensors",
        "replay.safetensors",
        "state.json",
        "arrays.npz",
        "manifest.json",
        "tb",
    ):
        chosen = [path for path in files if name in path.parts]
        newest = [
            path for path in chosen if path.parts[:2] in (("checkpoints", "200"),) or path.parts[0] != "checkpoints"
        ]
        row = Row(f"a flipped bit in {name}", "one random bit, then resumed for 20 steps more")
        for number in range(lab.count(12)):
            folder = copy(base, lab.home / f"flip-{number}")
            path = folder / lab.rng.choice(newest)
            content = bytearray(path.read_bytes())
            content[lab.rng.randrange(len(content))] ^= 1 << lab.rng.randrange(8)
            path.write_bytes(content)
            ended = run(["train", "--resume", folder, "--total-steps", "220"], lab.home)
            noticed = any(
                word in ended.said
                for word in (
                    "warning",
                    "changed",
                    "damaged",
                    "cannot be read",
                    "not written by",
                    "not as the checkpoint",
                )
            )
            fault = _unclean(ended, (0, 2))
            if ended.code == 0 and not fault:
                different = same_run(whole, folder)
                if different and not noticed:
                    fault = f"accepted in silence, and {different} differs (flip in {path.name})"
                row.add(
                    "noticed and named, went on from what is whole"
                    if noticed
                    else "harmless: the end is equal to the bit",
                    fault,
                )
            else:
                row.add(
                    "refused with one sentence that names the file",
                    fault or ("" if noticed else f"nothing named: {ended.said[-300:]}"),
                )
        yield row


def two_at_once(lab: Lab) -> Iterator[Row]:
    row = Row("two starts with one --out", "within 0 to 1.5 s of each other")
    whole, _ = lab.whole(ALGD)
    for number in range(lab.count(8)):
        folder = lab.home / f"twice-{number}"
        commands = [start([*ALGD, "--out", folder], lab.home)]
        time.sleep(lab.rng.uniform(0, 1.5))
        commands.append(start([*ALGD, "--out", folder], lab.home))
        ended = [command.end() for command in commands]
        row.add("one wins, the other says so; the run is equal to the bit", _one_won(ended) or same_run(whole, folder))
    yield row
    row = Row("two collects with one --out", "within 0 to 0.3 s of each other")
    for number in range(lab.count(8)):
        folder = lab.home / f"collected-{number}"
        commands = [start(["collect", whole, "--out", folder], lab.home)]
        time.sleep(lab.rng.uniform(0, 0.3))
        commands.append(start(["collect", whole, "--out", folder], lab.home))
        ended = [command.end() for command in commands]
        row.add(
            "one wins, the other says so; the data set is whole",
            _one_won(ended) or ("" if len(Dataset(folder)) else "no episodes"),
        )
    yield row


def _one_won(ended: list[Ended]) -> str:
    if sorted(one.code for one in ended) != [0, 2]:
        return f"exits {[one.code for one in ended]}: {[one.said[-300:] for one in ended]}"
    return "".join(_unclean(one, (0, 2)) for one in ended)


def environments(lab: Lab) -> Iterator[Row]:
    from tests.test_env_faults import FAULTS

    for processes in (False, True):
        place = "in workers" if processes else "in-process"
        row = Row(
            f"an environment that breaks its word, {place}",
            f"{len(FAULTS)} odd answers, exits and interrupts after 260 steps",
        )
        for part in FAULTS[:: 1 if lab.share >= 1 else 10]:
            folder = lab.home / f"env-{part}-{processes}"
            args = [
                "train", "sac-lag", "--env", f"tests.test_env_faults:tests/Odd-{part}-v0", "--cost-limit", "5", "--cost-horizon", "12", *NETWORKS, *PLAIN,
                "--warmup-steps", "20", "--total-steps", "200", "--checkpoint-every", "1000", "--eval-every", "1000", "--out", folder,
            ]  # fmt: skip
            ended = run(args + (["--env-processes"] if processes else []), lab.home)
            kept = max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")), default=-1)
            fault = _unclean(ended, (2,)) or ("" if kept >= 30 else f"{part}: only step {kept} kept")
            row.add("exit 2, one sentence with the answer; that very step kept", fault)
            shutil.rmtree(folder, ignore_errors=True)
        yield row


def memory(lab: Lab) -> Iterator[Row]:
    row = Row("out of memory", "an allocation that fails in a random update")
    for number in range(lab.count(10)):
        folder, at = lab.home / f"memory-{number}", lab.rng.randrange(1, 130)

        def fail(at: int = at) -> None:
            from saddlepoint.algd.agent import ALGD as Agent

            made, count = Agent.update, iter(range(10**9))

            def update(self: Any, replay: Any, updates: int) -> Any:
                if next(count) == at:
                    raise RuntimeError(
                        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 8 bytes"
                    )
                return made(self, replay, updates)

            Agent.update = update  # type: ignore[method-assign]

        ended = run([*ALGD, "--out", folder], lab.home, fail)
        fault = _unclean(ended, (2,)) or (
            "" if "not enough memory" in ended.said and "checkpoint" in ended.said else ended.said[-300:]
        )
        if fault:
            row.add("", fault)
        else:
            lab.finish(ALGD, folder, row, f"exit 2, the sentence names the last checkpoint; {EXACT}")
    yield row


def fuzzed(lab: Lab) -> Iterator[Row]:
    home = lab.home / "fuzz"
    home.mkdir()
    for reader in (*readers(home), *picture_readers(home)):
        tally = fuzz(reader, lab.count(reader.count))
        row = Row(
            f"damaged {reader.name}",
            "random bytes or JSON structure, digests mended in 70 %",
            tally.tried,
            tally.tried - len(tally.faults),
        )
        row.wrong = tally.faults
        row.outcomes = {f"{tally.refused} refused with one sentence, {tally.accepted} read as they stand": row.well}
        yield row


ROWS: tuple[Callable[[Lab], Iterator[Row]], ...] = (
    kills,
    signals,
    full_disk,
    flips,
    two_at_once,
    environments,
    memory,
    fuzzed,
)


def faults(share: float, only: Sequence[str]) -> list[Row]:
    """The rows of the kinds ``only``."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sp-faults-") as home:
        lab = Lab(Path(home), share)
        for make in ROWS:
            if make.__name__ not in only:
                continue
            for row in make(lab):
                rows.append(row)
                print(f"{row.well:5d} of {row.tried:5d}  {row.fault} ({row.how})", flush=True)
                for wrong in row.wrong[:3]:
                    print(f"        {wrong}", flush=True)
    return rows
