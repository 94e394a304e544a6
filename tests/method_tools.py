"""Every registered method with options that a family defines, as the generic tests build it."""

from __future__ import annotations

import importlib

import pytest

from tests import tiny
from vtprune import methods

CLS = {"cls_attention", "last_attention"}


def built(name: str, family: str, **changes: object) -> methods.PruningMethod:
    """The method with options that are defined for the family, documented substitutes included."""
    cls = methods.get(name)
    options = {**cls.example, **changes}
    one = methods.build(name, **options)
    if CLS & set(one.needs) and family not in tiny.WITH_CLS:
        if not cls.without_cls:
            pytest.skip(f"{name} needs a CLS token, which {family} does not have")
        options.update(cls.without_cls)
    if family in tiny.M_ROPE:
        options["positions"] = "original"
        if "merge_space" in one.options():
            options["merge_space"] = "llm"
    if getattr(one, "scope", "") == "per_tile" and family == "llava_onevision":
        options["scope"] = "per_view"
    return methods.build(name, **options)


def chosen(config: pytest.Config) -> list[str]:
    """Names of the methods given by ``--method``, registered if they are not; else all."""
    given = config.getoption("--method")
    return [_named(spec) for spec in given] if given else methods.available()


def _named(spec: str) -> str:
    if ":" not in spec:
        return methods.get(spec).name
    module, _, attribute = spec.partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    if cls.name == methods.PruningMethod.name:
        methods.register(attribute.lower())(cls)
    return cls.name
