"""Every family through its real processor: batches, several images, odd pictures, loading."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from PIL import Image

from tests import family_checkpoints, tiny
from tests.method_tools import built
from vtprune import methods
from vtprune.harness.cell.answerer import ModelAnswerer, chat_inputs
from vtprune.harness.evaluation.data.images import as_rgb
from vtprune.harness.evaluation.engines.base import Question
from vtprune.harness.request.presets import Settings
from vtprune.models import prune
from vtprune.models.load import load

pytestmark = pytest.mark.slow

SIZES = ((50, 90), (90, 50), (33, 33), (64, 20), (20, 64), (128, 128))


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def vlm(request, tmp_path_factory):
    folder = family_checkpoints.save(request.param, tmp_path_factory.mktemp(request.param))
    return load({"path": folder, "name": request.param, "device": "cpu", "threads": 1})


def picture(size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(number, *images):
    return Question(number, f"t:{number}", "What is it" + "?" * (1 + number), lambda: images)


def answers(vlm, questions, name="gprune", **changes):
    method = built(name, vlm.model.config.model_type, **changes)
    with prune(vlm.model, method) as run:
        return ModelAnswerer(vlm, run, Settings("checkpoint", max_new_tokens=5)).answer(questions)


@functools.cache
def pictures():
    return [picture(size, i) for i, size in enumerate(SIZES[:4])]


@pytest.mark.parametrize("name", methods.available())
def test_batches_of_one_two_and_four_give_the_same_answers(vlm, name):
    questions = [ask(i, image) for i, image in enumerate(pictures())]
    alone = [answers(vlm, [q], name)[0] for q in questions]
    for size in (2, 4):
        parts = [questions[i : i + size] for i in range(0, 4, size)]
        batched = [answer for part in parts for answer in answers(vlm, part, name)]
        assert [a.text for a in batched] == [a.text for a in alone]
        kept = [a.extra["pruning"]["kept"] for a in batched]
        assert kept == [a.extra["pruning"]["kept"] for a in alone]


@pytest.mark.parametrize("name", methods.available())
def test_rows_with_two_images_one_image_and_none(vlm, name):
    rows = [(picture((50, 90)), picture((64, 20), 1)), (picture((33, 33), 2),), ()]
    questions = [ask(i, *images) for i, images in enumerate(rows)]
    together = answers(vlm, questions, name)
    alone = [answers(vlm, [q], name)[0] for q in questions]
    assert [a.text for a in together] == [a.text for a in alone]
    assert together[2].extra["visual_tokens"] == 0
    assert together[0].extra["visual_tokens"] > together[1].extra["visual_tokens"] > 0
    if name not in ("none",):
        assert together[0].extra["mean_removal"] > 0.3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
def test_pictures_of_every_mode_are_answered(vlm, mode):
    base = picture((50, 40))
    image = Image.fromarray(np.full((40, 50), 30000, np.uint16)) if mode == "I;16" else None
    answer = answers(vlm, [ask(0, image or base.convert(mode))])[0]
    assert answer.text is not None and answer.extra["visual_tokens"] > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (900, 12), (12, 900), (1500, 1000)])
def test_extreme_shapes_are_answered_or_fail_with_a_reason(vlm, size):
    try:
        answer = answers(vlm, [ask(0, picture(size))], ratio=0.5)[0]
    except ValueError as error:  # Qwen's processor refuses aspect ratios above 200
        assert "aspect ratio" in str(error)
        return
    assert answer.text is not None
    assert answer.extra["visual_tokens"] > 0
    assert answer.extra["visual_kept"] < answer.extra["visual_tokens"]


def test_a_second_load_in_one_process_is_the_same_object(vlm):
    settings = {"path": vlm.model.config._name_or_path, "name": "again", "device": "cpu"}
    first = load(settings)
    assert load(settings) is first


def test_placeholders_of_the_processor_are_as_many_as_the_encoder_makes(vlm):
    images = [picture(size, i) for i, size in enumerate(SIZES)]
    for image in images:
        inputs = chat_inputs(vlm, [ask(0, image)], [[image]])
        family = vlm.model.config.model_type
        made = tiny.model(family)
        keys = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")
        features = made.model.get_image_features(
            **{k: inputs[k] for k in keys if k in inputs}
        ).pooler_output
        placeholders = int((inputs["input_ids"] == tiny.IMAGE_TOKEN).sum())
        assert placeholders == sum(len(f) for f in features)


def test_sixteen_bit_values_are_scaled_and_transparency_is_white():
    deep = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert [p[0] for p in as_rgb(deep).getdata()] == [0, 128, 255]
    clear = Image.new("RGBA", (1, 1), (200, 0, 0, 0))
    assert as_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert as_rgb(Image.new("CMYK", (1, 1))).mode == "RGB"
