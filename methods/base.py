"""The contract between a pruning method and everything else.

A method answers one question: *which visual tokens stay?* It sees tensors and nothing of models,
caches, masks or position ids. Three kinds exist:

* :class:`TokenMethod` decides before the language model, from one graph (*view*) of tokens at a
  time. Override ``score(view)`` (higher stays), or ``select(view, k)`` for rules that are not a
  ranking, or that merge.
* :class:`LayerMethod` decides inside the language model, from the attention of one layer. Override
  ``schedule(n_layers, n_visual)`` and ``score(signals)``.
* :class:`InputMethod`, for controls, makes the picture smaller or leaves it out. Override
  ``grid(rows, cols, square)``.

Counting, stable top-k (ties to the lower index), sorting by position, the newline policy and the
split into views live here, once, so that none of them can be got wrong in a method.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import ops

Rounding = Literal["floor", "round_half_even", "int_raw"]


class MethodError(ValueError):
    """A method cannot do what was asked; the message is one line meant for the user."""


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


#: visual tokens of LLaVA-1.5, of which published tables label what they keep and recipes count
#: what they delete
LABELLED_TOKENS = 576


# --- what a method gets to see -----------------------------------------------------------------


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


@dataclass(frozen=True)
class View:
    """One graph of visual tokens: the base view, the high-resolution canvas, a crop, a frame.

    Attributes:
        kind: ``base``, ``canvas``, ``image``, ``frame``, ``tile`` or ``joint``.
        features: projected tokens ``[N, d]``.
        index: int64 ``[N]`` place in the image's packed sequence; -1 = cut away as padding.
        grid: (rows, cols) of the view, or None when it is not one grid.
        key: (sample id, image number, view number): the seed material of stochastic methods.
    """

    kind: str
    features: Tensor
    index: Tensor
    grid: tuple[int, int] | None
    key: tuple[str, int, int]
    _signal: Callable[[str], Tensor] = field(repr=False, default=None)  # type: ignore[assignment]
    _project: Callable[[Tensor], Tensor] | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return self.features.shape[0]

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
        pack = self.pack
        if pack is not None:
            def pack(x: Tensor, whole: Callable[[Tensor], Tensor] = pack) -> Tensor:
                return whole(x)[kept.indices.to(x.device)]
        return dataclasses.replace(
            self, features=features, layout=self.layout.only(kept.indices.cpu()), pack=pack
        )


@dataclass(frozen=True)
class Selection:
    """Tokens that stay: sorted indices ``[k]``, and their new features ``[k, d]`` if rewritten."""

    indices: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class LayerSignals:
    """What a :class:`LayerMethod` may read when tokens are dropped at the input of a layer.

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

    def signal(self, name: str) -> Tensor:
        """``last_row`` [H, V], ``cross`` [V], ``self`` [V], ``hidden`` [V, d], ``keys`` ..."""
        return self._signal(name)


@dataclass(frozen=True)
class SelectionShape:
    """Sizes from which a method states its own cost; every number is read from the model.

    ``tile_tokens`` are the tokens of each encoder crop or frame behind the projector, ``tile_keys``
    those its attention sees (CLS included, before any merging), ``before`` the prompt tokens in
    front of the first visual one, ``key_value`` the width of keys in the language model,
    ``vision_head`` that of one encoder head, ``projector`` the multiply-accumulates to project one
    token, and ``merged`` the patches of a crop merged away in front of encoder layers 1, 2, ...
    """

    views: tuple[int, ...]
    kept: tuple[int, ...]
    width: int
    vision_width: int
    tiles: int
    patches: int
    sequence: tuple[int, ...]
    visual: tuple[int, ...]
    attention_width: int
    tile_tokens: tuple[int, ...] = ()
    tile_keys: tuple[int, ...] = ()
    before: int = 0
    key_value: int = 0
    vision_head: int = 0
    projector: int = 0
    merged: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.tile_tokens:
            object.__setattr__(self, "tile_tokens", (self.patches,) * self.tiles)
        if not self.tile_keys:
            object.__setattr__(self, "tile_keys", tuple(n + 1 for n in self.tile_tokens))

    def encoder_attention(self, signal: str) -> int:
        """Multiply-accumulates to read attention out of one encoder layer, all crops.

        ``cls_attention`` is one query row per crop, ``received_attention`` all of them.
        """
        queries = {"cls_attention": 1, "received_attention": 2}[signal]
        return sum(n**queries for n in self.tile_keys) * self.vision_width


