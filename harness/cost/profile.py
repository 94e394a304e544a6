"""``task=profile``: what one image costs in a model, without weights and without network."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtprune.harness.cost import conventions
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Request

STAGES = ("vision", "projector", "selection", "llm", "lm_head", "total")


def run_profile(request: Request) -> dict[str, Any]:
    """Count the method's and the unpruned prefill of one image, by ledger and by torch's counter.

    Args:
        request: its ratio is a number; ``image_size`` and ``text_tokens`` say what of.

    Raises:
        ConfigError: the model has no architecture file, or the method refuses its options.
    """
    from vtprune.harness.cost import architecture_of, ledger, shapes
    from vtprune.harness.request.method import build_method
    from vtprune.models.describe import hf_config

    started = time.perf_counter()
    method = build_method(request)
    described = shapes.architecture(request.model)
    model = shapes.skeleton(hf_config(described))
    size = shapes.parse_size(request.image_size)
    arch, text = architecture_of(model.config), request.text_tokens
    with shapes.picture(model, size, described.image_processor) as shown:
        layout, full = shown.layouts[0], shapes.record(model, shown.layouts, text)
        whole = _side(model, arch, shown, full, ledger.prefill_full(arch, full))
    with _picture(model, size, described.image_processor, method) as shown:
        record = _planned(model, shown, text, method)
        pruned = _side(model, arch, shown, record, ledger.prefill(arch, record, method))
    return {
        "model": request.model.name,
        "method": request.method.name,
        "options": method.options(),
        "ratio": request.ratio,
        "image_size": list(size),
        "views": [list(grid) for grid in layout.grids],
        "visual_tokens": full.visual_tokens,
        "text_tokens": text,
        "visual_per_layer": record.visual_per_layer,
        "mean_removal": record.mean_removal,
        "full": whole,
        "pruned": pruned,
        "left_out": _left_out(method),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _countable(counted: dict[str, int], record: Any) -> dict[str, int]:
    """Without the stages that a skeleton, in which nothing merges, runs at full length."""
    shorter = ("vision", "projector") if record.merged else ()
    return {stage: n for stage, n in counted.items() if stage not in shorter}


def _side(model: Any, arch: Any, shown: Any, record: Any, spent: Any) -> dict[str, Any]:
    """One side of a profile: the ledger's stages, torch's count, conventions, cache."""
    from vtprune.harness.cost import counter, ledger

    tokens, encoded = ledger.tokens(arch, record, spent.selection)
    return {
        "stages": spent.stages(),
        "counted": _countable(counter.count_skeleton(model, shown.inputs, record), record),
        "conventions": {
            c: conventions.convert(c, encoded, tokens) for c in conventions.CONVENTIONS
        },
        "decode_step": ledger.decode_step(arch, record.tokens_per_layer).total,
        "kv_cache_bytes": ledger.kv_cache_bytes(arch, record),
    }


@contextlib.contextmanager
def _picture(model: Any, size: Any, processor: dict[str, Any], method: Any) -> Iterator[Any]:
    from vtprune.harness.cost import shapes
    from vtprune.methods import MethodError

    with contextlib.ExitStack() as stack:
        try:
            shown = stack.enter_context(shapes.picture(model, size, processor, method))
        except MethodError as error:
            raise ConfigError(str(error)) from error
        yield shown


def _planned(model: Any, shown: Any, text_tokens: int, method: Any) -> Any:
    from vtprune.harness.cost import shapes
    from vtprune.methods import MethodError

    try:
        return shapes.record(model, shown.layouts, text_tokens, method, shown.unreduced)
    except MethodError as error:
        raise ConfigError(str(error)) from error


def _left_out(method: Any) -> str | None:
    """What a profile cannot know of a method's cost."""
    if method.ratio and "clip_similarity" in method.needs:
        return "without CLIP's text tower, whose size is in its checkpoint; cells count it"
    return None




def store(result: dict[str, Any], results: Path) -> Path:
    """Write a profile below ``results/profiles``; the same question has the same name."""
    width, height = result["image_size"]
    name = f"{result['method']}-{result['ratio']:g}-{width}x{height}.json"
    path = Path(results) / "profiles" / result["model"] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def report(result: dict[str, Any]) -> str:
    """The profile as text: tokens, stages, conventions."""
    width, height = result["image_size"]
    views = " + ".join(f"{rows} x {cols}" for rows, cols in result["views"])
    lines = [
        f"{result['model']}, {result['method']} {result['ratio']:g}, image {width} x {height}",
        f"  {result['visual_tokens']} visual tokens ({views}), {result['text_tokens']} text tokens",
        f"  visual tokens entering the layers: {_runs(result['visual_per_layer'])}; "
        f"mean removal {100 * result['mean_removal']:.1f} %",
        "",
        *_stage_lines(result),
        *([f"  ({result['left_out']})"] if result.get("left_out") else []),
        "",
        *_convention_lines(result),
        "",
        f"counted in {result['seconds']:.1f} s, on the meta device: no weights, no network",
    ]
    return "\n".join(lines)


def _stage_lines(result: dict[str, Any]) -> list[str]:
    full, pruned = result["full"], result["pruned"]
    lines = [f"{'TMAC of one prefill':<22}{'unpruned':>11}{'pruned':>11}{'left':>9}   torch counts"]
    for stage in STAGES:
        before, after = full["stages"][stage], pruned["stages"][stage]
        counted = pruned["counted"].get(stage)
        check = "" if counted is None else _agreement(after, counted)
        lines.append(f"  {stage:<20}{_tera(before)}{_tera(after)}{_share(after, before)}   {check}")
    step, cache = ((full[k], pruned[k]) for k in ("decode_step", "kv_cache_bytes"))
    lines.append(f"  {'decode step, GMAC':<20}{step[0] / 1e9:>11.3f}{step[1] / 1e9:>11.3f}"
                 f"{_share(step[1], step[0])}")  # fmt: skip
    lines.append(f"  {'KV cache fp16, MiB':<20}{cache[0] / 2**20:>11.1f}{cache[1] / 2**20:>11.1f}"
                 f"{_share(cache[1], cache[0])}")  # fmt: skip
    return lines


def _convention_lines(result: dict[str, Any]) -> list[str]:
    full, pruned = result["full"]["conventions"], result["pruned"]["conventions"]
    lines = [f"{'T, by convention':<22}{'unpruned':>11}{'pruned':>11}{'left':>9}   what is counted"]
    for name, before in full.items():
        after = pruned[name]
        lines.append(f"  {name:<20}{_tera(before)}{_tera(after)}{_share(after, before)}"
                     f"   {conventions.MEANING[name]}")  # fmt: skip
    return lines


def _agreement(ours: int, counted: int) -> str:
    if ours == counted:
        return "the same"
    return f"{_tera(counted).strip()} (ledger {ours / counted:.4f} of it)"


def _tera(value: float) -> str:
    return f"{value / 1e12:>11.4f}"


def _share(after: float, before: float) -> str:
    return f"{100 * after / before:>7.1f} %" if before else f"{'-':>9}"


def _runs(counts: list[int]) -> str:
    """``[5, 5, 2]`` as ``5 (2 layers), 2 (1 layer)``."""
    runs: list[list[int]] = []
    for count in counts:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return ", ".join(f"{n} ({k} layer{'s' * (k > 1)})" for n, k in runs)
