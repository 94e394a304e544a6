"""Tokenizer and processors of the embedded model.

A byte-level BPE learned from the prompts alone. Upper-case letters and digits that do not begin
an ordinary word are split off first, so text on signs is one token a character everywhere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vtprune.harness.evaluation.data.mini import questions, world

PAD, BOS, END, IMAGE, USER, ASSISTANT = range(6)
SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<image>", "<|user|>", "<|assistant|>")
ALONE = r"[A-Z0-9](?![a-z])"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>"
    "{% if m['content'] is string %}{{ '\\n' + m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ '\\n' + c['text'] }}{% endfor %}"
    "{% endif %}{% elif m['role'] == 'assistant' %}<|assistant|>"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def corpus(seed: int = 0, pictures: int = 1500) -> list[str]:
    """Prompts and one-word answers, without what is written on signs."""
    rng = np.random.default_rng([seed, 0])
    words = (*world.COLORS, *world.SHAPES, *world.GROUNDS, *world.SKIES, "left", "right", "yes",
             "no", "unanswerable", "word", "number", "sign", "bar", "canvas", "box", "signs",
             "bars", "shapes", "highest", "lowest")  # fmt: skip
    lines = [f"{w}\n {w}" for w in words for _ in range(40)]
    for seed_of_picture in range(pictures):
        p = world.draw(seed_of_picture)
        for q, style in questions.sample(p, rng, 6):
            if q.kind not in ("text", "value") or style not in questions.CHOICE_STYLES:
                lines.append("\n" + questions.render(q, style))
    return lines


@lru_cache(maxsize=2)
def build_tokenizer(seed: int = 0):
    """Train the BPE; deterministic for a seed. Returns a PreTrainedTokenizerFast."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(ALONE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, min_frequency=20, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(corpus(seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>",
        padding_side="left", clean_up_tokenization_spaces=False, model_max_length=2048,
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def build_processor(anyres: bool, seed: int = 0):
    """`LlavaProcessor`, or `LlavaNextProcessor` for the many-tile form."""
    from transformers import (
        CLIPImageProcessor,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        LlavaProcessor,
    )

    from vtprune.training.common import PINPOINTS

    side = world.TILE
    shared = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    glue = {"patch_size": world.PATCH, "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1, "chat_template": TEMPLATE}  # fmt: skip
    if anyres:
        images = LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **shared)
        return LlavaNextProcessor(images, build_tokenizer(seed), **glue)
    return LlavaProcessor(CLIPImageProcessor(**shared), build_tokenizer(seed), **glue)
