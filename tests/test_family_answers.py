"""What a family may be asked, and that the runtime asks it: `follow`, `group`, `layout`."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests import tiny
from tests.operator_tools import OnDevice, on_device
from vtprune.models import prune, signals
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import family_of
from vtprune.models.families.base import CapturedImage, Family, grids_layout
from vtprune.models.families.llava import Llava

FAMILY = "llava"


def forward(**more):
    """A pruned prefill of a ragged batch, with further arguments for the language model."""
    model = tiny.model(FAMILY)
    feed = tiny.inputs(FAMILY, [tiny.prompt(FAMILY, i) for i in (0, 1)])
    with prune(model, "random", ratio=0.5) as run, torch.no_grad():
        run.begin(["a", "b"])
        model(**feed, **more)
        return feed, run.take()


def per_token(feed) -> torch.Tensor:
    return torch.arange(feed["input_ids"].numel()).reshape(feed["input_ids"].shape)


def test_an_argument_for_every_token_that_no_family_follows_is_refused_by_name():
    """DeepStack's vectors, say: what is not cut would be added to the wrong tokens."""
    feed, _ = forward()
    for value in (per_token(feed), [per_token(feed)], torch.randn(7, 48)):
        with pytest.raises(PruningUnsupported, match="takes 'deepstack' for every token") as told:
            forward(deepstack=value)
        assert "adapter of llava" in str(told.value) and "\n" not in str(told.value)
    forward(output_attentions=False, some_number=torch.tensor(3))


def test_a_family_that_follows_hands_the_language_model_cut_arguments(monkeypatch):
    seen = {}

    def follow(self, named, keep, order, valid):
        marks = named["deepstack"]
        seen["kept"] = [row[stays].tolist() for row, stays in zip(marks, keep, strict=True)]
        named["deepstack"] = marks.gather(1, order).masked_fill(~valid, -1)

    def entering(module, args, kwargs):
        seen["given"], seen["mask"] = kwargs["deepstack"], kwargs["attention_mask"]
        kwargs.pop("deepstack")
        return args, kwargs

    model = tiny.model(FAMILY)
    feed = tiny.inputs(FAMILY, [tiny.prompt(FAMILY, i) for i in (0, 1)])
    monkeypatch.setattr(Llava, "follow", follow)
    with prune(model, "random", ratio=0.5) as run, torch.no_grad():
        run.begin(["a", "b"])
        lm = model.model.language_model
        hook = lm.register_forward_pre_hook(entering, with_kwargs=True)  # behind ours
        try:
            model(**feed, deepstack=per_token(feed))
        finally:
            hook.remove()
        records = run.take()
    for row, record in enumerate(records):
        given = seen["given"][row]
        assert given[given >= 0].tolist() == seen["kept"][row]
        padding = int((feed["attention_mask"][row] == 0).sum())
        there = [padding + n for n in torch.nonzero(record.keep_mask(0)).squeeze(1).tolist()]
        width = feed["input_ids"].shape[1]
        assert seen["kept"][row] == [row * width + column for column in there]


def test_outputs_of_the_encoder_are_joined_into_pictures_by_the_rows_ids(monkeypatch):
    """As a family must whose encoder sees crops, and whose ids alone say what belongs together."""
    asked = []

    def group(self, images, input_ids):
        asked.append((len(images), int((input_ids == tiny.IMAGE_TOKEN).sum())))
        if len(images) < 2:
            return images
        count = len(images[0].layout)
        assert all(len(one.layout) == count for one in images)
        side = images[0].layout.patch_grid[0]
        return [CapturedImage(grids_layout("tile", len(images), side, side))]

    monkeypatch.setattr(Llava, "group", group)
    model = tiny.model(FAMILY)
    prompts = [tiny.prompt(FAMILY, 0), tiny.prompt(FAMILY, 1, images=2)]
    with prune(model, "random", ratio=0.5) as run, torch.no_grad():
        run.begin(["a", "b"])
        model(**tiny.inputs(FAMILY, prompts))
        records = run.take()
    assert asked == [(1, 64), (2, 128)]
    assert [record.grids for record in records] == [((1, 8, 8),), ((2, 8, 8),)]
    assert [record.crops for record in records] == [1, 2]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_layout_of_a_picture_of_so_many_pixels_is_that_of_the_encoder_call(family):
    adapter = family_of(tiny.model(family))
    for size in tiny.SIZES[family]:
        feed = tiny.encoder_feed(family, [tiny.pixels(size, 0, family)], [size])
        with torch.no_grad():
            features = list(adapter.core.get_image_features(**feed).pooler_output)
        (picture,) = adapter.pictures("image", feed, features)
        planned = adapter.layout(*size)
        for field in dataclasses.fields(planned):
            one, other = getattr(planned, field.name), getattr(picture.layout, field.name)
            same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
            assert same, field.name


def test_the_list_of_questions_is_the_one_that_is_written_down():
    """A question that is added to the base is added to its table, and the other way round."""
    import vtprune.models.families.base as base

    table = base.__doc__.partition("======\nquestion")[2]
    answers = {name for name in vars(Family) if not name.startswith("_")}
    answers -= {"images", "kernel", "offers"}  # worked out from the answers
    assert {name for name in answers if f"``{name}``" not in table} == set()


@pytest.mark.parametrize("name", ["received_attention", "vision_features", "encoder_states@0"])
@pytest.mark.parametrize("kernel", ["sdpa", "segmented"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pictures_and_their_signals_wait_at_most_twice_for_the_device(family, kernel, name):
    """Layouts, hearing and recipes of one encoder call, whatever its number of pictures."""
    adapter, one = family_of(tiny.model(family, kernel)), tiny.prompt(family, 0, images=2)
    capture = signals.VisionCapture(asked=frozenset({name}))
    feed = tiny.encoder_feed(family, one.pixels, one.sizes)
    encode = adapter.core.get_image_features
    with torch.no_grad():
        plain = waits(lambda: encode(**on_device(feed)))
        with signals.listening(signals.taps(adapter, [name]), capture):
            made: list = []
            heard = waits(lambda: made.append(encode(**on_device(feed))))

        def read() -> None:
            features = list(made[0].pooler_output)
            images = adapter.images("image", on_device(feed), features, capture)
            for image in images:
                image.signals[name]()

        assert heard - plain + waits(read) <= 2


def waits(run) -> int:
    OnDevice.waits.clear()
    run()
    return sum(OnDevice.waits.values())
