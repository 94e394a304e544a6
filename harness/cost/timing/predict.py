"""What the ledger predicts, what was measured, and where the difference went."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from vtprune.harness.cost import ledger
from vtprune.harness.cost.architecture import Architecture


def work(arch: Architecture, records: Sequence[Any], method: Any, new_tokens: int) -> dict:
    """Mean MACs per sample by stage of the timing pass; ``records`` are of full or pruned runs."""
    rows = []
    for record in records:
        cost = ledger.prefill(arch, record, method)
        steps = [
            ledger.decode_step(arch, [n + done for n in record.tokens_per_layer]).total
            for done in range(new_tokens - 1)
        ]
        rows.append(
            {
                "vision": cost.vision + cost.projector,
                "selection": cost.selection,
                "prefill": cost.llm + cost.lm_head,
                "decode": sum(steps),
            }
        )
    return {stage: fmean(row[stage] for row in rows) for stage in rows[0]}


def compare(baseline: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    """Speed-ups, predicted and measured, and the seconds by which each stage misses its prediction.

    A stage is predicted to take the baseline's time scaled by its MACs; setup does not change; the
    selection has no counterpart in the baseline, so all of its time is lost. ``prefill`` is the
    language model, ``ttft`` the time to the first token, selection included.

    Args:
        baseline, pruned: ``macs`` by stage, and ``seconds`` by stage with ``end_to_end``.
    """
    macs, full = pruned["macs"], baseline["macs"]
    predicted = {
        stage: seconds * (macs[stage] / full[stage] if full.get(stage) else 1.0)
        for stage, seconds in baseline["seconds"].items()
        if stage in ("setup", "vision", "prefill", "decode")
    } | {"selection": 0.0}
    measured = pruned["seconds"]
    first = ("setup", "vision", "selection", "prefill")
    before = baseline["seconds"]

    def ratio(a: float, b: float) -> float | None:
        return a / b if b else None

    return {
        "predicted": {
            "prefill": ratio(full["prefill"], macs["prefill"]),
            "ttft": ratio(sum(before[s] for s in first), sum(predicted[s] for s in first)),
            "end_to_end": ratio(sum(before[s] for s in predicted), sum(predicted.values())),
            "macs": ratio(sum(full.values()), sum(macs.values())),
        },
        "measured": {
            "prefill": ratio(before["prefill"], measured["prefill"]),
            "prefill_with_selection": ratio(
                before["prefill"], measured["prefill"] + measured["selection"]
            ),
            "ttft": ratio(sum(before[s] for s in first), sum(measured[s] for s in first)),
            "end_to_end": ratio(before["end_to_end"], measured["end_to_end"]),
        },
        "predicted_seconds": predicted,
        "lost_seconds": {s: measured[s] - predicted[s] for s in predicted},
    }
