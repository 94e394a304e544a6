"""Sizes of a model, read from its Hugging Face config: all the ledger needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextSizes:
    """A decoder: depth, width d, query width, key/value width, MLP width, vocabulary.

    ``mlp_matrices`` is 3 for a gated MLP (gate, up, down) and 2 for a plain one.
    """

    layers: int
    width: int
    query: int
    key_value: int
    mlp: int
    vocabulary: int
    mlp_matrices: int = 3


@dataclass(frozen=True)
class VisionSizes:
    """A ViT over crops of one size: ``tokens`` per crop include the CLS token, if there is one."""

    layers: int
    width: int
    mlp: int
    patches: int
    tokens: int
    patch_inputs: int


@dataclass(frozen=True)
class Architecture:
    """A VLM: vision tower, projector as a chain of ``(in, out)`` linear maps, decoder."""

    model_type: str
    text: TextSizes
    vision: VisionSizes
    projector: tuple[tuple[int, int], ...]


def text_sizes(config: Any) -> TextSizes:
    """Sizes of a Llama-like decoder config."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return TextSizes(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        query=heads * head_dim,
        key_value=groups * head_dim,
        mlp=config.intermediate_size,
        vocabulary=config.vocab_size,
    )


def clip_sizes(config: Any) -> VisionSizes:
    """Sizes of a CLIP-like vision tower config."""
    patches = (config.image_size // config.patch_size) ** 2
    return VisionSizes(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        mlp=config.intermediate_size,
        patches=patches,
        tokens=patches + 1,
        patch_inputs=getattr(config, "num_channels", 3) * config.patch_size**2,
    )


def _llava(config: Any) -> Architecture:
    text, vision = text_sizes(config.text_config), clip_sizes(config.vision_config)
    layer = config.vision_feature_layer
    features = vision.width * (1 if isinstance(layer, int) else len(layer))
    projector = ((features, text.width), (text.width, text.width))
    return Architecture(config.model_type, text, vision, projector)


_READERS = {"llava": _llava, "llava_next": _llava}


def architecture_of(config: Any) -> Architecture:
    """Sizes of the model a config describes.

    Raises:
        ValueError: an architecture the ledger does not know.
    """
    kind = getattr(config, "model_type", None)
    if kind not in _READERS:
        raise ValueError(f"no cost model for '{kind}' (known: {', '.join(sorted(_READERS))})")
    return _READERS[kind](config)
