"""From what a method answers to kept tokens: the one place that does it, and that refuses.

Nothing here waits for the device until :func:`settle`, which looks once at all picks of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.errors import MethodError
from vtprune.methods.views import Selection


class Pick(NamedTuple):
    """``k`` of ``n`` tokens sorted by position, and whether that is what they are (bool ``[]``)."""

    selection: Selection
    n: int
    good: Tensor
    marked: Tensor | None = None  # how many a mask held


def best(name: str, score: Any, n: int, k: int) -> Tensor:
    """The ``k`` largest of ``score [n]``, best first, ties to the lower index.

    A score that is not finite everywhere gives indices of -1, which :func:`settle` refuses: so
    that is found out without one more look at the device.
    """
    if not isinstance(score, Tensor) or score.shape != (n,) or score.is_complex():
        raise MethodError(f"{name}: score must be [{n}], one number a token, got {_what(score)}")
    return torch.where(score.isfinite().all(), ops.top_k(score, k), -1)


def pick(name: str, answer: Any, n: int, k: int) -> Pick:
    """What ``select`` answered, sorted by position; ``k`` distinct indices below ``n``.

    A mask over all tokens is taken where it holds ``k`` of them.

    Raises:
        MethodError: not that many indices, or something else.
    """
    chosen = answer if isinstance(answer, Selection) else Selection(answer)
    indices, features, marked = chosen.indices, chosen.features, None
    if features is not None and (features.dim() != 2 or len(features) != k):
        raise MethodError(f"{name}: features must be [{k}, d], one row a kept token, got "
                          f"{_what(features)}")  # fmt: skip
    if not isinstance(indices, Tensor) or indices.dim() != 1:
        raise _bad(name, n, k, indices)
    if indices.dtype == torch.bool:
        if len(indices) != n:
            raise _bad(name, n, k, indices)
        marked, order = indices.sum(), torch.sort(~indices, stable=True).indices
        indices, good = order[:k], marked == k
    elif indices.is_floating_point() or indices.is_complex() or len(indices) != k:
        raise _bad(name, n, k, indices)
    else:
        indices, order = torch.sort(indices.long())
        features = None if features is None else features[order]
        good = (indices[1:] > indices[:-1]).all() & (indices[:1] >= 0).all()
        good = good & (indices[-1:] < n).all()
    return Pick(Selection(indices, features), n, good, marked)


def settle(
    name: str, picks: Sequence[Pick], scores: Callable[[int], Tensor | None]
) -> list[Selection]:
    """The selections, once they are all known to be good; waits for the device once.

    Args:
        scores: number of a pick -> the score it was made from, if it was; for the message.

    Raises:
        MethodError: one line on the first that is not.
    """
    if picks and not bool(torch.stack([one.good for one in picks]).all()):
        number = next(i for i, one in enumerate(picks) if not bool(one.good))
        _refuse(name, picks[number], scores(number))
    return [one.selection for one in picks]


def _refuse(name: str, bad: Pick, score: Tensor | None) -> None:
    indices, n = bad.selection.indices, bad.n
    k = len(indices)
    if score is not None and not bool(score.isfinite().all()):
        nan, wrong = int(score.isnan().sum()), int((~score.isfinite()).sum())
        raise MethodError(
            f"{name}: score must be finite, got {nan} NaN and {wrong - nan} infinite of {n}"
        )
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= n:
        raise MethodError(
            f"{name}: indices must lie in 0..{n - 1}, got {low if low < 0 else high}"
        )
    if bad.marked is not None:
        raise MethodError(f"{name}: asked for {k} of {n} tokens, the mask has {int(bad.marked)}")
    distinct = int(torch.unique(indices).numel())
    raise MethodError(f"{name}: asked for {k} of {n} tokens, got {k} ({distinct} distinct)")


def _bad(name: str, n: int, k: int, answer: Any) -> MethodError:
    return MethodError(
        f"{name}: asked for {k} of {n} tokens, got {_what(answer)} instead of {k} whole indices"
    )


def _what(answer: Any) -> str:
    if not isinstance(answer, Tensor):
        return f"a {type(answer).__name__}"
    return f"{str(answer.dtype).removeprefix('torch.')} {list(answer.shape)}"
