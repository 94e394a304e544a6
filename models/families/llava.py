"""LLaVA-1.5: one crop per image, one token per patch, no newline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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


def _square(n_tokens: int) -> TokenLayout:
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise PruningUnsupported(f"{n_tokens} visual tokens are not a square grid")
    return grids_layout("image", 1, side, side)
