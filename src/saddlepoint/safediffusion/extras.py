"""What the optional dependencies of this system are, and what to say without them."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

from saddlepoint.types import UserError

PACKAGES = ("diffusers", "transformers", "accelerate", "peft", "PIL")
NO_WEIGHTS = "give a folder with safetensors weights, or a hub id that this machine can reach."


def require_extra() -> None:
    """Raises ``UserError`` when a package of the extra is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"post-training of text-to-image models needs {', '.join(missing)}: pip install saddlepoint[text-to-image]"
        )


def quiet_libraries() -> None:
    """Keep loading bars and remarks of diffusers and transformers out of the run's own lines, for programs (a library
    leaves them as they are)."""
    require_extra()
    warnings.filterwarnings("ignore", module="huggingface_hub")  # a retired argument that diffusers still gives
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
