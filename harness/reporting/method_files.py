"""Methods and their options, as their classes declare them.

    python scripts/methods.py                 every method, a line each
    python scripts/methods.py gprune          its options: default, what they may be, what they do
    python scripts/methods.py my_pkg.my_file:MyPruner        the same of a class of yours
    python scripts/methods.py --write         makes conf/method, methods/declared.json and
                                              docs/options.md anew, after an option changed
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vtprune import places
from vtprune.harness.request import arguments as given
from vtprune.harness.request import method_options, own_class, words
from vtprune.harness.request.errors import ConfigError, unknown
from vtprune.methods.options import Declared

WIDTH = 100
COMMAND = "python scripts/methods.py --write"


def main(arguments: Sequence[str]) -> int:
    """Print what is there, or write the files that are made from the classes."""
    parser = given.parser("methods", __doc__)
    parser.add_argument("method", nargs="?", help="a name, or package.module:Class")
    parser.add_argument("--write", action="store_true", help="make the files anew")
    options = parser.parse_args(list(arguments))
    if options.write:
        for file in write():
            print(file)
    elif options.method:
        print("\n".join(_told(options.method)))
    else:
        width = max(map(len, method_options.names()))
        for name in method_options.names():
            print(f"{name:<{width}}  {method_options.about(name)['summary']}")
    return 0


def _told(name: str) -> list[str]:
    """The options of one method, a line each."""
    if words.is_target(name):
        from vtprune.methods.options import declared

        cls = own_class.locate(name)
        summary, options = _summary(cls), declared(cls)
    elif name in method_options.names():
        summary, options = method_options.about(name)["summary"], method_options.declared(name)
    else:
        raise ConfigError(unknown("method", name, method_options.names()))
    lines = [summary, ""]
    for one in options.values():
        lines.append(f"method.{one.name}={shown(one.default)}")
        lines += textwrap.wrap(f"{one.allowed}. {one.help}", 92, initial_indent="    ",
                               subsequent_indent="    ")  # fmt: skip
    return lines


def write() -> list[Path]:
    """Make every file anew; returns those that changed.

    Raises:
        ConfigError: this is an installed package, whose files are not ours to change.
    """
    if places.CHECKOUT is None:
        raise ConfigError("an installed package is not written to: work in a checkout")
    changed = []
    for name, text in files().items():
        file = places.CHECKOUT / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            changed.append(file)
    return changed


def files() -> dict[str, str]:
    """Content of all files that are made from the classes, by path in the checkout."""
    from vtprune import methods

    classes = {name: methods.get(name) for name in methods.available()}
    shipped = {n: c for n, c in classes.items() if c.__module__.startswith("vtprune.")}
    made = {f"conf/method/{name}.yaml": config_file(cls) for name, cls in shipped.items()}
    made[method_options.FILE] = _json(shipped)
    made["docs/options.md"] = page(shipped)
    return made


def config_file(cls: Any) -> str:
    """The file of ``conf/method`` for a class: every option with its default and its sentence."""
    from vtprune.methods.options import declared

    lines = textwrap.wrap(_summary(cls), WIDTH - 2)
    if cls.paper != "-":
        lines.append(f"Source: {cls.paper}.")
    lines = [f"# {line}" for line in lines]
    lines.append(f"name: {cls.name}")
    for one in declared(cls).values():
        if one.extra or one.name in ("ratio", "seed"):
            continue
        line = f"{one.name}: {shown(one.default)}"
        if len(line) + len(one.sentence) + 4 <= WIDTH:
            lines.append(f"{line}  # {one.sentence}")
        else:
            lines += [f"# {part}" for part in textwrap.wrap(one.sentence, WIDTH - 2)] + [line]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A default as YAML on one line."""
    text = yaml.safe_dump(own_class.plain(value), default_flow_style=True, width=1000)
    return text.removesuffix("\n...\n").strip()


def _summary(cls: Any) -> str:
    """Title and first sentence of a class."""
    first = (inspect.getdoc(cls) or "").partition("\n\n")[0]
    return f"{cls.title}: {' '.join(first.split())}"


def _json(classes: Mapping[str, Any]) -> str:
    from vtprune.methods.options import declared

    content = {
        name: {
            "title": cls.title, "paper": cls.paper, "summary": _summary(cls),
            "options": {
                option: own_class.plain(
                    {k: v for k, v in dataclasses.asdict(one).items() if k != "name"}
                )
                for option, one in declared(cls).items()
            },
        }
        for name, cls in classes.items()
    }  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def page(classes: Mapping[str, Any]) -> str:
    """docs/options.md: the options that many methods have, then each method's own."""
    from vtprune.methods.options import declared

    options = {name: declared(cls) for name, cls in classes.items()}
    shared = _shared(options.values())
    lines = [
        "# Options of the methods",
        "",
        f"Made from the classes by `{COMMAND}`; `python scripts/methods.py NAME` prints the same.",
        "On the command line `method.OPTION=VALUE`; `ratio` and `seed` stand without `method.`.",
        "",
        "## Options of many methods",
        "",
        *_table(shared.values(), default=False),
    ]
    for name, cls in classes.items():
        own = [one for one in options[name].values() if one.name not in shared]
        other = ", ".join(
            f"`{one.name}={shown(one.default)}`"
            for one in options[name].values()
            if one.name in shared and one.name not in ("ratio", "seed")
        )
        lines += ["", f"## {name}", "", _summary(cls), ""]
        lines += [*_table(own), ""] if own else []
        lines.append(f"Shared: {other}." if other else "No other option.")
    return "\n".join(lines).rstrip() + "\n"


def _shared(options: Iterable[Mapping[str, Declared]]) -> dict[str, Declared]:
    """Options that at least four methods have with one meaning."""
    seen: dict[str, list[Declared]] = {}
    for one in options:
        for option in one.values():
            seen.setdefault(option.name, []).append(option)
    return {
        name: found[0]
        for name, found in seen.items()
        if len(found) >= 4 and len({one.help for one in found}) == 1
    }


def _table(options: Iterable[Declared], default: bool = True) -> list[str]:
    head = ["option", *(["default"] if default else []), "may be", "what"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for one in options:
        cells = [f"`{one.name}`", *([f"`{shown(one.default)}`"] if default else [])]
        cells += [one.allowed, one.help]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
