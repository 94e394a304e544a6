"""Name -> stage, with the options of the command line."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from harness.embedded.common import Budget


def _budget(default: Budget, args: argparse.Namespace) -> Budget:
    return replace(default, steps=args.steps) if args.steps else default


def run(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one stage; returns what its gates measured."""
    common = {"out": args.out, "seed": args.seed, "device": args.device, "resume": args.resume}
    common["bf16"] = not args.fp32
    if stage == "tower":
        from harness.embedded import tower

        return tower.train_tower(
            budget=_budget(tower.BUDGET, args), compiled=args.compile, **common
        )
    if stage == "align":
        from harness.embedded import language

        return language.run_align(budget=_budget(language.ALIGN, args), **common)
    if stage == "language":
        from harness.embedded import language

        return language.train_language(budget=_budget(language.BUDGET, args), **common)
    raise ValueError(stage)
