"""The method that a config names, built and checked before a model is loaded."""

from __future__ import annotations

from typing import Any

from vtprune.harness.request import own_class
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.identity import method_options
from vtprune.harness.request.request import Request

#: visual tokens so many that rounding decides nothing: only the depth of the model is asked about
MANY = 10_000


def build_method(request: Request) -> Any:
    """The method object that a request names, by name or by ``_target_``.

    Raises:
        ConfigError: there is no such method, or it refuses its options.
    """
    from vtprune import methods

    method = request.method
    named = own_class.locate(method.target) if method.target else method.name
    try:
        return methods.build(named, **method_options(request.config))
    except methods.MethodError as error:
        raise ConfigError(str(error)) from error


def check_schedule(method: Any, model: dict[str, Any]) -> None:
    """Refuse a removal that this depth of model cannot reach, before the model is loaded."""
    from vtprune import methods

    layers = model.get("text_config", model).get("num_hidden_layers")
    inside = method.part("layers")
    if layers is None or inside is None:
        return  # not every config.json spells its depth out; the first sample will tell then
    try:
        inside.checked_schedule(layers, n_visual=MANY)
    except methods.MethodError as error:
        raise ConfigError(str(error)) from error
