"""What a cell's samples add up to: tokens, removal, compute, speed, memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from vtprune.harness.request.errors import HarnessError


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that exist, None if there are none."""
    there = [v for v in values if v is not None]
    return fmean(there) if there else None


def summary(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the answered samples, as stored in result.json under ``counters``.

    Times come from the accuracy pass, in which samples are batched and nothing is warmed up: they
    say how long this run took, not how fast a method is. All are per sample, a batch's time divided
    by its rows; ``prefill_s`` ends when the first token's logits exist.
    """
    done = [s for s in samples if not s["error"]]
    seen = [s for s in done if s.get("visual_tokens")]
    wall = sum(s.get("latency_s", 0.0) for s in done)
    return {
        "visual_tokens": mean([s["visual_tokens"] for s in seen]),
        "visual_kept": mean([s["visual_kept"] for s in seen]),
        "removal": mean([s["mean_removal"] for s in seen]),
        "prompt_tokens": mean([s.get("prompt_tokens") for s in done]),
        "generated_tokens": mean([s.get("generated_tokens") for s in done]),
        "macs": _macs(seen),
        "macs_full": mean([s["macs_full"] for s in seen]),
        "accuracy_pass": {
            "samples_per_s": len(done) / wall if wall else None,
            "latency_s": mean([s.get("latency_s") for s in done]),
            "generate_s": mean([s.get("generate_s") for s in done]),
            "prefill_s": mean([s.get("prefill_s") for s in done]),
            "selection_s": mean([s.get("selection_s") for s in done]),
        },
    }


def _macs(seen: Sequence[dict[str, Any]]) -> dict[str, float]:
    stages = seen[0]["macs"] if seen else {}
    return {stage: fmean(s["macs"][stage] for s in seen) for stage in stages}


def check_removal(
    samples: Sequence[dict[str, Any]], ratio: float, mode: str, parts: int = 1
) -> None:
    """Refuse a cell whose removal is off its target by more than one token's worth.

    One token per graph of the selection, because each graph keeps a whole number of tokens, and
    that for each of the ``parts`` of a composed method, as each counts what it leaves. Row-end
    tokens may stand outside the target (kept) or be removed on top of it. Pictures made smaller
    have whole grids and may lose more, but not less. With
    ``ratio_mode=local`` the ratio is the method's own parameter and says nothing about the mean.
    """
    if mode != "mean":
        return
    for sample in samples:
        if sample["error"] or not sample.get("visual_tokens"):
            continue
        if "unreduced" in sample["pruning"]:
            _check_grids(sample, ratio)
            continue
        total, views = sample["visual_tokens"], sample["pruning"]["views"]
        removed, candidates = total * sample["mean_removal"], sum(views) or total
        if candidates > total:
            continue  # graphs that include padding: what is removed depends on where it fell
        targets = (ratio * candidates, ratio * candidates + total - candidates, ratio * total)
        off = min(abs(removed - target) for target in targets)
        if off > parts * max(1, len(views)) + 1e-6:
            raise HarnessError(
                f"sample {sample['doc_id']}: removed {removed / total:.4f} of its visual tokens, "
                f"target {ratio:g}: off by more than one token"
            )


def _check_grids(sample: dict[str, Any], ratio: float) -> None:
    """Smaller pictures have whole grids: each is to be within its budget, of one token at least."""
    now, asked = sample["pruning"]["grids"], sample["pruning"]["unreduced"]["grids"]
    for (_, rows, cols), (_, full_rows, full_cols) in zip(now, asked, strict=bool(now)):
        budget = max(1.0, (1 - ratio) * full_rows * full_cols)
        if rows * cols > budget + 1e-6:
            raise HarnessError(
                f"sample {sample['doc_id']}: a picture of {rows} x {cols} tokens exceeds the "
                f"{budget:g} that ratio {ratio:g} leaves of {full_rows} x {full_cols}"
            )


def reset_peak_memory(device: str) -> None:
    """Start counting the peak of the device's memory anew; a process's own peak only grows."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> dict[str, int]:
    """Peak memory in bytes: of the process since its start, of the device since the cell's."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.startswith("cuda"):
        import torch

        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak
