"""The drawn world: same bytes for a seed, labels that agree with the drawing, nothing leaks."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from vtprune.harness.evaluation.data.mini import questions, world

LAYOUTS = ("scene", "chart", "page")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_seed_gives_the_same_bytes(layout):
    first, again = (world.png(world.draw(7, layout).image) for _ in range(2))
    assert first == again
    assert world.png(world.draw(8, layout).image) != first


def test_png_decodes_to_the_pixels():
    picture = world.draw(3)
    decoded = np.asarray(Image.open(io.BytesIO(world.png(picture.image))))
    assert np.array_equal(decoded, picture.image)


@pytest.mark.parametrize("size", [(112, 112), (112, 224), (224, 112), (224, 224)])
def test_sizes_and_tile_seams(size):
    for seed in range(20):
        picture = world.draw(seed, size=size)
        assert picture.image.shape == (*size, 3)
        assert picture.labels["kind"].shape == (size[0] // 8, size[1] // 8)
        for sign in picture.signs:
            patches = [p for glyph in sign.glyphs for p in glyph]
            assert len({(r // 14, c // 14) for r, c in patches}) == 1


def test_evaluation_words_are_never_written_in_training():
    assert not set(world.TRAIN_WORDS) & set(world.EVAL_WORDS)
    assert len(world.EVAL_WORDS) > 80
    rng = np.random.default_rng(0)
    written = {world.sign_text(rng, held_out=False) for _ in range(5_000)}
    assert not written & set(world.EVAL_WORDS)
    written = [world.sign_text(rng, held_out=True) for _ in range(500)]
    assert not set(written) & set(world.TRAIN_WORDS)
    words = sum(w in world.EVAL_WORDS for w in written)
    letters = sum(w[0] in world.LETTERS for w in written)
    assert 0.4 < words / letters < 0.6


@pytest.mark.parametrize("seed", range(12))
def test_labels_agree_with_what_was_drawn(seed):
    p = world.draw(seed)
    kind, color, glyph = (p.labels[k] for k in ("kind", "color", "glyph"))
    for owner in (*p.signs, *p.bars):
        text = owner.text if isinstance(owner, world.Sign) else str(owner.value)
        assert len(owner.glyphs) == len(text)
        for i, (char, patches) in enumerate(zip(text, owner.glyphs, strict=True)):
            assert patches
            for at in patches:
                assert kind[at] == world.KIND["glyph"]
                assert world.CHARS[glyph[at]] == char
                assert world.COLORS[color[at]] == owner.color
                assert p.labels["left"][at] == min(i, 4)
                assert p.labels["right"][at] == min(len(text) - 1 - i, 4)
    for shape in p.shapes:
        x, y = shape.center
        middle = p.image[y - 2 : y + 2, x - 2 : x + 2].reshape(-1, 3).mean(0)
        assert np.abs(world.RGB - middle).sum(1).argmin() == world.COLORS.index(shape.color)
        assert all(kind[at] == world.KIND[shape.shape] for at in shape.patches)


def test_ink_is_where_the_glyph_labels_are():
    p = world.draw(0, "page")
    for sign in p.signs:
        for patches in sign.glyphs:
            r, c = patches[0]
            patch = p.image[r * 8 : r * 8 + 8, c * 8 : c * 8 + 8].astype(int)
            assert np.ptp(patch.sum(2)) > 150  # text and board differ inside the patch


def test_chart_values_are_ordered_like_the_bars():
    for seed in range(10):
        bars = world.draw(seed, "chart").bars
        assert 3 <= len(bars) <= 5 and len({b.color for b in bars}) == len(bars)
        top = {b.value: min(r for r, _ in (*b.patches, *b.glyphs[0])) for b in bars}
        order = sorted(top)
        assert all(top[a] >= top[b] for a, b in itertools.pairwise(order))


def test_answers_follow_from_the_picture():
    rng = np.random.default_rng(0)
    kinds = set()
    for seed in range(60):
        p = world.draw(seed)
        for q, style in questions.sample(p, rng, 8, 0.3):
            kinds.add(q.kind)
            assert q.text in questions.render(q, style)
            if q.kind == "text":
                assert q.answer in {s.text for s in p.signs}
            elif q.kind == "value":
                assert q.answer in {str(b.value) for b in p.bars}
            elif q.kind == "count":
                assert int(q.answer) in {len(p.signs), len(p.bars), len(p.shapes)}
            elif q.kind == "exist" and "sign" not in q.text and not p.bars:
                named = [(s.color, s.shape) for s in p.shapes]
                words = q.text.lower().rstrip("?").split()
                hit = any((c in words or words[3] == s) and s in words for c, s in named)
                assert hit == (q.answer == "yes")
            if style in questions.CHOICE_STYLES:
                assert q.options.count(q.answer) == 1 and len(set(q.options)) == len(q.options)
                assert questions.answer_of(q, style) == q.letter
    assert set(questions.ASKERS) <= kinds


def test_no_torch_is_needed_to_draw():
    import subprocess
    import sys

    code = "import sys, vtprune.harness.evaluation.data.mini as m; m.tables('textvqa', 0, 2); " \
           "sys.exit('torch' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
