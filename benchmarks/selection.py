"""What it costs to select tokens: each method against the form its release computes it in.

    python benchmarks/selection.py [--quick] [--device cuda] [--threads 1] [--only DPP]

Both forms run in this process on the same tensors, alternating, and the best of several runs
counts. The released forms are written here from a description of what they compute, not taken from
any repository. The last columns relate a selection to the prefill of an 8B model on the same
number of visual tokens: in multiply-accumulates, and in time, with one decoder layer measured here
standing for all layers.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from vtprune.methods import SelectionShape, build, ops
from vtprune.methods.diverse import farthest_points, greedy_dpp, important_and_diverse
from vtprune.methods.gprune import propagate, token_graph
from vtprune.methods.merging import (
    absorb,
    contextual_features,
    contextual_tokens,
    merge_rounds,
    merge_tokens,
    neighbours,
)
from vtprune.models.signals import head_max_columns, row_attention

RATIO = 0.7
TEXT = 64


@dataclass(frozen=True)
class Model:
    """Sizes of the language model and the encoder; the defaults are those of an 8B LLaVA-NeXT."""

    width: int = 4096
    mlp: int = 14336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    vision_width: int = 1024
    crop: int = 576

    @property
    def head(self) -> int:
        return self.width // self.heads

    def layer_macs(self, n: int) -> int:
        kv = self.kv_heads * self.head
        linear = self.width * (2 * self.width + 2 * kv + 3 * self.mlp)
        return n * linear + 2 * n * n * self.width


@dataclass(frozen=True)
class Case:
    """Two ways to one result, and the method whose ``cost`` states the price."""

    name: str
    method: str
    ours: Callable[[], object]
    released: Callable[[], object]
    wanted: float | None = None


# --- released forms -----------------------------------------------------------------------------


def gprune_by_matrix_power(x: Tensor, threshold: float, temperature: float, t: int) -> Tensor:
    """Row softmax over the whole matrix, its t-th power, then one vector-matrix product."""
    u = x / x.norm(dim=-1, keepdim=True)
    cosine = u @ u.T
    logits = torch.where(cosine >= threshold, cosine / temperature, torch.full_like(cosine, -5e3))
    transition = logits.softmax(dim=-1)
    degree = (transition > 0).sum(-1)
    spread = x.norm(dim=-1) @ torch.linalg.matrix_power(transition, t)
    return spread / degree


def eager_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention written out: output and the materialised weights ``[H, S, S]``."""
    repeat = q.shape[0] // k.shape[0]
    keys, values = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
    logits = q @ keys.mT * q.shape[-1] ** -0.5
    n = logits.shape[-1]
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)
    return weights @ values, weights


def last_row_from_eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return eager_attention(q, k, v)[1].mean(0)[-1]


def head_max_from_eager(q: Tensor, k: Tensor, v: Tensor, image: slice) -> tuple[Tensor, Tensor]:
    top = eager_attention(q, k, v)[1].amax(0)
    return top[image.stop :, image].sum(0), top[image, image].sum(0)


def vispruner_by_rounds(x: Tensor, attention: Tensor, keep: int) -> Tensor:
    """Similarities computed anew in every round, crop after crop."""
    kept = []
    for features, weight in zip(x, attention, strict=True):
        order = weight.argsort(descending=True)
        n_important = keep // 2
        rest, wanted = order[n_important:], keep - n_important
        while len(rest) > wanted:
            u = features[rest] / features[rest].norm(dim=-1, keepdim=True)
            best = (u[0::2] @ u[1::2].T).amax(-1).argsort(descending=True)
            rest = torch.cat([rest[0::2][best[min(8, len(rest) - wanted) :]], rest[1::2]])
        kept.append(torch.cat([order[:n_important], rest]))
    return torch.stack(kept)


