"""The argument parser of a command, with its help as it can be typed here."""

from __future__ import annotations

import argparse

from vtprune import places


def parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """A parser for the command ``name``, whose help is the docstring of its module."""
    return argparse.ArgumentParser(
        prog=places.command(name),
        description=places.typed(text or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def wants_help(arguments: list[str], text: str | None) -> bool:
    """Print the help of a command that takes ``key=value`` if it is asked for, or nothing is."""
    if arguments and not {"-h", "--help"} & set(arguments):
        return False
    print(places.typed(text or "").strip())
    return True
