"""Our reader of conf/ makes the same of any set of files as Hydra's own ``compose``.

A user's folder is drawn at random: files of every group that inherit from ours and from each other,
with ``_self_`` anywhere, nested groups, packages, overrides, null and ??? and lists in the way.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vtprune import places
from vtprune.harness.reporting.tables import command
from vtprune.harness.request import check, defaults, known
from vtprune.harness.request import compose as cells
from vtprune.harness.request import resolvers as _resolvers  # noqa: F401
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.files import VARIABLE

DRAWS, BLOCKS = 12, 3
GROUPS = ("bench", "model", "method", "engine", "data", "timing", "logger")
OURS = known.groups()
VALUES = (0, 7, 0.25, 1e-3, True, None, "text", "null", "???", [], [1, 2], ["a"], {}, {"new": 1},
          {"deep": {"er": [0]}}, "2024-01-01", "1e-3")  # fmt: skip


def write(folder: Path, name: str, content: Any, header: str = "") -> None:
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False)
    file.write_text(f"# @package {header}\n{text}" if header else text, encoding="utf-8")


def nested(rng: random.Random, tree: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """Some entries of ``tree`` with other values, and some that it does not have."""
    made: dict[str, Any] = {}
    for key in rng.sample(list(tree), min(len(tree), rng.randint(0, 3))):
        inner = tree[key]
        deeper = isinstance(inner, dict) and rng.random() < 0.8
        made[key] = nested(rng, inner, depth + 1) if deeper else rng.choice(VALUES)
    if rng.random() < 0.4:
        made[rng.choice(("extra", "limit", "name"))] = rng.choice(VALUES)
    return made


def with_self(rng: random.Random, entries: list[Any]) -> list[Any]:
    """A defaults list with ``_self_`` first, last, between, or not at all."""
    if rng.random() < 0.7:
        entries.insert(rng.randint(0, len(entries)), "_self_")
    return entries


def draw_group(rng: random.Random, folder: Path, group: str, bases: list[str]) -> None:
    """Files u1, u2, u3 of a group: each inherits from ours or from the one before."""
    write(folder, f"{group}/part/small", {"size": 1, "name": "small", "of": {"a": 1}})
    header = rng.choice(("", "_global_.p"))
    write(folder, f"{group}/part/big", {"size": 2, "of": {"b": [1]}}, header)
    for number in (1, 2, 3):
        base = rng.choice(bases) if number == 1 else f"u{number - 1}"
        tree = known.entries(group, bases[0]) or {}
        entries: list[Any] = [rng.choice((base, base, f"/{group}/{base}@_here_"))]
        if rng.random() < 0.4:
            entries.append(rng.choice(bases))
        if rng.random() < 0.25:
            entries.append({"part": rng.choice(("small", "big", None))})
        if rng.random() < 0.2:
            entries.append({"optional part@else": rng.choice(("small", "nowhere"))})
        if rng.random() < 0.2:
            entries.append({"part@several": ["small", "big"]})
        if group != "data" and rng.random() < 0.15:
            entries.append({"optional /data@_global_.copied": "${data}"})
        with_self(rng, entries)
        if rng.random() < 0.1:
            entries.append({"override part": "big"})
        header = rng.choice(("", "", "", "", group, f"{group}.inner", "_global_"))
        write(folder, f"{group}/u{number}", {"defaults": entries, **nested(rng, tree)}, header)


def draw_experiment(rng: random.Random, folder: Path, choices: dict[str, list[str]]) -> None:
    for number in (1, 2):
        entries: list[Any] = ["u1"] if number == 2 else []
        if rng.random() < 0.3:
            entries.append({"/timing@faster": "default"})
        with_self(rng, entries)
        for group in rng.sample(GROUPS, rng.randint(0, 4)):
            entries.append({f"override /{group}": rng.choice(choices[group])})
        if rng.random() < 0.3:
            entries.append({"override /hydra/launcher": "joblib"})
        content: dict[str, Any] = {"defaults": entries, "seed": number}
        for group in ("bench", "model"):
            content[group] = nested(rng, known.entries(group, choices[group][0]) or {})
        write(folder, f"experiment/u{number}", content, rng.choice(("_global_", "_global_", "")))


def draw(seed: int, folder: Path) -> dict[str, list[str]]:
    """A user's folder; the choices that every group then has."""
    rng = random.Random(seed)
    choices = {group: [*OURS[group], "u1", "u2", "u3"] for group in GROUPS}
    choices["method"].remove("custom")  # it waits for a class
    with known.searching(folder):
        for group in GROUPS:
            draw_group(rng, folder, group, [c for c in choices[group] if not c.startswith("u")])
        draw_group(rng, folder, "table", known.choices("table")[:3])
        draw_experiment(rng, folder, choices)
    return choices


def hydra(folder: Path, name: str | None, overrides: list[str]) -> dict[Any, Any] | None:
    """What Hydra composes as plain data, references as they stand; None: it refuses."""
    path = f"hydra.searchpath=[file://{folder}]"
    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        try:
            found = OmegaConf.to_container(compose(name, [path, *overrides]), resolve=False)
        except (HydraException, OmegaConfBaseException, ValueError):
            return None
    assert isinstance(found, dict)
    return found


