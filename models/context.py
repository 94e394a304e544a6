"""The context that prunes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from vtprune import methods
from vtprune.methods import PruningMethod
from vtprune.models import refuse
from vtprune.models.families import family_of
from vtprune.models.input_stage import InputStage
from vtprune.models.run import PruningRun
from vtprune.models.runtime import Runtime
from vtprune.models.text_tower import TextTower


@contextlib.contextmanager
def prune(
    model: Any,
    method: str | type[PruningMethod] | PruningMethod = "none",
    *,
    text_tower: TextTower | None = None,
    **options: Any,
) -> Iterator[PruningRun]:
    """Prune visual tokens of every forward of ``model`` inside the context.

        with prune(model, "gprune", ratio=0.9):
            model.generate(**inputs)

    Args:
        model: a Hugging Face VLM of a supported family, or an object holding one as ``.model``.
        method: registered name, method class, or a method object.
        text_tower: of the CLIP checkpoint the encoder came from, see ``models.text_tower``; for
            methods that read the signal ``clip_similarity``.
        options: the method's hyper-parameters, when ``method`` is not an object already.

    Raises:
        methods.MethodError: unknown method or option, or a value out of range.
        PruningUnsupported: a model, cache or call that cannot be pruned correctly.
    """
    model = refuse.bare(model)
    if not isinstance(method, PruningMethod):
        method = methods.build(method, **options)
    elif options:
        method = method.replace(**options)
    family, run = family_of(model), PruningRun(method)
    asks_smaller = method.part("picture")
    if asks_smaller is not None and method.ratio > 0:
        run._input = InputStage(family, asks_smaller)
    with Runtime(family, method, run, text_tower).attached():
        yield run
