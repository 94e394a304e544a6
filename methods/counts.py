"""How many tokens stay."""

from __future__ import annotations

import math
from typing import Literal

Rounding = Literal["floor", "round_half_even", "int_raw"]

#: visual tokens of LLaVA-1.5, of which published tables label what they keep and recipes count
#: what they delete
LABELLED_TOKENS = 576


def n_keep(n: int, ratio: float, rounding: Rounding = "floor") -> int:
    """Tokens that stay of ``n`` when the fraction ``ratio`` is removed; at least 1 for n >= 1.

    ``floor`` adds 1e-9 first, because ``(1 - 0.9) * 250`` is 24.999... in doubles.
    ``round_half_even`` and ``int_raw`` (plain truncation of the double) exist because released
    implementations count that way.
    """
    exact = (1.0 - ratio) * n
    if rounding == "floor":
        count = math.floor(exact + 1e-9)
    elif rounding == "round_half_even":
        count = round(exact)
    else:
        count = int(exact)
    return min(n, max(1, count))
