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
from typing import TYPE_CHECKING, Any

from vtprune.harness.cell import canonical_json
from vtprune.harness.errors import ConfigError, HarnessError

if TYPE_CHECKING:
    from vtprune.harness.settings import Prepared

SEARCH_OPTIONS = ("fit_mode", "budget", "return_last_trial", "n_calibration")
#: mini data: calibration pictures come from another seed than those of the evaluation
SEED_OFFSET = 1000


# --- finding a recipe (torch-free) ----------------------------------------------------------------


def folder(results: Path) -> Path:
    """Where recipes are stored."""
    return results / "calibration" / "fitprune"


def resolve(
    config: dict[str, Any], fingerprint: str, results: Path, notes: list[str]
) -> dict[str, Any]:
    """Replace ``method.recipe=calibrated`` (or a file) by the recipe's numbers.

    Raises:
        ConfigError: there is no such recipe, or more than one; names the command or the choice.
    """
    method = config["method"]
    recipe = method.get("recipe")
    if method.get("name") != "fitprune" or not isinstance(recipe, str) or recipe == "published":
        return config
    if config["ratio"] == 0:
        return {**config, "method": {**method, "recipe": "published"}}
    if recipe == "calibrated":
        path = _find(config, fingerprint, results)
    else:
        path = Path(recipe).expanduser()
    try:
        stored = json.loads(path.read_text())
        fractions = [float(f) for f in stored["fractions"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"method.recipe: {path} is no stored recipe ({error})") from error
    if stored["identity"]["checkpoint"] != fingerprint:
        raise ConfigError(f"method.recipe: {path.name} was calibrated for another checkpoint")
    notes.append(
        f"fitprune: recipe calibrated on {stored['samples']} samples of "
        f"{stored['identity']['bench']} ({stored['identity']['data']['source']}): {path.name}"
    )
    return {**config, "method": {**method, "recipe": fractions}}


def _find(config: dict[str, Any], fingerprint: str, results: Path) -> Path:
    wanted = {"checkpoint": fingerprint, "ratio": config["ratio"], **_options(config)}
    found = []
    for path in sorted(folder(results).glob("*.json")):
        identity = json.loads(path.read_text())["identity"]
        if all(identity.get(key) == value for key, value in wanted.items()):
            found.append(path)
    if not found:
        raise ConfigError(
            f"method.recipe=calibrated: no recipe for this checkpoint at ratio={config['ratio']:g};"
            f" run: python run.py task=calibrate method=fitprune ratio={config['ratio']:g} "
            f"model={config['model']['name']}"
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise ConfigError(f"several recipes fit; choose one by method.recipe=FILE: {names}")
    return found[0]


def _options(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config["method"][name] for name in SEARCH_OPTIONS}


# --- making one -----------------------------------------------------------------------------------


def calibration_data(config: dict[str, Any]) -> dict[str, Any]:
    """The config whose ``data`` and ``bench`` the calibration samples come from."""
    data, bench = dict(config["data"]), dict(config["bench"])
    if data["source"] == "mini":
        data["seed"] = int(data.get("seed") or 0) + SEED_OFFSET
    bench["indices"], bench["limit"] = None, config["method"]["n_calibration"]
    return {**config, "data": data, "bench": bench}


def run_calibration(prepared: Prepared) -> dict[str, Any]:
    """Search the recipe and store it; returns the artefact with its ``path``.

    Raises:
        HarnessError: the budget cannot be met; the message names the feasible range.
    """
    from vtprune import methods
    from vtprune.harness import quiet
    from vtprune.harness.running import build_method
    from vtprune.models.load import load

    config = prepared.config
    if config["method"].get("name") != "fitprune":
        raise ConfigError("task=calibrate works for method=fitprune, the one that has a recipe")
    if not 0 < config["ratio"] < 1:
        raise ConfigError("task=calibrate needs a ratio in (0, 1)")
    build_method({**config, "method": {**config["method"], "recipe": "published"}})
    where = {"path": prepared.checkpoint.path, "name": config["model"]["name"], **prepared.runtime}
    target = folder(prepared.results)
    target.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with quiet.libraries_to(target / "log.txt"):
        vlm = load(where)
        prompts = collect_prompts(prepared, vlm, target)
    try:
        found = search(vlm, prompts, config)
    except methods.MethodError as error:
        raise HarnessError(str(error)) from error
    artefact = _artefact(prepared, found, len(prompts), time.perf_counter() - started)
    path = target / f"{_name(artefact)}.json"
    _write(path, artefact)
    return {**artefact, "path": str(path)}


def collect_prompts(prepared: Prepared, vlm: Any, scratch: Path) -> list[dict[str, Any]]:
    """Model inputs of the calibration samples, worded by the engine itself."""
    from vtprune.harness import engines
    from vtprune.harness import prompts as wordings
    from vtprune.harness.answerer import chat_inputs
    from vtprune.harness.engines.base import Answer, Job

    config, system = prepared.config, wordings.system(prepared.config["model"])
    collected: list[dict[str, Any]] = []

    class Collector:
        def answer(self, batch: Sequence[Any]) -> list[Answer]:
            for question in batch:
                images = list(question.images())
                if images:
                    collected.append(dict(chat_inputs(vlm, [question], [images], system)))
            return [Answer("-") for _ in batch]

    class Nowhere:
        def append(self, entry: dict[str, Any]) -> None:
            """The answers are placeholders; nothing of them is stored."""

    job = Job(
        bench=config["bench"],
        engine=config["bench"]["engines"][config["engine"]["name"]],
        data=prepared.data,
        batch_size=1,
        journal=Nowhere(),
        answered={},
        scratch=scratch / ".engine",
    )
    engines.get(config["engine"]["name"]).run(job, Collector())
    if not collected:
        raise HarnessError("none of the calibration samples has an image")
    return collected


def search(vlm: Any, prompts: Sequence[dict[str, Any]], config: dict[str, Any]) -> Any:
    """Statistics of the unpruned model, then the bisection; a bar shows both."""
    from tqdm import tqdm

    from vtprune.harness.cost import architecture_of
    from vtprune.methods.fitprune_search import Costs, OfflineReplay, search_recipe
    from vtprune.models.families import family_of
    from vtprune.models.replay import start_replay

    method, family = config["method"], family_of(vlm.model)
    text = architecture_of(vlm.model.config).text
    starts = [start_replay(family, prompt) for prompt in prompts]
    costs = Costs(
        n_layers=text.layers,
        n_visual=[start.n_visual for start in starts],
        width=text.width,
        mlp_width=text.mlp,
        n_text=[start.n_text for start in starts],
        kv_width=text.key_value,
        budget=method["budget"],
    )
    offline = method["fit_mode"] == "offline"
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
            config["ratio"],
            costs,
            return_last_trial=method["return_last_trial"],
            progress=None if offline else bar.update,
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
    config = prepared.config
    chosen = next(t for t in reversed(result.trials) if t.deletions == result.recipe)
    return {
        "identity": {
            "checkpoint": prepared.checkpoint.fingerprint(),
            "ratio": config["ratio"],
            **_options(config),
            "bench": config["bench"]["name"],
            "data": prepared.data.identity,
        },
        "model": config["model"]["name"],
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
    partial.write_text(json.dumps(value, indent=1) + "\n")
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
