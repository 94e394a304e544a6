"""What methods that decide on encoder crops have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtprune.methods.base import SelectionShape, TokenMethod, View, choice


@dataclass(frozen=True, kw_only=True)
class CropMethod(TokenMethod):
    """A method that treats each encoder crop apart, with the same budget.

    Attributes:
        anyres: ``release`` adds no row-end tokens and keeps picks in the padding, in the order of
            the padded mosaic; ``unpad`` means ``newline=keep`` and ``padding=drop``.
        score_source: ``cls`` = attention of the CLS token in the layer the projector reads, mean
            over heads; ``received`` = attention a token receives on average (signal
            ``received_attention``), for encoders without CLS.
    """

    scope: Literal["per_view", "joint", "per_tile"] = "per_tile"
    newline: Literal["keep", "drop", "candidate"] = "drop"
    padding: Literal["drop", "keep"] = "keep"
    positions: Literal["original", "compact"] = "compact"
    anyres: Literal["release", "unpad"] = "release"
    score_source: Literal["cls", "received"] = "cls"

    stage: ClassVar[Literal["none", "projector", "vision", "layer"]] = "vision"
    without_cls: ClassVar[Mapping[str, str]] = {"score_source": "received"}

    def __post_init__(self) -> None:
        choice(self, "anyres", ("release", "unpad"))
        choice(self, "score_source", ("cls", "received"))
        if self.anyres == "unpad":
            object.__setattr__(self, "newline", "keep")
            object.__setattr__(self, "padding", "drop")
        super().__post_init__()

    @property
    def attention_signal(self) -> str:
        return "cls_attention" if self.score_source == "cls" else "received_attention"

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        tile = ("tile_features",) if self.scope == "per_tile" else ()
        return ("vision_features", self.attention_signal, *tile)

    def graphs(self, shape: SelectionShape) -> tuple[int, ...]:
        """Tokens of every graph that is decided on apart."""
        return shape.tile_tokens if self.scope == "per_tile" else shape.views

    def attention(self, view: View) -> Tensor:
        """``[N]`` attention of the encoder, mean over heads."""
        return view.signal(self.attention_signal).reshape(len(view), -1).mean(dim=-1)


@dataclass(frozen=True, kw_only=True)
class MergingCropMethod(CropMethod):
    """A crop method that merges tokens.

    Attributes:
        merge_space: ``encoder`` = merged before the projector, as released; ``llm`` = the same
            formula on projected tokens, where a model's projector cannot be called apart.
    """

    merge_space: Literal["encoder", "llm"] = "encoder"

    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "merge_space", ("encoder", "llm"))

    def tokens(self, view: View) -> Tensor:
        """The tokens that are merged, ``[N, C]`` or ``[N, d]``."""
        return view.features if self.merge_space == "llm" else view.signal("vision_features")

    def finish(self, view: View, merged: Tensor) -> Tensor:
        """Merged tokens as the language model takes them, ``[k, d]``."""
        return merged if self.merge_space == "llm" else view.project(merged)

    def projection(self, shape: SelectionShape, tokens: int) -> int:
        """Multiply-accumulates to bring that many merged tokens into the language model."""
        return 0 if self.merge_space == "llm" else tokens * shape.projector
