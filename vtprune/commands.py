"""The command ``vtprune`` and its verbs: which module answers what. Nothing heavy is imported."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vtprune import places


@dataclass(frozen=True)
class Command:
    """A verb: the function that takes its arguments and returns the exit status, and what it does.

    Imported only when it is called, so that a table needs no torch and no Hydra.
    """

    function: str
    does: str

    def __call__(self, arguments: Sequence[str]) -> int:
        module, _, name = self.function.rpartition(".")
        return getattr(import_module(f"vtprune.{module}"), name)(list(arguments))


RUN = Command("harness.cli.main", "one cell, or with -m a sweep")
COMMANDS = {
    "tables": Command("harness.reporting.tables.command.main", "every cell so far; tables"),
    "report": Command("harness.reporting.report.command.main", "a table as one HTML page"),
    "figures": Command("harness.reporting.figures.command.main", "figures of a table"),
    "costs": Command("harness.reporting.figures.cost.main", "figures of compute and speed"),
    "submit": Command("harness.cli.submit", "a sweep to SLURM; how it does"),
    "prefetch": Command("harness.evaluation.prefetch_command.main", "model and data, for later"),
    "sync": Command("harness.reporting.tracker.sync.main", "finished cells to W&B"),
    "dashboard": Command("harness.reporting.tracker.dashboard_command.main", "W&B panels as code"),
    "agreement": Command("harness.evaluation.agreement_command.main", "do both engines agree?"),
    "methods": Command("harness.reporting.method_files.main", "methods and their options"),
    "gallery": Command("harness.reporting.gallery.main", "the page of all methods"),
    "reference": Command("harness.reporting.tables.reference.main", "figures the gate compares"),
    "train": Command("training.command.main", "the small model, from a seed"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """``vtprune [VERB] <argv>``; the return value is the exit status. No verb: a run."""
    from vtprune.harness.request import files, terminal
    from vtprune.harness.request.errors import HarnessError, one_line

    terminal.show_what_can_be_shown()
    arguments = list(sys.argv[1:] if argv is None else argv)
    places.also_from_here()
    try:
        arguments, folders = _with_folders(arguments)
        word = arguments[0] if arguments else ""
        if word not in COMMANDS and word.isidentifier():
            raise _no_command(word)
        _note_hidden(folders, arguments)
        with files.searching(*folders):
            status = COMMANDS[word](arguments[1:]) if word in COMMANDS else RUN(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `... | head -1`: whoever read has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except HarnessError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_code


def _no_command(word: str) -> Exception:
    from vtprune.harness.request.errors import did_you_mean

    if near := did_you_mean(word, list(COMMANDS)):
        return _config_error(f"unknown command '{word}'{near}")
    return _config_error(
        f"cannot read '{word}': expected key=value, e.g. method=gprune, or a command "
        f"({', '.join(COMMANDS)})"
    )


def listing() -> str:
    """The verbs as lines of the help."""
    typed = {name: places.command(name) for name in COMMANDS}
    width = max(map(len, typed.values()))
    return "\n".join(f"  {typed[n]:<{width}}  {c.does}" for n, c in COMMANDS.items())


def _with_folders(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The arguments without the config folders they name, and the user's config folders.

    These are ``--config-dir DIR`` (Hydra's spelling, here of every command) and ``conf/`` in the
    working directory, unless that is the checkout. Ours is searched before them.
    """
    left, folders = [], []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in ("--config-dir", "-cd"):
            left.append(argument)
            continue
        given = value if equals else next(rest, "")
        if not given or not Path(given).is_dir():
            raise _config_error(f"{name} '{given}': no such folder")
        folders.append(Path(given).resolve())
    own = Path.cwd() / "conf"
    if own.is_dir() and own.resolve() != places.CONF:
        folders.append(own)
    return left, folders


def _note_hidden(folders: Sequence[Path], arguments: Sequence[str]) -> None:
    """Say which file of the user's, chosen here, is not read because ours has its name."""
    for argument in arguments:
        group, _, choice = argument.partition("=")
        name = Path(group) / f"{choice}.yaml"
        if "/" in choice or not (places.CONF / name).is_file():
            continue
        for folder in folders:
            if (folder / name).is_file():
                print(f"note: {folder / name} is not read: the shipped {group}={choice} comes "
                      "first; give yours another name", file=sys.stderr)  # fmt: skip


def _config_error(text: str) -> Exception:
    from vtprune.harness.request.errors import ConfigError

    return ConfigError(text)