# --- methods ------------------------------------------------------------------------------------


def choice(method: PruningMethod, option: str, allowed: Sequence[str]) -> None:
    """Raise a one-line :class:`MethodError` unless ``method.option`` is one of ``allowed``."""
    value = getattr(method, option)
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise MethodError(
            f"{method.name}: {option}={value!r} is not one of {', '.join(allowed)}{hint}"
        )


def in_range(
    method: PruningMethod,
    option: str,
    low: float,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
    whole: bool = False,
) -> None:
    """Raise a one-line :class:`MethodError` unless ``method.option`` lies in the interval.

    With ``whole`` the value must be an ``int``.
    """
    value = getattr(method, option)
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    below = number and (value <= low if low_open else value < low)
    above = number and (value >= high if high_open else value > high)
    if not number or math.isnan(value) or below or above:
        left, right = "(" if low_open else "[", ")" if high_open else "]"
        raise MethodError(
            f"{method.name}: {option}={value!r} must be a {'whole ' if whole else ''}number in "
            f"{left}{low:g}, {high:g}{right}"
        )


@dataclass(frozen=True, kw_only=True)
class PruningMethod:
    """Options common to all methods.

    Attributes:
        ratio: fraction of visual tokens removed, in [0, 1). 0 leaves the model untouched.
        ratio_mode: ``mean`` = mean removal over the layers of the language model, so that all
            methods are comparable; ``local`` = the method's own final parameter, as papers use it.
        rounding: how a fractional count becomes a whole one, see :func:`n_keep`.
        positions: ``original`` keeps the survivors' position ids, ``compact`` renumbers them.
        compute_dtype: arithmetic of the selection; ``model`` reproduces half-precision releases.
        seed: seed of the run; only stochastic methods use it.
    """

    ratio: float = 0.0
    ratio_mode: Literal["mean", "local"] = "mean"
    rounding: Rounding = "floor"
    positions: Literal["original", "compact"] = "original"
    compute_dtype: Literal["float32", "model"] = "float32"
    seed: int = 0

    name: ClassVar[str] = "method"
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    stage: ClassVar[Literal["none", "input", "projector", "vision", "layer", "compose"]] = "none"
    #: where a part acts: on the picture, between encoder layers, before or inside the LLM
    place: ClassVar[Literal["nowhere", "picture", "encoder", "tokens", "layers"]] = "nowhere"
    needs: ClassVar[tuple[str, ...]] = ()
    merges: ClassVar[bool] = False
    query_aware: ClassVar[bool] = False
    #: options that are feasible on a shallow model; the contract tests and the gallery use them
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.5}
    #: options to add where the encoder has no CLS token; empty = undefined there
    without_cls: ClassVar[Mapping[str, Any]] = {}
    #: option -> other values that a budget solver may give it, nearest first, when no ratio meets
    #: the budget
    knobs: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    #: signal -> option that does without it, for models that do not offer the signal
    instead: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        self._check_ratio()
        choice(self, "ratio_mode", ("mean", "local"))
        choice(self, "rounding", ("floor", "round_half_even", "int_raw"))
        choice(self, "positions", ("original", "compact"))
        choice(self, "compute_dtype", ("float32", "model"))

    def _check_ratio(self) -> None:
        in_range(self, "ratio", 0.0, 1.0, high_open=True)

    @property
    def chain(self) -> tuple[PruningMethod, ...]:
        """What this method is made of, in the order it acts: a plain method is its only part.

        Parts are plain, never compositions. There may be several that act before the language
        model (``place`` encoder or tokens; :meth:`keep` of the whole asks them in turn), and one
        inside it at most.
        """
        return (self,)

    def part(self, place: str) -> PruningMethod | None:
        """The first part that acts at ``place``, or None."""
        return next((one for one in self.chain if one.place == place), None)

    def keep(self, image: ImageTokens) -> Selection:
        """Packed indices (sorted) of one image's tokens that stay, rewritten features if merged.

        Every part that acts before the language model is asked in turn about what is left.
        """
        device = image.features.device
        kept = Selection(torch.arange(len(image.layout), device=device))
        for one in self.chain:
            if one is self or one.place not in ("encoder", "tokens") or one.ratio == 0:
                continue
            picked = one.keep(image.after(kept))
            features = picked.features
            if features is None and kept.features is not None:
                features = kept.features[picked.indices]
            kept = Selection(kept.indices[picked.indices], features)
        return kept

    def replace(self, **changes: Any) -> PruningMethod:
        """A copy with some options changed."""
        return dataclasses.replace(self, **changes)

    def options(self) -> dict[str, Any]:
        """All options by name, in declaration order."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def count(self, n: int, ratio: float | None = None) -> int:
        """Tokens that stay of ``n`` under this method's rounding."""
        return n_keep(n, self.ratio if ratio is None else ratio, self.rounding)

    def cost(self, shape: SelectionShape) -> int:
        """Multiply-accumulates of the selection itself for one sample: its matrix products.

        Element-wise work (norms, minima, weighted sums) is left out, as in the rest of the ledger.
        """
        return 0

    def _cast(self, x: Tensor) -> Tensor:
        return x.float() if self.compute_dtype == "float32" else x


