"""What a method owes that changes the picture instead of dropping tokens.

There is nothing to mask: the run has to be the ordinary one on the changed picture. The reference
shares no code with the runtime. Where crops become smaller it is another model, whose encoder was
built for that size and whose position embeddings were resampled here.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from tests import family_checkpoints, tiny
from tests.counting import count_forward
from vtprune import methods
from vtprune.harness import cost
from vtprune.harness.cell.answerer import chat_inputs
from vtprune.harness.cost import ledger
from vtprune.harness.evaluation.engines.base import Question
from vtprune.models import prune
from vtprune.models.errors import PruningUnsupported
from vtprune.models.load import VLM

TOLERANCE = 1e-4
SIZES = ((64, 40), (30, 64), (64, 64))  # (width, height); mosaics of two and of four crops
FULL = tiny.CROP // tiny.PATCH


def vlm(family, model=None, processor=None) -> VLM:
    processor = processor or family_checkpoints.processor(family)
    processor.tokenizer.padding_side = "left"
    return VLM(model or tiny.model(family), processor, family, "cpu", "float32")


def pictures(numbers):
    made = []
    for number in numbers:
        width, height = SIZES[number % len(SIZES)]
        noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        made.append([Image.fromarray(noise)])
    return made


def questions(numbers):
    return [Question(i, f"t:{i}", "What is it" + "?" * (1 + 3 * i), list) for i in numbers]


def changed(family, method, numbers=(0,), **kw):
    """Output, records and inputs of a run under ``method``."""
    one = vlm(family)
    with prune(one.model, method) as run:
        images, processor = run.reduce(pictures(numbers), one.processor)
        feed = chat_inputs(one, questions(numbers), images, None, processor)
        run.begin([f"t:{i}" for i in numbers])
        return tiny.generate(one.model, dict(feed), **kw), run.take(), feed


def full_feed(family, numbers):
    return chat_inputs(vlm(family), questions(numbers), pictures(numbers))


def expected_size(method, family, picture):
    """(width, height) of the picture an ordinary run is given; None: no picture."""
    width, height = picture.size
    if family in tiny.M_ROPE:
        cell = 2 * tiny.PATCH
        grid = method.grid(round(height / cell), round(width / cell), False)
        return grid and (grid[1] * cell, grid[0] * cell)
    grid = method.grid(FULL, FULL, True)
    if grid is None or family == "llava":
        return grid and picture.size
    return round(width * grid[0] / FULL), round(height * grid[0] / FULL)


def smaller_model(family, side):
    """The family's model with an encoder made for crops of ``side x side`` patches."""
    made = copy.deepcopy(tiny.model(family))
    vision, table = made.config.vision_config, position_table(made)
    first = len(table.weight) - FULL**2  # CLIP has a CLS token in front
    grid = table.weight[first:].T.reshape(1, -1, FULL, FULL)
    grid = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    weight = torch.cat([table.weight[:first], grid.flatten(2)[0].T])
    vision.image_size = side * tiny.PATCH
    embeddings = made.model.vision_tower.embeddings
    embeddings.image_size = vision.image_size
    embeddings.num_patches = side**2
    embeddings.num_positions = len(weight)
    embeddings.register_buffer("position_ids", torch.arange(len(weight))[None], persistent=False)
    table.weight = torch.nn.Parameter(weight, requires_grad=False)
    if hasattr(made.config, "image_grid_pinpoints"):
        made.config.image_grid_pinpoints = pinpoints(side)
    return made


def position_table(model):
    return model.model.vision_tower.embeddings.position_embedding


