"""One finished cell as one W&B run, made from its stored files.

    python -m vtprune.harness.reporting.tracker.run FOLDER LOGGER_JSON

Published once per result: ``wandb.json`` in the cell's folder says what was published where. Logged
in one go at the end, because an offline run that is killed loses what it did not write yet, and one
that is resumed sends its history twice.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from vtprune.harness.cell import publish as mirror
from vtprune.harness.request import terminal
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.request import Logger
from vtprune.harness.store import index
from vtprune.harness.store.journal import write_atomic

CELLS = "cells"  # the line of a cell in the table over all of them


def run_id(result: dict[str, Any]) -> str:
    """The same cell is the same run, wherever and whenever it is published."""
    return result["key"][:16]






def publish(folder: Path, logger: Logger) -> bool:
    """Publish a cell; False if it was there already."""
    if mirror.published(folder, logger):
        return False
    import wandb

    result = index.result(folder)
    if result is None:
        raise HarnessError(f"{folder} holds no finished cell")
    samples = index.samples(folder)
    shutil.rmtree(folder / "wandb", ignore_errors=True)  # an older result of the same cell
    run = wandb.init(
        mode=logger.mode, project=logger.project, entity=logger.entity,
        id=run_id(result), name=" ".join(str(result[k]) for k in ("model", "method", "ratio")),
        group=logger.group or result["bench"], job_type=result["bench"],
        tags=[result["bench"], result["data"], result["method"]], dir=folder,
        config=config(result),  # not resumed: a run of this id is replaced, not added to
        settings=wandb.Settings(x_disable_stats=True, silent=True, console="off", init_timeout=60),
    )  # fmt: skip
    numbers = summary(result)
    run.define_metric("*", step_metric="ratio")
    row = {"ratio": result["ratio"], **numbers, CELLS: line(wandb, result)}
    if shown := samples[: logger.samples]:
        row["predictions"] = predictions(wandb, folder, result, shown, logger.overlays)
    run.log(row)
    run.summary.update(numbers)
    run.log_artifact(_artifact(wandb, folder, result))
    name = Path(run.dir).parent.name
    run.finish()
    content = {**mirror.target(logger, folder / index.RESULT), "run": name, "id": run_id(result)}
    write_atomic(folder / mirror.MARKER, json.dumps(content) + "\n")
    return True


def config(result: dict[str, Any]) -> dict[str, Any]:
    """What the cell is."""
    names = ("model", "method", "ratio", "bench", "data", "engine", "key", "unit", "metric")
    row = f"{result['method']} {float(result['ratio']):g}"
    return {**{k: result[k] for k in names}, "row": row, "identity": result["identity"]}


def score_of(bench: str, ratio: float | None = None) -> str:
    """Name of the score of one benchmark, or of one ratio of it.

    A workspace has one filter for all its panels. A panel about one benchmark therefore shows a
    number that only the runs of that benchmark have.
    """
    ending = "" if ratio is None else f"_at_{float(ratio):g}".replace(".", "_")
    return f"{bench}/score{ending}"


def line(wandb: Any, result: dict[str, Any]) -> Any:
    """The cell as a table of one line; a panel over many runs puts the lines under each other."""
    numbers = summary(result)
    names = [
        "model", "method", "ratio", "bench", "data", "score", "unit", "n_samples", "n_failed",
        "visual_tokens", "visual_kept", "removal", "tflops", "macs_percent", "key",
    ]  # fmt: skip
    cell = {**result, **numbers, "ratio": float(result["ratio"]), "key": result["key"][:8]}
    return wandb.Table(columns=names, data=[[cell.get(name) for name in names]])


def summary(result: dict[str, Any]) -> dict[str, float]:
    """What came out: score, tokens, cost of every stage. Numbers only."""
    counters = result["counters"]
    macs, full = counters["macs"] or {}, counters["macs_full"]
    found = {
        "score": result["score"],
        score_of(result["bench"]): result["score"],
        score_of(result["bench"], result["ratio"]): result["score"],
        "n_samples": result["n_samples"],
        "n_failed": result["n_failed"],
        **{k: counters[k] for k in ("visual_tokens", "visual_kept", "removal")},
        "tflops": 2e-12 * macs["total"] if macs.get("total") else None,
        "macs_percent": 100 * macs["total"] / full if macs.get("total") and full else None,
        **{f"macs/{stage}": value for stage, value in macs.items()},
        **{f"accuracy_pass/{k}": v for k, v in counters["accuracy_pass"].items()},
        **{f"metric/{k}": v for k, v in result["metrics"].items()},
    }
    return {k: v for k, v in found.items() if isinstance(v, (int, float))}


def predictions(
    wandb: Any, folder: Path, result: dict[str, Any], samples: list[dict[str, Any]], draw: bool
) -> Any:
    """Table of the first samples: question, answer, reference, and a picture of what was kept."""
    columns = ["doc_id", "prompt", "answer", "reference", "score", "tokens", "kept"]
    pictures = _pictures(folder, result, samples) if draw else {}
    table = wandb.Table(columns=[*columns, "overlay"] if draw else columns)
    for s in samples:
        row = [s["doc_id"], s["prompt"], s["answer"] or s["error"], str(s.get("reference")),
               s.get("score"), s.get("visual_tokens"), s.get("visual_kept")]  # fmt: skip
        picture = pictures.get(s["doc_id"])
        image = [None if picture is None else wandb.Image(picture)] if draw else []
        table.add_data(*row, *image)
    return table


def _pictures(folder: Path, result: dict[str, Any], samples: list[dict[str, Any]]) -> dict:
    """Kept tokens over the image; without the image (no data here) the tokens alone."""
    seen = {s["doc_id"]: s["pruning"] for s in samples if s.get("pruning", {}).get("grids")}
    try:
        from vtprune.harness.reporting.figures import geometry, overlay, rows

        images = rows.images(folder, list(seen), folder.parents[3])
        kind, made = result["identity"]["model"]["model_type"], {}
        for doc, record in seen.items():
            panel = geometry.panels(record, images[doc].size, kind)[-1]
            made[doc] = overlay.veiled(images[doc], panel, geometry.kept(record))
        return made
    except Exception as error:
        print(f"no images, kept tokens only: {error}", flush=True)
        return {doc: _mask(record) for doc, record in seen.items()}


def _mask(record: dict[str, Any]) -> Any:
    """Kept tokens of the first grid as a picture, white where a token stays to the last layer."""
    import base64

    import numpy as np

    _, rows, cols = record["grids"][0]
    kept = np.ones(record["visual_tokens"], dtype=bool)
    for _, bits in record["kept"]:
        packed = np.frombuffer(base64.b64decode(bits), dtype=np.uint8)
        kept = np.unpackbits(packed, count=len(kept)).astype(bool)
    grid = np.zeros(rows * cols, dtype=np.uint8)
    grid[: min(len(kept), rows * cols)] = 255 * kept[: rows * cols]
    return grid.reshape(rows, cols).repeat(8, axis=0).repeat(8, axis=1)


def _artifact(wandb: Any, folder: Path, result: dict[str, Any]) -> Any:
    made = wandb.Artifact(f"cell-{run_id(result)}", type="cell", metadata={"key": result["key"]})
    for name in (index.RESULT, index.JOURNAL, index.CELL):
        made.add_file(str(folder / name))
    return made


if __name__ == "__main__":
    terminal.show_what_can_be_shown()
    publish(Path(sys.argv[1]), Logger.of(json.loads(sys.argv[2])))
