"""``task=profile``: what one image costs in a model, without weights and without network."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from vtprune.harness.cost import conventions
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Request

T = TypeVar("T")
_FUSED = "scaled_dot_product_attention"
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
    asked = shapes.parse_size(request.image_size)
    size, limits = shapes.seen(asked, request, described)
    arch, text = architecture_of(model.config), request.text_tokens
    traced: dict[Any, Any] = {}
    with shapes.picture(model, size, limits) as shown:
        layout, full = shown.layouts[0], shapes.record(model, shown.layouts, text)
        whole = _side(model, arch, shown, full, ledger.prefill_full(arch, full), traced)
    with _picture(model, size, limits, method) as shown:
        record = _planned(model, shown, text, method)
        pruned = _side(model, arch, shown, record, ledger.prefill(arch, record, method), traced)
    return {
        "model": request.model.name,
        "method": request.method.name,
        "options": method.options(),
        "ratio": request.ratio,
        "image_size": list(asked),
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


def _countable(counted: Mapping[str, T], record: Any) -> dict[str, T]:
    """Without the stages that a skeleton, in which nothing merges, runs at full length."""
    shorter = ("vision", "projector") if record.merged else ()
    return {stage: n for stage, n in counted.items() if stage not in shorter}


def _side(
    model: Any, arch: Any, shown: Any, record: Any, spent: Any, traced: dict[Any, Any]
) -> dict[str, Any]:
    """One side of a profile: the ledger's stages, what others count, conventions, cache."""
    from vtprune.harness.cost import counter, fvcore_count, ledger

    tokens, encoded = ledger.tokens(arch, record, spent.selection)
    counted = counter.count_skeleton(model, shown.inputs, record)
    seen = fvcore_count.count_skeleton(model, shown.inputs, record, traced)
    return {
        "stages": spent.stages(),
        "counted": _countable(counted.macs, record),
        "attention": _countable(counted.attention, record),
        "fvcore": {stage: asdict(one) for stage, one in _countable(seen, record).items()},
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
        *_what_counters_miss(result),
        *([f"  ({result['left_out']})"] if result.get("left_out") else []),
        "",
        *_convention_lines(result),
        "",
        f"counted in {result['seconds']:.1f} s, on the meta device: no weights, no network",
    ]
    return "\n".join(lines)


def _stage_lines(result: dict[str, Any]) -> list[str]:
    full, pruned = result["full"], result["pruned"]
    lines = [f"{'TMAC of one prefill':<22}{'unpruned':>11}{'pruned':>11}{'left':>9}"
             f"   {'torch':<10}  fvcore"]  # fmt: skip
    for stage in STAGES:
        before, after = full["stages"][stage], pruned["stages"][stage]
        others = "".join(f"   {text:<9}" for text in _opinions(pruned, stage))
        line = f"  {stage:<20}{_tera(before)}{_tera(after)}{_share(after, before)}{others}"
        lines.append(line.rstrip())
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


def _opinions(side: dict[str, Any], stage: str) -> list[str]:
    """What torch's counter and fvcore say of a stage of the ledger."""
    ours, counted, seen = side["stages"][stage], side["counted"].get(stage), side["fvcore"]
    if counted is None:
        return []
    torch_says = "the same" if counted == ours else _tera(counted).strip()
    return [torch_says, f"{_tera(seen[stage]['macs']).strip()} ({_part(seen[stage], ours)})"]


def _part(seen: dict[str, Any], ours: int) -> str:
    return f"{100 * seen['macs'] / ours:.1f} %" if ours else "none"


def disagreements(result: dict[str, Any]) -> list[str]:
    """Stages in which the three counts differ by more than what each is known not to see.

    fvcore's matrix products and the fused attention that torch counts are together the ledger.
    """
    told = []
    for name in ("full", "pruned"):
        side = result[name]
        for stage, counted in side["counted"].items():
            ours, seen = side["stages"][stage], side["fvcore"][stage]
            together = seen["macs"] - seen["norms"] + side["attention"].get(stage, 0)
            if not ours == counted == together:
                told.append(f"{stage} ({name}): ledger {ours}, torch {counted}, fvcore with "
                            f"torch's attention {together} MACs")  # fmt: skip
    return told


def _what_counters_miss(result: dict[str, Any]) -> list[str]:
    """What each count leaves out, and whether they agree on the rest."""
    side = result["pruned"]
    calls = sum(s["skipped"].get(_FUSED, 0) for s in side["fvcore"].values())
    unseen = sum(side["attention"].values())
    norms = sum(s["norms"] for s in side["fvcore"].values())
    rest = {name for one in side["fvcore"].values() for name in one["skipped"]} - {_FUSED}
    lines = [
        "  torch's counter sees no norms, activations, rotations; so does the ledger",
        f"  fvcore sees no fused attention ({calls} calls, {_tera(unseen).strip()} TMAC by torch), "
        f"and counts norms ({_tera(norms).strip()})",
        f"  fvcore has no rule for: {', '.join(sorted(rest))}",
        "  selection: by the method's own formula, no counter runs it here",
    ]
    wrong = disagreements(result)
    agreed = "  fvcore's matrix products + torch's attention = the ledger, in every stage"
    return [*lines, *(f"  DISAGREE: {line}" for line in wrong)] if wrong else [*lines, agreed]


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
