"""Name -> stage, with the options of the command line."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
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
    if stage in ("align", "language"):
        from harness.embedded import language

        if stage == "align":
            return language.run_align(budget=_budget(language.ALIGN, args), **common)
        return language.train_language(budget=_budget(language.BUDGET, args), **common)
    if stage == "joint":
        from harness.embedded import joint

        return joint.train_joint(budget=_budget(joint.BUDGET, args), **common)
    if stage == "anyres":
        from harness.embedded import anyres

        return anyres.train_anyres(budget=_budget(anyres.BUDGET, args), **common)
    if stage == "measure":
        return measure_all(args.out, args.models)
    return export_all(args.out, args.models)


def measure_all(out: Path, models: Path) -> dict[str, Any]:
    """Figures of the model card for each exported form, as `<out>/measure-<form>.json`."""
    from harness.embedded import measure

    done = {}
    for form in ("llava", "llava-next"):
        if (models / form / "config.json").exists():
            report = measure.measure(models / form)
            (out / f"measure-{form}.json").write_text(json.dumps(report, indent=1))
            done[form] = report["none"]
    return done


def export_all(out: Path, models: Path) -> dict[str, Any]:
    """Write every form whose stage has run; the newest finished stage wins."""
    from harness.embedded import common, export, joint

    sizes = {}
    for name in ("joint", "language"):
        if (out / f"{name}.pt").exists():
            tower, _, speaker = joint.load_parts(out, "cpu", name)
            sizes["llava"] = export.save_model(models / "llava", tower, speaker)
            break
    if (out / "anyres.pt").exists():
        tower, _, speaker = joint.load_parts(out, "cpu", "anyres")
        newline = common.load_state(out / "anyres.pt")["newline"]
        sizes["llava-next"] = export.save_model(models / "llava-next", tower, speaker, newline)
    return {"bytes": sizes}
