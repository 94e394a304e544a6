"""Load a model once, time it with and without the method in turn, store ``timing.json``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from vtprune.harness.request import checkpoint, device, presets
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.identity import budget, canonical_json, method_identity, moved_from
from vtprune.harness.request.method import build_method
from vtprune.harness.request.request import Model, Request, Timing
from vtprune.harness.store import index
from vtprune.harness.store.journal import write_atomic
from vtprune.harness.store.schema import SCHEMA, Damaged

FORMAT = 1
AGREEMENT = 0.03  # of the stages with the whole call, which is measured without inner clocks


def run_timing(request: Request, *, reuse: bool = False) -> dict[str, Any]:
    """Time the method of a checked request against the unpruned model.

    Args:
        reuse: hand back the stored result of the same request if there is one; ``reused`` in it
            says so.

    Raises:
        ConfigError: options of the timing pass, the model or the method are wrong.
        HarnessError: the model cannot be loaded, or fails.
    """
    timing = request.timing
    _check(timing)
    sizes, where, processor, identity = _identified(request)
    method = build_method(request)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "key": hashlib.sha256(canonical_json(identity).encode()).hexdigest(),
        "model": request.model.name,
        "method": request.method.name,
        "ratio": request.ratio,
        "budget": budget(request.config),
        "moved_from": moved_from(request.config),
        "identity": identity,
    }
    folder = _folder(result, request.results)
    if reuse and (stored := _stored(folder, result["budget"])):
        return stored
    vlm = _load(where)
    result |= {
        "batches": [
            time_batch(vlm, method, sizes, request.text_tokens, processor, timing, batch)
            for batch in timing.batch_sizes
        ],
        "provenance": _provenance(vlm.device, request.config["method"]),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / index.TIMING, json.dumps(result, indent=1, default=str) + "\n")
    return {**result, "directory": str(folder)}


def _identified(
    request: Request,
) -> tuple[list[tuple[int, int]], dict[str, Any], Any, dict[str, Any]]:
    """Sizes of the images, what to load, its image processor, and the identity of the timing."""
    from vtprune.harness.cost import shapes

    timing = request.timing
    names = timing.images or [request.image_size]
    sizes = [shapes.parse_size(name, "timing.images") for name in names]
    where, identity, described = _model(request.model)
    options = presets.of(request.config, described.config["model_type"]).processor
    where["processor"] = options
    if options:
        identity["processor"] = dict(options)
    shown = [shapes.seen(size, request, described) for size in sizes]
    if timing.clock == "cpu" and not where["device"].startswith("cpu"):
        raise ConfigError("timing.clock=cpu says nothing of a device's work; use wall")
    identity |= {
        "format": FORMAT,
        "method": method_identity(request.config),
        "images": [f"{width}x{height}" for width, height in sizes],
        "text_tokens": request.text_tokens,
        "timing": {
            name: getattr(timing, name)
            for name in ("repeats", "settle", "warmup", "new_tokens", "batch_sizes", "clock")
        },
    }
    return [size for size, _ in shown], where, shown[0][1], identity


def _stored(folder: Path, asked: dict[str, Any] | None) -> dict[str, Any] | None:
    """An earlier result of the same request; one under another budget is not."""
    try:
        stored = index.timing(folder)
    except Damaged as problem:  # timed again, which replaces the file
        index.tell(str(problem))
        return None
    if stored is None or stored.get("budget") != asked:
        return None
    return {**stored, "reused": True}


def time_batch(
    vlm: Any,
    method: Any,
    sizes: list[tuple[int, int]],
    text_tokens: int,
    processor: dict[str, Any],
    timing: Timing,
    batch: int,
) -> dict[str, Any]:
    """Both sides at one batch size, in turn, so that a drift of the machine meets both."""
    from vtprune import methods
    from vtprune.harness.cost import architecture_of
    from vtprune.harness.cost.timing import predict
    from vtprune.harness.cost.timing.samples import draw
    from vtprune.models.errors import PruningUnsupported

    sides = {"baseline": methods.build("none"), "pruned": method}
    try:
        drawn = {
            name: draw(vlm.model, sizes, text_tokens, batch, processor, one)
            for name, one in sides.items()
        }
        rounds, memory = _rounds(vlm, sides, drawn, timing)
    except (PruningUnsupported, methods.MethodError) as error:
        raise HarnessError(str(error)) from error
    arch, made = architecture_of(vlm.model.config), {}
    for name, one in sides.items():
        records = memory[name].pop("records")
        made[name] = _side(rounds[name], batch, timing.new_tokens) | memory[name]
        made[name]["macs"] = predict.work(arch, records, one, timing.new_tokens)
        made[name]["visual_kept"] = fmean(sum(r.visual_per_layer) / r.n_layers for r in records)
    return {
        "batch_size": batch,
        "samples": [
            {"image": s.name, "visual_tokens": s.visual_tokens, "prompt_tokens": s.prompt_length}
            for s in drawn["baseline"]
        ],
        **made,
        "comparison": predict.compare(_plain(made["baseline"]), _plain(made["pruned"])),
    }


def _rounds(
    vlm: Any, sides: dict[str, Any], drawn: dict[str, list[Any]], timing: Timing
) -> tuple[dict[str, list[dict[str, float]]], dict[str, dict[str, Any]]]:
    """Per side: one dict of mean seconds per sample and round, and what memory was used."""
    from vtprune.harness.cost.timing.clock import PeakMemory, device_clock

    now = device_clock(vlm.device, timing.clock)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    memory: dict[str, dict[str, Any]] = {}
    warmup, most = timing.warmup, timing.repeats * timing.settle
    for number in range(warmup + most):
        if number >= warmup + timing.repeats and _settled(rounds):
            break
        for name, method in sides.items():
            peak = PeakMemory(vlm.device) if not number else None
            made, used = _one_round(vlm, method, drawn[name], timing.new_tokens, now, peak)
            if used is not None:
                memory[name] = used
            if number >= warmup:
                rounds[name].append(made)
    return rounds, memory


def _one_round(
    vlm: Any, method: Any, samples: list[Any], new_tokens: int, now: Any, peak: Any
) -> tuple[dict[str, float], dict[str, Any] | None]:
    from vtprune.harness.cost.timing.measure import Generation
    from vtprune.models import prune

    with prune(vlm.model, method) as run:
        generation = Generation(vlm.model, run, new_tokens, now)
        used = None if peak is None else _memory(generation, samples, peak)
        entries = []
        for sample in samples:
            run.reduced(sample.unreduced)
            whole = generation.stages(sample.feed)
            entries.append({**whole, "end_to_end": generation.end_to_end(sample.feed)})
    return {k: fmean(e[k] for e in entries) for k in entries[0]}, used


def stage_sum(rounds: list[dict[str, float]]) -> float:
    """Sum of the stages over end to end, median over the rounds.

    The two calls of a round follow each other, so a machine that is slow for a while slows both.
    """
    from vtprune.harness.cost.timing.measure import STAGES

    return median(sum(r[s] for s in STAGES) / r["end_to_end"] for r in rounds)


def _settled(rounds: dict[str, list[dict[str, float]]]) -> bool:
    return all(abs(stage_sum(made) - 1) <= AGREEMENT for made in rounds.values())


def _memory(generation: Any, samples: list[Any], peak: Any) -> dict[str, Any]:
    used = []
    for sample in samples:
        generation.run.reduced(sample.unreduced)
        used.append(generation.memory(sample.feed, peak))
    peaks = [one["peak_bytes"] for one in used]
    return {
        "kv_cache_bytes": fmean(one["kv_cache_bytes"] for one in used),
        "peak_memory_bytes": None if None in peaks else max(peaks),
        "peak_memory_kind": peak.kind,
        "records": [one["records"][0] for one in used],
    }


def _side(rounds: list[dict[str, float]], batch: int, new_tokens: int) -> dict[str, Any]:
    from vtprune.harness.cost.timing.clock import summary
    from vtprune.harness.cost.timing.measure import STAGES

    ttft = ("setup", "vision", "selection", "prefill")
    columns = {stage: [r[stage] for r in rounds] for stage in (*STAGES, "end_to_end")}
    columns["ttft"] = [sum(r[s] for s in ttft) for r in rounds]
    columns["sum_of_stages"] = [sum(r[s] for s in STAGES) for r in rounds]
    if new_tokens > 1:
        columns["decode_per_token"] = [r["decode"] / (new_tokens - 1) for r in rounds]
    seconds = {name: summary(values) for name, values in columns.items()}
    whole = seconds["end_to_end"]
    return {
        "seconds": seconds,
        "samples_per_s": {
            "median": batch / whole["median"],
            "low": batch / whole["high"],
            "high": batch / whole["low"],
        },
        "sum_of_stages_over_end_to_end": stage_sum(rounds),
        "rounds": len(rounds),
    }


def _plain(side: dict[str, Any]) -> dict[str, Any]:
    seconds = {name: entry["median"] for name, entry in side["seconds"].items()}
    return {"macs": side["macs"], "seconds": seconds}


def _check(timing: Timing) -> None:
    for name, low in (("repeats", 1), ("settle", 1), ("warmup", 0), ("new_tokens", 1)):
        value = getattr(timing, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ConfigError(f"timing.{name} must be a whole number >= {low}: got {value!r}")
    if timing.clock not in ("wall", "cpu"):
        raise ConfigError(f"timing.clock must be wall or cpu: got {timing.clock!r}")
    sizes = timing.batch_sizes
    if (
        not isinstance(sizes, list)
        or not sizes
        or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
    ):
        raise ConfigError("timing.batch_sizes must be a list of whole numbers, e.g. [1,8]")


def _model(model: Model) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """What to load, its part of the identity, and its sizes."""
    from vtprune.harness.cost import shapes

    if model.weights not in ("checkpoint", "random"):
        raise ConfigError(f"model.weights must be checkpoint or random: got {model.weights!r}")
    if model.weights == "random":
        described = shapes.architecture(replace(model, path=None))
        runtime = device.resolve(model, described.config)
        where = {"architecture": model.architecture, "weights": "random"}
        sizes = hashlib.sha256(canonical_json(described.config).encode()).hexdigest()[:16]
        identity = {"architecture": sizes, "weights": "random"}
    else:
        found = checkpoint.find(model)
        runtime = device.resolve(model, found.config)
        described = shapes.architecture(model)
        where = {"path": found.path, "chat_template": model.chat_template}
        identity = {"checkpoint": found.fingerprint()}
    used = {k: getattr(runtime, k) for k in ("dtype", "attention", "threads")}
    where |= {**runtime.entries(), "name": model.name}
    return where, {"model": {**identity, **used, "device": runtime.kind}}, described


def _load(where: dict[str, Any]) -> Any:
    from transformers.utils import logging

    from vtprune.models.errors import ModelLoadError
    from vtprune.models.load import load

    logging.disable_progress_bar()
    try:
        return load(where)
    except ModelLoadError as error:
        raise HarnessError(str(error)) from error


def _provenance(used: str, method: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from vtprune.harness.store import provenance

    found = provenance.collect(used, method)
    return {**found, "torch_threads": torch.get_num_threads()}


def _folder(result: dict[str, Any], results: Path) -> Path:
    name = f"{result['method']}-{result['ratio']:g}-{result['key'][:8]}"
    return results / "runs" / "timing" / result["model"] / name
