"""lmms-eval's own clients, as its command line would make them, on CPU in float32.

    python -m tests.parity.stock_lmms SPEC.json

SPEC holds ``{"out": folder, "parts": [part, ...]}``; a part is ``{"name", "client", "checkpoint",
"root", "task", "folder", "limit", "options"}``. Nothing of the project is imported: the process
ends with an error if anything was.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.parity.recorder import Recorder


def main(spec_file: str) -> None:
    """Run every part and leave ``<out>/<name>/rows.json``."""
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    clients: dict[str, Any] = {}
    for part in spec["parts"]:
        asked = json.dumps([part["client"], part["checkpoint"], part["options"]])
        if asked not in clients:
            clients.clear()
            clients[asked] = client(part["client"], part["checkpoint"], part["options"])
        run(part, clients[asked], Path(spec["out"]))
    nothing_of_ours()


def nothing_of_ours() -> None:
    """Refuse a process in which the project took part."""
    found = sorted(name for name in sys.modules if name.split(".")[0] == "vtprune")
    assert not found, f"a stock process imported {found}"


def client(name: str, checkpoint: str, options: dict[str, Any]) -> Any:
    """The class that the library itself finds under this name; options as in ``--model_args``."""
    from lmms_eval.models import get_model

    more = {"dtype": "float32"} if name == "llava_hf" else {}
    made = get_model(name)(pretrained=checkpoint, device="cpu", device_map="cpu", **more, **options)
    made._model.float()  # the Qwen clients load in half precision and take no other
    return made


def run(part: dict[str, Any], lm: Any, out: Path) -> None:
    """One task, its documents one by one, so that each call's row is known."""
    import lmms_eval
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    recorder, real = Recorder(), type(lm).generate_until

    def one_by_one(requests: list[Any]) -> list[Any]:
        answers = []
        for request in requests:
            recorder.asking = (request.args[3],)  # the document's number
            answers += real(lm, [request])
        return answers

    lm.generate_until, lm.clean = one_by_one, lambda: None
    tasks = Path(lmms_eval.__file__).parent / "tasks" / part["folder"]
    manager = TaskManager(
        "ERROR", include_defaults=False, model_name=part["client"], include_path=[str(tasks)]
    )
    folder = out / part["name"]
    with local_data(Path(part["root"]), folder / "cache"), recorder.listening():
        result = simple_evaluate(
            model=lm, tasks=[part["task"]], task_manager=manager, limit=part["limit"],
            batch_size=1, bootstrap_iters=0, log_samples=True, datetime_str="run",
            cli_args=argparse.Namespace(process_with_media=False, output_path=str(folder)),
        )  # fmt: skip
    samples = result["samples"][part["task"]]
    metrics = {
        key.removesuffix(",none"): value
        for key, value in result["results"][part["task"]].items()
        if key.endswith(",none") and "stderr" not in key and isinstance(value, (int, float))
    }
    answers = {sample["doc_id"]: sample["filtered_resps"][0] for sample in samples}
    recorder.save(folder, answers=answers, metrics={k: float(v) for k, v in metrics.items()})


class local_data:  # noqa: N801  a context manager
    """Serve ``root/<org>/<name>/<config or data>/<split>-*.parquet`` in place of the hub."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache

    def __enter__(self) -> None:
        import datasets

        self.real = datasets.load_dataset
        datasets.disable_progress_bars()
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

        def load(path: str, name: str | None = None, *_: Any, split: Any = None, **__: Any) -> Any:
            folder = self.root / path / (name if name and name != "default" else "data")
            files: dict[str, list[str]] = {}
            for file in sorted(folder.glob("*.parquet")):
                files.setdefault(file.name.split("-")[0], []).append(str(file))
            return self.real("parquet", data_files=files, split=split, cache_dir=str(self.cache))

        datasets.load_dataset = load

    def __exit__(self, *_: object) -> None:
        import datasets

        datasets.load_dataset = self.real


if __name__ == "__main__":
    main(sys.argv[1])
