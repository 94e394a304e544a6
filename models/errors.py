"""Errors of this package; every message is one line meant for the user."""


class ModelLoadError(RuntimeError):
    """A checkpoint cannot be loaded."""


class PruningUnsupported(RuntimeError):
    """The model, cache or call is one that pruning cannot serve correctly."""
