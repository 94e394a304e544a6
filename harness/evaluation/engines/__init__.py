"""Evaluation engines: who builds the prompts and scores the answers."""

from __future__ import annotations

from vtprune.harness.evaluation.engines.base import Engine


def get(name: str) -> Engine:
    """The engine called ``name`` in conf/engine; heavy packages load only here."""
    if name == "lmms_eval":
        from vtprune.harness.evaluation.engines.lmms_eval import LmmsEval

        return LmmsEval()
    if name == "vlmevalkit":
        from vtprune.harness.evaluation.engines.vlmevalkit import VLMEvalKit

        return VLMEvalKit()
    from vtprune.harness.request.errors import ConfigError, unknown

    raise ConfigError(unknown("engine", name, ("lmms_eval", "vlmevalkit")))
