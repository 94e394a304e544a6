"""What a family must tell the runtime about its unmodified Hugging Face class."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtprune.methods.base import TokenLayout
from vtprune.models.errors import PruningUnsupported

IMAGE_AND_VIDEO: Mapping[str, str] = {
    "image": "get_image_features",
    "video": "get_video_features",
}
Signals = Mapping[str, Callable[[], Tensor]]


@dataclass
class CapturedImage:
    """One image (or video) as it left the encoder: its layout and lazily computed signals.

    ``pack`` as in :class:`methods.ImageTokens`; ``merged`` patches merged away in front of encoder
    layers 1, 2, ... of every crop, empty where none were.
    """

    layout: TokenLayout
    signals: Signals = field(default_factory=dict)
    pack: Callable[[Tensor], Tensor] | None = None
    merged: tuple[int, ...] = ()


@dataclass
class VisionCapture:
    """Tensors seen while the encoder ran once; signals are computed from them on demand.

    ``attention`` holds, per tap of :meth:`Family.vision_taps`, queries, keys ``[B, H, n, dh]`` and
    the logit scale of every call of that attention module.
    """

    projector_input: Tensor | None = None
    projector_output: Tensor | None = None
    #: bool ``[crops, P]`` places that hold a token, where a method merged inside the encoder
    merge_slots: Tensor | None = None
    attention: dict[str, list[tuple[Tensor, Tensor, float]]] = field(default_factory=dict)


class Family(abc.ABC):
    """Facts of one architecture; no state besides the model it was made for."""

    model_types: ClassVar[tuple[str, ...]] = ()
    #: position ids are one number per token (False: several, as in m-rope)
    scalar_positions: ClassVar[bool] = True
    #: encoder signals that methods may ask for
    offers: ClassVar[frozenset[str]] = frozenset(
        {"vision_features", "tile_features", "received_attention", "vision_keys"}
    )
    #: modality -> method of the core that encodes it
    encoders: ClassVar[Mapping[str, str]] = {"image": "get_image_features"}

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
    def kernel(self) -> str:
        """Attention kernel of the language model: ``sdpa``, ``eager``, ``flash_attention_2``."""
        return self.language_model.config._attn_implementation

    def rotary(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for explicit positions ``[B, n]``."""
        return self.language_model.rotary_emb(hidden, position_ids=position_ids)

    def placeholder(self, modality: str) -> int:
        """Id of the placeholder token of a modality."""
        return getattr(self.model.config, f"{modality}_token_id")

    def modality_codes(self, input_ids: Tensor) -> Tensor:
        """int64 ``[B, L]``: 0 for text, 1 + number of the modality in ``encoders`` else."""
        codes = torch.zeros_like(input_ids)
        for number, modality in enumerate(self.encoders, 1):
            codes[input_ids == self.placeholder(modality)] = number
        return codes

    @property
    @abc.abstractmethod
    def has_cls(self) -> bool:
        """The encoder has a CLS token that its features leave out."""

    @abc.abstractmethod
    def vision_layers(self) -> nn.ModuleList:
        """Layers of the encoder."""

    @abc.abstractmethod
    def vision_taps(self, needs: frozenset[str]) -> dict[str, nn.Module]:
        """Attention modules of the encoder that the signals in ``needs`` read, by tap name."""

    @abc.abstractmethod
    def projector(self) -> nn.Module:
        """Module from encoder tokens to language-model tokens, called once per encoder pass."""

    #: encoder tokens ``[m, C]`` through the projector, where it takes tokens one by one
    project: Callable[[Tensor], Tensor] | None = None

    @abc.abstractmethod
    def images(
        self,
        modality: str,
        arguments: Mapping[str, Any],
        features: list[Tensor],
        capture: VisionCapture,
    ) -> list[CapturedImage]:
        """Describe the images of one encoder call, in order.

        Args:
            arguments: of the encoder call, by name.
            features: what the call returned, ``[n, d]`` per image.
        """


def list_of_layers(tower: nn.Module) -> nn.ModuleList:
    """The tower's layers; searched for, because their path differs between library versions."""
    for name, module in tower.named_modules():
        if name.split(".")[-1] in ("layers", "blocks") and isinstance(module, nn.ModuleList):
            return module
    raise PruningUnsupported("the vision tower has no list of layers")


def grids_layout(kind: str, count: int, rows: int, cols: int) -> TokenLayout:
    """Layout of ``count`` grids of ``rows x cols`` tokens in raster order, one view each."""
    number = torch.arange(count * rows * cols)
    patch = number % (rows * cols)
    tile = number // (rows * cols)
    return TokenLayout(
        tile=tile,
        patch=patch,
        view=tile.clone(),
        row=patch // cols,
        col=patch % cols,
        kinds=(kind,) * count,
        grids=((rows, cols),) * count,
        n_tiles=count,
        patch_grid=(rows, cols),
    )
