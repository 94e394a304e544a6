"""Loading a checkpoint, and the model as answerer: batches, text-only rows, clocks, records."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests import checkpoint_tools
from vtprune.harness.cell.answerer import ModelAnswerer, chat_inputs
from vtprune.harness.evaluation.engines.base import Question
from vtprune.harness.request.presets import Settings
from vtprune.models import prune
from vtprune.models.errors import ModelLoadError
from vtprune.models.load import load


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_tools.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def vlm(checkpoint):
    return load({"path": checkpoint, "name": "tiny", "device": "cpu", "threads": 1})


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(number, images=1, prompt="What is it?"):
    shown = [picture(number * 10 + i) for i in range(images)]
    return Question(number, f"t:{number}", prompt + "!" * number, lambda: shown)


def answers(vlm, questions, method="gprune", **options):
    with prune(vlm.model, method, **options) as run:
        answerer = ModelAnswerer(vlm, run, Settings("checkpoint", max_new_tokens=6))
        return answerer.answer(questions)


def test_a_batch_gives_the_answers_of_single_questions(vlm):
    questions = [ask(0), ask(1, images=0), ask(2), ask(3, images=2), ask(4, images=0)]
    together = answers(vlm, questions, ratio=0.5)
    alone = [answers(vlm, [q], ratio=0.5)[0] for q in questions]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.generated_tokens for a in together] == [a.generated_tokens for a in alone]
    kept = [a.extra["pruning"]["kept"] for a in together]
    assert kept == [a.extra["pruning"]["kept"] for a in alone]


def test_text_only_rows_are_answered_from_their_own_text(vlm):
    with_image, without = answers(vlm, [ask(0), ask(0, images=0)], ratio=0.5)
    assert without.extra["visual_tokens"] == 0 and with_image.extra["visual_tokens"] == 64
    assert without.prompt_tokens == with_image.prompt_tokens - 64


def test_the_begin_token_stands_there_once(vlm):
    inputs = chat_inputs(vlm, [ask(0)], [[picture(0)]])
    assert (inputs["input_ids"] == vlm.processor.tokenizer.bos_token_id).sum() == 1


def test_what_was_measured_is_in_the_answer(vlm):
    (answer,) = answers(vlm, [ask(0)], ratio=0.5)
    extra = answer.extra
    assert extra["visual_kept"] == 32 and extra["mean_removal"] == 0.5
    assert 0 < extra["prefill_s"] <= extra["generate_s"]
    assert 0 < extra["macs"]["total"] < extra["macs_full"]
    assert extra["macs"]["selection"] > 0
    assert 1 <= answer.generated_tokens <= 6
    json.dumps(extra)


def test_generated_tokens_count_the_end_token_but_no_padding(vlm):
    with prune(vlm.model, "none") as run:
        answerer = ModelAnswerer(vlm, run, Settings("checkpoint", max_new_tokens=4))
    end = vlm.model.generation_config.eos_token_id
    rows = torch.tensor([[7, end, 0, 0], [7, 7, 7, 7], [end, 0, 0, 0]])
    assert answerer._lengths(rows) == [2, 4, 1]


def test_records_of_a_failed_batch_do_not_leak_into_the_next(vlm, monkeypatch):
    with prune(vlm.model, "random", ratio=0.5) as run:
        answerer = ModelAnswerer(vlm, run, Settings("checkpoint", max_new_tokens=3))
        lm_head = vlm.model.lm_head
        hook = lm_head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answerer.answer([ask(0), ask(1)])
        hook.remove()
        (answer,) = answerer.answer([ask(2)])
    assert answer.extra["pruning"]["sample_id"] == "t:2"


def test_the_same_settings_give_the_same_object(vlm, checkpoint):
    again = load({"path": checkpoint, "name": "tiny", "device": "cpu", "threads": 1})
    assert again is vlm
    assert not vlm.model.training and vlm.dtype == "float32"
    assert vlm.processor.tokenizer.padding_side == "left"


def test_a_broken_checkpoint_is_one_line(checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelLoadError, match="cannot load") as caught:
        load({"path": broken})
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    partial = tmp_path / "partial"
    shutil.copytree(checkpoint, partial)
    weights = load_file(partial / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("lm_head.weight"))]
    save_file(weights, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match="1 weights missing, e.g. lm_head.weight"):
        load({"path": partial})


def test_pickled_weights_are_not_loaded(checkpoint, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(checkpoint, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="cannot load"):
        load({"path": pickled})


def test_a_missing_cuda_device_is_said_and_not_replaced(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match="model.device=cpu"):
        load({"path": checkpoint, "device": "cuda"})


def test_a_method_that_redecides_gets_the_whole_prompt_at_every_step(vlm):
    first, second = (
        answers(vlm, [ask(0)], "fastv", ratio=0.5, redecide=redecide)[0]
        for redecide in (False, True)
    )
    assert first.extra["pruning"]["kept"] == second.extra["pruning"]["kept"]
    assert second.text is not None and second.generated_tokens == first.generated_tokens
