"""Multiply-accumulates of one sample, stage by stage, from the tokens that were really there.

Everything here counts one multiply-add as one (MAC); FLOPs are twice that. Attention products are
counted over the full square, as ``torch.utils.flop_counter`` does; normalisations, activations,
softmax and rotary embeddings are left out, as every counter in the field leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtprune.harness.cost.architecture import (
    Architecture,
    Grid,
    TextSizes,
    VisionSizes,
    smaller_crops,
)

if TYPE_CHECKING:
    from vtprune.methods import PruningMethod
    from vtprune.models.record import SampleRecord


@dataclass(frozen=True)
class Tokens:
    """Token counts of one sample: images encoded, text tokens, visual tokens entering each layer.

    ``crops`` is a number of encoder crops or, for native-resolution towers, the grids of the
    images. ``visual_after`` is the number left behind the last layer; only ``fitprune`` looks at
    it. ``merged`` are the patches merged away in front of encoder layers 1, 2, ... of a crop.
    """

    crops: int | tuple[Grid, ...]
    text: int
    visual: Sequence[int]
    selection_macs: int = 0
    visual_after: int | None = None
    merged: Sequence[int] = ()

    @property
    def sequence(self) -> list[int]:
        return [self.text + v for v in self.visual]


@dataclass(frozen=True)
class Cost:
    """MACs by term. ``linear`` terms multiply by weights, ``attention`` terms are q k^T and a v."""

    vision_linear: int = 0
    vision_attention: int = 0
    projector: int = 0
    selection: int = 0
    llm_linear: int = 0
    llm_attention: int = 0
    lm_head: int = 0

    @property
    def vision(self) -> int:
        return self.vision_linear + self.vision_attention

    @property
    def llm(self) -> int:
        return self.llm_linear + self.llm_attention

    @property
    def total(self) -> int:
        return self.vision + self.projector + self.selection + self.llm + self.lm_head

    def stages(self) -> dict[str, int]:
        """vision, projector, selection, llm, lm_head and their total."""
        names = ("vision", "projector", "selection", "llm", "lm_head", "total")
        return {name: getattr(self, name) for name in names}

    def __add__(self, other: Cost) -> Cost:
        mine, theirs = vars(self), vars(other)
        return Cost(**{name: mine[name] + theirs[name] for name in mine})


def layer_linear(text: TextSizes, tokens: int) -> int:
    """Projections and MLP of one decoder layer on ``tokens`` tokens."""
    attention = 2 * text.width * (text.query + text.key_value)
    return tokens * (attention + text.mlp_matrices * text.width * text.mlp)


def layer_attention(text: TextSizes, queries: int, keys: int) -> int:
    """q k^T and a v of one decoder layer."""
    return 2 * text.query * queries * keys


def encoder(
    arch: Architecture, images: Iterable[Grid] | int, merged: Sequence[int] = ()
) -> Cost:
    """Vision tower and projector for some images; a number stands for that many crops.

    ``merged`` are the patches of a crop merged away in front of encoder layers 1, 2, ...
    """
    v = arch.vision
    grids = [(images, 0, 0)] if isinstance(images, int) else images
    linear = attention = projector = 0
    for count, rows, cols in v.passes(grids):
        patches = rows * cols
        left = [patches - sum(merged[:layer]) for layer in range(v.layers)]
        tokens = [n + v.cls for n in left]
        linear += count * patches * v.patch_inputs * v.width
        linear += count * sum(tokens) * (4 * v.width + v.mlp_matrices * v.mlp) * v.width
        pairs = sum(n * n for n in tokens) if merged else _attended_pairs(v, rows, cols)
        attention += count * 2 * v.width * pairs
        if v.pooling:
            linear += count * (2 * tokens[-1] + 2) * v.width**2 + count * 2 * v.width * v.mlp
            attention += count * 2 * tokens[-1] * v.width
        projector += count * (left[-1] // v.merge**2) * sum(a * b for a, b in arch.projector)
    return Cost(vision_linear=linear, vision_attention=attention, projector=projector)


def _attended_pairs(v: VisionSizes, rows: int, cols: int) -> int:
    """Query-key pairs of one frame, all layers together."""
    whole = (rows * cols + v.cls) ** 2
    if v.window is None:
        return v.layers * whole
    side = v.window * v.merge
    # A window of a x b patches has (a b)^2 pairs, so the sum over windows is a product of sums.
    windows = _squares(rows, side) * _squares(cols, side)
    return v.full_layers * whole + (v.layers - v.full_layers) * windows


def _squares(length: int, step: int) -> int:
    """Sum of squared pieces of ``length`` cut every ``step``; the last piece is the remainder."""
    return length // step * step**2 + (length % step) ** 2


def decoder(arch: Architecture, tokens_per_layer: list[int], head_positions: int = 1) -> Cost:
    """Prefill of the language model, each layer on its own number of tokens.

    ``head_positions`` is the number of positions the LM head computes: ``generate`` computes one.
    """
    text = arch.text
    return Cost(
        llm_linear=sum(layer_linear(text, n) for n in tokens_per_layer),
        llm_attention=sum(layer_attention(text, n, n) for n in tokens_per_layer),
        lm_head=head_positions * text.width * text.vocabulary,
    )


def decode_step(arch: Architecture, cached_per_layer: list[int]) -> Cost:
    """One generated token, with ``cached_per_layer`` keys already in each layer's cache."""
    text = arch.text
    return Cost(
        llm_linear=text.layers * layer_linear(text, 1),
        llm_attention=sum(layer_attention(text, 1, n + 1) for n in cached_per_layer),
        lm_head=text.width * text.vocabulary,
    )


