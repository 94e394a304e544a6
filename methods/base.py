"""The names of this package under their former address."""

from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import LABELLED_TOKENS, Rounding, n_keep
from vtprune.methods.encoder import EncoderMethod
from vtprune.methods.errors import MethodError
from vtprune.methods.inputs import InputMethod
from vtprune.methods.layers import LayerMethod
from vtprune.methods.method import PruningMethod
from vtprune.methods.tokens import TokenMethod
from vtprune.methods.views import ImageTokens, LayerSignals, Selection, TokenLayout, View

__all__ = [
    "LABELLED_TOKENS", "EncoderMethod", "ImageTokens", "InputMethod", "LayerMethod",
    "LayerSignals", "MethodError", "PruningMethod", "Rounding", "Selection", "SelectionShape",
    "TokenLayout", "TokenMethod", "View", "n_keep",
]  # fmt: skip
