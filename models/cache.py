"""The key-value cache among arguments and in outputs, whatever the library calls it.

Up to transformers 5.23 every forward takes and returns ``past_key_values``; since 5.24 it is
``cache``, and the old keyword is still taken from users.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import GenerationMixin

_OLD, _NEW = "past_key_values", "cache"
#: the keyword of this version
ARGUMENT = (
    _NEW
    if _NEW in inspect.signature(vars(GenerationMixin)["prepare_inputs_for_generation"]).parameters
    else _OLD
)
ARGUMENTS = frozenset({_OLD, ARGUMENT})


def given(named: Mapping[str, Any]) -> Any:
    """The cache among keyword arguments; None if there is none."""
    found = named.get(ARGUMENT)
    return named.get(_OLD) if found is None else found


def returned(output: Any) -> Any:
    """The cache in what a forward or ``generate`` returned."""
    return getattr(output, ARGUMENT)
