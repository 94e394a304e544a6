"""What methods may read of a running model: one registry of recipes, and the ears they need.

``registry`` knows the recipes of ``encoder_recipes`` and ``language_recipes``, ``tap`` hears
attention, ``attention`` are the formulas, ``hearing`` listens to one encoder call.
"""

from vtprune.models.signals import encoder_recipes, language_recipes  # noqa: F401  (they register)
from vtprune.models.signals.attention import (
    cls_full_width,
    cls_rows,
    head_max_columns,
    received_attention,
    row_attention,
    rows_attention,
)
from vtprune.models.signals.hearing import (
    VisionCapture,
    listening,
    signals_of,
    tap_of,
    taps,
    told,
)
from vtprune.models.signals.registry import (
    Asked,
    Side,
    Signal,
    asked,
    available,
    encoder,
    language,
    sources,
)
from vtprune.models.signals.tap import AttentionTap, Heard, Listener, segments

__all__ = [
    "Asked", "AttentionTap", "Heard", "Listener", "Side", "Signal",
    "VisionCapture", "asked", "available", "cls_full_width", "cls_rows", "encoder",
    "head_max_columns", "language", "listening", "received_attention", "row_attention",
    "rows_attention", "segments", "signals_of", "sources", "tap_of", "taps", "told",
]  # fmt: skip
