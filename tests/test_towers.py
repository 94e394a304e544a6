"""Towers and projectors that are not the ordinary ones: read right, or refused in one line."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.method_tools import built
from vtprune import methods
from vtprune.models import prune
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import family_of
from vtprune.models.oracle import masked


def llava(vision: dict, **changes: object) -> nn.Module:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=vision, text_config=tiny.text_config(num_hidden_layers=1),
        image_token_index=tiny.IMAGE_TOKEN, **changes,
    )  # fmt: skip
    return LlavaForConditionalGeneration._from_config(config).eval()


def test_a_tower_whose_tokens_are_no_square_crop_is_refused_by_name():
    pixtral = {
        "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 4,
    }  # fmt: skip
    model = llava(pixtral, vision_feature_layer=-1, vision_feature_select_strategy="full")
    with pytest.raises(PruningUnsupported, match=r"'pixtral'.*clip_vision_model") as caught:
        with prune(model, "random", ratio=0.5):
            pass
    assert "\n" not in str(caught.value)


def test_a_patch_is_never_taken_for_a_cls_token():
    siglip = {**tiny.vision_config(), "model_type": "siglip_vision_model"}
    with pytest.raises(PruningUnsupported, match="is a patch of the picture"):
        family_of(llava(siglip, vision_feature_select_strategy="default"))
    adapter = family_of(llava(siglip, vision_feature_select_strategy="full"))
    assert not adapter.has_cls and "cls_attention" not in adapter.offers


def test_joined_feature_layers_are_refused():
    with pytest.raises(PruningUnsupported, match=r"\[-2, -1\] joins several encoder layers"):
        family_of(llava(tiny.vision_config(), vision_feature_layer=[-2, -1]))


def test_a_call_that_asks_for_another_feature_layer_than_the_config_is_refused():
    """Signals are heard at the layer of the config before the call is seen."""
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    with prune(model, "random", ratio=0.5), torch.no_grad():
        model(**feed, vision_feature_layer=model.config.vision_feature_layer)
    with pytest.raises(PruningUnsupported, match="vision_feature_layer=-1 in the call differs"):
        with prune(model, "random", ratio=0.5), torch.no_grad():
            model(**feed, vision_feature_layer=-1)


def test_a_grid_that_is_not_what_the_encoder_returned_is_refused():
    adapter, one = family_of(tiny.model("llava_next")), tiny.prompt("llava_next", 0)
    from vtprune.models.signals import VisionCapture

    feed = tiny.encoder_feed("llava_next", one.pixels, one.sizes)
    with pytest.raises(PruningUnsupported, match="the encoder returned 7 tokens, where its grid"):
        adapter.images("image", feed, [torch.zeros(7, 1)], VisionCapture())


class Quantised(nn.Module):
    """A linear layer whose weight is integers, as in 8-bit and 4-bit checkpoints."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.scale = inner.weight.abs().max().item() / 127
        whole = (inner.weight / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.bias = inner.bias

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise AssertionError("features were made whole numbers")
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("name", ["prumerge", "visionzip"])
@pytest.mark.parametrize("family", tiny.WITH_CLS)
def test_a_projector_of_whole_numbers_gets_features_of_the_encoders_dtype(family, name):
    model = copy.deepcopy(tiny.model(family))
    projector = model.model.multi_modal_projector
    projector.linear_1 = Quantised(projector.linear_1)
    projector.linear_2 = Quantised(projector.linear_2)
    feed = tiny.inputs(family, [tiny.prompt(family, i) for i in (0, 1)])
    with prune(model, built(name, family)) as run:
        out = tiny.generate(model, dict(feed), steps=3)
        records = run.take()
    assert all(record.rewrites for record in records), "nothing went through the projector again"
    with masked(model, records):
        reference = tiny.generate(model, dict(feed), steps=3)
    assert torch.equal(out.sequences, reference.sequences)
    for mine, theirs in zip(out.logits, reference.logits, strict=True):
        assert (mine - theirs).abs().max() <= 1e-4


# --- OneVision reads videos ---------------------------------------------------------------------

SIDE, FRAMES = tiny.CROP // tiny.PATCH, 3
POOLED = (SIDE // 2) ** 2


def video(clips: int = 2) -> dict[str, Tensor]:
    """Clips of frames, one a row, each with text of its own length (left-padded)."""
    generator = torch.Generator().manual_seed(4)
    rows = [
        [0] * (clips - 1 - n) + [1, 10, *[tiny.VIDEO_TOKEN] * (FRAMES * POOLED + 1), 4, 20, 21]
        + list(range(30, 30 + n))
        for n in range(clips)
    ]  # fmt: skip
    ids = torch.tensor(rows)
    pixels = torch.randn(clips, FRAMES, 3, tiny.CROP, tiny.CROP, generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values_videos": pixels}


@dataclass(frozen=True, kw_only=True)
class Spy(methods.TokenMethod):
    reads: tuple[str, ...] = ()
    seen: list = field(default_factory=list)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.reads

    def keep(self, image):
        self.seen.append({name: image.signal(name) for name in self.reads})
        return super().keep(image)

    def score(self, view):
        return view.features.norm(dim=1)


def pooled(x: Tensor) -> Tensor:
    """``[frames, P, ...]``: the mean of every two by two patches."""
    rest = x.shape[2:]
    grid = x.reshape(len(x), SIDE // 2, 2, SIDE // 2, 2, -1)
    return grid.mean((2, 4)).reshape(len(x), POOLED, *rest)


@pytest.mark.parametrize("kernel", ["sdpa", "segmented"])
def test_signals_of_a_video_are_pooled_as_its_features_are(kernel):
    family, feed = "llava_onevision", video()
    eager = tiny.model(family, "eager")
    with torch.no_grad():
        tower = eager.model.vision_tower(
            feed["pixel_values_videos"].flatten(0, 1),
            output_attentions=True, output_hidden_states=True,
        )  # fmt: skip
        made = eager.model.get_video_features(feed["pixel_values_videos"]).pooler_output
    layer = eager.config.vision_feature_layer
    wanted = {
        "received_attention": tower.attentions[layer].mean((1, 2)),
        "received_attention@0": tower.attentions[0].mean((1, 2)),
        "vision_features": tower.hidden_states[layer],
        "encoder_states@1": tower.hidden_states[2],
    }
    spy = Spy(ratio=0.5, reads=(*wanted, "tile_features"))
    with prune(tiny.model(family, kernel), spy), torch.no_grad():
        tiny.model(family, kernel)(**feed)
    assert len(spy.seen) == 2
    for clip, found in enumerate(spy.seen):
        frames = slice(clip * FRAMES, (clip + 1) * FRAMES)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], pooled(value[frames]), rtol=1e-4, atol=1e-4)
        tokens = made[clip, :-1].unflatten(0, (FRAMES, POOLED))
        torch.testing.assert_close(found["tile_features"], tokens, rtol=1e-4, atol=1e-4)


def dropping() -> list[str]:
    stages = {name: methods.get(name).stage for name in methods.available()}
    return [name for name, stage in stages.items() if stage not in ("none", "input")]


@pytest.mark.parametrize("name", dropping())
def test_every_method_prunes_a_video_of_onevision_right(name):
    family, feed = "llava_onevision", video()
    model = tiny.model(family)
    with prune(model, built(name, family)) as run:
        out = tiny.generate(model, dict(feed), steps=3)
        records = run.take()
    assert [record.visual_tokens for record in records] == [FRAMES * POOLED + 1] * 2
    assert all(0.1 < record.mean_removal < 0.9 for record in records)
    with masked(model, records):
        reference = tiny.generate(model, dict(feed), steps=3)
    assert torch.equal(out.sequences, reference.sequences)
    for mine, theirs in zip(out.logits, reference.logits, strict=True):
        assert (mine - theirs).abs().max() <= 1e-4
