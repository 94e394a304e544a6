"""What a family must tell the runtime about its unmodified Hugging Face class.

A family answers this list of questions and no other; it does not know which method runs.

======================================  ============================================================
question                                answer
======================================  ============================================================
which modalities                        ``encoders``, ``placeholder``, ``modality_codes``
where its modules are                   ``core``, ``language_model``, ``layers``, ``projector``,
                                        ``vision_layers``, ``vision_attention``, ``feature_layer``
what its encoder offers                 ``hears``, ``has_cls``, ``projects_tokens``
what pictures one call makes            ``pictures``: layout (views, row ends, source of each token)
                                        and place in the call; ``group``: which outputs are one
                                        picture
how patches become tokens               ``own``, ``per_token``
how a smaller picture is asked for      ``cell``, ``crop_side``, ``mosaic``, ``layout``, ``fitted``,
                                        ``fewest``, ``smaller_crops``, ``smaller_processor``
what else follows the tokens            ``scalar_positions``, ``rotary``, ``follow``
what a picture costs, without weights   ``blank``: arguments of the encoder on the meta device;
                                        ``encode``: tower and projector on them
======================================  ============================================================

Adding a family is one file and one line of ``models/supported.py``; the ledger reads its sizes from
config.json, without torch, in ``harness/cost/architecture.py``.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtprune.methods import TokenLayout
from vtprune.models import cache as kv
from vtprune.models.errors import PruningUnsupported
from vtprune.models.signals import VisionCapture, available, signals_of, told

IMAGE_AND_VIDEO: Mapping[str, str] = {
    "image": "get_image_features",
    "video": "get_video_features",
}
Signals = Mapping[str, Callable[[], Tensor]]
#: arguments of a language model that are not one value per token, or that the runtime cuts itself
KNOWN_ARGUMENTS = frozenset(
    {
        "input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache_position",
        *kv.ARGUMENTS,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """Geometry of one picture or video of an encoder call.

    Attributes:
        layout: where each of its tokens comes from.
        place: what of the call is its own: crops, or positions in the encoder's order.
        order: per place of the encoder's order the token computed there; None = the same.
        pack: as in :class:`methods.ImageTokens`.
        pool: encoder tokens ``[frames, P, ...]`` as the model pools them, if it does.
    """

    layout: TokenLayout
    place: slice
    order: Tensor | None = None
    pack: Callable[[Tensor], Tensor] | None = None
    pool: Callable[[Tensor], Tensor] | None = None


@dataclass
class CapturedImage:
    """One image (or video) as it left the encoder: its layout and lazily computed signals.

    ``pack`` and ``project`` as in :class:`methods.ImageTokens`; ``merged`` patches merged away in
    front of encoder layers 1, 2, ... of every crop, empty where none were.
    """

    layout: TokenLayout
    signals: Signals = field(default_factory=dict)
    pack: Callable[[Tensor], Tensor] | None = None
    merged: tuple[int, ...] = ()
    project: Callable[[Tensor], Tensor] | None = None


class Family(abc.ABC):
    """Facts of one architecture; no state besides the model it was made for."""

    #: position ids are one number per token (False: several, as in m-rope)
    scalar_positions: ClassVar[bool] = True
    #: sources of encoder signals that can be heard, see ``signals.registry.SOURCES``
    hears: ClassVar[frozenset[str]] = frozenset(
        {"attention", "states", "projector_in", "projector_out", "annotation"}
    )
    #: the projector takes encoder tokens ``[m, C]`` one by one
    projects_tokens: ClassVar[bool] = False
    #: modality -> method of the core that encodes it
    encoders: ClassVar[Mapping[str, str]] = {"image": "get_image_features"}

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    # Layout of modules. Defaults fit every current transformers VLM.
    @property
    def core(self) -> Any:
        """The multimodal model below the LM head; it owns ``get_image_features``."""
        return self.model.model

    @property
    def language_model(self) -> Any:
        return self.core.language_model

    @property
    def layers(self) -> Any:
        """The decoder layers, a ``ModuleList``."""
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

    # The encoder.
    @property
    @abc.abstractmethod
    def has_cls(self) -> bool:
        """The encoder has a CLS token that its features leave out."""

    @abc.abstractmethod
    def vision_layers(self) -> Any:
        """Layers of the encoder, a ``ModuleList``."""

    def vision_attention(self, layer: nn.Module) -> nn.Module:
        """Attention module of one encoder layer."""
        return layer.get_submodule("self_attn")

    @abc.abstractmethod
    def feature_layer(self) -> int:
        """Number of the encoder layer that signals read unless a method names another."""

    @abc.abstractmethod
    def projector(self) -> nn.Module:
        """Module from encoder tokens to language-model tokens, called once per encoder pass."""

    @property
    def offers(self) -> frozenset[str]:
        """Encoder signals that methods may ask for, without ``@layer``."""
        return frozenset(
            name
            for name, one in available("encoder").items()
            if one.hears in self.hears and (self.has_cls or not one.cls)
        )

    # Pictures.
    @abc.abstractmethod
    def pictures(
        self, modality: str, arguments: Mapping[str, Any], features: list[Tensor]
    ) -> list[Picture]:
        """Geometry of the pictures of one encoder call, in order.

        Args:
            arguments: of the encoder call, by name.
            features: what the call returned, ``[n, d]`` per picture; only counted.

        Raises:
            PruningUnsupported: the call's arguments ask for what is not defined.
        """

    @abc.abstractmethod
    def own(self, picture: Picture, source: str, values: list[Any]) -> list[Any]:
        """The picture's part of what was heard in the calls of one module, for a recipe."""

    @abc.abstractmethod
    def per_token(self, picture: Picture, source: str, values: list[Tensor]) -> Tensor:
        """Values that a recipe made of :meth:`own`, ``[B, n, ...]`` each, per token: ``[tiles, P,
        ...]`` in raster order, CLS cut, patches of one token averaged."""

    def images(
        self,
        modality: str,
        arguments: Mapping[str, Any],
        features: list[Tensor],
        capture: VisionCapture,
    ) -> list[CapturedImage]:
        """Describe the pictures of one encoder call, in order.

        Args:
            arguments, features: as in :meth:`pictures`.
            capture: what was heard during the call.

        Raises:
            PruningUnsupported: the grid worked out for a picture is not what the encoder returned.
        """
        this: Any = self  # a checker knows this file by the folder's name as well
        found, heard = [], told(this, capture)
        pictures = self.pictures(modality, arguments, features)
        if len(pictures) != len(features):
            raise PruningUnsupported(
                f"the encoder returned features of {len(features)} pictures for {len(pictures)}"
            )
        for number, (picture, own) in enumerate(zip(pictures, features, strict=True)):
            if len(picture.layout) != len(own):
                raise PruningUnsupported(
                    f"{modality} {number}: the encoder returned {len(own)} tokens, where its grid "
                    f"has {len(picture.layout)}"
                )
            asked: Any = picture
            signals = signals_of(this, asked, heard)
            project = self._projecting(capture) if self.projects_tokens else None
            found.append(CapturedImage(picture.layout, signals, picture.pack, project=project))
        return found

    def _projecting(self, capture: VisionCapture) -> Callable[[Tensor], Tensor]:
        def project(x: Tensor) -> Tensor:
            # Not the dtype of the projector's weights: those may be integers of a quantisation.
            heard = capture.projector_input
            return self.projector()(x if heard is None else x.to(heard.dtype))

        return project

    def group(self, images: list[CapturedImage], input_ids: Tensor) -> list[CapturedImage]:
        """Join encoder outputs into pictures, once the row's ids ``[L]`` are known.

        Default: every output is a picture. A family whose encoder sees crops and not pictures
        joins those of one run of placeholders.
        """
        return images

    # Smaller pictures. Two kinds of encoders: pictures keep their resolution (``cell``), or are
    # brought to square crops of one size (``crop_side``), one or a mosaic of them.
    @property
    def cell(self) -> int | None:
        """Pixels along a side of one token, where pictures keep their resolution; else None."""
        return None

    @property
    def crop_side(self) -> int:
        """Patches along a side of the crops that the encoder takes, as the config says now."""
        raise NotImplementedError(f"{type(self).__name__} takes no crops of one size")

    @property
    def mosaic(self) -> bool:
        """A picture is cut into several crops."""
        return False

    @abc.abstractmethod
    def layout(self, height: int, width: int) -> TokenLayout:
        """Layout of one picture of so many pixels (``fitted`` ones), as the config says now."""

    def fitted(self, height: int, width: int, processor: Any) -> tuple[int, int]:
        """(height, width) that the processor makes of a picture where it keeps its resolution."""
        return height, width

    def fewest(self, processor: Any) -> int:
        """Fewest tokens that the processor makes of a picture where it keeps its resolution."""
        return 1

    def smaller_crops(self, side: int) -> contextlib.AbstractContextManager[None]:
        """While open, the encoder takes crops of ``side x side`` patches."""
        raise NotImplementedError(f"{type(self).__name__} takes no crops of one size")

    def smaller_processor(self, processor: Any, side: int) -> Any:
        """The processor for such crops."""
        raise NotImplementedError(f"{type(self).__name__} takes no crops of one size")

    @abc.abstractmethod
    def blank(self, height: int, width: int, processor: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the image encoder for one picture of so many pixels, on the meta device.

        Args:
            processor: entries of the image processor's file, such as limits of pixels.
        """

    @abc.abstractmethod
    def encode(self, inputs: Mapping[str, Any]) -> Any:
        """Tower and projector on :meth:`blank` arguments; packing, which costs nothing, left out.

        Returns:
            Tensors that everything computed leads to.
        """

    # The language model.
    def follow(
        self, named: dict[str, Any], keep: Tensor, order: Tensor, valid: Tensor
    ) -> None:
        """Cut every further per-token argument of the language model, in place.

        Embeddings, positions and mask are the runtime's. Default: there is nothing further, and an
        argument that looks like it is refused, because what is not cut would be added to the wrong
        tokens without a word.

        Args:
            named: arguments of the language model by name.
            keep: bool ``[B, L]`` tokens that stay.
            order: int64 ``[B, M]`` column of ``L`` behind every column of the shortened sequence.
            valid: bool ``[B, M]`` the shortened sequence without its padding.

        Raises:
            PruningUnsupported: an argument that seems to have one value per token.
        """
        length = keep.shape[1]
        for name, value in named.items():
            if name in KNOWN_ARGUMENTS:
                continue
            if any(length in one.shape or one.is_floating_point() for one in _tensors(value)):
                raise PruningUnsupported(
                    f"the language model takes '{name}' for every token, which the adapter of "
                    f"{self.model.config.model_type} does not cut with the tokens"
                )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def list_of_layers(tower: nn.Module) -> nn.ModuleList:
    """The tower's layers; searched for, because their path differs between library versions."""
    for name, module in tower.named_modules():
        if name.split(".")[-1] in ("layers", "blocks") and isinstance(module, nn.ModuleList):
            return module
    raise PruningUnsupported("the vision tower has no list of layers")


def joined(values: list[Tensor], dim: int = 0) -> Tensor:
    """Tensors behind one another; one alone is not copied."""
    return values[0] if len(values) == 1 else torch.cat(values, dim)


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
