"""G-Prune: information spread over the graph of similar tokens decides which tokens stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.errors import MethodError
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.tokens import TokenMethod
from vtprune.methods.views import View

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
    """

    threshold: float = option(0.5, "smallest cosine that makes an edge", low=-1, high=1)
    temperature: float = option(
        0.03, "divides edge weights before the softmax; the paper has none (1.0)", above=0
    )
    iterations: int = option(5, "propagation steps; the paper sweeps 1, 5, 10, 50", low=0)
    mask_nonedges: bool = option(
        True, "true = non-edges weigh 0 | false = exp(0), the paper's equation"
    )
    edge: Literal["clip", "shift"] = option(
        "clip", "clip = cosine (Eq. 1) | shift = cosine - threshold (Algorithm 1)"
    )
    degree_floor: float = option(
        0.0, "transition weights up to this do not count for the degree", low=0, below=1
    )
    variant: Literal["released", "released_fp16", "paper_literal"] = option(
        "released", "released | released_fp16 (floor 2^-25) | paper_literal (T 1, no mask)"
    )

    title = "G-Prune"
    paper = "arXiv:2501.02268"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option_, value in _VARIANTS[self.variant].items():
            default = type(self).__dataclass_fields__[option_].default
            if getattr(self, option_) not in (default, value):
                raise MethodError(
                    f"{self.name}: variant={self.variant} means {option_}={value:g}; "
                    f"drop {option_}={getattr(self, option_)!r} or the variant"
                )

    def graph(self, x: Tensor) -> TokenGraph:
        """The graph of tokens ``x [N, d]`` under this method's options."""
        names = ("threshold", "temperature", "mask_nonedges", "edge", "degree_floor")
        given = {name: getattr(self, name) for name in names}
        return token_graph(x, **(given | _VARIANTS[self.variant]))

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
