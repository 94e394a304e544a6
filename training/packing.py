"""Many questions about one picture behind a single image prefix.

Each question is a block that sees the prefix and itself, and its positions restart after the
prefix, so the packed forward pass equals separate prompts at a fraction of the cost. Teacher-forced
exact match over a block equals greedy exact match, so evaluation uses the same packing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator

from vtprune.harness.evaluation.data.mini import questions, world
from vtprune.harness.evaluation.data.mini.questions import Question
from vtprune.harness.evaluation.data.mini.world import Picture
from vtprune.training.tokens import ASSISTANT, BOS, END, PAD, USER, build_tokenizer
from vtprune.training.tower import facts

PREFIX = (BOS, USER)
IGNORE = -100


@lru_cache(maxsize=200_000)
def encode(text: str, seed: int = 0) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Token ids and character spans of a text."""
    out = build_tokenizer(seed)(text, return_offsets_mapping=True)
    return tuple(out["input_ids"]), tuple(out["offset_mapping"])


@dataclass
class Block:
    """One question as tokens, with what its answer rows should look at."""

    ids: list[int]
    rows: list[int]
    targets: list[int]
    weights: list[float]
    words: list[int]
    option: list[int]
    patches: questions.Patches
    chars: list[questions.Patches]
    kind: str
    style: str


def _touching(spans: tuple[tuple[int, int], ...], start: int, stop: int) -> list[int]:
    return [i for i, (a, b) in enumerate(spans) if a < stop and b > start and b > a]


def make_block(q: Question, style: str, hard: float = 4.0) -> Block:
    """Tokens `\\n prompt <|assistant|> answer <|end|>`; a row predicts the token after it.

    Characters of longer answers weigh 1, one-token answers 4, and the sorts that are learned last
    (letters of options, halves of the picture) `hard`.
    """
    prompt = "\n" + questions.render(q, style)
    ids, spans = encode(prompt)
    answer = list(encode(questions.answer_of(q, style))[0])
    at = prompt.lower().index(q.text.lower())
    words = []
    for word in q.words:
        begin = prompt.lower().find(word, at, at + len(q.text))
        if begin >= 0:
            words += _touching(spans, begin, begin + len(word))
    option = []
    if style in questions.CHOICE_STYLES:
        head = f"\n{q.letter}. "
        begin = prompt.index(head, at + len(q.text)) + len(head)
        option = _touching(spans, begin, begin + len(q.answer))
    rows = [len(ids) + i for i in range(len(answer) + 1)]
    written = bool(q.chars) and style not in questions.CHOICE_STYLES
    chars = [*q.chars, ()] if written else [() for _ in rows]
    slow = q.kind.startswith("half") or style in questions.CHOICE_STYLES
    weight = 1.0 if len(answer) > 1 else hard if slow else 4.0
    return Block(
        ids=[*ids, ASSISTANT, *answer], rows=rows, targets=[*answer, END],
        weights=[weight] * len(answer) + [0.3], words=words, option=option,
        patches=q.patches, chars=chars, kind=q.kind, style=style,
    )  # fmt: skip


def pack_blocks(per_picture: list[list[Block]], patches: int = 196,
                index: list[dict[tuple[int, int], list[int]]] | None = None) -> dict:  # fmt: skip
    """Pad blocks to arrays.

    Shapes: ids, block, pos, words, option (B, T); rows, target, weight, question (B, R);
    objects (B, Q, P) by block; chars (B, R, P). `index[b]` maps a (row, column) patch to visual
    positions; by default row * 14 + column.
    """
    b = len(per_picture)
    t = max(sum(len(k.ids) for k in blocks) for blocks in per_picture)
    r = max(sum(len(k.rows) for k in blocks) for blocks in per_picture)
    n = max(len(blocks) for blocks in per_picture)
    out = {
        "ids": np.full((b, t), PAD, np.int64), "block": np.full((b, t), -1, np.int64),
        "pos": np.zeros((b, t), np.int64), "words": np.zeros((b, t), bool),
        "option": np.zeros((b, t), bool), "rows": np.zeros((b, r), np.int64),
        "target": np.full((b, r), IGNORE, np.int64), "weight": np.zeros((b, r), np.float32),
        "question": np.full((b, r), -1, np.int64), "objects": np.zeros((b, n, patches), bool),
        "chars": np.zeros((b, r, patches), bool),
    }  # fmt: skip

    def places(i: int, found: questions.Patches) -> list[int]:
        if index is None:
            return [y * world.GRID + x for y, x in found]
        return [j for p in found for j in index[i].get(p, ())]

    for i, blocks in enumerate(per_picture):
        start = row = 0
        for j, k in enumerate(blocks):
            stop = start + len(k.ids)
            out["ids"][i, start:stop] = k.ids
            out["block"][i, start:stop] = j
            out["pos"][i, start:stop] = np.arange(len(k.ids))
            out["words"][i, [start + w for w in k.words]] = True
            out["option"][i, [start + w for w in k.option]] = True
            span = slice(row, row + len(k.rows))
            out["rows"][i, span] = [start + x for x in k.rows]
            out["target"][i, span] = k.targets
            out["weight"][i, span] = k.weights
            out["question"][i, span] = j
            out["objects"][i, j, places(i, k.patches)] = True
            for x, found in enumerate(k.chars):
                out["chars"][i, row + x, places(i, found)] = True
            start, row = stop, row + len(k.rows)
    return out


def keep_patches(picture: Picture, rng: Generator, count: int) -> np.ndarray:
    """`count` patch numbers (sorted): everything drawn, then random background."""
    kind = picture.labels["kind"].reshape(-1)
    front = (kind == world.IGNORE) | (kind > world.KIND["canvas"])
    order = rng.permutation(kind.size)
    ranked = np.concatenate([order[front[order]], order[~front[order]]])
    return np.sort(ranked[:count])


def language_batch(
    step: int,
    seed: int,
    stage: int,
    batch: int,
    count: int,
    kept: int,
    choices: float,
    hard: float = 4.0,
) -> dict[str, np.ndarray]:
    """Pictures and packed questions of a step. `kept` visual tokens stay (196: all)."""
    rng = np.random.default_rng([seed, stage, step])
    pictures, blocks, keep = [], [], []
    while len(pictures) < batch:
        p = world.draw(int(rng.integers(world.HELD_OUT_SEED)))
        asked = questions.sample(p, rng, count, choices)
        if asked:
            pictures.append(p)
            blocks.append([make_block(q, s, hard) for q, s in asked])
            keep.append(keep_patches(p, rng, kept))
    out = pack_blocks(blocks)
    out["image"] = np.stack([p.image for p in pictures])
    out["keep"] = np.stack(keep)
    out["facts"] = np.stack([facts(p) for p in pictures])
    for name in ("kind", "color", "glyph", "left", "right"):
        out[name] = np.stack([p.labels[name].reshape(-1) for p in pictures])
    return out
