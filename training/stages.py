"""Name -> stage, with the options of the command line."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtprune.training.common import Budget, Run


def _budget(default: Budget, args: argparse.Namespace) -> Budget:
    return replace(default, steps=args.steps) if args.steps else default


def run(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one stage; returns what its gates measured."""
    from vtprune.training import align, anyres, joint, language, tower

    how = Run(args.device, args.resume, bf16=not args.fp32, compiled=args.compile)
    trainers = {
        "tower": (tower.train_tower, tower.BUDGET),
        "align": (align.run_align, align.BUDGET),
        "language": (language.train_language, language.BUDGET),
        "joint": (joint.train_joint, joint.BUDGET),
        "anyres": (anyres.train_anyres, anyres.BUDGET),
    }
    if stage in trainers:
        train, budget = trainers[stage]
        return train(args.out, args.seed, how, _budget(budget, args))
    return (measure_all if stage == "measure" else export_all)(args.out, args.models)


def measure_all(out: Path, models: Path) -> dict[str, Any]:
    """Figures of the model card for each exported form, as `<out>/measure-<form>.json`."""
    from vtprune.training import measure

    done = {}
    for form in ("llava", "llava-next"):
        if (models / form / "config.json").exists():
            report = measure.measure(models / form)
            (out / f"measure-{form}.json").write_text(
                json.dumps(report, indent=1), encoding="utf-8"
            )
            done[form] = report["none"]
    return done


def export_all(out: Path, models: Path) -> dict[str, Any]:
    """Write every form whose stage has run; the newest finished stage wins."""
    from vtprune.training import common, export, joint

    sizes = {}
    for name in ("joint", "language"):
        if (out / f"{name}.pt").exists():
            tower, _, speaker = joint.load_parts(out, "cpu", name)
            sizes["llava"] = export.save_model(models / "llava", tower, speaker)
            break
    if (out / "anyres.pt").exists():
        tower, _, speaker = joint.load_parts(out, "cpu", "anyres")
        newline = common.load_state(out / "anyres.pt")["newline"]["weight"]
        sizes["llava-next"] = export.save_model(models / "llava-next", tower, speaker, newline)
    return {"bytes": sizes}
