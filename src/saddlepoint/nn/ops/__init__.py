"""Operations with several backends. Each has a PyTorch reference; nothing above this package knows which backend runs."""

from saddlepoint.nn.ops.api import (
    ChainWeights,
    EnsembleWeights,
    Packed,
    Precision,
    ReverseTable,
    denoising_chain,
    ensemble_mlp,
    ensemble_mse,
    native_available,
    native_supported,
    native_wins,
    resolve_precision,
    reverse_chain,
)

__all__ = [
    "ChainWeights",
    "EnsembleWeights",
    "Packed",
    "Precision",
    "ReverseTable",
    "denoising_chain",
    "ensemble_mlp",
    "ensemble_mse",
    "native_available",
    "native_supported",
    "native_wins",
    "resolve_precision",
    "reverse_chain",
]
