"""LLaVA-1.5: one crop per image, one token per patch, no newline."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.methods import TokenLayout
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families.base import Family, Picture, grids_layout, joined, list_of_layers
from vtprune.models.signals import Heard

#: vision towers whose tokens are the patches of one square crop -> it has a CLS token in front
TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}


class Llava(Family):
    """``LlavaForConditionalGeneration``."""

    hears = Family.hears | {"merging"}
    projects_tokens = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config: Any = model.config
        tower = getattr(config.vision_config, "model_type", "")
        if tower not in TOWERS:
            raise PruningUnsupported(
                f"the vision tower of this {config.model_type} is '{tower}', whose tokens are not "
                f"one square crop's patches (supported: {', '.join(TOWERS)})"
            )
        if not isinstance(config.vision_feature_layer, int):
            raise PruningUnsupported(
                f"vision_feature_layer={list(config.vision_feature_layer)} joins several encoder "
                "layers; pruning is defined for one, vision_feature_layer=-2 say"
            )
        if self.has_cls and not TOWERS[tower]:
            raise PruningUnsupported(
                f"vision_feature_select_strategy=default cuts the first token, which in '{tower}' "
                "is a patch of the picture; pruning is defined for vision_feature_select_strategy="
                "full there"
            )

    def projector(self) -> nn.Module:
        return self.core.multi_modal_projector

    def blank(self, height: int, width: int, processor: Mapping[str, Any]) -> dict[str, Any]:
        side = self.model.config.vision_config.image_size
        return {"pixel_values": torch.empty(1, 3, side, side, device="meta")}

    def encode(self, inputs: Mapping[str, Any]) -> Any:
        pixels = inputs["pixel_values"]
        pixels = pixels.flatten(0, 1) if pixels.dim() == 5 else pixels
        hidden = self.core.vision_tower(pixels, output_hidden_states=True).hidden_states
        features = hidden[self.model.config.vision_feature_layer]
        features = features[:, 1:] if self.has_cls else features
        # The last layer's output too, though nothing reads it: towers run it, and tracing drops
        # what nothing depends on.
        return self.core.multi_modal_projector(features), hidden[-1]

    @property
    def has_cls(self) -> bool:
        return self.model.config.vision_feature_select_strategy == "default"

    def vision_layers(self) -> Any:
        return list_of_layers(self.core.vision_tower)

    def feature_layer(self) -> int:
        """Number of the encoder layer whose output the projector reads."""
        # hidden_states[0] are the embeddings, so entry i is the output of layer i - 1.
        depth = len(self.vision_layers())
        return self.model.config.vision_feature_layer % (depth + 1) - 1

    # Crops of one size.
    @property
    def vision(self) -> Any:
        """The config of the vision tower."""
        return self.model.config.vision_config

    @property
    def crop_side(self) -> int:
        return self.vision.image_size // self.vision.patch_size

    @property
    def mosaic(self) -> bool:
        return getattr(self.model.config, "image_grid_pinpoints", None) is not None

    def layout(self, height: int, width: int) -> TokenLayout:
        return _square(self.crop_side**2)

    @contextlib.contextmanager
    def smaller_crops(self, side: int) -> Iterator[None]:
        config, before = self.model.config, self.vision.image_size
        pinpoints = getattr(config, "image_grid_pinpoints", None)
        hook = self.core.vision_tower.register_forward_pre_hook(_interpolate, with_kwargs=True)
        try:
            if pinpoints is not None:
                config.image_grid_pinpoints = self._scaled(pinpoints, side)
            self.vision.image_size = side * self.vision.patch_size
            yield
        finally:
            hook.remove()
            self.vision.image_size = before
            if pinpoints is not None:
                config.image_grid_pinpoints = pinpoints

    def _scaled(self, pinpoints: Sequence[Sequence[int]], side: int) -> list[list[int]]:
        full, pixels = self.vision.image_size, side * self.vision.patch_size
        return [[n // full * pixels for n in pair] for pair in pinpoints]

    def smaller_processor(self, processor: Any, side: int) -> Any:
        small, pixels = copy.copy(processor), side * self.vision.patch_size
        small.image_processor = images = copy.deepcopy(processor.image_processor)
        for name in ("size", "crop_size"):
            if (given := getattr(images, name, None)) is not None:
                setattr(images, name, type(given)(**dict.fromkeys(dict(given), pixels)))
        if getattr(images, "image_grid_pinpoints", None) is not None:
            images.image_grid_pinpoints = self._scaled(images.image_grid_pinpoints, side)
        if hasattr(small, "num_image_tokens"):
            small.num_image_tokens = side**2
        return small

    # Pictures of a call.
    def pictures(
        self, modality: str, arguments: Mapping[str, Any], features: list[Tensor]
    ) -> list[Picture]:
        self.check_call(arguments)
        return [Picture(_square(len(one)), slice(i, i + 1)) for i, one in enumerate(features)]

    def check_call(self, arguments: Mapping[str, Any]) -> None:
        """Refuse a call that asks for other features than the config, which signals follow."""
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            given, own = arguments.get(name), getattr(self.model.config, name)
            if given is not None and given != own:
                raise PruningUnsupported(
                    f"{name}={given} in the call differs from {own} in the config; set it there"
                )

    def own(self, picture: Picture, source: str, values: list[Any]) -> list[Any]:
        """Crops are the batch of the encoder."""
        place = picture.place
        if source == "attention":
            return [Heard.entries(values[0], place.start, place.stop)]
        return [values[0][place]]

    def per_token(self, picture: Picture, source: str, values: list[Tensor]) -> Tensor:
        whole = joined(values)
        if source in ("attention", "states") and self.has_cls:
            whole = whole[:, 1:]
        return whole if picture.pool is None else picture.pool(whole)


def _interpolate(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
    return args, {**kwargs, "interpolate_pos_encoding": True}


def _square(n_tokens: int) -> TokenLayout:
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise PruningUnsupported(f"{n_tokens} visual tokens are not a square grid")
    return grids_layout("image", 1, side, side)