def pinpoints(side):
    return [[n * side // FULL for n in pair] for pair in tiny.PINPOINTS]


def hooks(model):
    return [(list(m._forward_pre_hooks), list(m._forward_hooks)) for m in model.modules()]


def smaller_processor(family, side, monkeypatch):
    small = pinpoints(side)
    monkeypatch.setattr(tiny, "CROP", side * tiny.PATCH)
    monkeypatch.setattr(tiny, "PINPOINTS", small)
    made = family_checkpoints.processor(family)
    monkeypatch.undo()
    return made


def ordinary(family, method, numbers, monkeypatch):
    """Output of the reference run and its input ids."""
    images = []
    for (picture,) in pictures(numbers):
        size = expected_size(method, family, picture)
        images.append([] if size is None else [picture.resize(size, Image.Resampling.BICUBIC)])
    one, grid = vlm(family), method.grid(FULL, FULL, True)
    if family not in tiny.M_ROPE and grid is not None:
        processor = smaller_processor(family, grid[0], monkeypatch)
        one = vlm(family, smaller_model(family, grid[0]), processor)
    feed = chat_inputs(one, questions(numbers), images)
    return tiny.generate(one.model, dict(feed)), feed["input_ids"]


@pytest.mark.parametrize("rows", [(0,), (0, 1, 2)], ids=["single", "ragged"])
def test_the_run_equals_an_ordinary_one_on_the_changed_picture(
    input_method, family, rows, monkeypatch
):
    method = methods.build(input_method, **methods.get(input_method).example)
    out, _, feed = changed(family, method, rows)
    reference, ids = ordinary(family, method, rows, monkeypatch)
    assert torch.equal(feed["input_ids"], ids)
    assert torch.equal(out.sequences, reference.sequences)
    for mine, theirs in zip(out.logits, reference.logits, strict=True):
        assert (mine - theirs).abs().max() <= TOLERANCE
    full = tiny.generate(tiny.model(family), dict(full_feed(family, rows)), steps=1)
    assert (out.logits[0] - full.logits[0]).abs().max() > 0.1, "no power"


def test_the_record_counts_tokens_before_and_now(input_method, family):
    method = methods.build(input_method, **methods.get(input_method).example)
    _, records, feed = changed(family, method, (0, 1, 2), steps=1)
    before = full_feed(family, (0, 1, 2))["input_ids"]
    for row, record in enumerate(records):
        now = int((feed["input_ids"][row] == tiny.IMAGE_TOKEN).sum())
        asked = int((before[row] == tiny.IMAGE_TOKEN).sum())
        assert record.visual_tokens == now and record.visual_tokens_asked == asked > now
        assert record.visual_per_layer == [now] * record.n_layers
        assert record.mean_removal == pytest.approx(1 - now / asked)
        for (_, rows, cols), (_, down, across) in zip(
            record.grids, record.unreduced.grids, strict=bool(record.grids)
        ):
            assert rows * cols <= (1 - method.ratio) * down * across


def test_the_ledger_equals_the_counter_in_every_stage(input_method, family):
    method, one = methods.build(input_method, **methods.get(input_method).example), vlm(family)
    full = full_feed(family, (0,))
    with prune(one.model, method) as run:
        images, processor = run.reduce(pictures((0,)), one.processor)
        feed = chat_inputs(one, questions((0,)), images, None, processor)
        counted, record = count_forward(one.model, feed), run.take()[0]
    arch = cost.architecture_of(one.model.config)
    made = ledger.prefill(arch, record, method).stages()
    assert made["selection"] == 0
    for stage, macs in counted.items():
        assert made[stage] == macs, f"{stage}: {made[stage]} counted {macs}"
    whole = count_forward(one.model, full)
    assert ledger.prefill_full(arch, record).vision == whole["vision"] > made["vision"]


def test_the_model_and_its_config_are_as_before(input_method, family):
    model = tiny.model(family)
    config, feed = model.config.to_dict(), full_feed(family, (0,))
    before, attached = tiny.generate(model, dict(feed), steps=3), hooks(model)
    method = methods.build(input_method, **methods.get(input_method).example)
    changed(family, method, (0, 1), steps=3)
    after = tiny.generate(model, dict(feed), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))
    assert model.config.to_dict() == config
    assert hooks(model) == attached


def test_a_sample_is_asked_alike_alone_and_in_a_batch(input_method, family):
    method = methods.build(input_method, **methods.get(input_method).example)
    together, records, _ = changed(family, method, (0, 1, 2))
    for row in range(3):
        alone, (record,), _ = changed(family, method, (row,))
        mine, theirs = alone.sequences[0], together.sequences[row]
        assert torch.equal(mine[-tiny.STEPS :], theirs[-tiny.STEPS :])
        assert record.grids == records[row].grids


def test_a_prompt_that_was_not_prepared_is_refused(input_method, family):
    method = methods.build(input_method, **methods.get(input_method).example)
    model, feed = tiny.model(family), full_feed(family, (0,))
    with prune(model, method), pytest.raises(PruningUnsupported, match=r"run\.reduce"):
        tiny.generate(model, dict(feed), steps=1)
    one = vlm(family)
    with prune(model, method) as run, pytest.raises(PruningUnsupported, match=r"run\.reduce"):
        run.reduce(pictures((0,)), one.processor)  # and then the unchanged prompt all the same
        tiny.generate(model, dict(feed), steps=1)


def test_the_input_method_says_what_it_is(input_method):
    cls = methods.get(input_method)
    assert cls.title and cls.__doc__ and len(cls.__doc__) > 80
    assert issubclass(cls, methods.InputMethod)
