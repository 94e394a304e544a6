"""A method of one object replaced for a while, and put back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

#: called in place of the method: ``around(inner, args, kwargs)``
Around = Callable[[Callable[..., Any], tuple, dict[str, Any]], Any]


@contextlib.contextmanager
def shadowed(owner: Any, name: str, around: Around) -> Iterator[None]:
    """While open, ``owner.name(...)`` goes through ``around``; the class stays as it is.

    The stand-in keeps the signature, by which the library chooses arguments. On exit an attribute
    of the instance that was there before comes back, when shadows are nested too.
    """
    previous = vars(owner).get(name)
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(inner, args, kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        if previous is None:
            delattr(owner, name)
        else:
            setattr(owner, name, previous)
