"""A timing result as text: stages side by side, speed-ups, and what the prediction missed."""

from __future__ import annotations

from typing import Any

from vtprune.harness.cost.timing.run import AGREEMENT

ROWS = ("setup", "vision", "selection", "prefill", "decode", "sum_of_stages", "end_to_end", "ttft")


def report(result: dict[str, Any]) -> str:
    """All batch sizes of a timing result."""
    model = result["identity"]["model"]
    weights = ", random weights" if model.get("weights") == "random" else ""
    head = (f"{result['model']}{weights}: {result['method']} {result['ratio']:g} against unpruned, "
            f"{model['device']}, {model['dtype']}, {model['attention']}")  # fmt: skip
    if result["identity"]["timing"].get("clock") == "cpu":
        head += ", CPU time"
    parts = [head]
    for batch in result["batches"]:
        parts += ["", *_batch_lines(batch)]
    return "\n".join([*parts, "", f"stored: {result['directory']}/timing.json"])


def _batch_lines(batch: dict[str, Any]) -> list[str]:
    base, pruned, seen = batch["baseline"], batch["pruned"], batch["comparison"]
    images = ", ".join(f"{s['image']} ({s['visual_tokens']} tokens)" for s in batch["samples"])
    lines = [
        f"batch {batch['batch_size']}, images {images}, kept {pruned['visual_kept']:.1f}",
        f"  {'ms per batch':<18}{'unpruned':>10}{'pruned':>10}   {'interval':<20}"
        f"{'predicted':>10}{'lost':>9}",
    ]
    for row in ROWS:
        a, b = base["seconds"][row], pruned["seconds"][row]
        predicted = seen["predicted_seconds"].get(row)
        expected = (
            f"{1e3 * predicted:>10.2f}{1e3 * seen['lost_seconds'][row]:>9.2f}"
            if predicted is not None else ""
        )  # fmt: skip
        span = f"{1e3 * b['low']:.2f} .. {1e3 * b['high']:.2f}"
        lines.append(
            f"  {row.replace('_', ' '):<18}{1e3 * a['median']:>10.2f}{1e3 * b['median']:>10.2f}"
            f"   {span:<20}{expected}"
        )
    if "decode_per_token" in base["seconds"]:
        a, b = (s["seconds"]["decode_per_token"]["median"] for s in (base, pruned))
        lines.append(f"  {'decode per token':<18}{1e3 * a:>10.2f}{1e3 * b:>10.2f}")
    return lines + _closing_lines(base, pruned, seen)


def _closing_lines(base: dict, pruned: dict, seen: dict) -> list[str]:
    lines = ["  speed-up           predicted  measured"]
    for name in ("prefill", "ttft", "end_to_end"):
        lines.append(f"    {name.replace('_', ' '):<17}{seen['predicted'][name]:>9.2f}x"
                     f"{seen['measured'][name]:>9.2f}x")  # fmt: skip
    rates = [s["samples_per_s"]["median"] for s in (base, pruned)]
    lines.append(f"  samples/s {rates[0]:.3f} -> {rates[1]:.3f}, "
                 f"KV cache {base['kv_cache_bytes'] / 2**20:.1f} -> "
                 f"{pruned['kv_cache_bytes'] / 2**20:.1f} MiB")  # fmt: skip
    if base["peak_memory_bytes"] and pruned["peak_memory_bytes"]:
        lines.append(f"  peak memory ({base['peak_memory_kind']}) "
                     f"{base['peak_memory_bytes'] / 2**20:.0f} -> "
                     f"{pruned['peak_memory_bytes'] / 2**20:.0f} MiB")  # fmt: skip
    agree = [s["sum_of_stages_over_end_to_end"] for s in (base, pruned)]
    mark = "" if all(abs(a - 1) <= AGREEMENT for a in agree) else "; more than 3 % apart: repeat it"
    lines.append(f"  sum of stages / end to end: {agree[0]:.3f}, {agree[1]:.3f} "
                 f"({pruned['rounds']} rounds{mark})")  # fmt: skip
    return lines
