"""The versions of constraints.txt: compared with what is installed, or written from it.

`python -m tests.constraints` says what is installed and not pinned, or in another version;
`--write` renews the block below the line "# what these need in turn" and leaves the rest alone.
Whatever the project reaches through the requirements of its requirements is pinned, because a
release of a package nobody here imports has stopped the engines before.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).resolve().parents[1] / "constraints.txt"
PROJECT = "visual-token-pruning"
MARK = "# What these need in turn, written by python -m tests.constraints --write."


def reached(name: str = PROJECT, extras: frozenset[str] = frozenset({"test"})) -> dict[str, str]:
    """Name -> version of every installed distribution that `name[extras]` needs."""
    seen: dict[tuple[str, frozenset[str]], None] = {}
    waiting = [(canonicalize_name(name), extras)]
    found: dict[str, str] = {}
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen[one] = None
        try:
            distribution = metadata.distribution(one[0])
        except metadata.PackageNotFoundError:
            continue  # of another platform, or optional
        found[one[0]] = distribution.version
        waiting += _needs(distribution, one[1])
    found.pop(canonicalize_name(name), None)
    return found


def _needs(
    distribution: metadata.Distribution, extras: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    for line in distribution.requires or ():
        need = Requirement(line)
        if need.marker is None or any(
            need.marker.evaluate({"extra": extra}) for extra in extras | {""}
        ):
            yield canonicalize_name(need.name), frozenset(need.extras)


def pinned(text: str) -> dict[str, str]:
    """Name -> version of the lines `name==version`."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", text, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def differences(text: str) -> list[str]:
    """What is installed and not pinned, or pinned in another version; a line each."""
    have, said = reached(), pinned(text)
    return [
        f"{name}: installed {version}, pinned {said.get(name, 'nowhere')}"
        for name, version in sorted(have.items())
        if said.get(name) != version
    ]


def renewed(text: str) -> str:
    """The text with the block below MARK made from what is installed."""
    head = text.split(MARK)[0].rstrip() + "\n"
    rest = {name: one for name, one in reached().items() if name not in pinned(head)}
    return head + MARK + "\n" + "".join(f"{name}=={rest[name]}\n" for name in sorted(rest))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="renew the second block of the file")
    if parser.parse_args(arguments).write:
        FILE.write_text(renewed(FILE.read_text(encoding="utf-8")), encoding="utf-8")
    found = differences(FILE.read_text(encoding="utf-8"))
    print("\n".join(found) or f"{len(reached())} distributions, all pinned as installed")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
