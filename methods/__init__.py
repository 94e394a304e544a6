"""Visual-token pruning methods: one file per method, tensors in, kept indices out.

A method answers one question: *which visual tokens stay?* It sees tensors and nothing of models,
caches, masks or position ids. It derives from one of four kinds:

* :class:`TokenMethod` (tokens.py) decides before the language model, from one graph (*view*) of
  tokens at a time: ``score(view)``, or ``select(view, k)``.
* :class:`LayerMethod` (layers.py) decides inside the language model, from the attention of one
  layer: ``score(signals)`` and a schedule (schedules.py).
* :class:`EncoderMethod` (encoder.py) merges between the layers of the encoder.
* :class:`InputMethod` (inputs.py), for controls, makes the picture smaller or leaves it out.

Options are declared once (options.py). Counting (counts.py), stable top-k, refusing what is not a
selection (picks.py), row ends and the split into views (tokens.py) live in one place each, so that
none of them can be got wrong in a method. views.py is what a method sees, cost.py what it states
its own cost from.

The names below are imported when they are asked for: options.py is read where torch has no place.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtprune.methods.cost import SelectionShape
    from vtprune.methods.counts import LABELLED_TOKENS, Rounding, n_keep
    from vtprune.methods.encoder import EncoderMethod
    from vtprune.methods.errors import MethodError
    from vtprune.methods.inputs import InputMethod
    from vtprune.methods.layers import LayerMethod
    from vtprune.methods.method import PruningMethod
    from vtprune.methods.options import declared, option
    from vtprune.methods.registry import available, build, get, register
    from vtprune.methods.tokens import TokenMethod
    from vtprune.methods.views import ImageTokens, LayerSignals, Selection, TokenLayout, View

__all__ = [
    "LABELLED_TOKENS",
    "EncoderMethod",
    "ImageTokens",
    "InputMethod",
    "LayerMethod",
    "LayerSignals",
    "MethodError",
    "PruningMethod",
    "Rounding",
    "Selection",
    "SelectionShape",
    "TokenLayout",
    "TokenMethod",
    "View",
    "available",
    "build",
    "declared",
    "get",
    "n_keep",
    "option",
    "register",
]

_WHERE = {
    "SelectionShape": "cost",
    "LABELLED_TOKENS": "counts",
    "Rounding": "counts",
    "n_keep": "counts",
    "EncoderMethod": "encoder",
    "MethodError": "errors",
    "InputMethod": "inputs",
    "LayerMethod": "layers",
    "PruningMethod": "method",
    "declared": "options",
    "option": "options",
    "available": "registry",
    "build": "registry",
    "get": "registry",
    "register": "registry",
    "TokenMethod": "tokens",
    "ImageTokens": "views",
    "LayerSignals": "views",
    "Selection": "views",
    "TokenLayout": "views",
    "View": "views",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