@dataclass(frozen=True, kw_only=True)
class TokenMethod(PruningMethod):
    """A method that decides before the language model.

    Attributes:
        scope: tokens compared with each other: ``per_view`` (base view and canvas apart),
            ``joint`` (one graph per image) or ``per_tile`` (each encoder crop, padding included).
        newline: row-end tokens are kept (``keep``), removed (``drop``), or compete (``candidate``).
        padding: with ``per_tile``, picks that fall in the padding cut from the canvas are removed
            (``drop``) or put back into the sequence (``keep``).
    """

    scope: Literal["per_view", "joint", "per_tile"] = "per_view"
    newline: Literal["keep", "drop", "candidate"] = "keep"
    padding: Literal["drop", "keep"] = "drop"

    stage: ClassVar[Literal["none", "projector", "vision", "layer"]] = "projector"
    place = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "scope", ("per_view", "joint", "per_tile"))
        choice(self, "newline", ("keep", "drop", "candidate"))
        choice(self, "padding", ("drop", "keep"))
        if self.scope == "per_tile" and self.newline == "candidate":
            raise MethodError(
                f"{self.name}: newline=candidate needs scope=per_view or joint (crops have none)"
            )

    @property
    def merges_in_encoder(self) -> bool:
        """The method works between encoder layers: see ``encoder_plan`` and ``encoder_merge`` of
        :class:`methods.tome.ToMe` for what it must define then."""
        return False

    def score(self, view: View) -> Tensor:
        """Importance ``[N]`` of the view's tokens; the largest stay."""
        raise NotImplementedError(f"{type(self).__name__} must define score or select")

    def select(self, view: View, k: int) -> Tensor | Selection:
        """The ``k`` tokens of the view that stay (any order); default: the best ``score``."""
        return ops.top_k(self.score(view), k)

    def select_all(self, views: list[View], counts: list[int]) -> list[Tensor | Selection]:
        """``select`` for each view of an image; override it to decide on all views at once."""
        return [self.select(view, k) for view, k in zip(views, counts, strict=True)]

    def keep(self, image: ImageTokens) -> Selection:
        """Packed indices (sorted) of one image's tokens that stay, rewritten features if merged."""
        if self.ratio == 0:
            return Selection(torch.arange(len(image.layout), device=image.features.device))
        views = self._views(image)
        counts = [self.count(len(view)) for view in views]
        picks = [
            self._checked(view, k, picked)
            for view, k, picked in zip(views, counts, self.select_all(views, counts), strict=True)
        ]
        if self.scope == "per_tile":
            return self._from_tiles(image, views, picks)
        return self._from_views(image, views, picks)

    def _views(self, image: ImageTokens) -> list[View]:
        layout, device = image.layout, image.features.device
        if self.scope == "per_tile":
            return self._tile_views(image)
        member = torch.ones(len(layout), dtype=torch.bool)
        if self.newline != "candidate":
            member = ~layout.newline
        if self.scope == "joint":
            groups = [("joint", torch.nonzero(member).squeeze(1), None)]
        else:
            groups = []
            for number, (kind, grid) in enumerate(zip(layout.kinds, layout.grids, strict=True)):
                index = torch.nonzero(member & (layout.view == number)).squeeze(1)
                width = grid[1] + (self.newline == "candidate" and len(index) > grid[0] * grid[1])
                groups.append((kind, index, (grid[0], width)))
        return [
            View(
                kind,
                self._cast(image.features[index.to(device)]),
                index.to(device),
                grid,
                (*image.key, number),
                self._packed_signal(image, index),
                image.project,
            )
            for number, (kind, index, grid) in enumerate(groups)
            if len(index)
        ]

    def _packed_signal(self, image: ImageTokens, index: Tensor) -> Callable[[str], Tensor]:
        tile, patch = image.layout.tile[index], image.layout.patch[index]

        def signal(name: str) -> Tensor:
            full = image.signal(name)
            if image.pack is not None:
                picked = image.pack(full)[index.to(full.device)]
            else:
                picked = full[tile.clamp(min=0).to(full.device), patch.to(full.device)]
            row_end = (tile == -1).to(full.device)
            return self._cast(picked).masked_fill(row_end.reshape(-1, *[1] * (picked.dim() - 1)), 0)

        return signal

    def _tile_views(self, image: ImageTokens) -> list[View]:
        if bool((image.layout.tile == -2).any()):
            raise MethodError(
                f"{self.name}: scope=per_tile is undefined for an image whose canvas the model "
                "shrinks; use scope=per_view"
            )
        features, table = image.signal("tile_features"), image.layout.inverse()
        return [
            View(
                "tile",
                self._cast(features[tile]),
                table[tile].to(image.features.device),
                image.layout.patch_grid,
                (*image.key, tile),
                lambda name, tile=tile: self._cast(image.signal(name)[tile]),
                image.project,
            )
            for tile in range(image.layout.n_tiles)
        ]

    def _checked(self, view: View, k: int, picked: Tensor | Selection) -> Selection:
        if not isinstance(picked, Selection):
            picked = Selection(picked)
        indices = picked.indices
        distinct = torch.unique(indices).numel()
        if distinct != k or indices.numel() != k or indices.min() < 0 or indices.max() >= len(view):
            raise MethodError(
                f"{self.name}: asked for {k} of {len(view)} tokens, got {indices.numel()} "
                f"({distinct} distinct)"
            )
        order = torch.argsort(indices)
        features = None if picked.features is None else picked.features[order]
        return Selection(indices[order], features)

    def _from_views(
        self, image: ImageTokens, views: list[View], picks: list[Selection]
    ) -> Selection:
        device = image.features.device
        parts = [view.index[pick.indices] for view, pick in zip(views, picks, strict=True)]
        rewritten = any(pick.features is not None for pick in picks)
        if self.newline == "keep":
            parts.append(torch.nonzero(image.layout.newline).squeeze(1).to(device))
        indices, order = torch.sort(torch.cat(parts))
        if not rewritten:
            return Selection(indices)
        rows = [
            image.features[part] if pick.features is None else pick.features
            for part, pick in zip(parts, picks, strict=False)
        ]
        if self.newline == "keep":
            rows.append(image.features[parts[-1]])
        return Selection(indices, torch.cat([r.to(image.features.dtype) for r in rows])[order])

    def _from_tiles(
        self, image: ImageTokens, views: list[View], picks: list[Selection]
    ) -> Selection:
        index = torch.cat([v.index[p.indices] for v, p in zip(views, picks, strict=True)])
        rewritten = any(p.features is not None for p in picks)
        if self.padding == "keep" and bool((index < 0).any()):
            return self._with_padding(image, views, picks)
        inside = index >= 0
        newline = torch.nonzero(image.layout.newline).squeeze(1).to(index.device)
        if self.newline != "keep":
            newline = newline[:0]
        kept = torch.cat([index[inside], newline])
        indices, order = torch.sort(kept)
        if not rewritten:
            return Selection(indices)
        rows = self._rows(views, picks, image.features.dtype)[inside]
        return Selection(indices, torch.cat([rows, image.features[newline]])[order])

    @staticmethod
    def _rows(views: list[View], picks: list[Selection], dtype: torch.dtype) -> Tensor:
        return torch.cat(
            [
                (v.features[p.indices] if p.features is None else p.features).to(dtype)
                for v, p in zip(views, picks, strict=True)
            ]
        )

    def _with_padding(
        self, image: ImageTokens, views: list[View], picks: list[Selection]
    ) -> Selection:
        # The sequence holds no slot for a token that was cut as padding, so the survivors, in the
        # raster order of base view and padded mosaic, are written into the leading slots.
        if self.positions != "compact":
            raise MethodError(f"{self.name}: padding=keep needs positions=compact")
        if self.newline == "keep":
            raise MethodError(f"{self.name}: padding=keep needs newline=drop")
        rank = image.layout.mosaic_rank().to(image.features.device)
        order = torch.argsort(
            torch.cat([rank[tile][pick.indices] for tile, pick in enumerate(picks)])
        )
        if len(order) > len(image.layout):
            raise MethodError(
                f"{self.name}: {len(order)} tokens kept with padding exceed the "
                f"{len(image.layout)} of the unpadded image; use padding=drop or a higher ratio"
            )
        rows = self._rows(views, picks, image.features.dtype)[order]
        return Selection(torch.arange(len(order), device=rows.device), rows)


