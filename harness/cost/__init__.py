"""What a run costs: a ledger of multiply-accumulates with named conventions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtprune.harness.cost.architecture import Architecture, architecture_of
from vtprune.harness.cost.conventions import CONVENTIONS, convert
from vtprune.harness.cost.ledger import Cost

if TYPE_CHECKING:
    from vtprune.methods import PruningMethod
    from vtprune.models.record import SampleRecord

__all__ = [
    "CONVENTIONS",
    "Architecture",
    "Cost",
    "architecture_of",
    "convert",
    "prefill",
    "prefill_full",
]


def prefill(
    model_config: Any, record: SampleRecord, method: PruningMethod | None = None
) -> dict[str, int]:
    """MACs of one sample's prefill by stage: vision, projector, selection, llm, lm_head, total."""
    from vtprune.harness.cost import ledger

    return ledger.prefill(architecture_of(model_config), record, method).stages()


def prefill_full(model_config: Any, record: SampleRecord) -> dict[str, int]:
    """MACs by stage of the same sample without pruning."""
    from vtprune.harness.cost import ledger

    return ledger.prefill_full(architecture_of(model_config), record).stages()
