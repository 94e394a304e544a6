"""One prefill, seven published ways to count it. A figure without its convention says nothing.

Each convention is a function of an :class:`Architecture` and the tokens of one sample. Sources:

* ``flops``: two per multiply-add, every matrix product of every stage.
* ``macs``: one per multiply-add, the same terms.
* ``paper_gprune``: the G-Prune paper's "TFLOPs" (arXiv 2501.02268, Table 2). Reconstructed, the
  paper does not define it: MACs of linear layers only (vision tower, projector, decoder, LM head at
  every position); attention products and the selection are left out.
* ``fastv``: ``4 n d^2 + 2 n^2 d + 2 n d m`` per layer over visual tokens (FastV, DivPrune): MACs of
  attention, and two of the three matrices of a gated MLP.
* ``sparsevlm``: ``4 n d^2 + 2 n^2 d + 3 n d m`` per layer over visual tokens: MACs, all matrices.
* ``fitprune``: ``sparsevlm`` with layer l's projections of q, k, v and its attention on the tokens
  entering the layer and the rest on those leaving it, because FitPrune drops in between.
* ``fvcore``: MACs of what fvcore sees by default: no fused attention, no selection.
"""

from __future__ import annotations

from collections.abc import Callable

from vtprune.harness.cost.architecture import Architecture
from vtprune.harness.cost.ledger import Cost, Tokens, decoder, encoder


def _cost(arch: Architecture, tokens: Tokens, head_positions: int) -> Cost:
    encoded = encoder(arch, tokens.crops, tokens.merged)
    return encoded + decoder(arch, tokens.sequence, head_positions)


def macs(arch: Architecture, tokens: Tokens) -> int:
    """All matrix products of prefill, one LM-head position, one per multiply-add."""
    return _cost(arch, tokens, 1).total + tokens.selection_macs


def flops(arch: Architecture, tokens: Tokens) -> int:
    """Twice :func:`macs`."""
    return 2 * macs(arch, tokens)


def paper_gprune(arch: Architecture, tokens: Tokens) -> int:
    """Linear-layer MACs with the LM head at all positions; see the module docstring."""
    cost = _cost(arch, tokens, tokens.sequence[-1])
    return cost.vision_linear + cost.projector + cost.llm_linear + cost.lm_head


def fvcore(arch: Architecture, tokens: Tokens) -> int:
    """Linear-layer MACs, one LM-head position: SDPA is an unsupported op that fvcore skips."""
    cost = _cost(arch, tokens, 1)
    return cost.vision_linear + cost.projector + cost.llm_linear + cost.lm_head


def _closed(arch: Architecture, tokens: Tokens, matrices: int) -> int:
    d, m = arch.text.width, arch.text.mlp
    return sum(4 * n * d * d + 2 * n * n * d + matrices * n * d * m for n in tokens.visual)


def fastv(arch: Architecture, tokens: Tokens) -> int:
    """Visual tokens only, two MLP matrices."""
    return _closed(arch, tokens, 2)


def sparsevlm(arch: Architecture, tokens: Tokens) -> int:
    """Visual tokens only, three MLP matrices."""
    return _closed(arch, tokens, 3)


def fitprune(arch: Architecture, tokens: Tokens) -> int:
    """Visual tokens only, tokens dropped between attention and output projection."""
    d, m = arch.text.width, arch.text.mlp
    last = tokens.visual[-1] if tokens.visual_after is None else tokens.visual_after
    leaving = [*tokens.visual[1:], last]
    entering = sum(3 * n * d * d + 2 * n * n * d for n in tokens.visual)
    return entering + sum(n * d * d + 3 * n * d * m for n in leaving)


CONVENTIONS: dict[str, Callable[[Architecture, Tokens], int]] = {
    "flops": flops,
    "macs": macs,
    "paper_gprune": paper_gprune,
    "fastv": fastv,
    "sparsevlm": sparsevlm,
    "fitprune": fitprune,
    "fvcore": fvcore,
}


#: what the conventions count, one line each
MEANING = {
    "flops": "two per multiply-add, every matrix product, one LM-head position",
    "macs": "one per multiply-add, the same terms",
    "paper_gprune": "MACs of linear layers only, LM head at every position",
    "fastv": "visual tokens in the decoder, two of three MLP matrices, MACs",
    "sparsevlm": "visual tokens in the decoder, all matrices, MACs",
    "fitprune": "like sparsevlm, tokens dropped between attention and MLP",
    "fvcore": "MACs of linear layers, one LM-head position",
}


def convert(name: str, arch: Architecture, tokens: Tokens) -> int:
    """Count ``tokens`` under the convention called ``name``."""
    if name not in CONVENTIONS:
        raise ValueError(f"unknown convention '{name}' (known: {', '.join(CONVENTIONS)})")
    return CONVENTIONS[name](arch, tokens)
