"""Is pruning as fast as its compute says? Measured against predicted speed-up of the prefill.

    python benchmarks/speedup.py [--quick] [--device cuda] [--repeats 3] [--output FILE]

A LLaVA-NeXT-shaped model with random weights (width 1024, 12 layers, one 672 x 672 image: 2880
patch tokens, 48 row ends) answers the same prompt with every method in turn, all in this process.
Each measurement is the best of several; on a CPU it is CPU time on one thread, which other work on
the machine disturbs less than it does a wall clock.

`predicted` is the ratio of multiply-accumulates of the language model, head and selection, with
attention counted as causal kernels compute it (half of the square); `measured` the ratio of their
times. `reached` is measured over predicted; `selection` the method's own time over the unpruned
prefill.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from vtprune import methods
from vtprune.harness.cost import architecture_of, ledger
from vtprune.harness.cost.architecture import Architecture
from vtprune.harness.cost.timing.clock import device_clock
from vtprune.harness.cost.timing.measure import Generation
from vtprune.harness.cost.timing.samples import draw
from vtprune.models import SampleRecord, prune

RATIOS = (0.5, 0.7, 0.9)
# Twelve layers are too few for a mean removal of 0.9 by these two, so they take R = ratio.
METHODS: dict[str, dict[str, Any]] = {
    "random": {},
    "gprune": {},
    "fastv": {"ratio_mode": "local"},
    "tome": {},
    "seqprune": {"ratio_mode": "local"},
}
WANTED = 0.95
WANTED_SELECTION = {"gprune": 0.01}


def build(device: str, dtype: torch.dtype, quick: bool) -> Any:
    """The random model; its tower is small, the language model is what is measured."""
    from transformers import AutoModelForImageTextToText, LlavaNextConfig

    width, layers = (384 if quick else 1024), 12
    config = LlavaNextConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 336, "patch_size": 14,
        },
        text_config={
            "model_type": "llama", "hidden_size": width, "intermediate_size": 11 * width // 4,
            "num_hidden_layers": layers, "num_attention_heads": width // 64, "vocab_size": 32064,
            "max_position_embeddings": 4096,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    return model.eval().requires_grad_(False)


def causal_macs(arch: Architecture, record: SampleRecord, method: Any) -> tuple[int, int]:
    """MACs of decoder and head, and of the selection, attention over the causal half."""
    cost = ledger.prefill(arch, record, method)
    return cost.llm_linear + cost.llm_attention // 2 + cost.lm_head, cost.selection


class Bench:
    """Best times of the prefill, by method and ratio."""

    def __init__(self, model: Any, now: Callable[[], float]) -> None:
        self.model, self.now = model, now
        self.arch = architecture_of(model.config)
        self.sample = draw(model, [(672, 672)], 64, 1, {})[0]
        self.times: dict[tuple[str, float], list[tuple[float, float]]] = {}
        self.macs: dict[tuple[str, float], tuple[int, int]] = {}

    def once(self, name: str, ratio: float) -> None:
        """One prefill; its time and the selection's are noted."""
        options = {**METHODS.get(name, {}), "ratio": ratio}
        method = methods.build(name, **options)
        with prune(self.model, method) as run:
            generation = Generation(self.model, run, 1, self.now)
            if (name, ratio) not in self.macs:
                generation.generate(self.sample.feed)
                self.macs[name, ratio] = causal_macs(self.arch, run.take()[0], method)
            seconds = generation.stages(self.sample.feed)
        self.times.setdefault((name, ratio), []).append((seconds["prefill"], seconds["selection"]))

    def best(self, name: str, ratio: float) -> tuple[float, float]:
        """Seconds of the fastest prefill and of the fastest selection."""
        prefill, selection = zip(*self.times[name, ratio], strict=True)
        return min(prefill), min(selection)


def table(bench: Bench) -> tuple[list[str], list[str]]:
    """Lines of the result, and what misses the wanted figures."""
    full_macs = sum(bench.macs["none", 0.0])
    full, _ = bench.best("none", 0.0)
    lines = [
        f"unpruned prefill {full:.3f} s, {full_macs / 1e9:.1f} GMAC, "
        f"{bench.sample.prompt_length} tokens, {2 * full_macs / full / 1e9:.1f} GFLOP/s",
        "",
        f"{'method':<10}{'ratio':>6}{'predicted':>11}{'measured':>10}{'reached':>9}"
        f"{'prefill s':>11}{'selection s':>13}{'selection':>11}",
    ]
    missed = []
    for name, ratio in bench.times:
        prefill, selection = bench.best(name, ratio)
        predicted = full_macs / sum(bench.macs[name, ratio])
        measured = full / (prefill + selection)
        share, reached = selection / full, measured / predicted
        lines.append(
            f"{name:<10}{ratio:>6g}{predicted:>10.2f}x{measured:>9.2f}x{100 * reached:>7.1f} %"
            f"{prefill:>11.3f}{selection:>13.4f}{100 * share:>9.2f} %"
        )
        if reached < WANTED:
            missed.append(f"{name} {ratio:g}: {100 * reached:.1f} % of the predicted speed-up")
        if share > WANTED_SELECTION.get(name, 1):
            missed.append(f"{name} {ratio:g}: selection is {100 * share:.2f} % of the prefill")
    return lines, missed


def main() -> int:
    """Run all methods in turn, several times over, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="width 384 instead of 1024")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, help="float32 on cpu, bfloat16 on cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    dtype = getattr(torch, args.dtype or ("float32" if on_cpu else "bfloat16"))
    now = time.process_time if on_cpu else device_clock(args.device)
    bench = Bench(build(args.device, dtype, args.quick), now)
    cells = [("none", 0.0)] + [(name, ratio) for name in args.methods for ratio in RATIOS]
    for _ in range(args.repeats):
        for name, ratio in cells:
            bench.once(name, ratio)
    lines, missed = table(bench)
    place = "one CPU thread, CPU time" if on_cpu else torch.cuda.get_device_name()
    flags = " --quick" if args.quick else ""
    head = f"benchmarks/speedup.py{flags}: {place}, {dtype}, torch {torch.__version__}"
    text = "\n".join([head, *lines, "", *(missed or ["all wanted figures reached"])])
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
