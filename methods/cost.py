"""What a method states its own cost from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SelectionShape:
    """Sizes from which a method states its own cost; every number is read from the model.

    ``tile_tokens`` are the tokens of each encoder crop or frame behind the projector, ``tile_keys``
    those its attention sees (CLS included, before any merging), ``before`` the prompt tokens in
    front of the first visual one, ``key_value`` the width of keys in the language model,
    ``vision_head`` that of one encoder head, ``projector`` the multiply-accumulates to project one
    token, and ``merged`` the patches of a crop merged away in front of encoder layers 1, 2, ...
    """

    views: tuple[int, ...]
    kept: tuple[int, ...]
    width: int
    vision_width: int
    tiles: int
    patches: int
    sequence: tuple[int, ...]
    visual: tuple[int, ...]
    attention_width: int
    tile_tokens: tuple[int, ...] = ()
    tile_keys: tuple[int, ...] = ()
    before: int = 0
    key_value: int = 0
    vision_head: int = 0
    projector: int = 0
    merged: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.tile_tokens:
            object.__setattr__(self, "tile_tokens", (self.patches,) * self.tiles)
        if not self.tile_keys:
            object.__setattr__(self, "tile_keys", tuple(n + 1 for n in self.tile_tokens))

    def encoder_attention(self, signal: str) -> int:
        """Multiply-accumulates to read attention out of one encoder layer, all crops.

        ``cls_attention`` is one query row per crop, ``received_attention`` all of them.
        """
        queries = {"cls_attention": 1, "received_attention": 2}[signal]
        return sum(n**queries for n in self.tile_keys) * self.vision_width

    @property
    def drops(self) -> tuple[int, ...]:
        """Layers behind which visual tokens are dropped."""
        pairs = zip(self.visual, self.visual[1:], strict=False)
        return tuple(layer for layer, (now, after) in enumerate(pairs) if now > after)

    @property
    def drop_rows(self) -> int:
        """Keys alive in all layers behind which tokens are dropped: one query row in each."""
        return sum(self.sequence[layer] for layer in self.drops)
