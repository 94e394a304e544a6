"""Questions about drawn pictures, in the words in which the two engines send them.

A question has one exact answer and knows what it is about: the words that name the object, the
patches of the object, and for written answers the patches of each character. `render` wraps it in
the prompt of a benchmark; the suffixes below are those of lmms-eval 0.7.3 and VLMEvalKit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from vtprune.harness.evaluation.data.mini import world
from vtprune.harness.evaluation.data.mini.world import (
    COLORS,
    GROUNDS,
    SHAPES,
    SKIES,
    Picture,
    Shape,
    Sign,
)

Patches = tuple[tuple[int, int], ...]

SW = "\nAnswer the question using a single word or phrase."
SINGLE = "\nAnswer the question with a single word."
OPTION = "\nAnswer with the option's letter from the given choices directly."
OPTION_CN = "\n请直接使用所提供的选项字母作为答案回答。"
VIZWIZ = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
MMVET = (
    "First please perform reasoning, and think step by step to provide best answer to the "
    "following question: \n\n"
)
PLEASE = " Please answer yes or no."
SHORT = "\nPlease try to answer the question with short words or phrases if possible."
SELECT = "Please select the correct answer from the options above. \n"
LETTERS = "ABCDE"
NUMBERS = tuple("0123456789")

CHOICE_STYLES = ("choice", "mmbench", "mmbench_cn", "select")


@dataclass(frozen=True)
class Question:
    """One question; `chars[i]` are the patches that show character i of a written answer."""

    kind: str
    text: str
    answer: str
    words: tuple[str, ...] = ()
    patches: Patches = ()
    chars: tuple[Patches, ...] = ()
    options: tuple[str, ...] = ()
    hint: str = ""

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.options.index(self.answer)]


def render(q: Question, style: str) -> str:
    """The prompt of a question in a style; raises KeyError for an unknown one."""
    if style in CHOICE_STYLES:
        lines = "".join(f"{LETTERS[i]}. {o}\n" for i, o in enumerate(q.options))
        if style == "choice":
            context = f"Context: {q.hint}\n" if q.hint else ""
            return f"{context}{q.text}\n{lines}".rstrip("\n") + OPTION
        if style.startswith("mmbench"):
            context = f"{q.hint} " if q.hint else ""
            suffix = OPTION if style == "mmbench" else OPTION_CN
            return f"{context}{q.text} There are several options:\n{lines}{suffix}"
        context = f"Hint: {q.hint}\n" if q.hint else ""
        return f"{context}Question: {q.text}\nOptions:\n{lines}{SELECT}"
    return {
        "plain": q.text, "sw": q.text + SW, "single": q.text + SINGLE,
        "vizwiz": q.text + VIZWIZ + SW, "mmvet": MMVET + q.text, "please": q.text + PLEASE,
        "short": q.text + SHORT,
    }[style]  # fmt: skip


def answer_of(q: Question, style: str) -> str:
    return q.letter if style in CHOICE_STYLES else q.answer


def _one(rng: Generator, items):
    return items[int(rng.integers(len(items)))]


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _sign_question(p: Picture, rng: Generator, sign: Sign) -> Question:
    flat = tuple(x for g in sign.glyphs for x in g)
    what = "number" if sign.is_number else "word"
    board = "box" if p.layout == "page" and rng.random() < 0.5 else "sign"
    same = [s for s in p.signs if s.is_number == sign.is_number]
    if len(same) == 1 and rng.random() < (0.5 if len(p.signs) > 1 else 0.25):
        text, words = f"What {what} is on the {board}?", (what,)
    elif len(p.signs) == 1 and rng.random() < 0.4:
        text = _one(rng, (f"What is written on the {board}?", f"What does the {board} say?"))
        words = (board,)
    else:
        forms = ("What is written on the {} {}?", "What does the {} {} say?",
                 f"What {what} is on the {{}} {{}}?")  # fmt: skip
        text, words = _one(rng, forms).format(sign.color, board), (sign.color,)
    return Question("text", text, sign.text, words, flat, sign.glyphs)


def ask_text(p: Picture, rng: Generator) -> Question | None:
    return _sign_question(p, rng, _one(rng, p.signs)) if p.signs else None


def _unique(items: list[Shape], attribute: str) -> list[Shape]:
    seen = [getattr(i, attribute) for i in items]
    return [i for i, v in zip(items, seen, strict=True) if seen.count(v) == 1]


def ask_color(p: Picture, rng: Generator) -> Question | None:
    single = _unique(p.shapes, "shape")
    if len(p.signs) == 1 and (not single or rng.random() < 0.2):
        sign = p.signs[0]
        patches = sign.board + tuple(x for g in sign.glyphs for x in g)
        return Question("color", "What color is the sign?", sign.color, ("sign",), patches)
    if not single:
        return None
    s = _one(rng, single)
    if rng.random() < 0.2:
        yes = rng.random() < 0.5
        named = s.color if yes else str(_one(rng, [c for c in COLORS if c != s.color]))
        text, answer = f"Is the {s.shape} {named}?", "yes" if yes else "no"
        return Question("color yes/no", text, answer, (s.shape, named), s.patches)
    text = _one(rng, ("What color is the {}?", "What is the color of the {}?")).format(s.shape)
    return Question("color", text, s.color, (s.shape,), s.patches)


def ask_shape(p: Picture, rng: Generator) -> Question | None:
    boards = {s.color for s in p.signs}
    single = [s for s in _unique(p.shapes, "color") if s.color not in boards]
    if not single:
        return None
    s = _one(rng, single)
    text = _one(rng, ("What shape is the {} object?", "What is the shape of the {} object?"))
    return Question("shape", text.format(s.color), s.shape, (s.color,), s.patches)


def ask_exist(p: Picture, rng: Generator) -> Question | None:
    """Yes or no, half and half; half of the no's share a colour or a shape with the picture."""
    if p.bars:
        return _exist_simple(p, rng, "bar", {b.color: b.glyphs for b in p.bars})
    if p.signs and (not p.shapes or rng.random() < 0.25):
        return _exist_simple(p, rng, "sign", {s.color: s.glyphs for s in p.signs})
    if not p.shapes:
        return None
    if rng.random() < 0.3:
        return _exist_shape(p, rng)
    pairs = {(s.color, s.shape) for s in p.shapes}
    s = _one(rng, p.shapes)
    color, shape = s.color, s.shape
    yes = rng.random() < 0.5
    while not yes and (color, shape) in pairs:
        u = rng.random()
        color = s.color if u < 0.25 else str(_one(rng, COLORS))
        shape = s.shape if 0.25 <= u < 0.5 else str(_one(rng, SHAPES))
    patches = tuple(x for o in p.shapes if (o.color, o.shape) == (color, shape) for x in o.patches)
    text = f"Is there {_a(color)} {shape} in the image?"
    return Question("exist", text, "yes" if yes else "no", (color, shape), patches)


