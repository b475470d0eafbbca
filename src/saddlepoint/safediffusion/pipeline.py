"""A text-to-image pipeline: its configs read and checked before any model is loaded, its parts loaded whole or not at
all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from saddlepoint.files import FileFault, StoredTensors, read_json
from saddlepoint.foreign import first_line
from saddlepoint.safediffusion.extras import NO_WEIGHTS, require_extra
from saddlepoint.safediffusion.families import FAMILIES, PipelineFamily, Request
from saddlepoint.safediffusion.tables import (  # parity tests take these names from here
    DenoisingTable,
    denoising_table,
    noise_schedule,
    scheduler_remarks,
)
from saddlepoint.safediffusion.weights import ADAPTERS, MERGE, Stored, chosen_weights, folder_files, stored_weights
from saddlepoint.types import UserError

__all__ = [
    "DenoisingTable",
    "Source",
    "denoising_table",
    "load_pipeline",
    "noise_schedule",
    "open_source",
    "source_files",
]

PIPELINE_CONFIGS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model")
SAMPLE = 100
"""words of a vocabulary that its tokenizer is tried with"""
HUB_SECONDS = 10.0
"""that the hub has to answer"""


@dataclass(frozen=True)
class Source:
    """A pipeline before any weights are read."""

    place: str
    """the folder or hub id"""
    folder: Path
    """where its files are on this machine; those of a hub id's weights may still be missing"""
    revision: str | None
    """commit of a hub id"""
    family: PipelineFamily
    index: dict[str, Any]
    """model_index.json"""
    configs: dict[str, dict[str, Any]]
    """config of each part that has one"""

    @property
    def models(self) -> list[str]:
        """The parts that have weights."""
        return [name for name in (self.family.network, "vae", *self.family.encoders) if name in self.configs]

    def remarks(self, guidance: float) -> list[str]:
        """Sentences on settings that work and are rarely meant."""
        found = [] if self.family.flow else scheduler_remarks(self.configs["scheduler"])
        if guidance <= 1 and not self.family.guidance_is_input(self.configs):
            found.append(
                f"--guidance {guidance:g} draws without guidance, and pictures follow their prompts less: diffusers"
                f" takes {self.family.guidance:g} for {self.family.title}"
            )
        return found

    def check(self, request: Request) -> None:
        """Raises ``UserError`` for steps, a size or text tokens that this pipeline cannot have; no model is loaded."""
        with _settings_of(self.place):
            self.family.table(self.configs, request)
            self.family.shape(self.configs, request)
        if request.text_tokens is not None and self.family.text_tokens is None:
            raise UserError(f"--text-tokens does nothing here: {self.family.title} has no T5. Leave it out.")


def is_hub_id(place: str) -> bool:
    return place.count("/") == 1 and not place.startswith((".", "/", "~"))


def open_source(place: str, revision: str | None = None) -> Source:
    """The configs of a pipeline folder or hub id (owner/name or owner/name@revision), after all checks that need no
    model.

    Raises ``UserError`` when it is no pipeline of a known family, lacks a part, or has a scheduler without Gaussian
    steps of a known density.
    """
    require_extra()
    folder, commit = _find(place, revision)
    with _settings_of(place):
        return _opened(place, folder, commit)


@contextmanager
def _settings_of(place: str) -> Iterator[None]:
    """Raises ``UserError`` for whatever a setting raises that is of another kind or size than its name says."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the pipeline {place} has odd settings ({type(error).__name__}: {first_line(error)}): {NO_WEIGHTS}"
        ) from error


def _opened(place: str, folder: Path, commit: str | None) -> Source:
    index = _read(folder / "model_index.json", place)
    kind = index.get("_class_name")
    if kind not in FAMILIES:
        known = ", ".join(f"{family.title} ({name})" for name, family in FAMILIES.items())
        raise UserError(f"{place} is a {kind}, which is not one of the families that can be trained: {known}.")
    family = FAMILIES[kind]
    for part in (*family.parts, "safety_checker"):
        if not _is_kind(index.setdefault(part, [None, None])):
            raise UserError(f"the model_index.json of {place} has no library and class as its {part}: restore it.")
    missing = [
        part
        for part in family.parts
        if part not in family.optional and (not index[part][0] or not (folder / part).is_dir())
    ]
    if missing:
        raise UserError(f"the pipeline {place} lacks its {', '.join(missing)}: give a whole one.")
    configs = {}
    for part in family.parts:
        if index[part][0] and "tokenizer" not in part:
            configs[part] = _read(
                folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), place
            )
    family.check(configs, place)
    return Source(place, folder, commit, family, index, configs)


def _is_kind(entry: Any) -> bool:
    """Whether an entry of model_index.json is a library and a class, or says that the part is missing."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str | None) for word in entry)


