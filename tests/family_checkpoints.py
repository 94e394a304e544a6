"""A tiny checkpoint of every family in the hub's format: true config, real processor, template."""

from __future__ import annotations

from pathlib import Path

from tests import checkpoint_tools, tiny

#: name of image and video placeholder in the family's own tokenizer
PLACEHOLDERS = {
    "llava": ("<image>", "<video>"),
    "llava_next": ("<image>", "<video>"),
    "llava_onevision": ("<image>", "<video>"),
    "qwen2_vl": ("<|image_pad|>", "<|video_pad|>"),
    "qwen2_5_vl": ("<|image_pad|>", "<|video_pad|>"),
}
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ 'u: ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>' }}{% elif c['type'] == 'video' %}{{ '<video>' }}"
    "{% else %}{{ '\n' + c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' a:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>u\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>a\n' }}{% endif %}"
)


def tokenizer(family: str):
    """Characters as tokens, and the family's special tokens at the ids of the tiny models."""
    image, video = PLACEHOLDERS[family]
    special = ["<pad>", "<bos>", "<end>", image, "<|vision_start|>", video, "<|vision_end|>"]
    special += ["<|im_start|>", "<|im_end|>", "<unk>"]
    return checkpoint_tools.tokenizer(special, image, video, bos=family in ("llava", "llava_next"))


def processor(family: str):
    """The family's processor around :func:`tokenizer`, at the tiny models' sizes."""
    import transformers as t

    words = tokenizer(family)
    crop = {"height": tiny.CROP, "width": tiny.CROP}
    common = {"patch_size": tiny.PATCH, "vision_feature_select_strategy": "default"}
    common |= {"num_additional_image_tokens": 1, "chat_template": LLAVA_TEMPLATE}
    if family == "llava":
        images = t.CLIPImageProcessor(size={"shortest_edge": tiny.CROP}, crop_size=crop)
        return t.LlavaProcessor(images, words, **common)
    if family == "llava_next":
        images = t.LlavaNextImageProcessor(
            size={"shortest_edge": tiny.CROP}, crop_size=crop, image_grid_pinpoints=tiny.PINPOINTS
        )
        return t.LlavaNextProcessor(images, words, **common)
    if family == "llava_onevision":
        images = t.LlavaOnevisionImageProcessor(size=crop, image_grid_pinpoints=tiny.PINPOINTS)
        return t.LlavaOnevisionProcessor(
            images,
            words,
            t.LlavaOnevisionVideoProcessor(size=crop),
            num_image_tokens=(tiny.CROP // tiny.PATCH) ** 2,
            vision_feature_select_strategy="full",
            chat_template=LLAVA_TEMPLATE,
            vision_aspect_ratio="anyres_max_2",
        )
    pixels = {"min_pixels": 16 * 16, "max_pixels": 64 * 64, "patch_size": tiny.PATCH}
    cls = t.Qwen2VLProcessor if family == "qwen2_vl" else t.Qwen2_5_VLProcessor
    return cls(
        t.Qwen2VLImageProcessor(**pixels),
        words,
        t.Qwen2VLVideoProcessor(**pixels),
        chat_template=QWEN_TEMPLATE,
    )


def save(family: str, folder: Path) -> Path:
    """Write the checkpoint of ``family`` into ``folder`` and return it."""
    import copy

    model = copy.deepcopy(tiny.model(family))
    model.generation_config.eos_token_id = 2
    model.generation_config.suppress_tokens = [tiny.IMAGE_TOKEN, tiny.VIDEO_TOKEN]
    model.save_pretrained(folder)
    processor(family).save_pretrained(folder)
    return folder