def _exist_shape(p: Picture, rng: Generator) -> Question:
    present = {s.shape for s in p.shapes}
    absent = [s for s in SHAPES if s not in present]
    yes = not absent or rng.random() < 0.5
    shape = _one(rng, sorted(present) if yes else absent)
    patches = tuple(x for o in p.shapes if o.shape == shape for x in o.patches)
    text = f"Is there {_a(shape)} in the image?"
    return Question("exist", text, "yes" if yes else "no", (shape,), patches)


def _exist_simple(p: Picture, rng: Generator, noun: str, have: dict) -> Question:
    yes = rng.random() < 0.5
    color = _one(rng, list(have) if yes else [c for c in COLORS if c not in have])
    patches = tuple(x for g in have.get(color, ()) for x in g)
    text = f"Is there {_a(color)} {noun} in the image?"
    return Question("exist", text, "yes" if yes else "no", (color, noun), patches)


def _kind_patches(p: Picture, name: str) -> Patches:
    rows, cols = np.nonzero(p.labels["kind"] == world.KIND[name])
    return tuple(zip(rows.tolist(), cols.tolist(), strict=True))


def ask_ground(p: Picture, rng: Generator) -> Question | None:
    if not p.ground:
        return None
    patches = _kind_patches(p, p.ground)
    if rng.random() < 0.25:
        yes = rng.random() < 0.5
        named = p.ground if yes else _one(rng, [g for g in GROUNDS if g != p.ground])
        text = f"Is the ground made of {named}?"
        return Question("ground yes/no", text, "yes" if yes else "no", (named,), patches)
    text = _one(rng, ("What is the ground made of?", "What material is the ground made of?"))
    return Question("ground", text, p.ground, ("ground",), patches)


