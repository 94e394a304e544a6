"""Small random models in the true classes, with weights large enough for tests to have power."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from tests import segmented

IMAGE_TOKEN, VIDEO_TOKEN = 3, 5
VOCABULARY = 96
CROP, PATCH = 32, 4
#: tokens that tests generate: the prefill, and steps that each go on from the one before
STEPS = 5
PINPOINTS = [[32, 64], [64, 32], [64, 64]]


def rescale(model: nn.Module, seed: int = 0) -> None:
    """Weights ~ 1.5 / sqrt(fan-in): attention is far from uniform, so that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            noise = torch.randn(p.shape, generator=generator)
            scale = 1.0 if "embed" in name else 1.5 / p.shape[1:].numel() ** 0.5
            p.data.copy_(noise * scale)
        elif "norm" not in name and "ln_q" not in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.1)


def vision_config() -> dict:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": CROP,
        "patch_size": PATCH,
        "projection_dim": 32,
    }


def text_config(**changes: object) -> dict:
    return {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def _llava(kernel: str) -> nn.Module:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=vision_config(), text_config=text_config(), image_token_index=IMAGE_TOKEN
    )
    return LlavaForConditionalGeneration._from_config(config, attn_implementation=kernel)


def _llava_next(kernel: str) -> nn.Module:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=vision_config(),
        text_config=text_config(),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextForConditionalGeneration._from_config(config, attn_implementation=kernel)


def _llava_onevision(kernel: str) -> nn.Module:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    vision = {**vision_config(), "model_type": "siglip_vision_model"}
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config={**text_config(), "model_type": "qwen2"},
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    made = LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation=kernel)
    return made


def _qwen_text() -> dict:
    return {
        **text_config(),
        "model_type": "qwen2_vl_text",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 2, 2],
        },
    }


def _qwen2_vl(kernel: str) -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = _qwen_text()
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={
            "depth": 3,
            "embed_dim": 32,
            "hidden_size": text["hidden_size"],
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": PATCH,
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=4,
    )
    return Qwen2VLForConditionalGeneration._from_config(config, attn_implementation=kernel)


def _qwen2_5_vl(kernel: str) -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {**_qwen_text(), "model_type": "qwen2_5_vl_text"}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "out_hidden_size": text["hidden_size"],
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": PATCH,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=4,
    )
    return Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=kernel)


_BUILDERS = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
}
FAMILIES = tuple(_BUILDERS)
#: LLaVA-like towers have a CLS token in these families
WITH_CLS = ("llava", "llava_next")
M_ROPE = ("qwen2_vl", "qwen2_5_vl")


@cache
def model(family: str, kernel: str = "sdpa") -> nn.Module:
    """A random float32 model of ``family`` in eval mode, the same for every kernel.

    The kernel ``segmented`` stands for flash attention, see :mod:`tests.segmented`.
    """
    torch.manual_seed(0)
    made = _BUILDERS[family]("sdpa" if kernel == "segmented" else kernel).eval()
    if kernel == "segmented":
        segmented.use(made)
    rescale(made)
    # A final norm of ones only scales rows, which no cosine would notice.
    norm = made.model.language_model.norm.weight
    norm.data.copy_(torch.linspace(0.3, 1.7, len(norm)).roll(7))
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made


#: image sizes (height, width) in pixels: extreme aspect ratios cut much of the canvas away, and
#: the second OneVision canvas is shrunk
SIZES = {
    "llava": ((32, 32), (32, 32)),
    "llava_next": ((64, 40), (30, 64)),
    "llava_onevision": ((64, 40), (64, 64)),
    "qwen2_vl": ((48, 40), (32, 64)),
    "qwen2_5_vl": ((48, 40), (32, 56)),
}


@dataclass
class Prompt:
    """One row: text ids before and after the image, and the image's random pixels."""

    before: list[int]
    after: list[int]
    pixels: list[Tensor]
    sizes: list[tuple[int, int]]


