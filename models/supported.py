"""Architectures (`model_type` in config.json) that models/families can prune.

A plain list, so that a wrong checkpoint is refused before torch is imported. A test checks that it
equals what the family modules themselves declare.
"""

SUPPORTED_MODEL_TYPES: tuple[str, ...] = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
)