def ours(folder: Path, name: str, chosen: dict[str, str | None]) -> dict[Any, Any] | None:
    try:
        with known.searching(folder):
            return defaults.compose(name, chosen).config
    except ConfigError:
        return None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("block", range(BLOCKS))
def test_any_choice_of_files_composes_as_in_hydra(block, tmp_path):
    made = 0
    for seed in range(block * DRAWS, (block + 1) * DRAWS):
        folder = tmp_path / str(seed)
        choices, rng = draw(seed, folder), random.Random(seed + 1000)
        chosen = {g: rng.choice(choices[g][-4:]) for g in rng.sample(GROUPS, rng.randint(0, 3))}
        if rng.random() < 0.6:
            chosen["experiment"] = rng.choice(("u1", "u2"))
        found = ours(folder, "config", chosen)
        assert found == hydra(folder, "config", [f"{k}={v}" for k, v in chosen.items()]), folder
        made += found is not None
    assert made >= DRAWS // 4


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("group", ["bench", "model", "method", "table", "experiment"])
def test_one_file_of_a_group_reads_as_in_hydra(group, tmp_path):
    made = 0
    for seed in range(DRAWS):
        folder = tmp_path / str(seed)
        draw(seed, folder)
        choice = f"u{1 + seed % 2}"
        found = ours(folder, f"{group}/{choice}", {})
        assert found == hydra(folder, None, [f"+{group}={choice}"]), folder
        made += found is not None
    assert made >= DRAWS // 8


#: what a table's settings and rows say, and the same as words of a command line
SETTINGS = {
    "decoding.max_new_tokens": (8, "8"), "ratio": (0.5, "0.5"), "bench.limit": (None, "null"),
    "bench.indices": ([0, 5], "[0,5]"), "budget": ({"flops": 0.5}, "{flops:0.5}"),
    "model.prompt": ({"system": "S"}, "{system:S}"), "seed": (3, "3"),
}  # fmt: skip


def test_options_of_a_cell_are_set_as_on_the_command_line(tmp_path):
    for seed in range(DRAWS):
        rng = random.Random(seed)
        names = rng.sample(sorted(SETTINGS), 3)
        groups = {"method": rng.choice(("gprune", "fastv")), "bench": rng.choice(OURS["bench"])}
        made = cells.compose({**groups, **{name: SETTINGS[name][0] for name in names}})
        words = [f"{key}={value}" for key, value in groups.items()]
        wanted = hydra(tmp_path, "config", [*words, *(f"{n}={SETTINGS[n][1]}" for n in names)])
        assert wanted is not None and wanted.pop("paths")
        assert made == wanted


TEXTS = {"defaults": ["textvqa", "_self_"], "name": "mytext",
         "engines": {"lmms_eval": {"prompt_options": {"ocr": True}}}}  # fmt: skip


def test_a_bench_that_inherits_keeps_the_engines_it_does_not_name(tmp_path):
    write(tmp_path, "bench/mytext", TEXTS)
    with known.searching(tmp_path):
        assert "engines.vlmevalkit.task" in known.flatten(known.entries("bench", "mytext") or {})
        config = cells.compose({"bench": "mytext", "method": "gprune", "ratio": 0.5})
        check.check_keys(config, {**known.defaults(), "bench": "mytext", "method": "gprune"})
        asked = cells.asked(config)
    assert asked["bench"]["task"] == "textvqa_val"
    assert asked["bench"]["prompt_options"] == {"ocr": True}


def test_a_users_table_is_planned_with_a_command_that_fills_it(tmp_path):
    write(tmp_path, "bench/mytext", TEXTS)
    write(tmp_path, "table/mine", {"defaults": ["mini_table2", "_self_"], "columns": ["mytext"]})
    with known.searching(tmp_path):
        assert command.parse(["table=mini_table2", "plan"]).filled_by == "table=mini_table2"
        planned = command.parse(["table=mine", "plan"])
        assert {cell.bench for cell in planned.table.cells()} == {"mytext"}
    assert planned.filled_by == "table=mine"


def test_a_reference_in_a_users_file_means_what_hydra_makes_of_it(tmp_path):
    write(tmp_path, "bench/mine", {"defaults": ["gqa"], "name": "mine", "limit": "${seed}"})
    with known.searching(tmp_path):
        assert cells.compose({"bench": "mine", "seed": 7})["bench"]["limit"] == 7


def test_a_defaults_list_in_a_circle_is_refused_in_one_line(tmp_path):
    write(tmp_path, "bench/one", {"defaults": ["two"]})
    write(tmp_path, "bench/two", {"defaults": ["one"]})
    with known.searching(tmp_path), pytest.raises(ConfigError, match="leads back to itself"):
        known.entries("bench", "one")


def test_the_folder_of_a_user_reaches_the_processes_of_a_sweep(tmp_path):
    with known.searching(tmp_path):
        assert known.folders() == [places.CONF, tmp_path]
        assert places.environment()[VARIABLE] == str(tmp_path)
    assert known.folders() == [places.CONF] and VARIABLE not in places.environment()
