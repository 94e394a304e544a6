"""What a family must tell the runtime about its unmodified Hugging Face class."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.base import TokenLayout


@dataclass
class CapturedImage:
    """One image as it left the encoder: its layout and lazily computed signals."""

    layout: TokenLayout
    features: Tensor
    signals: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)


class Family(abc.ABC):
    """Facts of one architecture; no state besides the model it was made for."""

    model_types: ClassVar[tuple[str, ...]] = ()
    #: position ids are one number per token (False: several, as in m-rope)
    scalar_positions: ClassVar[bool] = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    # Layout of modules. Defaults fit every current transformers VLM.
    @property
    def core(self) -> nn.Module:
        """The multimodal model below the LM head; it owns ``get_image_features``."""
        return self.model.model

    @property
    def language_model(self) -> nn.Module:
        return self.core.language_model

    @property
    def layers(self) -> nn.ModuleList:
        return self.language_model.layers

    @property
    def text_config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def kernel(self) -> str:
        """Attention kernel of the language model: ``sdpa``, ``eager``, ``flash_attention_2``."""
        return self.language_model.config._attn_implementation

    def rotary(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for explicit positions ``[B, n]``."""
        return self.language_model.rotary_emb(hidden, position_ids=position_ids)

    def visual_mask(self, input_ids: Tensor) -> Tensor:
        """bool ``[B, L]``: placeholders of visual tokens."""
        return input_ids == self.model.config.image_token_id

    @abc.abstractmethod
    def vision_taps(self, needs: frozenset[str]) -> dict[str, nn.Module]:
        """Attention modules of the encoder that the signals in ``needs`` read, by tap name."""

    @abc.abstractmethod
    def projector(self) -> nn.Module:
        """Module from encoder tokens to language-model tokens, called once per encoder pass."""

    @abc.abstractmethod
    def images(
        self, arguments: Mapping[str, Any], features: list[Tensor], capture: VisionCapture
    ) -> list[CapturedImage]:
        """Describe the images of one ``get_image_features`` call, in order."""


@dataclass
class VisionCapture:
    """Tensors seen while the encoder ran; signals are computed from them on demand."""

    projector_input: Tensor | None = None
    projector_output: Tensor | None = None
    #: per tap of ``vision_taps``: queries, keys ``[B, H, n, dh]`` and the logit scale
    attention: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)


def grid_layout(kind: str, rows: int, cols: int) -> TokenLayout:
    """Layout of an image that is one grid of ``rows x cols`` tokens in raster order."""
    patch = torch.arange(rows * cols)
    return TokenLayout(
        tile=torch.zeros_like(patch),
        patch=patch,
        view=torch.zeros_like(patch),
        row=patch // cols,
        col=patch % cols,
        kinds=(kind,),
        grids=((rows, cols),),
        n_tiles=1,
        patch_grid=(rows, cols),
    )