@dataclass(frozen=True, kw_only=True)
class EncoderMethod(PruningMethod):
    """A method that merges patches between the layers of the encoder.

    The tower runs on fewer and fewer patches; what is left returns to the places of its
    representatives, and the empty places are dropped before the language model.

    Attributes:
        newline: row-end tokens are kept (``keep``) or removed (``drop``, ``candidate``).
    """

    newline: Literal["keep", "drop", "candidate"] = "keep"

    stage: ClassVar[Literal["none", "projector", "vision", "layer"]] = "vision"
    place = "encoder"
    needs: ClassVar[tuple[str, ...]] = ("merge_slots",)
    merges: ClassVar[bool] = True

    def plan(self, n_layers: int, n_patches: int) -> list[int]:
        """Patches merged away in front of each of ``n_layers`` encoder layers.

        Raises:
            MethodError: the ratio cannot be met.
        """
        raise NotImplementedError(f"{type(self).__name__} must define plan")

    def merge(self, state: ops.Merged, keys: Tensor, q: int) -> ops.Merged:
        """One crop with ``q`` patches fewer, by head-mean ``keys [n, c]`` of the layer before."""
        raise NotImplementedError(f"{type(self).__name__} must define merge")

    def keep(self, image: ImageTokens) -> Selection:
        """The tokens whose places are not empty, and row ends as ``newline`` says."""
        if self.ratio == 0:
            return Selection(torch.arange(len(image.layout), device=image.features.device))
        layout, slots = image.layout, image.signal("merge_slots")
        alive = slots[layout.tile.clamp(min=0), layout.patch] & ~layout.newline.to(slots.device)
        if self.newline == "keep":
            alive = alive | layout.newline.to(slots.device)
        indices = torch.nonzero(alive).squeeze(1).to(image.features.device)
        # Handed on as rewritten: an unmerged tower would have put other vectors there.
        return Selection(indices, image.features[indices])


