"""Visual-token pruning methods: one file per method, tensors in, kept indices out."""

from vtprune.methods.base import (
    EncoderMethod,
    ImageTokens,
    InputMethod,
    LayerMethod,
    LayerSignals,
    MethodError,
    PruningMethod,
    Selection,
    SelectionShape,
    TokenLayout,
    TokenMethod,
    View,
    n_keep,
)
from vtprune.methods.registry import available, build, get, register

__all__ = [
    "EncoderMethod",
    "ImageTokens",
    "InputMethod",
    "LayerMethod",
    "LayerSignals",
    "MethodError",
    "PruningMethod",
    "Selection",
    "SelectionShape",
    "TokenLayout",
    "TokenMethod",
    "View",
    "available",
    "build",
    "get",
    "n_keep",
    "register",
]