def _find(place: str, revision: str | None) -> tuple[Path, str | None]:
    folder = Path(place)
    if folder.is_file():
        if folder.suffix == ".safetensors" and any(map(ADAPTERS.search, StoredTensors(folder, "weights"))):
            raise UserError(
                f"{place} holds adapters alone, which draw nothing without their pipeline: {MERGE}, then give its folder."
            )
        raise UserError(
            f"{place} is a single file, and its configs must be known to be checked: convert it once, with diffusers'"
            " StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER) (or that of its own family), and"
            " give the folder."
        )
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"{place} is not a pipeline in diffusers' layout (it has no model_index.json): give the folder of one."
            )
        return folder, None
    if not is_hub_id(place):
        raise UserError(
            f"there is no pipeline folder {place}: give a folder in diffusers' layout, or a hub id; one that has moved"
            " is given as --pipeline."
        )
    return from_hub("pipeline", place, revision, PIPELINE_CONFIGS)


def from_hub(
    what: str, place: str, revision: str | None, patterns: Sequence[str], parts: Sequence[str] = ()
) -> tuple[Path, str]:
    """The folder of a snapshot with these files and the weights of these ``parts``, and its commit; one that this
    machine keeps, where the hub does not answer. Raises ``UserError``."""
    from huggingface_hub import snapshot_download

    name, _, own = place.partition("@")
    wanted = revision or own or None
    listed, fault = _ask_hub(name, wanted)
    weights = [
        name
        for part in map(PurePosixPath, parts)
        for name in map(str, map(part.joinpath, chosen_weights(path.name for path in listed if path.parent == part)[0]))
    ]
    try:  # by the name of the branch, whose commit the client then keeps for when the hub does not answer
        folder = Path(
            snapshot_download(name, revision=wanted, allow_patterns=[*patterns, *weights], local_files_only=fault is not None)
        )
    except Exception as error:  # the hub's client raises those of several libraries
        raise UserError(
            f"the {what} {place} cannot be read from the hub ({first_line(fault or error)}): {NO_WEIGHTS}"
        ) from error
    return folder, folder.name


def _ask_hub(name: str, revision: str | None) -> tuple[list[PurePosixPath], Exception | None]:
    """The files of a model, and why the hub does not answer for it, or None where it does. The client by itself waits
    without end for a hub that takes the connection and does not answer."""
    from huggingface_hub import HfApi

    try:
        about = HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    except Exception as error:  # as above
        return [], error
    return [PurePosixPath(file.rfilename) for file in about.siblings or ()], None


def _read(path: Path, place: str) -> dict[str, Any]:
    try:
        return read_json(path, "a part of a pipeline")
    except FileFault as error:
        raise UserError(
            f"the pipeline {place} cannot be read ({path.name} of {path.parent.name}: {error.reason}): {NO_WEIGHTS}"
        ) from error


def source_files(place: str, revision: str | None = None) -> dict[str, str]:
    """What tells a model from another at the same place: digests of a folder's weights, configs and vocabularies, or
    the commit of a hub id."""
    folder = Path(place)
    if folder.is_dir():
        return folder_files(folder)
    return {"revision": from_hub("model", place, revision, ["*.json"])[1]} if is_hub_id(place) else {}