@dataclass(frozen=True, kw_only=True)
class InputMethod(PruningMethod):
    """A control that changes the picture before anything is encoded.

    No token is dropped: the prompt simply is another, shorter one, for which the model computes as
    ever. So there is nothing to mask, and ``positions`` has no meaning; such a run equals an
    ordinary one on the changed picture.
    """

    stage: ClassVar[Literal["none", "input", "projector", "vision", "layer"]] = "input"
    place = "picture"

    def grid(self, rows: int, cols: int, square: bool) -> tuple[int, int] | None:
        """Grid of tokens to ask for in place of ``rows x cols``; None leaves the picture out.

        Args:
            rows, cols: tokens of the unchanged picture, or of one crop where the encoder cuts
                pictures into crops of one size.
            square: the encoder takes square crops only.
        """
        raise NotImplementedError(f"{type(self).__name__} must define grid")

    def checked_grid(self, rows: int, cols: int, square: bool) -> tuple[int, int] | None:
        """``grid`` with its promises verified."""
        made = self.grid(rows, cols, square)
        if made is None:
            return None
        down, across = made
        if not (1 <= down <= rows and 1 <= across <= cols) or (square and down != across):
            raise MethodError(f"{self.name}: invalid grid {made} for one of {(rows, cols)}")
        return made