def tome_by_scatter(x: Tensor, n_out: int) -> Tensor:
    """Gathers and a scatter-add per round."""
    size = x.new_ones(len(x), 1)
    for q in merge_rounds(len(x), n_out):
        u = x / x.norm(dim=-1, keepdim=True)
        best, partner = (u[0::2] @ u[1::2].T).max(-1)
        order = best.argsort(descending=True)
        gone, kept, into = order[:q], order[q:], partner[order[:q]]
        mass, total = x * size, size
        odd = mass[1::2].index_add(0, into, mass[0::2][gone])
        count = total[1::2].index_add(0, into, total[0::2][gone])
        size = torch.cat([total[0::2][kept], count])
        x = torch.cat([mass[0::2][kept], odd]) / size
    return x


def tome_token_by_token(x: Tensor, n_out: int) -> Tensor:
    """One Python step per merged token, what "slow indexing" may have meant."""
    size = x.new_ones(len(x), 1)
    for q in merge_rounds(len(x), n_out):
        u = x / x.norm(dim=-1, keepdim=True)
        best, partner = (u[0::2] @ u[1::2].T).max(-1)
        order = best.argsort(descending=True).tolist()
        odd, count = (x * size)[1::2].clone(), size[1::2].clone()
        for i in order[:q]:
            odd[partner[i]] += x[2 * i] * size[2 * i]
            count[partner[i]] += size[2 * i]
        kept = torch.tensor(order[q:], dtype=torch.long, device=x.device) * 2
        x = torch.cat([x[kept], odd / count])
        size = torch.cat([size[kept], count])
    return x


def divprune_by_all_picks(distance: Tensor, k: int) -> Tensor:
    """The minimum over all rows picked so far, gathered anew at every pick."""
    near = distance.topk(2, dim=0, largest=False).values[1]
    picked = near.argmax()[None]
    while len(picked) < k:
        gaps = distance[picked].amin(0)
        picked = torch.cat([picked, gaps.argmax()[None]])
    return picked


def distance_by_product(x: Tensor) -> Tensor:
    u = x / x.norm(dim=-1, keepdim=True)
    return 1 - u @ u.T


def dpp_by_full_kernel(x: Tensor, k: int) -> Tensor:
    """All pairs of the kernel first, then greedy selection."""
    u = x / x.norm(dim=-1, keepdim=True)
    kernel = u @ u.T
    variance, picked = kernel.diagonal().clone(), []
    rows = x.new_zeros(k, len(x))
    for step in range(k):
        j = int(variance.argmax())
        rows[step] = (kernel[j] - rows[:step, j] @ rows[:step]) / variance[j].sqrt()
        variance = variance - rows[step].square()
        picked.append(j)
        variance[picked] = -torch.inf
    return torch.tensor(picked)


def prumerge_by_token(x: Tensor, attention: Tensor, k: int) -> Tensor:
    """Neighbours and sums kept token after kept token."""
    u = x / x.norm(dim=-1, keepdim=True)
    chosen, merged = attention.topk(k).indices, []
    for i in chosen:
        similarity = u[i] @ u.T
        similarity[i] = -torch.inf
        nearest = similarity.topk(32).indices
        merged.append(x[i] + (x[nearest] * attention[nearest, None]).sum(0))
    return torch.stack(merged)


def visionzip_by_one_hot(x: Tensor, dominant: Tensor, count: int) -> Tensor:
    """Sources are summed by a product with a one-hot matrix."""
    contextual = contextual_tokens(x, dominant, count)
    one_hot = torch.nn.functional.one_hot(contextual.assignment, count).to(x.dtype)
    sums = one_hot.T @ x[contextual.sources]
    return x[contextual.targets] + sums / one_hot.sum(0).clamp(min=1)[:, None]


# --- cases --------------------------------------------------------------------------------------


def clustered(n: int, d: int, device: str) -> Tensor:
    centre = torch.randn(12, d, device=device)
    x = centre[torch.randint(12, (n,), device=device)] + 0.7 * torch.randn(n, d, device=device)
    return x * torch.exp(0.3 * torch.randn(n, 1, device=device))