def load_pipeline(place: str | Source, *, whole: bool = False, low_precision: bool = False) -> Any:
    """The pipeline on the CPU, frozen, without its safety checker unless ``whole``. Text encoders and VAE keep the
    precision they are stored in.

    The network is float32, or, with ``low_precision``, as it is stored. Raises ``UserError`` when a part cannot be
    loaded or any of its tensors was not in its files: the libraries then leave it at random. Nothing is unpickled.
    """
    source = place if isinstance(place, Source) else open_source(place)
    import diffusers

    kind = getattr(diffusers, source.family.pipeline_class)
    folder = _with_weights(source)
    models: dict[str, Any] = {
        part: None for part in source.family.optional if not source.index[part][0]
    }
    for part in source.models:
        stored = stored_weights(folder, part)
        models[part] = _load_part(source, folder, part, stored, _precision(source, part, stored, low_precision))
    if "safety_checker" in kind._optional_components:
        models |= (
            _checker(source, folder)
            if whole
            else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        )
    try:
        pipeline = kind.from_pretrained(folder, **models)
    except Exception as error:  # several libraries read tokenizers and schedulers here
        raise UserError(f"the pipeline {source.place} cannot be loaded ({first_line(error)}): {NO_WEIGHTS}") from error
    for part in source.family.encoders:
        if (encoder := getattr(pipeline, part)) is not None:
            own = part.replace("text_encoder", "tokenizer")
            require_words(getattr(pipeline, own), encoder.config, f"the {own} of {source.place}", length=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _with_weights(source: Source) -> Path:
    if source.revision is None:
        return source.folder
    parts = [part for part, entry in source.index.items() if isinstance(entry, list) and any(entry)]
    return from_hub("pipeline", source.place, source.revision, PIPELINE_CONFIGS, parts)[0]


def _precision(source: Source, part: str, stored: Stored, low_precision: bool) -> torch.dtype:
    if part == source.family.network and not low_precision:
        return torch.float32
    if part == "vae" and stored.dtype == torch.float16 and source.configs["vae"].get("force_upcast", True):
        return torch.float32  # it overflows in half precision, as its config says
    return torch.float32 if stored.dtype == torch.float64 else stored.dtype


def _load_part(source: Source, folder: Path, part: str, stored: Stored, dtype: torch.dtype) -> Any:
    library, name = source.index[part]
    if library not in ("diffusers", "transformers"):
        raise UserError(
            f"the {part} of {source.place} is a {library}.{name}, code that is not diffusers' or transformers': use a"
            " pipeline without."
        )
    try:
        kind = vars(import_module(library)).get(name) or getattr(import_module(library), name)
        precision = {"torch_dtype" if library == "diffusers" else "dtype": dtype}
        model, info = kind.from_pretrained(
            folder / part, use_safetensors=True, variant=stored.variant, output_loading_info=True, **precision
        )
    except Exception as error:  # shapes that do not fit, damaged files, missing tensors: each library raises its own
        raise UserError(
            f"the pipeline {source.place} cannot be loaded (its {part}: {not_loaded(error)}): {NO_WEIGHTS}"
        ) from error
    require_whole(info, f"the {part} of {source.place}")
    return model.requires_grad_(False).eval()


def require_whole(info: dict[str, Any], what: str) -> None:
    """Raises ``UserError`` when a model was loaded without some of its tensors, which then are random."""
    missing = sorted(
        str(name) for name in (*info.get("missing_keys", ()), *(each[0] for each in info.get("mismatched_keys", ())))
    )
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{what} lacks weights that the installed diffusers or transformers looks for ({missing[0]}{others}) and"
            " would be random there:"
            " restore its files, or install the version that wrote them."
        )


def not_loaded(error: Exception) -> str:
    """Why a library could not load a model; transformers says of other shapes only that they were logged."""
    return "its weights have other shapes than its config.json says" if "mismatched_sizes" in str(error) else first_line(error)


def require_words(tokenizer: Any, encoder: Any, what: str, *, length: bool = False) -> None:
    """Raises ``UserError`` when a tokenizer was loaded without some of its files, or is of another text encoder than the
    one with the config ``encoder``; with ``length`` also where it does not know how many tokens a CLIP's encoder reads."""
    known, wanted = len(tokenizer or ()), encoder.vocab_size
    if not wanted / 2 <= known <= wanted:  # those of T5 have some entries to spare
        raise UserError(f"{what} knows {known:,} words, and its text encoder {wanted:,}: restore the tokenizer's files.")
    if split := _split_word(tokenizer):
        raise UserError(f"{what} splits {split!r}, which its vocabulary has as one word: restore the tokenizer's files.")
    most = getattr(encoder, "max_position_embeddings", None)
    if length and most is not None and tokenizer.model_max_length > most:
        raise UserError(
            f"{what} may give more than the {most} tokens that its text encoder reads: restore the tokenizer_config.json, which limits them."
        )


def _split_word(tokenizer: Any) -> str | None:
    """A word of a CLIP's vocabulary that its tokenizer splits; None where it keeps most of them whole."""
    ends = sorted(token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>"))
    words = [word for word in ends if len(word) > 1 and word.isascii() and word.isalpha() and word.islower()]
    words = words[:: max(len(words) // SAMPLE, 1)]
    split = [word for word, ids in zip(words, tokenizer(words, add_special_tokens=False).input_ids) if len(ids) > 1] if words else []
    return split[0] if len(split) > len(words) / 2 else None


def _checker(source: Source, folder: Path) -> dict[str, Any]:
    """The safety checker and what it looks through, where the pipeline has them."""
    if not source.index["safety_checker"][0]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    try:
        variant = stored_weights(folder, "safety_checker").variant
        checker: Any = StableDiffusionSafetyChecker  # with loading info it gives a pair, which its annotation does not say
        model, info = checker.from_pretrained(
            folder / "safety_checker", use_safetensors=True, variant=variant, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the safety checker of {source.place} cannot be loaded ({first_line(error)}): {NO_WEIGHTS}"
        ) from error
    require_whole(info, f"the safety checker of {source.place}")
    return {"safety_checker": model}
