"""Recipes of the encoder's signals, per patch; the family brings them to the tokens."""

from __future__ import annotations

from torch import Tensor

from vtprune.models.signals.attention import cls_full_width, cls_rows, received_attention
from vtprune.models.signals.registry import encoder
from vtprune.models.signals.tap import Heard


@encoder("cls_attention", hears="attention", cls=True)
def _cls_attention(heard: Heard) -> Tensor:
    """``[B, n, H]`` attention of the CLS token; its own column is cut, nothing is rescaled."""
    return cls_rows(heard.q, heard.k, heard.scaling).transpose(1, 2)


@encoder("received_attention", hears="attention")
def _received_attention(heard: Heard) -> Tensor:
    """``[B, n]`` attention a patch receives, mean over heads and over all queries, CLS included."""
    return received_attention(heard.q, heard.k, heard.scaling)


@encoder("vision_keys", hears="attention")
def _vision_keys(heard: Heard) -> Tensor:
    """``[B, n, dh]`` keys as the attention compares them (rotated if it rotates), head mean."""
    return heard.k.mean(1)


@encoder("vision_values", hears="attention")
def _vision_values(heard: Heard) -> Tensor:
    """``[B, n, H, dh]`` values."""
    return heard.v.transpose(1, 2)


@encoder("last_attention", hears="attention", layer="last", cls=True)
def _last_attention(heard: Heard) -> Tensor:
    """``[B, n]`` attention of the CLS token with all heads joined into one, as PruMerge has it."""
    return cls_full_width(heard.q, heard.k)


@encoder("last_keys", hears="attention", layer="last")
def _last_keys(heard: Heard) -> Tensor:
    """``[B, n, H * dh]`` keys, heads joined."""
    return heard.k.transpose(1, 2).flatten(2)


@encoder("encoder_states", hears="states")
def _encoder_states(states: Tensor) -> Tensor:
    """``[B, n, C]`` hidden states leaving the layer."""
    return states


@encoder("vision_features", hears="projector_in")
def _vision_features(entering: Tensor) -> Tensor:
    """``[B, n, C]`` what the projector reads."""
    return entering


@encoder("tile_features", hears="projector_out")
def _tile_features(leaving: Tensor) -> Tensor:
    """``[B, n, d]`` what the projector makes, before tokens are packed, cut or shrunk."""
    return leaving


@encoder("merge_slots", hears="merging")
def _merge_slots(slots: Tensor) -> Tensor:
    """bool ``[B, n]`` places that hold a token where patches were merged in the encoder."""
    return slots


@encoder("fg_mask", hears="annotation")
def _fg_mask(coverage: Tensor) -> Tensor:
    """``[B, n]`` share of a token's cell that annotated objects cover; the caller's annotation."""
    return coverage


@encoder("clip_similarity", hears="question")
def _clip_similarity(similarity: Tensor) -> Tensor:
    """``[B, n]`` cosine of a patch and the caller's question in CLIP's joint space."""
    return similarity
