"""Words of the command line that mean several of Hydra's: an own class, a table.

    method=my_pkg.my_file:MyPruner      the group entry that takes any class, and its options
    method=my_name                      the same for a name that an installed package registered
    bench=lmms_eval:TASK                any task of an engine, and vlmevalkit:DATASET
    table=NAME|PATH add=... controls=   the sweeper that works off a table
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vtprune.harness.request import fingerprint, known
from vtprune.harness.request.engine_tasks import NAMED
from vtprune.harness.request.errors import ConfigError

TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*|\.[A-Za-z_]\w*)")
_PLAIN = re.compile(r"[\w./:-]+")
#: of the sweeper of tables
_TABLE = ("table", "add", "controls")


#: a benchmark by its name in an engine
_OF_AN_ENGINE = re.compile(r"(lmms_eval|vlmevalkit):([^\s,]+)")


def of_an_engine(name: str) -> tuple[str, str] | None:
    """Engine and task of ``lmms_eval:TASK`` and ``vlmevalkit:DATASET``; None for other names."""
    found = _OF_AN_ENGINE.fullmatch(name)
    return None if found is None else (found[1], found[2])


def own_bench(arguments: Sequence[str]) -> list[str]:
    """A benchmark named by its engine as Hydra can take it."""
    made: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        named = of_an_engine(value) if key == "bench" else None
        if named is None:
            if key == "bench" and _OF_AN_ENGINE.search(value):
                raise ConfigError(
                    f"{argument}: a task of an engine stands alone; several are several runs, or "
                    "the columns of a table of yours"
                )
            made.append(argument)
            continue
        engine, task = named
        made += [f"bench={NAMED}", f"bench.engines.{engine}.task={quoted(task)}"]
        if not any(one.startswith("engine=") for one in arguments):
            made.append(f"engine={engine}")
    return made


def is_target(name: str) -> bool:
    """True for ``package.module:Class`` and ``package.module.Class``."""
    return TARGET.fullmatch(name) is not None and name not in known.choices("method")


def own_method(arguments: Sequence[str]) -> list[str]:
    """A method of one's own as Hydra can take it; its options need no plus."""
    given = [a.partition("=")[2] for a in arguments if a.startswith("method=")]
    chosen = given[-1] if given else None
    by_path = any(a.startswith("method._target_=") for a in arguments)
    found = [a for a in arguments if not a.startswith("method=")]
    if chosen is None and by_path:
        return ["method=custom", *map(_free_option, found)]
    for name in (chosen or "").split(",") if "," in (chosen or "") else ():
        if is_target(name):
            raise ConfigError(
                f"method={chosen}: a list takes names of conf/method; run {name} alone, or put it "
                f"into a table: table=mini_table1 add={name}"
            )
    if chosen is None or not (is_target(chosen) or _is_registered(chosen)):
        custom = chosen == "custom" or any(a.startswith("method.name=") for a in arguments)
        return [_free_option(a) if custom else a for a in arguments]
    named = f"method._target_={chosen}"
    if not is_target(chosen):
        named = "method._target_=null"
        found = [f"method.name={chosen}", *found]
    return ["method=custom", named, *map(_free_option, found)]


def _is_registered(name: str) -> bool:
    """True for a name that an installed package registered, and no file of conf/method has."""
    if not name.isidentifier() or name in known.choices("method"):
        return False
    return (place := fingerprint.named(name)) is not None and not place.shipped


def _free_option(argument: str) -> str:
    """``method.alpha=2`` as an option that no file of conf/ lists."""
    own = argument.startswith("method.") and not argument.startswith(
        ("method.name=", "method._target_=")
    )
    return f"++{argument}" if own else argument


def of_a_table(arguments: Sequence[str]) -> list[str]:
    """``table=`` and what goes with it, for the sweeper that works off a table.

    Raises:
        ConfigError: rows are to be added, and there is no table.
    """
    words = [a for a in arguments if a.partition("=")[0] in _TABLE and "=" in a]
    experiment = any(a.startswith("experiment=") for a in arguments)
    if not words:
        return list(arguments)
    if not experiment and not any(word.startswith("table=") for word in words):
        name = words[0].partition("=")[0]
        raise ConfigError(f"{name}= goes with a table: table=mini_table1 {words[0]}")
    made = [_of_the_sweeper(a) if a in words else a for a in arguments]
    if experiment:
        return made
    made.insert(arguments.index(words[0]), "hydra/sweeper=table")
    return made if {"-m", "--multirun"} & set(made) else ["-m", *made]


def _of_the_sweeper(word: str) -> str:
    name, _, value = word.partition("=")
    return f"hydra.sweeper.{name}={quoted(value)}"


def quoted(value: str) -> str:
    """A value as Hydra reads it back as one text."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = re.sub(r"(\\+)(?=')|(\\+)$", lambda m: m[0] * 2, value).replace("'", "\\'")
    return f"'{escaped}'"
