"""A result with every field that the store asks for, for tests that care about a few of them."""

from __future__ import annotations

from typing import Any


def result(**fields: Any) -> dict[str, Any]:
    """A whole ``result.json`` with some fields of one's own."""
    whole = {
        "key": "0" * 64, "model": "embedded", "method": "none", "ratio": 0.0, "bench": "textvqa",
        "data": "mini", "engine": "lmms_eval", "score": 1.0, "metric": "exact_match", "unit": "%",
        "metrics": {"exact_match": 0.01}, "n_samples": 1, "n_failed": 0, "counters": {},
        "identity": {"method": {"name": "none"}, "bench": {"limit": None, "indices": None}},
        "provenance": {"code": "abc", "versions": {}}, "finished": "2026-01-01T00:00:00",
    }  # fmt: skip
    return {**whole, **fields}
