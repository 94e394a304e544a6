"""The registry of signals: what there is, what is refused, what another package may add."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from tests import tiny
from vtprune import methods, places
from vtprune.harness.cell.sharing import VisionCache
from vtprune.models import prune, signals
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import adapter, family_of
from vtprune.models.signals import registry
from vtprune.models.supported import SUPPORTED_MODEL_TYPES


@dataclass(frozen=True, kw_only=True)
class Reader(methods.TokenMethod):
    """Keeps what a spy saw of one signal."""

    reads: str = "vision_features"
    seen: tuple = ()

    @property
    def needs(self):
        return (self.reads,)

    def score(self, view):
        self.seen[0].append(view.signal(self.reads))
        return view.features.norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class LayerReader(methods.LayerMethod):
    reads: str = "hidden"
    seen: tuple = ()

    @property
    def needs(self):
        return (self.reads,)

    def schedule(self, n_layers, n_visual):
        return (n_visual,) * 2 + (n_visual // 2,) * (n_layers - 2)

    def score(self, given):
        self.seen[0].append(given.signal(self.reads))
        return torch.arange(len(given.alive), dtype=torch.float32)


def read(family: str, name: str, reader=Reader, **options):
    """What a method is given as the signal ``name``, view by view."""
    seen: list[torch.Tensor] = []
    with prune(tiny.model(family), reader(ratio=0.5, reads=name, seen=(seen,), **options)):
        with torch.no_grad():
            tiny.model(family)(**tiny.inputs(family, [tiny.prompt(family, 0)]))
    return seen


@pytest.fixture
def registered():
    before = dict(registry._SIGNALS)
    yield
    registry._SIGNALS.clear()
    registry._SIGNALS.update(before)


@pytest.mark.parametrize("reader", [Reader, LayerReader])
def test_an_unknown_signal_is_refused_before_the_model_runs_and_lists_what_there_is(reader):
    wrong, near = ("cls_atention", "cls_attention") if reader is Reader else ("keyz", "keys")
    with pytest.raises(PruningUnsupported) as caught:
        with prune(tiny.model("llava"), reader(ratio=0.5, reads=wrong, seen=([],))):
            raise AssertionError("the context opened")
    said = str(caught.value)
    assert f"did you mean '{near}'" in said and "\n" not in said
    assert all(name in said for name in ("last_row", "hidden")) == (reader is LayerReader)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cls_attention@3", "layers 0 to 2"),
        ("cls_attention@x", "the layer is a number"),
        ("vision_features@1", "not of one encoder layer"),
    ],
)
def test_a_layer_that_is_not_there_is_refused_naming_those_that_are(name, why):
    with pytest.raises(PruningUnsupported, match=why):
        read("llava", name)


def test_a_layer_of_the_language_model_is_refused_naming_what_is_read():
    with pytest.raises(PruningUnsupported, match="ask for 'last_row'"):
        read("llava", "last_row@2", LayerReader)


@pytest.mark.parametrize("name", ["cls_attention", "cls_attention@1", "last_attention"])
def test_signals_of_a_cls_token_are_refused_where_the_tower_has_none(name):
    with pytest.raises(PruningUnsupported, match="CLS token"):
        read("qwen2_vl", name)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_signal_a_family_offers_is_given_when_it_is_asked_for(family):
    told = {"fg_mask": "annotation", "merge_slots": "merging"}
    offered = family_of(tiny.model(family)).offers
    assert offered >= {"vision_features", "tile_features", "received_attention", "vision_keys"}
    for name in sorted(offered - set(told)):
        seen = read(family, name)
        assert seen and all(len(one) > 1 and torch.isfinite(one).all() for one in seen), name


def test_a_package_from_outside_registers_a_signal_and_a_method_reads_it_at_any_layer(registered):
    @signals.encoder("value_norm", hears="attention")
    def value_norm(heard):
        """``[B, n]`` length of every patch's value, mean over heads."""
        return heard.v.norm(dim=-1).mean(1)

    @signals.language("key_norm", hears="attention")
    def key_norm(row):
        """``[V]`` length of the keys, mean over heads."""
        return row.tap.k[:, row.mine].norm(dim=-1).mean(0)

    for family in tiny.FAMILIES:
        (here,), (values,) = read(family, "value_norm")[:1], read(family, "vision_values")[:1]
        merge = 4 if family in tiny.M_ROPE else 1
        if merge == 1 and family != "llava_onevision":  # those average over patches
            assert torch.allclose(here, values.norm(dim=-1).mean(1), atol=1e-5)
        assert not torch.equal(here, read(family, "value_norm@0")[0])
        (keys,), (norms,) = (read(family, name, LayerReader) for name in ("keys", "key_norm"))
        assert torch.allclose(norms, keys.norm(dim=-1).mean(1), atol=1e-5)
    assert signals.available("encoder")["value_norm"].about.startswith("``[B, n]`` length")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_remembered_encoder_call_gives_the_same_signals(family):
    """Also those heard at a layer that the call before did not read."""
    cache, model = VisionCache(10**8), tiny.model(family)
    feed = tiny.inputs(family, [tiny.prompt(family, 0)])
    names = ("received_attention@0", "encoder_states@0", "vision_values", "vision_features")
    for name in names * 2:
        seen: list[torch.Tensor] = []
        with prune(model, Reader(ratio=0.5, reads=name, seen=(seen,))) as run, torch.no_grad():
            run.shared = cache
            model(**feed)
        for mine, alone in zip(seen, read(family, name), strict=True):
            assert torch.equal(mine, alone), name
    assert (cache.misses, cache.hits) == (4, 4)


def test_a_name_that_is_taken_and_a_source_that_is_not_there_are_refused(registered):
    with pytest.raises(ValueError, match="registered already, by vtprune"):
        signals.encoder("cls_attention", hears="attention")(lambda heard: heard.q)
    with pytest.raises(ValueError, match="there is attention, states, entry"):
        signals.language("mine", hears="attentions")
    with pytest.raises(ValueError, match="plain word"):
        signals.encoder("mine@9", hears="attention")


def test_a_recipe_that_loses_the_patches_is_told_so_in_one_line(registered):
    signals.encoder("folded", hears="attention")(lambda heard: heard.k.flatten(1, 2))
    with pytest.raises(methods.MethodError, match=r"'folded'.*expected \(1, 65, \.\.\.\)"):
        read("llava", "folded")


def test_a_family_is_one_file_and_one_line_of_a_list():
    assert set(SUPPORTED_MODEL_TYPES) == set(tiny.FAMILIES)
    for kind in SUPPORTED_MODEL_TYPES:
        family = adapter(kind)
        assert family is type(family_of(tiny.model(kind)))
        assert "images" not in vars(family), "the beginning of `images` is one, in the base"


def test_the_list_of_families_needs_no_torch():
    code = "import sys, vtprune.models.supported; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_documentation_names_every_signal():
    text = (places.ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    for side in ("encoder", "language"):
        assert not [name for name in signals.available(side) if f"`{name}`" not in text]
