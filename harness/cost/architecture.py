"""Sizes of a model, read from its Hugging Face config: all the ledger needs to know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

#: one image as the encoder sees it: (crops or frames, rows, columns), rows and columns counted in
#: tokens behind the projector; towers with crops of one size only look at the first number
Grid = tuple[int, int, int]


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
    """A ViT.

    Attributes:
        layers, width, mlp, heads: depth, width C, MLP width and attention heads.
        patch_inputs: numbers per patch, input of the patch embedding.
        crop: (rows, columns) of patches of a crop; None = native resolution, any grid.
        cls: tokens in front of the patches (CLIP: 1).
        mlp_matrices: 2 for a plain MLP, 3 for a gated one.
        merge: patches along each side of the square that becomes one language-model token.
        window: side of an attention window in merged tokens; None = every layer sees a whole frame.
        full_layers: layers that see a whole frame although there are windows.
        pooling: an attention-pooling head runs on top of each crop (SigLIP), its output unused.
    """

    layers: int
    width: int
    mlp: int
    heads: int
    patch_inputs: int
    crop: tuple[int, int] | None
    cls: int = 0
    mlp_matrices: int = 2
    merge: int = 1
    window: int | None = None
    full_layers: int = 0
    pooling: bool = False

    def passes(self, grids: Iterable[Grid]) -> list[Grid]:
        """Crops or frames with their (rows, columns) in patches."""
        if self.crop is not None:
            return [(count, *self.crop) for count, _, _ in grids]
        return [(count, rows * self.merge, cols * self.merge) for count, rows, cols in grids]


@dataclass(frozen=True)
class Architecture:
    """A VLM: vision tower, projector as a chain of ``(in, out)`` linear maps, decoder."""

    model_type: str
    text: TextSizes
    vision: VisionSizes
    projector: tuple[tuple[int, int], ...]


def smaller_crops(arch: Architecture, grids: Sequence[Grid]) -> Architecture:
    """The architecture with crops of the recorded size, for a run that was given smaller ones."""
    if arch.vision.crop is None or not grids:
        return arch
    crop = (int(grids[0][1]), int(grids[0][2]))
    return dataclasses.replace(arch, vision=dataclasses.replace(arch.vision, crop=crop))


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


def crop_sizes(config: Any) -> VisionSizes:
    """Sizes of a CLIP or SigLIP tower config."""
    side = config.image_size // config.patch_size
    siglip = config.model_type.startswith("siglip")
    return VisionSizes(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        mlp=config.intermediate_size,
        heads=config.num_attention_heads,
        patch_inputs=getattr(config, "num_channels", 3) * config.patch_size**2,
        crop=(side, side),
        cls=0 if siglip else 1,
        pooling=siglip and getattr(config, "vision_use_head", True),
    )


def _llava(config: Any) -> Architecture:
    text, vision = text_sizes(config.text_config), crop_sizes(config.vision_config)
    layer = config.vision_feature_layer
    features = vision.width * (1 if isinstance(layer, int) else len(layer))
    projector = ((features, text.width), (text.width, text.width))
    return Architecture(config.model_type, text, vision, projector)


def _qwen(config: Any) -> Architecture:
    """Qwen2-VL (plain MLP, whole frames) and Qwen2.5-VL (gated MLP, windows)."""
    text, v = text_sizes(config.text_config), config.vision_config
    windowed = hasattr(v, "fullatt_block_indexes")
    width, out = (v.hidden_size, v.out_hidden_size) if windowed else (v.embed_dim, v.hidden_size)
    vision = VisionSizes(
        layers=v.depth,
        width=width,
        mlp=v.intermediate_size if windowed else int(width * v.mlp_ratio),
        heads=v.num_heads,
        patch_inputs=v.in_channels * v.temporal_patch_size * v.patch_size**2,
        crop=None,
        mlp_matrices=3 if windowed else 2,
        merge=v.spatial_merge_size,
        window=v.window_size // v.spatial_merge_size // v.patch_size if windowed else None,
        full_layers=len(v.fullatt_block_indexes) if windowed else v.depth,
    )
    merged = width * vision.merge**2
    return Architecture(config.model_type, text, vision, ((merged, merged), (merged, out)))


_READERS = {
    "llava": _llava,
    "llava_next": _llava,
    "llava_onevision": _llava,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
}


def architecture_of(config: Any) -> Architecture:
    """Sizes of the model a config describes.

    Raises:
        ValueError: an architecture the ledger does not know.
    """
    kind = getattr(config, "model_type", None)
    if kind not in _READERS:
        raise ValueError(f"no cost model for '{kind}' (known: {', '.join(sorted(_READERS))})")
    return _READERS[kind](config)