def prefill(
    arch: Architecture,
    record: SampleRecord,
    method: PruningMethod | None = None,
    head_positions: int = 1,
) -> Cost:
    """Cost of one sample's prefill as recorded, its method's own work included when given."""
    encoded = arch if record.unreduced is None else smaller_crops(arch, record.grids)
    cost = encoder(encoded, grids_of(arch, record), record.merged)
    cost += decoder(arch, record.tokens_per_layer, head_positions)
    if method is None or method.ratio == 0:
        return cost
    own = int(method.cost(selection_shape(arch, record, method)))
    return cost + Cost(selection=own + record.signal_macs)


def prefill_full(arch: Architecture, record: SampleRecord, head_positions: int = 1) -> Cost:
    """Cost of the same sample without pruning, its pictures as large as they were asked about."""
    full = [record.length_asked] * record.n_layers
    grids = grids_of(arch, record) if record.unreduced is None else record.unreduced.grids
    return encoder(arch, grids) + decoder(arch, full, head_positions)


def tokens(
    arch: Architecture, record: SampleRecord, selection: int = 0
) -> tuple[Tokens, Architecture]:
    """A record as the conventions count it, and the architecture with crops of its size."""
    text = record.prompt_length - record.visual_tokens
    made = Tokens(
        grids_of(arch, record), text, record.visual_per_layer, selection, merged=record.merged
    )
    return made, arch if record.unreduced is None else smaller_crops(arch, record.grids)


def grids_of(arch: Architecture, record: SampleRecord) -> tuple[Grid, ...]:
    """The encoder's input as recorded.

    Raises:
        ValueError: a record without grids (written by hand) of a native-resolution tower.
    """
    if record.grids or not record.crops:
        return tuple(record.grids)
    if arch.vision.crop is None:
        raise ValueError(f"the cost of {arch.model_type} needs the grids of its images")
    return ((record.crops, *arch.vision.crop),)


def selection_shape(arch: Architecture, record: SampleRecord, method: PruningMethod):
    """The sizes a method states its own cost from."""
    from vtprune.methods import SelectionShape

    v, grids = arch.vision, grids_of(arch, record)
    frames = [(r * c, r * c // v.merge**2) for n, r, c in v.passes(grids) for _ in range(n)]
    first = int(record.visual[0]) if record.visual_tokens else 0
    return SelectionShape(
        views=record.views,
        kept=tuple(method.count(n) for n in record.views),
        width=arch.text.width,
        vision_width=v.width,
        tiles=record.crops,
        patches=max((merged for _, merged in frames), default=0),
        sequence=tuple(record.tokens_per_layer),
        visual=tuple(record.visual_per_layer),
        attention_width=arch.text.query,
        tile_tokens=tuple(merged for _, merged in frames),
        tile_keys=tuple(patches + v.cls for patches, _ in frames),
        before=first,
        key_value=arch.text.key_value,
        vision_head=v.width // v.heads,
        projector=sum(a * b for a, b in arch.projector),
        merged=record.merged,
    )


def kv_cache_bytes(arch: Architecture, record: SampleRecord, bytes_per_number: int = 2) -> int:
    """Bytes of keys and values after prefill, every layer with its own length."""
    return 2 * arch.text.key_value * bytes_per_number * sum(record.tokens_per_layer)