def cases(n: int, model: Model, device: str) -> list[Case]:
    x = clustered(n, model.width, device)
    keep = build("gprune", ratio=RATIO).count(n)
    crops = max(1, n // model.crop)
    features = clustered(n, model.vision_width, device).reshape(crops, n // crops, -1)
    attention = torch.rand(crops, n // crops, device=device)
    tile_keep = build("vispruner", ratio=RATIO).count(n // crops)

    def gprune(initial: Tensor) -> Tensor:
        graph = token_graph(x)
        return propagate(graph, initial, 5) / graph.degree

    return [
        Case(
            "G-Prune, t=5",
            "gprune",
            lambda: gprune(x.norm(dim=-1)),
            lambda: gprune_by_matrix_power(x, 0.5, 0.03, 5),
            2.5 if n >= 2304 else None,
        ),
        Case(
            "l2 norm",
            "l2norm",
            lambda: ops.top_k(x.norm(dim=-1), keep),
            lambda: x.norm(dim=-1).topk(keep),
        ),
        *attention_cases(n, model, device),
        Case(
            "VisPruner",
            "vispruner",
            lambda: important_and_diverse(features, attention, tile_keep, 0.5),
            lambda: vispruner_by_rounds(features, attention, tile_keep),
        ),
        Case(
            "ToMe / scatter",
            "tome",
            lambda: merge_tokens(x, keep),
            lambda: tome_by_scatter(x, keep),
        ),
        *later_cases(x, features, attention, keep, tile_keep),
        Case(
            "ToMe / token loop",
            "tome",
            lambda: merge_tokens(x, keep),
            lambda: tome_token_by_token(x, keep),
        ),
    ]


def later_cases(
    x: Tensor, features: Tensor, attention: Tensor, keep: int, tile_keep: int
) -> list[Case]:
    """DivPrune and DPP on the whole image, the merging methods on its first crop."""
    few_kept, distance = len(x) // 36, 1 - ops.cosine_graph(x)
    crop, weight, few = features[0], attention[0], tile_keep // 2
    dominant = ops.top_k(weight, round(tile_keep * 27 / 32))
    count = tile_keep - len(dominant)
    wanted = 5.0 if len(x) >= 2304 else None

    def prumerge() -> Tensor:
        chosen = ops.top_k(weight, few)
        return absorb(crop, weight, chosen, neighbours(crop, chosen, 32))

    return [
        Case(
            "DivPrune, picks",
            "divprune",
            lambda: farthest_points(distance, keep),
            lambda: divprune_by_all_picks(distance, keep),
            wanted,
        ),
        Case(
            "DivPrune, all",
            "divprune",
            lambda: farthest_points(1 - ops.cosine_graph(x), keep),
            lambda: divprune_by_all_picks(distance_by_product(x), keep),
        ),
        *(
            Case(
                f"DPP, {kept} kept",
                "dpp",
                lambda kept=kept: greedy_dpp(x[None], x.new_ones(1, len(x)), kept),
                lambda kept=kept: dpp_by_full_kernel(x, kept),
                wanted if kept == few_kept else None,
            )
            for kept in (few_kept, len(x) // 10)
        ),
        Case(
            "PruMerge, a crop", "prumerge", prumerge, lambda: prumerge_by_token(crop, weight, few)
        ),
        Case(
            "VisionZip, a crop",
            "visionzip",
            lambda: contextual_features(crop, contextual_tokens(crop, dominant, count)),
            lambda: visionzip_by_one_hot(crop, dominant, count),
        ),
    ]


def attention_cases(n: int, model: Model, device: str) -> list[Case]:
    length, image = n + TEXT, slice(TEXT // 2, TEXT // 2 + n)
    q = torch.randn(model.heads, length, model.head, device=device)
    k, v = torch.randn(2, model.kv_heads, length, model.head, device=device)
    seen = torch.ones(length, dtype=torch.bool, device=device)
    place = torch.arange(length, device=device)
    scale = model.head**-0.5

    def head_max() -> tuple[Tensor, Tensor]:
        rows = place[image.stop :], place[image]
        return tuple(head_max_columns(q, k, scale, seen, r, place[image]) for r in rows)

    def last_row() -> Tensor:
        return row_attention(q[:, -1], k, scale, seen).mean(0)

    return [
        Case("FastV, one row", "fastv", last_row, lambda: last_row_from_eager(q, k, v), 20.0),
        Case(
            "FitPrune, a layer", "fitprune", head_max, lambda: head_max_from_eager(q, k, v, image)
        ),
    ]


# --- measuring ----------------------------------------------------------------------------------


def clock(run: Callable[[], object], device: str) -> float:
    """Seconds; of one CPU thread its CPU time, to which other work on the machine adds nothing."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    now = time.process_time if alone else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = now()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return now() - start


def race(case: Case, device: str, repeats: int) -> tuple[float, float]:
    """Best times of both forms, taken in turns after one warm-up of each."""
    case.ours(), case.released()
    times = [(clock(case.ours, device), clock(case.released, device)) for _ in range(repeats)]
    return min(t[0] for t in times), min(t[1] for t in times)


def layer_time(n: int, model: Model, device: str) -> float:
    """One decoder layer on ``n`` tokens: its matrix products and attention."""
    kv = model.kv_heads * model.head
    widths = [(model.width, model.width)] * 2 + [(model.width, kv)] * 2
    widths += [(model.width, model.mlp)] * 2 + [(model.mlp, model.width)]
    weights = [torch.randn(a, b, device=device) for a, b in widths]
    q = torch.randn(1, model.heads, n, model.head, device=device)
    k = torch.randn(1, model.heads, n, model.head, device=device)
    inputs = {a: torch.randn(n, a, device=device) for a, _ in widths}

    def run() -> None:
        for weight in weights:
            inputs[weight.shape[0]] @ weight
        torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)

    return min(clock(run, device) for _ in range(2))


def selection_macs(method: str, n: int, model: Model) -> int:
    one = build(method, ratio=RATIO, **({"K": 2} if method == "fastv" else {}))
    crops, keep = max(1, n // model.crop), one.count(n)
    visual = (n,) * 2 + (keep,) * (model.layers - 2)
    shape = SelectionShape(
        views=(n,),
        kept=(keep,),
        width=model.width,
        vision_width=model.vision_width,
        tiles=crops,
        patches=n // crops,
        sequence=tuple(v + TEXT for v in visual),
        visual=visual,
        attention_width=model.width,
    )
    return one.cost(shape)


def report(n: int, model: Model, device: str, repeats: int, only: str = "") -> bool:
    """Print one table, of cases named with ``only``; returns whether all wanted ratios were met."""
    length = n + TEXT
    prefill = model.layers * layer_time(length, model, device)
    macs = model.layers * model.layer_macs(length)
    print(f"\nN = {n}, d = {model.width}: prefill of {length} tokens {prefill:.2f} s (estimated)")
    print(
        f"{'selection':<20}{'ours':>10}{'released':>11}{'ratio':>8}{'MACs':>9}{'time':>9}  wanted"
    )
    met = True
    for case in cases(n, model, device):
        if only not in case.name:
            continue
        ours, released = race(case, device, repeats)
        ratio = released / ours
        good = case.wanted is None or ratio >= case.wanted
        met &= good
        wanted = "" if case.wanted is None else f">= {case.wanted:g}: {'yes' if good else 'NO'}"
        share = selection_macs(case.method, n, model) / macs
        print(
            f"{case.name:<20}{ours * 1e3:>8.2f}ms{released * 1e3:>9.2f}ms{ratio:>7.1f}x"
            f"{share:>9.3%}{ours / prefill:>9.3%}  {wanted}"
        )
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, no verdicts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="part of the names of the cases to run")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = Model(256, 512, 4, 8, 2, 64, 144) if args.quick else Model()
    sizes = (144, 576) if args.quick else (576, 2304)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), float32")
    print("load of the machine: " + ", ".join(f"{n:.1f}" for n in os.getloadavg()))
    with torch.no_grad():
        met = [report(n, model, args.device, args.repeats, args.only) for n in sizes]
    print("\nMACs, time: share of an 8B prefill. FastV's row and FitPrune's sums are compared with")
    print("one layer of eager attention; 20x is the 5 % of such a layer that a row may cost.")
    return 0 if args.quick or all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