def pixels(size: tuple[int, int], seed: int, family: str, frames: int = 1) -> Tensor:
    """Random pixels for one image, in the form the family's encoder takes them.

    Crops ``[crops, 3, CROP, CROP]``; the Qwen families: patches ``[frames * h * w, values]``.
    """
    generator = torch.Generator().manual_seed(seed)
    if family in M_ROPE:
        n = frames * (size[0] // PATCH) * (size[1] // PATCH)
        return torch.randn(n, 3 * 2 * PATCH * PATCH, generator=generator)
    crops = 1
    if family in ("llava_next", "llava_onevision"):
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        crops = image_size_to_num_patches(list(size), PINPOINTS, CROP)
    return torch.randn(crops, 3, CROP, CROP, generator=generator)


def prompt(family: str, number: int, images: int = 1) -> Prompt:
    """The ``number``-th test prompt; lengths and image sizes differ from row to row."""
    sizes = [SIZES[family][(number + i) % 2] for i in range(images)]
    after = [6 + (7 * number + i) % 80 for i in range(4 + 3 * number)]
    return Prompt(
        before=[1, 10 + number, 11],
        after=after,
        pixels=[pixels(s, 10 * number + i, family) for i, s in enumerate(sizes)],
        sizes=sizes,
    )


def inputs(family: str, prompts: list[Prompt], side: str = "left") -> dict[str, Tensor]:
    """A padded batch ready for ``generate``; placeholder counts come from the model itself."""
    rows = []
    for one in prompts:
        ids = list(one.before)
        for image, size in zip(one.pixels, one.sizes, strict=True):
            ids += [IMAGE_TOKEN] * _placeholders(family, size, len(image)) + [4]
        rows.append(ids + one.after)
    width = max(map(len, rows))
    batch = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(batch)
    for row, ids in enumerate(rows):
        place = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        batch[row, place] = torch.tensor(ids)
        mask[row, place] = 1
    images = [p for one in prompts for p in one.pixels]
    feed: dict[str, Tensor] = {"input_ids": batch, "attention_mask": mask}
    if not images:
        return feed
    sizes = [size for one in prompts for size in one.sizes]
    if family in M_ROPE:
        feed["mm_token_type_ids"] = (batch == IMAGE_TOKEN).int()
    return {**feed, **encoder_feed(family, images, sizes)}


def encoder_feed(
    family: str, images: list[Tensor], sizes: list[tuple[int, int]]
) -> dict[str, Tensor]:
    """Arguments of ``get_image_features`` for some images."""
    if family == "llava":
        return {"pixel_values": torch.cat(images)}
    if family in M_ROPE:
        grids = [[1, height // PATCH, width // PATCH] for height, width in sizes]
        return {"pixel_values": torch.cat(images), "image_grid_thw": torch.tensor(grids)}
    crops = max(len(p) for p in images)
    padded = [torch.cat([p, p.new_zeros(crops - len(p), *p.shape[1:])]) for p in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sizes)}


@cache
def _placeholders(family: str, size: tuple[int, int], length: int) -> int:
    """Placeholders of a picture, by its size and the length of its pixels."""
    image = pixels(size, 0, family)
    assert len(image) == length, "pixels that the size does not make"
    return n_tokens(model(family), family, image, size)


def n_tokens(made: nn.Module, family: str, image: Tensor, size: tuple[int, int]) -> int:
    """Visual tokens the model makes of one image."""
    with torch.no_grad():
        out = made.model.get_image_features(**encoder_feed(family, [image], [size]))
    return len(out.pooler_output[0])


def generate(made: nn.Module, feed: dict[str, Tensor], steps: int = STEPS, **kw: object):
    """Greedy generation with logits of every step; never emits an image placeholder."""
    with torch.no_grad():
        return made.generate(
            **feed,
            max_new_tokens=steps,
            do_sample=False,
            suppress_tokens=[IMAGE_TOKEN, VIDEO_TOKEN],
            output_logits=True,
            return_dict_in_generate=True,
            **kw,
        )
