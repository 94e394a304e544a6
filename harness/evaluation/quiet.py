"""Keep the terminal for our own lines; what the libraries say goes to the cell's log.txt."""

from __future__ import annotations

import contextlib
import importlib.abc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def libraries_to(log: Path) -> Iterator[None]:
    """Send stdout, stderr, logging and warnings to ``log`` inside the block.

    A caller that wants to show something meanwhile writes to the stream it took before.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with log.open("a", buffering=1, encoding="utf-8") as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        root = logging.getLogger()
        before, level = list(root.handlers), root.level
        root.handlers[:] = [handler]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(True)
        try:
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                with warnings.catch_warnings():
                    warnings.simplefilter("default")
                    yield
        finally:
            logging.captureWarnings(False)
            root.handlers[:] = before
            root.setLevel(level)


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Inside, ``module`` cannot be imported anew, for packages that import it and can do without.

    What is imported already stays; afterwards the module is there for whoever asks.
    """

    class Hidden(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: object, target: object = None) -> None:
            if fullname == module:
                raise ModuleNotFoundError(f"{module} is left out here", name=module)

    finder = Hidden()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def loguru_to_stderr() -> None:
    """Point loguru at the current stderr; lmms-eval installs its own sink when imported."""
    from loguru import logger

    logger.remove()
    logger.add(lambda message: sys.stderr.write(message), level="INFO", colorize=False)


def no_progress_bars() -> None:
    """Switch off the bars of transformers and datasets; ours is the only one."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
