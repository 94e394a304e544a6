"""Fetch what cells need, where there is a network, for nodes without one.

    python scripts/prefetch.py model=llava15_7b bench=textvqa
    python scripts/prefetch.py model=llava_next_8b 'bench=[gqa,mme,pope,textvqa]'
    python scripts/prefetch.py model=llava15_7b bench=gqa data.root=/scratch/datasets
    python scripts/prefetch.py model=llava15_7b bench=mme engine=vlmevalkit

Takes the arguments of run.py; data=hub is understood.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vtprune import places
from vtprune.harness.evaluation import prefetch
from vtprune.harness.request import explain, several, words
from vtprune.harness.request.arguments import wants_help
from vtprune.harness.request.errors import ConfigError, HarnessError, one_line
from vtprune.harness.request.request import Request


def main(arguments: Sequence[str]) -> int:
    """Fetch, and say what is there; errors in one line."""
    if wants_help(list(arguments), __doc__):
        return 0 if arguments else 2
    try:
        return _fetch(arguments)
    except HarnessError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        text = explain.explain(error, arguments)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        return ConfigError.exit_code


def _fetch(arguments: Sequence[str]) -> int:
    done: dict[tuple[str, str], int] = {}
    for request in requests(arguments):
        for item in prefetch.fetch(request):
            if (item.what, item.name) not in done:
                print(item.line(), flush=True)
                done[item.what, item.name] = item.size
    print(f"{len(done)} fetched or already there, {prefetch.human(sum(done.values()))} in all")
    return 0


def requests(arguments: Sequence[str]) -> list[Request]:
    """What the arguments of a run ask for, benchmark by benchmark."""
    from hydra import compose, initialize_config_dir

    given = several.arguments(words.own_bench(arguments))
    if not any(argument.startswith("data=") for argument in given):
        given.append("data=hub")
    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        first = compose("config", given)
        common = [a for a in given if not a.startswith(("bench=", "benches="))]
        names = first.get("benches") or [None]
        made = [compose("config", [*common, f"bench={n}"]) if n else first for n in names]
    return [Request(several.plain(cfg)) for cfg in made]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