@dataclass(frozen=True, kw_only=True)
class LayerMethod(PruningMethod):
    """A method that drops tokens inside the language model, during prefill."""

    stage: ClassVar[Literal["none", "projector", "vision", "layer"]] = "layer"
    place = "layers"
    needs: ClassVar[tuple[str, ...]] = ("last_row",)

    def _check_nominal(self, labels: Sequence[int]) -> None:
        """Refuse a ``nominal`` that no published table of this method has."""
        nominal = self.nominal  # type: ignore[attr-defined]
        if nominal is not None and nominal not in labels:
            raise MethodError(
                f"{self.name}: nominal={nominal} is not one of {', '.join(map(str, labels))}, the "
                f"labels of {LABELLED_TOKENS} tokens that its tables have"
            )

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        """Visual tokens entering each of ``n_layers`` layers; non-increasing.

        Raises:
            MethodError: the ratio cannot be met; the message names the feasible range.
        """
        raise NotImplementedError(f"{type(self).__name__} must define schedule")

    def score(self, signals: LayerSignals) -> Tensor:
        """Importance ``[V]`` of the tokens alive; the largest stay."""
        raise NotImplementedError(f"{type(self).__name__} must define score or select")

    def select(self, signals: LayerSignals, k: int) -> Tensor | Selection:
        """The ``k`` tokens among those alive that stay (any order)."""
        return ops.top_k(self.score(signals), k)

    def checked_schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        """``schedule`` with its promises verified."""
        if self.ratio == 0 or n_visual == 0:
            return (n_visual,) * n_layers
        plan = tuple(int(v) for v in self.schedule(n_layers, n_visual))
        falls = all(a >= b for a, b in zip((n_visual, *plan), plan, strict=False))
        if len(plan) != n_layers or not falls or plan[-1] < 0:
            raise MethodError(f"{self.name}: invalid schedule {plan} for {n_visual} tokens")
        return plan

    def checked_select(self, signals: LayerSignals, k: int) -> Selection:
        """``select`` with count and range verified, sorted by position."""
        if k == 0:
            return Selection(signals.alive.new_empty(0))
        picked = self.select(signals, k)
        if not isinstance(picked, Selection):
            picked = Selection(picked)
        indices, n = picked.indices, signals.alive.numel()
        if indices.numel() != k or torch.unique(indices).numel() != k or indices.max() >= n:
            raise MethodError(f"{self.name}: asked for {k} of {n} tokens, got {indices.numel()}")
        order = torch.argsort(indices)
        features = None if picked.features is None else picked.features[order]
        return Selection(indices[order], features)
