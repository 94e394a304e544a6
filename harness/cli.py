"""The command line: Hydra composes, we check and run; every user error is one line on stderr."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vtprune import commands, places
from vtprune.harness.cell import tasks
from vtprune.harness.request import arguments as given
from vtprune.harness.request import explain, resolvers, several, words  # noqa: F401
from vtprune.harness.request.errors import ConfigError, HarnessError, one_line
from vtprune.models.errors import ModelLoadError, PruningUnsupported

_failed: list[Exception] = []  # of a single run, on its way past Hydra
# Our launchers bear the names Hydra and submitit gave theirs: that is meant.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python run.py <argv>``; the return value is the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = any(a.lower() in ("debug=true", "debug=1") for a in arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us the exception instead of printing it
    _failed.clear()
    SweepStart.folder = None
    try:
        arguments = words.of_a_table(words.own_bench(words.own_method(arguments)))
        _hydra_main(several.arguments(arguments))
        if _failed:
            raise _failed.pop()
        return _report()
    except KeyboardInterrupt:
        print("interrupted: the same command continues at the next sample", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        text, status = _describe(error, arguments)
        print(f"error: {text}", file=sys.stderr)
        return status


def _describe(error: Exception, arguments: Sequence[str]) -> tuple[str, int]:
    if isinstance(error, HarnessError):
        return one_line(error), error.exit_code
    if isinstance(error, (PruningUnsupported, ModelLoadError)):
        return str(error), ConfigError.exit_code
    text = explain.explain(error, arguments)
    if text is not None:
        return text, ConfigError.exit_code
    return f"{one_line(error)} (debug=true shows where)", HarnessError.exit_code


def _hydra_main(arguments: Sequence[str]) -> None:
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    main = hydra.main(config_path=str(places.CONF), config_name="config", version_base="1.3")(_job)
    try:
        if {"-h", "--help"} & set(arguments):
            _help(main)
        else:
            main()
    finally:
        sys.argv = before


def _help(main: Callable[[], None]) -> None:
    """Hydra's help with our other commands, as they can be typed here."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            main()  # raises SystemExit
    finally:
        told = text.getvalue().replace("$COMMANDS", commands.listing())
        print(places.typed(told), end="", flush=True)


def _job(cfg: DictConfig) -> None:
    """A single run. The jobs of a multirun are run by our launchers, see ``harness.sweep``."""
    try:
        _all(cfg, several.parts(cfg))
    except Exception as error:  # Hydra would print a line of its own; main() explains it
        _failed.append(error)


def _all(cfg: DictConfig, parts: Sequence[several.Part]) -> None:
    """Run the benchmarks of a single run; one that fails does not keep the others from running."""
    results, failed = [], []
    for part in parts:
        if len(parts) > 1:
            print(f"bench={part.bench}", flush=True)
        try:
            results.append(tasks.run_part(part, sweep=False))
        except Exception as error:
            if len(parts) == 1:
                raise
            reason, _ = _describe(error, sys.argv[1:])
            print(f"error: bench={part.bench}: {reason}", file=sys.stderr, flush=True)
            failed.append(part.bench)
    done = [result for result in results if result is not None]
    if cfg.task in ("cell", "score") and done:
        _show(done)
    if failed:
        raise HarnessError(f"{len(failed)} of {len(parts)} benchmarks failed: {', '.join(failed)}")


def submit(arguments: Sequence[str]) -> int:
    """Submit a sweep to SLURM and return; ask later, from any node, how it does.

        python scripts/submit.py method=gprune,fastv ratio=0.5,0.9 hydra.launcher.partition=gpu
        python scripts/submit.py experiment=gprune_table1 hydra.launcher.gpus_per_node=1
        python scripts/submit.py --status [FOLDER]       # the newest sweep, or the one in FOLDER

    All options of `python run.py -m` work. Exit status of --status: 0 all done, 1 some failed, 3
    not finished.
    """
    parser = given.parser("submit", inspect.getdoc(submit))
    parser.add_argument("--status", nargs="?", const="", metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=places.RESULTS)
    parser.add_argument("overrides", nargs="*", help="as for a sweep")
    options = parser.parse_args(arguments)
    if options.status is None:
        return main(["-m", "hydra/launcher=slurm_array", *options.overrides])
    from vtprune.harness.sweep import status

    return status.show(Path(options.status) if options.status else status.newest(options.results))


def _show(results: Sequence[dict[str, Any]]) -> None:
    from vtprune.harness.reporting.tables import frame, retained

    cells = frame.frame(frame.row(result) for result in results)
    print("\n" + frame.text(cells))
    for line in [*frame.notes(cells), *retained.summary(results), *_gate_lines(results)]:
        print(line)
    if len(results) == 1:
        print(f"results: {_shown_path(results[0]['directory'])}")
    store = Path(results[0]["directory"]).parents[3]
    where = "" if store == places.RESULTS else f" --results {_shown_path(str(store))}"
    print(f"all cells so far: {places.command('tables')}{where}", flush=True)


def _gate_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """Measured beside published, for every unpruned cell that was just run."""
    from vtprune.harness.reporting.tables import gate

    lines = []
    for result in filter(gate.is_baseline, results):
        first, *rest = gate.judge(result).lines()
        lines += [f"{result['bench']} {first}", *rest]
    return lines


def _shown_path(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


class SweepStart(Callback):
    """Hydra callback: a multirun begins, and its outcomes will lie in this folder."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SweepStart.folder = Path(config.hydra.sweep.dir)


def _report() -> int:
    """Show what a multirun did; 0 if every job went well. Nothing after a single run."""
    folder, SweepStart.folder = SweepStart.folder, None
    if folder is None:
        return 0
    from vtprune.harness.sweep.report import report

    return report(folder, _show)


if __name__ == "__main__":  # Hydra finds SweepStart in the module of this name, not in this one
    sys.exit(commands.main())
