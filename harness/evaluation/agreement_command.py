"""Engine agreement: both engines' scores of the same answers on drawn data.

python scripts/agreement.py                      # answers of several forms, two thirds right
python scripts/agreement.py --bench pope mme --form bare
python scripts/agreement.py --cells results      # answers of finished lmms-eval cells
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.evaluation import agreement
from vtprune.harness.request import arguments as given
from vtprune.harness.request import known
from vtprune.harness.request.errors import ConfigError, unknown
from vtprune.harness.store import index


def main(arguments: Sequence[str]) -> int:
    """Print a row for each benchmark and form of answers."""
    parser = given.parser("agreement", __doc__)
    parser.add_argument("--bench", nargs="*", default=[], help="default: all that both have")
    parser.add_argument("--form", nargs="*", default=list(agreement.FORMS),
                        choices=list(agreement.FORMS))  # fmt: skip
    parser.add_argument("--samples", type=int, help="rows of each benchmark")
    parser.add_argument("--cells", type=Path, help="results folder: score stored answers instead")
    options = parser.parse_args(arguments)
    names = options.bench or _shared()
    print("| benchmark | answers | rows | lmms-eval | VLMEvalKit | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for made in _cells(options, names) if options.cells else _forms(options, names):
        scores = " | ".join(f"{made.scores[engine]:.2f}" for engine in agreement.ENGINES)
        print(f"| {made.bench} | {made.form} | {made.rows} | {scores} "
              f"| {made.difference:+.2f} {made.unit} |", flush=True)  # fmt: skip
    return 0


def _shared() -> list[str]:
    both = set(agreement.ENGINES)
    return [n for n in known.choices("bench") if both <= set(_config(n)["engines"])]


def _config(name: str) -> dict[str, Any]:
    found = known.entries("bench", name)
    if found is None:
        raise ConfigError(unknown("bench", name, known.choices("bench")))
    return found


def _forms(options: argparse.Namespace, names: list[str]) -> Iterator[agreement.Agreement]:
    for name in names:
        for form in options.form:
            with _quiet():
                made = agreement.compare(_config(name), form, samples=options.samples)
            yield made


def _cells(options: argparse.Namespace, names: list[str]) -> Iterator[agreement.Agreement]:
    for result in index.finished(options.cells):
        asked = result["identity"]["bench"]
        whole = asked["limit"] is None and asked["indices"] is None and not result["n_failed"]
        usable = result["engine"] == "lmms_eval" and result["data"] == "mini" and whole
        if result["bench"] not in names or not usable:
            continue
        samples = index.samples(Path(result["directory"]))
        answers = {sample["doc_id"]: sample["answer"] for sample in samples}
        label = f"{result['model']} {result['method']} {result['ratio']:g}"
        with _quiet():
            made = agreement.compare(
                _config(result["bench"]), label, [answers[i] for i in range(len(answers))]
            )
        yield made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the engines say about themselves out of the table."""
    nowhere = io.StringIO()
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
