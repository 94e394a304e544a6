"""``task=calibrate``: search a FitPrune recipe for a model and a budget, and find it again.

An artefact is one JSON file below ``results/calibration/fitprune``. A cell with
``method.recipe=calibrated`` takes the one made for its checkpoint, ratio and search options, and
says so; the numbers themselves become part of the cell's key.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.cell import recipes
from vtprune.harness.cell.prepare import Prepared
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.identity import canonical_json
from vtprune.harness.request.method import build_method
from vtprune.harness.request.request import Request


def run_calibration(prepared: Prepared) -> dict[str, Any]:
    """Search the recipe and store it; returns the artefact with its ``path``.

    Raises:
        HarnessError: the budget cannot be met; the message names the feasible range.
    """
    from vtprune import methods
    from vtprune.harness.evaluation import quiet

    request = prepared.request
    if request.method.name != "fitprune":
        raise ConfigError("task=calibrate works for method=fitprune, the one that has a recipe")
    if not 0 < request.ratio < 1:
        raise ConfigError("task=calibrate needs a ratio in (0, 1)")
    build_method(recipes.with_recipe(request, "published"))
    target = recipes.folder(request.results)
    target.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with quiet.libraries_to(target / "log.txt"):
        vlm = prepared.load()
        prompts = collect_prompts(prepared, vlm, target)
    try:
        found = search(vlm, prompts, request)
    except methods.MethodError as error:
        raise HarnessError(str(error)) from error
    artefact = _artefact(prepared, found, len(prompts), time.perf_counter() - started)
    path = target / f"{_name(artefact)}.json"
    _write(path, artefact)
    return {**artefact, "path": str(path)}


def collect_prompts(prepared: Prepared, vlm: Any, scratch: Path) -> list[dict[str, Any]]:
    """Model inputs of the calibration samples, worded by the engine itself."""
    from vtprune.harness.cell.answerer import chat_inputs
    from vtprune.harness.evaluation import engines
    from vtprune.harness.evaluation.data.images import as_rgb
    from vtprune.harness.evaluation.engines.base import Answer, Job
    from vtprune.models.pictures import prepared as made_ready

    request, system = prepared.request, prepared.settings.system
    collected: list[dict[str, Any]] = []

    class Collector:
        def answer(self, batch: Sequence[Any]) -> list[Answer]:
            for question in batch:
                images = list(question.images())
                if images:
                    ready = made_ready(vlm.prepare, [[as_rgb(image) for image in images]])
                    collected.append(dict(chat_inputs(vlm, [question], ready, system)))
            return [Answer("-") for _ in batch]

    class Nowhere:
        def append(self, entry: dict[str, Any]) -> None:
            """The answers are placeholders; nothing of them is stored."""

    job = Job(
        bench=request.bench,
        engine=request.entry,
        data=prepared.data,
        batch_size=1,
        journal=Nowhere(),
        answered={},
        scratch=scratch / ".engine",
    )
    engines.get(request.engine).run(job, Collector())
    if not collected:
        raise HarnessError("none of the calibration samples has an image")
    return collected


def search(vlm: Any, prompts: Sequence[dict[str, Any]], request: Request) -> Any:
    """Statistics of the unpruned model, then the bisection; a bar shows both."""
    from tqdm import tqdm

    from vtprune.harness.cost import architecture_of
    from vtprune.methods.fitprune_search import Costs, OfflineReplay, search_recipe
    from vtprune.models.families import family_of
    from vtprune.models.replay import start_replay

    options, family = request.method.options, family_of(vlm.model)
    text = architecture_of(vlm.model.config).text
    starts = [start_replay(family, prompt) for prompt in prompts]
    costs = Costs(
        n_layers=text.layers,
        n_visual=[start.n_visual for start in starts],
        width=text.width,
        mlp_width=text.mlp,
        n_text=[start.n_text for start in starts],
        kv_width=text.key_value,
        budget=options["budget"],
    )
    offline = options["fit_mode"] == "offline"
    trials = 1 if offline else 8
    with tqdm(
        total=trials * len(starts) * text.layers, desc="calibrate", unit="layer", leave=False,
        disable=None,
    ) as bar:
        statistics = [_statistics(start.fresh(), text.layers, bar.update) for start in starts]
        totals = [[(float(c.sum()), float(s.sum())) for c, s in one] for one in statistics]

        def begin() -> list[Any]:
            if not offline:
                return [start.fresh() for start in starts]
            stacked = [tuple(map(_stack, zip(*one, strict=True))) for one in statistics]
            return [OfflineReplay(cross, own) for cross, own in stacked]

        result = search_recipe(
            begin,
            totals,
            request.ratio,
            costs,
            return_last_trial=options["return_last_trial"],
            progress=None if offline else bar.update,  # pyright: ignore[reportArgumentType]
        )
    mean_visual = sum(costs.n_visual) / len(starts)  # type: ignore[arg-type]
    return result, [n / mean_visual for n in result.recipe]


def _stack(rows: Sequence[Any]) -> Any:
    import torch

    return torch.stack(list(rows))


def _statistics(replay: Any, n_layers: int, progress: Callable[[], Any]) -> list[Any]:
    found = []
    for _ in range(n_layers):
        found.append(replay.attend())
        progress()
    return found


def _artefact(prepared: Prepared, found: Any, samples: int, seconds: float) -> dict[str, Any]:
    result, fractions = found
    request = prepared.request
    chosen = next(t for t in reversed(result.trials) if t.deletions == result.recipe)
    return {
        "identity": {
            "checkpoint": prepared.checkpoint.fingerprint(),
            "ratio": request.ratio,
            **recipes.search_options(request.method),
            "bench": request.bench.name,
            "data": prepared.data.identity,
        },
        "model": request.model.name,
        "deletions": list(result.recipe),
        "fractions": fractions,
        "reduction": chosen.reduction,
        "met": chosen.reached,
        "trials": [trial._asdict() for trial in result.trials],
        "samples": samples,
        "seconds": round(seconds, 2),
    }


def _name(artefact: dict[str, Any]) -> str:
    identity = artefact["identity"]
    digest = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:8]
    return f"{artefact['model']}-{identity['budget']}-{identity['ratio']:g}-{digest}"


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def report(artefact: dict[str, Any]) -> str:
    """What the user sees at the end."""
    left, lines = 1.0, ["layer  deleted  left"]
    for layer, (count, share) in enumerate(
        zip(artefact["deletions"], artefact["fractions"], strict=True)
    ):
        left -= share
        lines.append(f"{layer:5d}  {count:7d}  {left:5.1%}")
    met = "met" if artefact["met"] else "NOT met (return_last_trial)"
    lines.append(
        f"saves {artefact['reduction']:.3f} of {artefact['identity']['budget']} "
        f"(asked: {artefact['identity']['ratio']:g}, {met}) on {artefact['samples']} samples, "
        f"{artefact['seconds']:.0f} s"
    )
    lines.append(f"recipe: {artefact['path']}")
    lines.append("use it with method=fitprune method.recipe=calibrated")
    return "\n".join(lines)