def ask_sky(p: Picture, rng: Generator) -> Question | None:
    if not p.sky:
        return None
    patches = _kind_patches(p, p.sky)
    if rng.random() < 0.25:
        yes = rng.random() < 0.5
        named = p.sky if yes else _one(rng, [k for k in SKIES if k != p.sky])
        text, answer = f"Is it {named} in the image?", "yes" if yes else "no"
        return Question("sky yes/no", text, answer, (named,), patches)
    text = _one(rng, ("What time of day is it?", "What time of day is shown in the image?"))
    return Question("sky", text, p.sky, ("time",), patches)


def ask_half(p: Picture, rng: Generator) -> Question | None:
    """Which half of the picture an object is in; objects near the middle are left out."""
    middle = p.image.shape[1] / 2
    single = [s for s in _unique(p.shapes, "shape") if abs(s.center[0] - middle) >= 12]
    if not single:
        return None
    s = _one(rng, single)
    side = "left" if s.center[0] < middle else "right"
    if rng.random() < 0.3:
        named = _one(rng, ("left", "right"))
        text = f"Is the {s.shape} in the {named} half of the image?"
        answer = "yes" if named == side else "no"
        return Question("half yes/no", text, answer, (s.shape, named), s.patches)
    text = f"Is the {s.shape} in the left or right half of the image?"
    return Question("half", text, side, (s.shape,), s.patches)


def ask_count(p: Picture, rng: Generator) -> Question | None:
    """How many bars, signs or shapes there are."""
    choices = []
    if p.bars:
        choices.append(("bars", len(p.bars), [x for b in p.bars for x in b.glyphs]))
    if p.signs:
        choices.append(("signs", len(p.signs), [x for s in p.signs for x in s.glyphs]))
    if p.shapes:
        choices.append(("shapes", len(p.shapes), [s.patches for s in p.shapes]))
    noun, number, groups = _one(rng, choices)
    if number > 9:
        return None
    patches = tuple(x for group in groups for x in group)
    text = f"How many {noun} are there in the image?"
    return Question("count", text, str(number), (noun,), patches)


def ask_value(p: Picture, rng: Generator) -> Question | None:
    if not p.bars:
        return None
    bar = _one(rng, p.bars)
    text = _one(rng, ("What is the value of the {} bar?", "How much is the {} bar?"))
    flat = tuple(x for g in bar.glyphs for x in g)
    return Question("value", text.format(bar.color), str(bar.value), (bar.color,), flat, bar.glyphs)


def ask_extreme(p: Picture, rng: Generator) -> Question | None:
    """The colour of the highest or lowest bar, when it stands out."""
    if not p.bars:
        return None
    word = _one(rng, ("highest", "lowest"))
    order = sorted(p.bars, key=lambda b: b.value, reverse=word == "highest")
    if abs(order[0].value - order[1].value) < 6:
        return None
    bar = order[0]
    patches = tuple(x for g in bar.glyphs for x in g) + bar.patches
    if rng.random() < 0.2:
        yes = rng.random() < 0.5
        named = bar.color if yes else _one(rng, [b.color for b in order[1:]])
        text, answer = f"Is the {named} bar the {word}?", "yes" if yes else "no"
        return Question("extreme yes/no", text, answer, (word, named), patches)
    forms = ("Which bar is the {}?", "What is the color of the {} bar?")
    text = _one(rng, forms).format(word)
    return Question("extreme", text, bar.color, (word,), patches)


def ask_missing(p: Picture, rng: Generator) -> Question | None:
    """A question about something that is not there; only asked where that is an answer."""
    if p.bars:
        color = _one(rng, [c for c in COLORS if c not in {b.color for b in p.bars}])
        text, words = f"What is the value of the {color} bar?", (color,)
    elif p.signs and rng.random() < 0.6:
        color = _one(rng, [c for c in COLORS if c not in {s.color for s in p.signs}])
        text, words = f"What is written on the {color} sign?", (color,)
    else:
        absent = [s for s in SHAPES if s not in {o.shape for o in p.shapes}]
        if not absent:
            return None
        shape = _one(rng, absent)
        text, words = f"What color is the {shape}?", (shape,)
    return Question("missing", text, "unanswerable", words)


