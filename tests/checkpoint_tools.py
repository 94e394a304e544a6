"""A tiny random checkpoint with processor and chat template, saved as the hub would have it."""

from __future__ import annotations

import copy
import string
from pathlib import Path

from tests import tiny

SPECIAL = ["<pad>", "<bos>", "<end>", "<image>", "<unk>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ '\n' + c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
)


def tokenizer(
    special: list[str] | None = None,
    image: str | None = "<image>",
    video: str | None = None,
    bos: bool = True,
    names: tuple[str | None, str, str] = ("<bos>", "<end>", "<pad>"),
):
    """One token a character; adds a begin token of its own if ``bos``, as Llama's does.

    ``names`` of the begin, end and pad tokens.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_letters + string.digits + " .,?!:'\n-/()"
    special = special or SPECIAL
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    assert len(vocabulary) <= tiny.VOCABULARY
    base = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    begin, end, pad = names
    if bos:
        base.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])]
        )
    # Before the wrapper sees it: "additional" special tokens are no longer an argument of that one.
    base.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        unk_token="<unk>",
        extra_special_tokens={
            name: token for name, token in (("image_token", image), ("video_token", video)) if token
        },
    )


def save(folder: Path) -> Path:
    """Write a LLaVA checkpoint into ``folder``."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    side = {"height": tiny.CROP, "width": tiny.CROP}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": tiny.CROP}, crop_size=side),
        tokenizer(),
        patch_size=tiny.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    model = copy.deepcopy(tiny.model("llava", "sdpa"))  # the original is shared by all tests
    model.generation_config.eos_token_id = SPECIAL.index("<end>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
