"""Train the embedded model from nothing but a seed: python scripts/train_embedded.py --seed 0.

Stages run in order and each one keeps its state under --out, so a killed run continues where it
stopped when the same command is given again. `export` writes the Hugging Face folders,
`measure` the figures of the model card.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vtprune.harness.request import arguments as given

STAGES = ("tower", "align", "language", "joint", "anyres", "export", "measure")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = given.parser("train", __doc__)
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/embedded"))
    parser.add_argument("--models", type=Path, default=Path("models/embedded"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="compute threads")
    parser.add_argument("--steps", type=int, help="length of the stage (default: its recipe)")
    parser.add_argument("--no-resume", dest="resume", action="store_false")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile the tower")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the stages asked for; each prints a line of JSON."""
    args = parse(argv)
    import torch

    from vtprune.training import stages

    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        began = time.time()
        report = stages.run(stage, args)
        report = {"stage": stage, "minutes": round((time.time() - began) / 60, 2), **report}
        args.out.mkdir(parents=True, exist_ok=True)
        with (args.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(report) + "\n")
        print(json.dumps(report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
