"""Pictures of real shapes and modes: through every family, and the same through both engines."""

from __future__ import annotations

import base64
import io

import PIL.Image
import pytest
import torch

from tests import family_checkpoints, tiny
from tests.parity import pictures
from tests.parity.recorder import Recorder, digest
from vtprune.harness.cell.answerer import ModelAnswerer
from vtprune.harness.evaluation.data.images import as_rgb
from vtprune.harness.evaluation.engines import vlm_table
from vtprune.harness.evaluation.engines.base import Question
from vtprune.harness.request.presets import Settings
from vtprune.methods import build
from vtprune.models import prune
from vtprune.models.load import VLM

ROWS = range(len(pictures.KINDS))


def opened(row: int) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(pictures.drawn(row)))


def questions(rows) -> list[Question]:
    return [Question(row, f"odd:{row}", "What?", lambda row=row: [opened(row)], (), 3)
            for row in rows]  # fmt: skip


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def answered(request):
    """All rows at once and every second alone, with half of the visual tokens removed."""
    model = tiny.model(request.param)
    processor = family_checkpoints.processor(request.param)
    processor.tokenizer.padding_side = "left"
    vlm = VLM(model, processor, request.param, "cpu", "float32")
    method = build("random", ratio=0.5)
    logs = Recorder(), Recorder()
    with torch.inference_mode(), prune(model, method) as run:
        answerer = ModelAnswerer(vlm, run, Settings("checkpoint", max_new_tokens=3))
        with logs[0].listening() as log:
            log.asking = ROWS
            together = answerer.answer(questions(ROWS))
        with logs[1].listening() as log:
            for row in ROWS[::2]:
                log.asking = [row]
                answerer.answer(questions([row]))
    return together, logs[0].rows, logs[1].rows


def test_every_shape_and_mode_is_answered_with_half_of_its_tokens(answered):
    for answer in answered[0]:
        share = answer.extra["visual_kept"] / answer.extra["visual_tokens"]
        assert 0.4 < share < 0.6  # ends of rows stay with their rows
        assert answer.generated_tokens > 0


def test_odd_shapes_in_one_batch_are_asked_and_answer_as_each_does_alone(answered):
    _, together, alone = answered
    for row, entry in alone.items():
        assert together[row]["ids"] == entry["ids"]
        assert digest(together[row]["pixels"]) == digest(entry["pixels"])
        assert together[row]["new"] == entry["new"]


@pytest.mark.parametrize("row", ROWS, ids=[kind[0] for kind in pictures.KINDS])
def test_a_picture_is_the_same_through_both_engines_and_upright(row):
    """lmms-eval's come from `datasets`, VLMEvalKit's from base64 in a table."""
    import datasets

    stored = {"bytes": pictures.drawn(row), "path": None}
    hub = datasets.Image().decode_example(stored).convert("RGB")
    line = {"image": base64.b64encode(stored["bytes"]).decode()}
    (table,) = vlm_table.pictures(None, line)
    assert as_rgb(hub).tobytes() == as_rgb(table).tobytes()
    width, height = pictures.KINDS[row][2]
    assert as_rgb(table).size == ((height, width) if row == pictures.TURNED else (width, height))


def test_a_turned_picture_is_turned_once():
    once = as_rgb(opened(pictures.TURNED))
    assert as_rgb(once).tobytes() == once.tobytes()
