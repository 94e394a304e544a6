"""What torch counts in a real forward, by stage: the other side of the ledger's tests."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vtprune.harness.cost.counter import Counter
from vtprune.models.families import family_of


def count_forward(model: nn.Module, feed: Mapping[str, Tensor]) -> dict[str, int]:
    """MACs by stage of one forward that computes one LM-head position.

    The method's own work, done in hooks, is part of ``llm``.
    """
    family, counter = family_of(model), Counter()
    with torch.no_grad(), counter:
        model(**feed, use_cache=True, logits_to_keep=1)
    top = type(model).__name__
    names = {id(module): name for name, module in model.named_modules()}

    def macs(module: nn.Module) -> int:
        return counter.of(f"{top}.{names[id(module)]}")

    tower = family.core.visual if hasattr(family.core, "visual") else family.core.vision_tower
    projector = macs(family.projector())
    inside = names[id(family.projector())].startswith(names[id(tower)] + ".")
    return {
        "vision": macs(tower) - (projector if inside else 0),
        "projector": projector,
        "llm": macs(family.language_model),
        "lm_head": macs(model.lm_head),
    }
