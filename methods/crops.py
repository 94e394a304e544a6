"""What methods that decide on encoder crops have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from vtprune.methods.cost import SelectionShape
from vtprune.methods.method import Positions
from vtprune.methods.options import option
from vtprune.methods.tokens import Newline, Padding, Scope, TokenMethod
from vtprune.methods.views import View


@dataclass(frozen=True, kw_only=True)
class CropMethod(TokenMethod):
    """A method that treats each encoder crop apart, with the same budget."""

    scope: Scope = "per_tile"
    newline: Newline = "drop"
    padding: Padding = "keep"
    positions: Positions = "compact"
    anyres: Literal["release", "unpad"] = option(
        "release", "release = no newlines, padding competes | unpad = newline keep, padding drop"
    )
    score_source: Literal["cls", "received"] = option(
        "cls", "cls = attention of CLS | received = mean attention received, for encoders without"
    )

    stage: ClassVar = "vision"
    without_cls: ClassVar[Mapping[str, Any]] = {"score_source": "received"}

    def __post_init__(self) -> None:
        if self.anyres == "unpad":
            object.__setattr__(self, "newline", "keep")
            object.__setattr__(self, "padding", "drop")
        super().__post_init__()

    @property
    def attention_signal(self) -> str:
        return "cls_attention" if self.score_source == "cls" else "received_attention"

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("vision_features", self.attention_signal, *self.tiles)

    @property
    def tiles(self) -> tuple[str, ...]:
        """The signal that holds whole crops, where crops are decided on apart."""
        return ("tile_features",) if self.scope == "per_tile" else ()

    def sizes(self, shape: SelectionShape) -> tuple[int, ...]:
        """Tokens of every graph that is decided on apart."""
        return shape.tile_tokens if self.scope == "per_tile" else shape.views

    def attention(self, view: View) -> Tensor:
        """``[N]`` attention of the encoder, mean over heads."""
        return view.signal(self.attention_signal).reshape(len(view), -1).mean(dim=-1)


@dataclass(frozen=True, kw_only=True)
class MergingCropMethod(CropMethod):
    """A crop method that merges tokens."""

    merge_space: Literal["encoder", "llm"] = option(
        "encoder", "encoder = before the projector, as released | llm = on projected tokens"
    )

    merges: ClassVar[bool] = True

    def tokens(self, view: View) -> Tensor:
        """The tokens that are merged, ``[N, C]`` or ``[N, d]``."""
        return view.features if self.merge_space == "llm" else view.signal("vision_features")

    def finish(self, view: View, merged: Tensor) -> Tensor:
        """Merged tokens as the language model takes them, ``[k, d]``."""
        return merged if self.merge_space == "llm" else view.project(merged)

    def projection(self, shape: SelectionShape, tokens: int) -> int:
        """Multiply-accumulates to bring that many merged tokens into the language model."""
        return 0 if self.merge_space == "llm" else tokens * shape.projector
