"""Methods that decide before the language model, from one graph (view) of tokens at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import picks
from vtprune.methods.errors import MethodError
from vtprune.methods.method import PruningMethod, everything
from vtprune.methods.options import option
from vtprune.methods.views import ImageTokens, Selection, TokenLayout, View

Scope = Literal["per_view", "joint", "per_tile"]
Newline = Literal["keep", "drop", "candidate"]
Padding = Literal["drop", "keep"]


@dataclass(frozen=True, kw_only=True)
class TokenMethod(PruningMethod):
    """A method that decides before the language model.

    Override ``score(view)`` (higher stays), or ``select(view, k)`` for rules that are no ranking,
    or that merge, or ``select_all`` to decide on all views of an image at once.
    """

    scope: Scope = option(
        "per_view",
        "per_view = base view and canvas apart | joint = one graph | per_tile = each crop",
    )
    newline: Newline = option("keep", "row-end tokens: keep | drop | candidate = they compete")
    padding: Padding = option(
        "drop", "with per_tile, picks in the padding: drop | keep = put back into the sequence"
    )

    stage: ClassVar = "projector"
    place: ClassVar = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope == "per_tile" and self.newline == "candidate":
            raise MethodError(
                f"{self.name}: newline=candidate needs scope=per_view or joint (crops have none)"
            )

    def score(self, view: View) -> Tensor:
        """Importance ``[N]`` of the view's tokens; the largest stay."""
        raise NotImplementedError(f"{type(self).__name__} must define score or select")

    def select(self, view: View, k: int) -> Tensor | Selection:
        """The ``k`` tokens of the view that stay (any order); default: the best ``score``."""
        return picks.best(self.name, self.score(view), len(view), k)

    def select_all(self, views: list[View], counts: list[int]) -> list[Tensor | Selection]:
        """``select`` for each view of an image; override it to decide on all views at once."""
        return [self.select(view, k) for view, k in zip(views, counts, strict=True)]

    def keep(self, image: ImageTokens) -> Selection:
        """Packed indices (sorted) of one image's tokens that stay, rewritten features if merged."""
        if self.ratio == 0:
            return everything(image)
        views = self._views(image)
        counts = [self.count(len(view)) for view in views]
        answers = list(self.select_all(views, counts))
        if len(answers) != len(views):
            raise MethodError(f"{self.name}: {len(views)} views, but {len(answers)} selections")
        ranks = type(self).score is not TokenMethod.score
        kept = picks.settle(
            self.name,
            [picks.pick(self.name, answer, len(view), k)
             for view, k, answer in zip(views, counts, answers, strict=True)],
            lambda number: self.score(views[number]) if ranks else None,
        )  # fmt: skip
        return self._placed(image, views, kept)

    # -- an image into views ---------------------------------------------------------------------

    def graphs(self, layout: TokenLayout) -> list[tuple[str, Tensor, tuple[int, int] | None]]:
        """Kind, packed indices ``[N]`` and grid of every graph that ``scope`` makes of an image."""
        member = ~layout.newline if self.newline != "candidate" else layout.tile > -9
        if self.scope == "joint":
            return [("joint", torch.nonzero(member).squeeze(1), None)]
        found = []
        for number, (kind, (rows, cols)) in enumerate(zip(layout.kinds, layout.grids, strict=True)):
            index = torch.nonzero(member & (layout.view == number)).squeeze(1)
            wider = self.newline == "candidate" and len(index) > rows * cols
            found.append((kind, index, (rows, cols + wider)))
        return found

    def _views(self, image: ImageTokens) -> list[View]:
        if self.scope == "per_tile":
            return self._tile_views(image)
        return [
            self._view(image, number, *graph)
            for number, graph in enumerate(self.graphs(image.layout))
            if len(graph[1])
        ]

    def _view(
        self, image: ImageTokens, number: int, kind: str, index: Tensor, grid: tuple | None
    ) -> View:
        there = index.to(image.features.device)
        return View(
            kind, lambda: self.cast(image.features[there]), there, grid, (*image.key, number),
            self._packed_signal(image, index), image.project,
        )  # fmt: skip

    def _packed_signal(self, image: ImageTokens, index: Tensor) -> Callable[[str], Tensor]:
        tile, patch = image.layout.tile[index], image.layout.patch[index]

        def signal(name: str) -> Tensor:
            full = self._encoded(image, name)
            if image.pack is not None:
                packed = image.pack(full)
                self.fit(name, packed, {0: len(image.layout)})
                picked = packed[index.to(full.device)]
            else:
                picked = full[tile.clamp(min=0).to(full.device), patch.to(full.device)]
            row_end = (tile == -1).to(full.device)
            return self.cast(picked).masked_fill(row_end.reshape(-1, *[1] * (picked.dim() - 1)), 0)

        return signal

    def _tile_views(self, image: ImageTokens) -> list[View]:
        layout = image.layout
        if bool((layout.tile == -2).any()):
            raise MethodError(
                f"{self.name}: scope=per_tile is undefined for an image whose canvas the model "
                "shrinks; use scope=per_view"
            )
        table = layout.inverse().to(image.features.device)

        def read(name: str, tile: int) -> Tensor:
            return self.cast(self._encoded(image, name)[tile])

        return [
            View(
                "tile", lambda tile=tile: read("tile_features", tile), table[tile],
                layout.patch_grid, (*image.key, tile), lambda name, tile=tile: read(name, tile),
                image.project,
            )
            for tile in range(layout.n_tiles)
        ]  # fmt: skip

    def _encoded(self, image: ImageTokens, name: str) -> Tensor:
        """A signal ``[tiles, patches, ...]`` as the encoder gives it, of the right size."""
        rows, cols = image.layout.patch_grid
        value = image.signal(name)
        self.fit(name, value, {0: image.layout.n_tiles, 1: rows * cols})
        return value

    # -- picks back into an image ----------------------------------------------------------------

    def _placed(
        self, image: ImageTokens, views: list[View], kept: list[Selection]
    ) -> Selection:
        """The picks of all views in the order of the packed sequence."""
        index = torch.cat([v.index[one.indices] for v, one in zip(views, kept, strict=True)])
        rewritten = any(one.features is not None for one in kept)
        rows = self._rows(image, views, kept) if rewritten else None
        if self.scope != "per_tile":
            return self._joined(image, index, rows)
        whole = len(image.layout) - int(image.layout.newline.sum())
        if sum(map(len, views)) == whole:  # the layout holds every patch: no padding was cut
            return self._joined(image, index, rows)
        inside = index >= 0
        if self.padding == "keep" and not bool(inside.all()):
            return self._with_padding(image, self._rows(image, views, kept), kept)
        return self._joined(image, index[inside], None if rows is None else rows[inside])

    def _joined(self, image: ImageTokens, index: Tensor, rows: Tensor | None) -> Selection:
        """Picks ``index [m]`` and their new features, with the row ends that stay, in order."""
        if self.newline == "keep":
            ends = torch.nonzero(image.layout.newline).squeeze(1).to(index.device)
            index = torch.cat([index, ends])
            rows = None if rows is None else torch.cat([rows, image.features[ends]])
        indices, order = torch.sort(index)
        return Selection(indices, None if rows is None else rows[order])

    def _rows(self, image: ImageTokens, views: list[View], kept: list[Selection]) -> Tensor:
        rows = [view.features[one.indices] if one.features is None else one.features
                for view, one in zip(views, kept, strict=True)]  # fmt: skip
        return torch.cat([row.to(image.features.dtype) for row in rows])

    def _with_padding(
        self, image: ImageTokens, rows: Tensor, kept: list[Selection]
    ) -> Selection:
        # The sequence holds no slot for a token that was cut as padding, so the survivors, in the
        # raster order of base view and padded mosaic, are written into the leading slots.
        if self.positions != "compact":
            raise MethodError(f"{self.name}: padding=keep needs positions=compact")
        if self.newline == "keep":
            raise MethodError(f"{self.name}: padding=keep needs newline=drop")
        rank = image.layout.mosaic_rank().to(image.features.device)
        order = torch.argsort(torch.cat([rank[t][one.indices] for t, one in enumerate(kept)]))
        if len(order) > len(image.layout):
            raise MethodError(
                f"{self.name}: {len(order)} tokens kept with padding exceed the "
                f"{len(image.layout)} of the unpadded image; use padding=drop or a higher ratio"
            )
        return Selection(torch.arange(len(order), device=rows.device), rows[order])
