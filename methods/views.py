"""What a method gets to see, and what it gives back: tensors and where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vtprune.methods.errors import MethodError


@dataclass(frozen=True)
class TokenLayout:
    """Where every token of one image, as the language model receives it, comes from.

    Tensors are int64 ``[n]`` on the CPU. ``tile`` is the encoder crop (-1 for a row-end "newline"
    token), ``patch`` the index inside that crop, ``view`` the graph the token belongs to, ``row``
    and ``col`` its place in the view's grid. A tile of -2 means that no single encoder token lies
    behind the token (a canvas that was shrunk). ``kinds`` and ``grids`` describe the views;
    ``patch_grid`` is one crop's (rows, cols), ``tile_grid`` the mosaic of crops after the base one.
    """

    tile: Tensor
    patch: Tensor
    view: Tensor
    row: Tensor
    col: Tensor
    kinds: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    n_tiles: int
    patch_grid: tuple[int, int]
    tile_grid: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.tile.numel()

    @property
    def newline(self) -> Tensor:
        """bool ``[n]``: row-end tokens."""
        return self.tile == -1

    def only(self, indices: Tensor) -> TokenLayout:
        """The layout of some of the tokens, ``indices [k]`` sorted; views keep their grids."""
        names = ("tile", "patch", "view", "row", "col")
        return dataclasses.replace(self, **{name: getattr(self, name)[indices] for name in names})

    def inverse(self) -> Tensor:
        """``[tiles, patches]`` packed index of every encoder token, -1 where it was cut away."""
        patches = self.patch_grid[0] * self.patch_grid[1]
        table = torch.full((self.n_tiles, patches), -1, dtype=torch.long)
        real = ~self.newline
        table[self.tile[real], self.patch[real]] = torch.nonzero(real).squeeze(1)
        return table

    def mosaic_rank(self) -> Tensor:
        """``[tiles, patches]`` raster rank over base view, then the padded mosaic of crops."""
        rows, cols = self.patch_grid
        patch = torch.arange(rows * cols).reshape(rows, cols)
        rank = torch.empty(self.n_tiles, rows * cols, dtype=torch.long)
        rank[0] = patch.flatten()
        if self.n_tiles > 1:
            tile_rows, tile_cols = self.tile_grid or (1, self.n_tiles - 1)
            canvas = torch.arange(tile_rows * tile_cols * rows * cols)
            canvas = canvas.reshape(tile_rows, rows, tile_cols, cols).permute(0, 2, 1, 3)
            rank[1:] = canvas.reshape(self.n_tiles - 1, rows * cols) + rows * cols
        return rank


class View:
    """One graph of visual tokens: the base view, the high-resolution canvas, a crop, a frame.

    Attributes:
        kind: ``base``, ``canvas``, ``image``, ``frame``, ``tile`` or ``joint``.
        index: int64 ``[N]`` place in the image's packed sequence; -1 = cut away as padding.
        grid: (rows, cols) of the view, or None when it is not one grid.
        key: (sample id, image number, view number): the seed material of stochastic methods.
    """

    def __init__(
        self,
        kind: str,
        features: Tensor | Callable[[], Tensor],
        index: Tensor,
        grid: tuple[int, int] | None,
        key: tuple[str, int, int],
        signal: Callable[[str], Tensor] | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.kind, self.index, self.grid, self.key = kind, index, grid, key
        self._features, self._signal, self._project = features, signal, project

    def __len__(self) -> int:
        return self.index.numel()

    @property
    def device(self) -> torch.device:
        return self.index.device

    @cached_property
    def features(self) -> Tensor:
        """Projected tokens ``[N, d]``; gathered and cast when first read."""
        return self._features if isinstance(self._features, Tensor) else self._features()

    def project(self, x: Tensor) -> Tensor:
        """Encoder tokens ``[m, C]`` through the model's projector: ``[m, d]``."""
        if self._project is None:
            raise MethodError(
                "this model's projector does not take tokens one by one; use merge_space=llm"
            )
        return self._project(x)

    def signal(self, name: str) -> Tensor:
        """A signal named in the method's ``needs``, token dimension first: ``[N, ...]``."""
        if self._signal is None:
            raise MethodError(f"signal '{name}' is not available for this view")
        return self._signal(name)


@dataclass(frozen=True)
class ImageTokens:
    """All visual tokens of one image: ``features [n, d]``, their layout, and lazy signals.

    ``signals`` maps a name to a function without arguments; per-token signals come per encoder
    token ``[tiles, patches, ...]`` and are gathered for each view. ``pack`` is the model's own way
    from encoder tokens to packed ones, ``[tiles, patches, ...] -> [n, ...]``, and is given where
    that is more than a gather (a shrunk canvas). ``project`` is the model's projector, for methods
    that merge encoder tokens: ``[m, C] -> [m, d]``.
    """

    features: Tensor
    layout: TokenLayout
    key: tuple[str, int]
    signals: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    pack: Callable[[Tensor], Tensor] | None = None
    project: Callable[[Tensor], Tensor] | None = None

    def signal(self, name: str) -> Tensor:
        """Signal ``name`` per encoder token; :class:`MethodError` lists what there is."""
        if name not in self.signals:
            raise MethodError(
                f"this model family has no signal '{name}' (it offers: "
                f"{', '.join(sorted(self.signals)) or 'none'})"
            )
        return self.signals[name]()

    def after(self, kept: Selection) -> ImageTokens:
        """The image as it is once only ``kept`` is left of it; signals stay per encoder token."""
        if kept.features is None and len(kept.indices) == len(self.layout):
            return self
        features = self.features[kept.indices] if kept.features is None else kept.features
        whole = self.pack

        def packed(x: Tensor) -> Tensor:
            assert whole is not None
            return whole(x)[kept.indices.to(x.device)]

        return dataclasses.replace(
            self, features=features, layout=self.layout.only(kept.indices.cpu()),
            pack=None if whole is None else packed,
        )  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Tokens that stay: sorted indices ``[k]``, and their new features ``[k, d]`` if rewritten."""

    indices: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class LayerSignals:
    """What a layer method may read when tokens are dropped at the input of a layer.

    Attributes:
        layer: the layer whose attention is read; the drop takes effect at ``layer + 1``.
        n_layers: depth of the language model.
        alive: int64 ``[V]`` ranks (0 .. n_visual-1) of the visual tokens still alive.
        n_visual: visual tokens of the sample in the full prompt.
    """

    layer: int
    n_layers: int
    alive: Tensor
    n_visual: int
    _signal: Callable[[str], Tensor] = field(repr=False, default=None)  # type: ignore[assignment]

    def __len__(self) -> int:
        return self.alive.numel()

    def signal(self, name: str) -> Tensor:
        """``last_row`` [H, V], ``cross`` [V], ``self`` [V], ``hidden`` [V, d], ``keys`` ..."""
        return self._signal(name)

    def through(self, read: Callable[[LayerSignals, str], Tensor]) -> LayerSignals:
        """The same, read by ``read(signals, name)``."""
        return dataclasses.replace(self, _signal=lambda name: read(self, name))