ASKERS: dict[str, Callable[[Picture, Generator], Question | None]] = {
    "text": ask_text, "exist": ask_exist, "color": ask_color, "shape": ask_shape,
    "ground": ask_ground, "sky": ask_sky, "half": ask_half, "count": ask_count,
    "value": ask_value, "extreme": ask_extreme, "missing": ask_missing,
}  # fmt: skip
MIX = {
    "scene": {"text": 0.26, "exist": 0.24, "color": 0.11, "shape": 0.11, "ground": 0.07,
              "sky": 0.05, "half": 0.06, "count": 0.06, "missing": 0.04},
    "chart": {"value": 0.40, "extreme": 0.26, "exist": 0.18, "count": 0.11, "missing": 0.05},
    "page": {"text": 0.74, "exist": 0.13, "count": 0.07, "missing": 0.06},
}  # fmt: skip
HINTS = ("", "", "", "Look at the image.", "The image shows simple objects.")


def with_options(q: Question, p: Picture, rng: Generator, count: int | None = None) -> Question:
    """The same question as multiple choice: shuffled options of the answer's own sort."""
    pools = {
        "color": COLORS, "extreme": COLORS, "shape": SHAPES, "ground": GROUNDS, "sky": SKIES,
        "half": ("left", "right"), "exist": ("yes", "no"), "count": NUMBERS[1:8],
    }  # fmt: skip
    n = count or int(rng.integers(2, 5))
    if q.kind in pools:
        pool = [o for o in pools[q.kind] if o != q.answer]
    else:
        near = [s.text for s in p.signs] + [str(b.value) for b in p.bars]
        held = q.answer in world.EVAL_WORDS
        pool = [o for o in dict.fromkeys(near) if o != q.answer]
        while len(pool) < n:
            other = str(int(rng.integers(10, 100))) if p.bars else world.sign_text(rng, held)
            if other != q.answer and other not in pool:
                pool.append(other)
    chosen = [str(pool[i]) for i in rng.permutation(len(pool))[: n - 1]] + [q.answer]
    options = tuple(chosen[i] for i in rng.permutation(len(chosen)))
    return replace(q, options=options)


def pick_style(q: Question, rng: Generator, choices: float) -> str:
    """A prompt style for training; `choices` is the share of multiple choice."""
    if q.kind == "missing":
        return "vizwiz"
    u = rng.random()
    if q.kind.endswith("yes/no") or q.kind == "exist":
        table = (("plain", 0.40), ("sw", 0.42), ("please", 0.10), ("mmvet", 0.03),
                 ("vizwiz", 0.05))  # fmt: skip
    else:
        if rng.random() < choices:
            u = rng.random()
            return CHOICE_STYLES[0 if u < 0.42 else 1 if u < 0.7 else 2 if u < 0.8 else 3]
        table = (("plain", 0.38), ("sw", 0.32), ("single", 0.10), ("vizwiz", 0.09),
                 ("mmvet", 0.06), ("short", 0.05))  # fmt: skip
    for style, share in table:
        u -= share
        if u < 0:
            return style
    return table[0][0]


def sample(
    p: Picture, rng: Generator, count: int, choices: float = 0.25
) -> list[tuple[Question, str]]:
    """Up to `count` different (question, style) pairs about a picture, for training."""
    mix = MIX[p.layout]
    kinds = rng.choice(list(mix), size=count, p=np.array(list(mix.values())))
    out, seen = [], set()
    for kind in kinds:
        q = ASKERS[kind](p, rng)
        if q is None or q.text in seen:
            continue
        seen.add(q.text)
        if rng.random() < 0.2:
            q = replace(q, text=q.text.lower())
        style = pick_style(q, rng, choices)
        if style in CHOICE_STYLES:
            q = replace(with_options(q, p, rng), hint=_one(rng, HINTS))
        out.append((q, style))
    return out
