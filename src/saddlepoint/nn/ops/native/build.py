"""Builds the native operations for the processor at hand, once for each user, and loads them.

What is built depends on the sources' bytes, PyTorch and the processor (``_digest``), never on where the sources lie:
checkouts and installed copies with the same sources share one library.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from saddlepoint.types import UserError

HERE = Path(__file__).parent
SOURCES = ("mlp.cpp", "normed.cpp", "imagine.cpp")
HEADERS = (
    "tiles.h",
    "norm_rows.h",
    "mlp.h",
    "ensemble.h",
    "chain.h",
    "weight_gradients.h",
    "normed.h",
    "normed_passes.h",
)
FLAGS = {
    "AVX2": ("-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2", "-mavx2", "-mfma", "-mf16c"),
    "AVX512": (
        "-DCPU_CAPABILITY=AVX512",
        "-DCPU_CAPABILITY_AVX512",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mfma",
        "-mf16c",
    ),
}
"""of the compiler, by PyTorch's name for what its own kernels use on this processor"""
BF16_FLAG = "-mavx512bf16"
COMMON = (
    "-O3",
    "-DNDEBUG",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
)
WAIT = 3600.0
"""seconds to wait for another process that is building: a minute's work takes many on a core that others use as well"""
REQUIRED = "SADDLEPOINT_REQUIRE_NATIVE"

logger = logging.getLogger(__name__)


def supported() -> bool:
    """Whether there is a native backend for this processor and system at all: Linux on x86-64 with AVX2 or AVX-512."""
    machine = platform.machine().lower() in ("x86_64", "amd64")
    return sys.platform == "linux" and machine and torch.backends.cpu.get_cpu_capability() in FLAGS


@functools.cache
def loaded() -> bool:
    """Whether ``torch.ops.saddlepoint`` is there to be called; builds it on the first call, about a minute.

    Where it cannot be built, this says once what to do and returns False; with SADDLEPOINT_REQUIRE_NATIVE=1 it raises
    ``UserError``.
    """
    required = os.environ.get(REQUIRED, "") not in ("", "0")
    if not supported():
        if required:
            raise UserError(
                "there are no native operations for this processor"
                f" (they need Linux, x86-64 and AVX2): unset {REQUIRED}."
            )
        return False
    try:
        _load()
    except Exception as error:  # whatever a compiler, a linker or a folder can come to
        first = next(iter(str(error).splitlines()), type(error).__name__)
        advice = (
            f"install a C++ compiler (g++ 10 or newer) and ninja, and let {_cache()} be written, "
            "or set XDG_CACHE_HOME to a folder that can be"
        )
        if required:
            raise UserError(
                f"the native operations cannot be built or loaded ({first}): {advice}, or unset {REQUIRED}."
            ) from error
        logger.warning(
            "the native operations cannot be built or loaded (%s). PyTorch's slower ones are used: %s.", first, advice
        )
        return False
    return True


def _load() -> None:
    library = _cache() / _digest() / "saddlepoint_ops.so"
    if _loads(library):
        return
    library.parent.mkdir(parents=True, exist_ok=True)
    with _locked(library.parent / "lock"):
        if _loads(library):  # another process has built it
            return
        for left in (*library.parent.glob("build-*"), library):  # by a killed build, and what is damaged
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        _build(library)


def _loads(library: Path) -> bool:
    """Whether the library is there and whole; loads it."""
    if not library.exists():
        return False
    try:
        torch.ops.load_library(library)
    except OSError:  # damaged
        return False
    return True


def _build(library: Path) -> None:
    """Build and load. The library takes its place whole: a killed build leaves nothing that another would load."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # what goes wrong is said once, by ``loaded``
    from torch.utils import cpp_extension  # imports setuptools: only where something is built

    print(
        "saddlepoint: building the native operations for this processor (once, about a minute)",
        file=sys.stderr,
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as scratch, _scripts_on_path():
        cpp_extension.load(
            library.stem,
            [str(HERE / name) for name in SOURCES],
            extra_cflags=[*COMMON, *_flags()],
            extra_ldflags=["-fopenmp"],
            build_directory=scratch,
            is_python_module=False,
            with_cuda=False,
        )
        os.replace(Path(scratch) / library.name, library)


def _flags() -> tuple[str, ...]:
    flags = FLAGS[torch.backends.cpu.get_cpu_capability()]
    bf16 = flags is FLAGS["AVX512"] and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return (*flags, BF16_FLAG) if bf16 else flags


def _digest() -> str:
    """What a library depends on: the sources, PyTorch, and the processor."""
    digest = hashlib.sha256(f"{torch.__version__} {sys.version_info[:2]} {COMMON} {_flags()}".encode())
    for name in (*SOURCES, *HEADERS):
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saddlepoint" / "native"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock. The system gives up a dead process's lock, so that nothing waits for a killed one."""
    import fcntl  # there is none on Windows, which has no native backend

    with path.open("w") as file:
        start, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > start + WAIT:
                    raise TimeoutError(f"another process has been building in {path.parent} for {WAIT:.0f} s") from None
                if not told:
                    print("saddlepoint: waiting for another process that builds the native operations", file=sys.stderr, flush=True)
                told = True
                time.sleep(0.2)
        yield


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """``ninja`` is found beside this Python, also where its environment is not activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before
