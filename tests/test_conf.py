"""Every config composes, and says the same as the code it configures."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vtprune import methods, places
from vtprune.harness.request import check, known, resolvers  # noqa: F401
from vtprune.methods.options import declared

CONF = places.CONF
GROUPS = known.groups()
CHOICES = [(group, choice) for group in GROUPS for choice in GROUPS[group] if group != "local"]
TOP_LEVEL = {"ratio", "seed"}  # fields of every method that are options of their own


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_config_composes_and_holds_known_keys_only(group, choice):
    overrides = [f"{group}={choice}"]
    if (group, choice) == ("method", "custom"):
        overrides.append("method._target_=a.B")
    config = composed(*overrides)
    valid = known.keys({**known.defaults(), group: choice})
    if group != "experiment":
        assert check.unknown_keys(config, valid) == []


def test_every_method_has_a_config_and_every_config_a_method():
    assert sorted(set(GROUPS["method"]) - {"custom"}) == methods.available()


@pytest.mark.parametrize("name", methods.available())
def test_a_methods_config_equals_its_dataclass(name):
    entry = known.entries("method", name)
    fields = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(methods.get(name))
    }
    extra = {option for option, one in declared(methods.get(name)).items() if one.extra}
    expected = {k: v for k, v in fields.items() if k not in TOP_LEVEL | extra}
    assert entry.pop("name") == name
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in expected.items()}
    assert entry == plain


@pytest.mark.parametrize("name", GROUPS["bench"])
def test_a_bench_config_is_complete(name):
    entry = known.entries("bench", name)
    assert entry["name"] == name
    wanted = {"label", "limit", "indices", "metric", "scale", "unit", "higher_is_better", "prompt"}
    assert wanted <= set(entry)
    for engine in entry["engines"].values():
        assert {"task", "dataset", "split"} <= set(engine)


@pytest.mark.parametrize("name", GROUPS["model"])
def test_a_model_config_has_the_same_keys_as_all_others(name):
    first = known.entries("model", "embedded")
    entry = known.entries("model", name)
    assert set(entry) == set(first)
    assert entry["path"] or entry["hub"]


def test_the_demo_compares_three_methods():
    entry = yaml.safe_load((CONF / "experiment" / "demo.yaml").read_text(encoding="utf-8"))
    assert entry["hydra"]["sweeper"]["params"]["method"] == "none,random,gprune"


def test_options_that_no_file_lists_are_known_before_torch_is():
    declares = {name: declared(methods.get(name)) for name in methods.available()}
    unlisted = {
        name: tuple(option for option, one in options.items() if one.extra)
        for name, options in declares.items()
    }
    assert {name: found for name, found in unlisted.items() if found} == known.UNLISTED


def test_labels_count_from_as_many_tokens_before_torch_as_behind_it():
    assert check.LABELLED_TOKENS == methods.LABELLED_TOKENS
