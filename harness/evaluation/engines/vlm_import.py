"""Import and call VLMEvalKit without what it does to the rest of the process.

Its import switches off TLS verification and gradients for everybody and adds a root log handler;
its scorers take their file formats and data folder from the environment, start sixteen processes
for a thousand string comparisons, and name a scratch file by the second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import tempfile
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vtprune.harness.evaluation.untouched import untouched
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.identity import INSTALL


def load() -> types.ModuleType:
    """``import vlmeval`` (8 s, once), leaving TLS, logging, gradients and the home folder alone."""
    context, root = ssl._create_default_https_context, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # Some modules ask for the data folder while they are imported, which would create it at home.
    with tempfile.TemporaryDirectory() as folder, untouched(), _environment({"LMUData": folder}):
        try:
            import vlmeval
            import vlmeval.dataset  # noqa: F401
        except ImportError as error:
            text = f"vlmeval does not import ({error}); {INSTALL['vlmevalkit']}"
            raise HarnessError(text) from error
        finally:
            ssl._create_default_https_context = context
            root.handlers[:] = handlers
            root.setLevel(level)
    return vlmeval


@contextlib.contextmanager
def surroundings(data_root: Path) -> Iterator[None]:
    """Environment and module functions that the library's scorers need, for the block only."""
    load()
    import vlmeval.dataset.image_vqa as vqa
    from vlmeval.dataset.utils import multiple_choice

    scratch = f"vlmeval-{os.getpid()}-{uuid.uuid4().hex}"
    wanted = {"PRED_FORMAT": "tsv", "EVAL_FORMAT": None, "LMUData": str(data_root)}
    before = multiple_choice.timestr, vqa.mp, vqa.load
    # A name by the second is shared by two processes scoring at once.
    multiple_choice.timestr = lambda *args, **kwargs: scratch
    vqa.mp = types.SimpleNamespace(Pool=lambda *args, **kwargs: _Serial())
    vqa.load = _load_text
    try:
        with _environment(wanted):
            yield
    finally:
        multiple_choice.timestr, vqa.mp, vqa.load = before
        Path(f"/tmp/{scratch}.tsv").unlink(missing_ok=True)


@contextlib.contextmanager
def _environment(values: dict[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _load_text(file: str) -> Any:
    """Read a table with answers as text.

    Otherwise a table in which all answers look like numbers becomes a table of numbers: 007 is
    then 7, and one answer with a decimal point puts one into all others.
    """
    import pandas as pd
    from vlmeval.smp import load as library_load

    if not str(file).endswith(".tsv"):
        return library_load(file)
    return pd.read_csv(file, sep="\t", dtype={"prediction": str, "answer": str, "answers": str})


class _Serial:
    """A pool of one: the scorers compare short strings, and forking a loaded model is no help."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return [function(item) for item in items]
