"""G-Prune: information spread over the graph of similar tokens decides which tokens stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.base import MethodError, SelectionShape, TokenMethod, View, choice, in_range
from vtprune.methods.registry import register

# Half of the smallest positive float16: a softmax weight up to here is rounded to zero there.
FLOAT16_FLUSH = 2.0**-25

# What a variant prescribes; options it does not name stay free.
_VARIANTS: dict[str, dict[str, Any]] = {
    "released": {},
    "released_fp16": {"degree_floor": FLOAT16_FLUSH},
    "paper_literal": {"temperature": 1.0, "mask_nonedges": False},
}


class TokenGraph(NamedTuple):
    """``weights`` E ``[N, N]``, symmetric, and per token ``[N]`` the row sum Z and the degree D.

    The transition matrix is ``A = diag(1 / Z) E``; it is never formed.
    """

    weights: Tensor
    row_sum: Tensor
    degree: Tensor


def token_graph(
    x: Tensor,
    *,
    threshold: float = 0.5,
    temperature: float = 0.03,
    mask_nonedges: bool = True,
    edge: Literal["clip", "shift"] = "clip",
    degree_floor: float = 0.0,
) -> TokenGraph:
    """Graph of the tokens ``x [N, d]`` whose cosine reaches ``threshold``.

    ``E_ij = exp((a_ij - a_max) / temperature)`` with ``a`` the edge weight: the cosine (``clip``)
    or the cosine less the threshold (``shift``). A row's largest edge weight is its self-loop's,
    the same for all rows, so one constant replaces the row maximum of a softmax and E stays
    symmetric. Non-edges weigh nothing, or, with ``mask_nonedges=False``, as much as ``a = 0``.

    The degree counts edges, self-loop included; with a ``degree_floor``, or in half precision
    (where the release's softmax underflows), it counts transition weights above the floor.
    A token of norm zero has no direction and is isolated: its only edge is its self-loop.
    """
    cosine = ops.cosine_graph(x).float() if ops.is_half(x) else ops.cosine_graph(x)
    edges = cosine >= threshold if edge == "clip" else cosine > threshold
    empty = torch.linalg.vector_norm(x, dim=-1) == 0
    isolated = empty[:, None] | empty[None, :]
    edges = (edges & ~isolated).fill_diagonal_(True)

    a_max = 1.0 if edge == "clip" else 1.0 - threshold
    a = (cosine if edge == "clip" else cosine - threshold).fill_diagonal_(a_max)
    absent = edges.logical_not()
    if mask_nonedges:
        weights = a.sub_(a_max).div_(temperature).exp_().masked_fill_(absent, 0)
    else:
        weights = a.masked_fill_(absent, 0).sub_(a_max).div_(temperature).exp_()
        weights.masked_fill_(isolated.fill_diagonal_(False), 0)
    row_sum = weights.sum(dim=1)

    if degree_floor > 0 or ops.is_half(x):
        transition = (weights / row_sum[:, None]).to(x.dtype)
        degree = (transition > degree_floor).sum(dim=1)
    else:
        degree = edges.sum(dim=1, dtype=torch.int32)  # 64-bit sums of booleans are 15 times slower
    return TokenGraph(weights, row_sum, degree)


def propagate(graph: TokenGraph, initial: Tensor, iterations: int) -> Tensor:
    """``initial [N]`` after ``iterations`` steps ``v <- v A``, as matrix-vector products.

    ``v A = (v / Z) E = E (v / Z)`` because E is symmetric: N^2 per step instead of the N^3 of a
    matrix power.
    """
    v = initial
    for _ in range(iterations):
        v = torch.mv(graph.weights, v / graph.row_sum)
    return v


@register("gprune")
@dataclass(frozen=True, kw_only=True)
class GPrune(TokenMethod):
    """Keep the tokens that gather most information from tokens similar to them.

    Tokens are nodes, edges join tokens with a cosine of at least ``threshold``; l2 norms flow
    ``iterations`` times along the row-softmax of the edge weights; what a token then holds,
    divided by its degree, is its score. Source: "What Kind of Visual Tokens Do We Need?
    Training-free Visual Token Pruning for MLLMs from the Perspective of Graph" (arXiv 2501.02268).

    Deviations from the release: selection in float32 whatever the model's dtype (in float16 small
    weights vanish before degrees are counted, ``variant="released_fp16"`` emulates this and is the
    one to compare with the published tables); a token of norm zero is isolated instead of linked
    to all; batches and single-crop images work. Deviations of the release from the paper are kept
    as defaults: a temperature, non-edges masked, one graph per view, row-end tokens always kept.

    Attributes:
        threshold: smallest cosine that makes an edge, in [-1, 1].
        temperature: divides edge weights before the softmax; the paper has none, i.e. 1.
        iterations: propagation steps.
        mask_nonedges: give non-edges weight 0; False lets them weigh exp(0), as the paper's
            equation does.
        edge: weight of an edge, the cosine (``clip``, Eq. 1) or cosine - threshold (``shift``,
            Algorithm 1). With masked non-edges both are the same chain.
        degree_floor: transition weights up to this do not count for the degree.
        variant: ``released``; ``released_fp16`` (degree_floor = 2^-25); ``paper_literal``
            (temperature 1, non-edges not masked). A variant fixes those options.
    """

    threshold: float = 0.5
    temperature: float = 0.03
    iterations: int = 5
    mask_nonedges: bool = True
    edge: Literal["clip", "shift"] = "clip"
    degree_floor: float = 0.0
    variant: Literal["released", "released_fp16", "paper_literal"] = "released"

    title = "G-Prune"
    paper = "arXiv:2501.02268"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "threshold", -1.0, 1.0)
        in_range(self, "temperature", 0.0, low_open=True)
        in_range(self, "iterations", 0, whole=True)
        in_range(self, "degree_floor", 0.0, 1.0, high_open=True)
        choice(self, "edge", ("clip", "shift"))
        choice(self, "variant", tuple(_VARIANTS))
        for option, value in _VARIANTS[self.variant].items():
            default = type(self).__dataclass_fields__[option].default
            if getattr(self, option) not in (default, value):
                raise MethodError(
                    f"{self.name}: variant={self.variant} means {option}={value:g}; "
                    f"drop {option}={getattr(self, option)!r} or the variant"
                )

    def graph(self, x: Tensor) -> TokenGraph:
        """The graph of tokens ``x [N, d]`` under this method's options."""
        options = {
            "threshold": self.threshold,
            "temperature": self.temperature,
            "mask_nonedges": self.mask_nonedges,
            "edge": self.edge,
            "degree_floor": self.degree_floor,
        }
        return token_graph(x, **(options | _VARIANTS[self.variant]))

    def initial(self, view: View) -> Tensor:
        """Information ``[N]`` each token starts with: its l2 norm."""
        return torch.linalg.vector_norm(view.features, dim=-1)

    def score(self, view: View) -> Tensor:
        graph = self.graph(view.features)
        held = propagate(graph, self.initial(view).to(graph.weights.dtype), self.iterations)
        return held / graph.degree

    def cost(self, shape: SelectionShape) -> int:
        """Per graph: the cosines (N^2 d, large ones 9/16 of it), N^2 per propagation step."""
        cosines = sum(ops.cosine_pairs(n) for n in shape.views) * shape.width
        return cosines + sum(n * n for n in shape.views) * self.iterations
