"""Reading golden files, and the one rule by which selections are compared with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtprune.methods import ImageTokens, PruningMethod, TokenLayout, View


class Golden:
    """Arrays of one golden file as tensors, scalars as numbers, ``params`` as a dict."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self._arrays = {name: file[name] for name in file.files}
        self.path = path
        self.params: dict[str, Any] = json.loads(str(self._arrays.pop("params")[0]))

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name])

    def number(self, name: str) -> float:
        return float(self._arrays[name])

    def integer(self, name: str) -> int:
        return int(self._arrays[name])

    def weights(self) -> dict[str, Tensor]:
        return {k[2:]: self[k] for k in self._arrays if k.startswith("w/")}


#: folder of cases -> the function that puts one of them in front of its method
CHECKERS: dict[str, Callable[[Golden], None]] = {}


def checks(folder: str) -> Callable[[Callable[[Golden], None]], Callable[[Golden], None]]:
    """Register a function for the cases of a folder."""

    def decorate(checker: Callable[[Golden], None]) -> Callable[[Golden], None]:
        CHECKERS[folder] = checker
        return checker

    return decorate


def assert_scores(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def removal(n_keep: int, n: int) -> float:
    """A ratio that keeps exactly ``n_keep`` of ``n`` under every rounding."""
    return 1 - (n_keep + 1e-6) / n


def rounding_of(ratio: float, counts: dict[int, int]) -> str:
    """How a case's release counted: the rounding under which ``n`` tokens become ``counts[n]``."""
    ways: dict[str, Callable[[float], int]] = {
        "floor": lambda x: math.floor(x + 1e-9),
        "round_half_even": round,
        "int_raw": int,
    }
    for name, way in ways.items():
        if all(way((1 - ratio) * n) == k for n, k in counts.items()):
            return name
    raise AssertionError(f"no rounding makes {counts} of a ratio of {ratio}")


def nearly_a_half(ratio: float, n: int) -> bool:
    """``(1 - ratio) * n`` lies so near to a half that the last bit rounds it."""
    return abs((1 - ratio) * n % 1 - 0.5) < 1e-9


def position_ids(
    method: PruningMethod, start: int, kept: Tensor, n_visual: int, n_text: int
) -> Tensor:
    """Positions of the pruned prompt by the method's convention: with gaps, or renumbered."""
    end = start + n_visual
    gapped = torch.cat([torch.arange(start), start + kept, torch.arange(end, end + n_text)])
    return gapped if method.positions == "original" else torch.arange(len(gapped))


def assert_same_tokens(
    kept: Tensor, expected: Tensor, score: Tensor, golden: Golden, *, of: str = ""
) -> None:
    """Equal index sets, or swaps between scores closer than the golden's tie tolerance."""
    extra = sorted(set(kept.tolist()) - set(expected.tolist()))
    missing = sorted(set(expected.tolist()) - set(kept.tolist()))
    assert len(kept) == len(expected), f"{of}: {len(kept)} kept, {len(expected)} expected"
    if not extra:
        assert kept.tolist() == sorted(kept.tolist()), f"{of}: not in order of position"
        return
    swapped = score[torch.tensor(extra + missing)].double()
    spread = float(swapped.max() - swapped.min())
    allowed = golden.params.get("tie_tolerance_abs", 0.0)
    allowed = max(allowed, golden.params.get("tie_tolerance_rel", 0.0) * float(swapped.abs().max()))
    assert spread < allowed, f"{of}: kept {extra} instead of {missing}; scores differ by {spread}"


def packed_image(
    features: Tensor,
    *,
    base: tuple[int, int],
    canvas: tuple[int, int] | None = None,
    key: tuple[str, int] = ("sample", 0),
    **signals: Tensor,
) -> ImageTokens:
    """An image as LLaVA-NeXT packs it: base view, then canvas rows each closed by a newline."""
    n_base = base[0] * base[1]
    tile, patch = [0] * n_base, list(range(n_base))
    view, kinds, grids = [0] * n_base, ["base"], [base]
    row = [i // base[1] for i in range(n_base)]
    col = [i % base[1] for i in range(n_base)]
    if canvas:
        kinds, grids = ["base", "canvas"], [base, canvas]
        for r in range(canvas[0]):
            tile += [1] * canvas[1] + [-1]
            patch += [*range(r * canvas[1], (r + 1) * canvas[1]), 0]
            view += [1] * (canvas[1] + 1)
            row += [r] * (canvas[1] + 1)
            col += [*range(canvas[1]), canvas[1]]
    layout = TokenLayout(
        *(torch.tensor(x) for x in (tile, patch, view, row, col)),
        kinds=tuple(kinds),
        grids=tuple(grids),
        n_tiles=len(kinds),
        patch_grid=base,
    )
    assert len(layout) == len(features)
    return ImageTokens(features, layout, key, {k: lambda v=v: v for k, v in signals.items()})


def crops_layout(n_crops: int, n_tokens: int) -> TokenLayout:
    """Encoder crops one after another, none of them cut, no row-end tokens."""
    patch = torch.arange(n_tokens).repeat(n_crops)
    crop = torch.arange(n_crops).repeat_interleave(n_tokens)
    return TokenLayout(
        tile=crop,
        patch=patch,
        view=crop,
        row=torch.zeros_like(patch),
        col=patch,
        kinds=("tile",) * n_crops,
        grids=((1, n_tokens),) * n_crops,
        n_tiles=n_crops,
        patch_grid=(1, n_tokens),
        tile_grid=(1, n_crops - 1) if n_crops > 1 else None,
    )


def crops_image(
    features: Tensor, project: Callable[[Tensor], Tensor] | None = None, **signals: Tensor
) -> ImageTokens:
    """Crops ``[B, N, d]`` as one image, with signals ``[B, N, ...]`` given as tensors."""
    offered = {name: lambda value=value: value for name, value in signals.items()}
    offered["tile_features"] = lambda: features
    layout = crops_layout(*features.shape[:2])
    return ImageTokens(features.flatten(0, 1), layout, ("sample", 0), offered, project=project)


def single_view(
    features: Tensor, project: Callable[[Tensor], Tensor] | None = None, **signals: Tensor
) -> View:
    """One view whose tokens are the rows of ``features``, with signals given as tensors."""
    index = torch.arange(len(features))
    return View("base", features, index, None, ("sample", 0, 0), signals.__getitem__, project)
