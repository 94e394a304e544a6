"""The training stages on a tiny budget, and that an interrupted run ends at the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vtprune.harness.evaluation.data.mini import questions, world
from vtprune.training import (
    align,
    anyres,
    export,
    joint,
    language,
    losses,
    packing,
    speaker,
    stages,
    tokens,
    tower,
)
from vtprune.training.common import Budget, Run, load_state, normalise, to_tensors

pytestmark = pytest.mark.slow

TINY = Budget(steps=2, batch=2, lr=1e-3, warmup=1)
QUIET = Run(worker=False, bf16=False, check=4)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """All stages, two steps each."""
    out = tmp_path_factory.mktemp("chain")
    tower.train_tower(out, 0, QUIET, TINY)
    align.run_align(out, 0, QUIET, TINY)
    language.train_language(out, 0, QUIET, TINY)
    joint.train_joint(out, 0, QUIET, TINY)
    anyres.train_anyres(out, 0, QUIET, TINY)
    return out


STAGES = {
    "tower": tower.train_tower,
    "language": language.train_language,
    "joint": joint.train_joint,
    "anyres": anyres.train_anyres,
}


@pytest.mark.parametrize("name", STAGES)
def test_resume_equals_an_uninterrupted_run(name, chain, tmp_path):
    for needed in ("tower", "align", "language", "joint"):
        if needed != name:
            (tmp_path / f"{needed}.pt").write_bytes((chain / f"{needed}.pt").read_bytes())
    STAGES[name](tmp_path, 0, replace(QUIET, stop_after=1), TINY)
    assert load_state(tmp_path / f"{name}.pt")["step"] == 1
    STAGES[name](tmp_path, 0, QUIET, TINY)
    whole, resumed = load_state(chain / f"{name}.pt"), load_state(tmp_path / f"{name}.pt")
    assert resumed["step"] == whole["step"] == 2
    for part in {"tower", "heads", "speaker", "newline"} & set(whole):
        for key, value in whole[part].items():
            assert torch.equal(value, resumed[part][key]), (part, key)


def test_the_worker_draws_the_same_batches(chain, tmp_path):
    (tmp_path / "tower.pt").write_bytes((chain / "tower.pt").read_bytes())
    (tmp_path / "align.pt").write_bytes((chain / "align.pt").read_bytes())
    language.train_language(tmp_path, 0, replace(QUIET, worker=True), TINY)
    alone, drawn = load_state(chain / "language.pt"), load_state(tmp_path / "language.pt")
    assert all(torch.equal(v, drawn["speaker"][k]) for k, v in alone["speaker"].items())


def test_batches_depend_on_the_step_alone():
    one, two = (packing.language_batch(5, 0, 2, 2, 4, 80, 0.3) for _ in range(2))
    assert all(np.array_equal(one[k], two[k]) for k in one)
    other = packing.language_batch(6, 0, 2, 2, 4, 80, 0.3)
    assert not np.array_equal(one["image"], other["image"])


def test_sign_text_is_one_token_a_character():
    tokenizer = tokens.build_tokenizer()
    for text in ("WATER", "KXBR", "0427", "Q9J"):
        assert len(tokenizer(text).input_ids) == len(text)
        assert len(tokenizer(f"A. {text}\n").input_ids) == len(text) + 4
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    for word in (*world.COLORS, *world.SHAPES, *world.GROUNDS, *world.SKIES, "yes", "no"):
        assert len(tokenizer(word).input_ids) == len(tokenizer(f" {word}").input_ids) == 1


@pytest.mark.parametrize("size", anyres.SIZES, ids=str)
def test_packed_forward_equals_hugging_face(size, chain):
    """Packed blocks behind one prefix give the logits of separate prompts in both forms."""
    single = size == (112, 112)
    vision, _, talker = joint.load_parts(chain, "cpu", "joint")
    picture = world.draw(4, "scene", size=size)
    asked = questions.sample(picture, np.random.default_rng(0), 6, 0.5)[:3]
    blocks = [[packing.make_block(q, s) for q, s in asked]]
    newline = torch.full((128,), 0.1)
    model = export.assemble_model(vision, talker, None if single else newline)
    processor = tokens.build_processor(anyres=not single)
    with torch.no_grad():
        if single:
            arrays = packing.pack_blocks(blocks) | {"image": picture.image[None]}
            batch = to_tensors(arrays, "cpu")
            visual = talker.project(speaker.see(vision, batch["image"]))
            places, total = torch.arange(196)[None], 196
        else:
            batch = to_tensors(anyres.collate([picture], blocks, None), "cpu")
            _, visual = anyres.look(vision, talker, newline, batch)
            places, total = batch["keep"], batch["total"]
        x, position, mask = speaker.assemble(talker, visual, places, batch, total)
        front = 2 + places.shape[1]
        states, _ = speaker.forward(talker, x, position, mask, prefix=front)
        _, logits = losses.answer_loss(talker, states, batch, front)
        row = 0
        for (q, style), block in zip(asked, blocks[0], strict=True):
            content = [{"type": "image"}, {"type": "text", "text": questions.render(q, style)}]
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            inputs = processor(text=text, images=[picture.image], return_tensors="pt")
            if single:
                seen = normalise(batch["image"])
                assert torch.allclose(seen, inputs["pixel_values"], atol=1e-5)
            inputs["pixel_values"] = normalise(batch["image"])[None if not single else slice(None)]
            theirs = model(**inputs).logits[0, -1]
            assert torch.allclose(logits[0, row], theirs, atol=2e-4)
            row += len(block.rows)


def test_grounding_never_reads_the_picture_before_layer_two():
    assert min(losses.OBJECT_LAYERS + losses.CHAR_LAYERS) >= 2
    batch = to_tensors(packing.language_batch(0, 0, 2, 2, 6, 80, 0.3), "cpu")
    front = 2 + 80
    wanted = losses.wanted_attention(batch, batch["keep"], front + batch["ids"].shape[1])
    for layer in losses.WORD_LAYERS:
        assert not wanted[layer][:, :, :front].any()


def test_export_loads_through_the_auto_classes(chain, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    sizes = stages.export_all(chain, tmp_path)["bytes"]
    assert sum(sizes.values()) <= 10_000_000
    for name in ("llava", "llava-next"):
        processor = AutoProcessor.from_pretrained(tmp_path / name)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / name, dtype=torch.float32)
        assert type(processor).__name__.startswith("Llava")
        assert model.config.vision_feature_layer == -2
        assert all(p.stat().st_mode & 0o777 == 0o644 for p in (tmp_path / name).iterdir())
