"""Small random models in the true classes, with weights large enough for tests to have power."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

IMAGE_TOKEN = 3
VOCABULARY = 96
CROP, PATCH = 32, 4
PINPOINTS = [[32, 64], [64, 32], [64, 64]]


def rescale(model: nn.Module, seed: int = 0) -> None:
    """Weights ~ 1.5 / sqrt(fan-in): attention is far from uniform, so that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            noise = torch.randn(p.shape, generator=generator)
            scale = 1.0 if "embed" in name else 1.5 / p.shape[1:].numel() ** 0.5
            p.data.copy_(noise * scale)
        elif "norm" not in name:
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


_BUILDERS = {"llava": _llava, "llava_next": _llava_next}
FAMILIES = tuple(_BUILDERS)


@cache
def model(family: str, kernel: str = "sdpa") -> nn.Module:
    """A random float32 model of ``family`` in eval mode, the same for every kernel."""
    torch.manual_seed(0)
    made = _BUILDERS[family](kernel).eval()
    rescale(made)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made


#: image sizes (height, width): extreme aspect ratios cut much of the canvas away
SIZES = {"llava": ((32, 32), (32, 32)), "llava_next": ((64, 40), (30, 64))}


@dataclass
class Prompt:
    """One row: text ids before and after the image, and the image's random pixels."""

    before: list[int]
    after: list[int]
    pixels: list[Tensor]
    sizes: list[tuple[int, int]]


def pixels(size: tuple[int, int], seed: int, family: str) -> Tensor:
    """Random pixels for one image: ``[crops, 3, CROP, CROP]`` (LLaVA-1.5: one crop)."""
    crops = 1
    if family == "llava_next":
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        crops = image_size_to_num_patches(list(size), PINPOINTS, CROP)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(crops, 3, CROP, CROP, generator=generator)


def prompt(family: str, number: int, images: int = 1) -> Prompt:
    """The ``number``-th test prompt; lengths and image sizes differ from row to row."""
    sizes = [SIZES[family][(number + i) % 2] for i in range(images)]
    after = [5 + (7 * number + i) % 80 for i in range(4 + 3 * number)]
    return Prompt(
        before=[1, 10 + number, 11],
        after=after,
        pixels=[pixels(s, 10 * number + i, family) for i, s in enumerate(sizes)],
        sizes=sizes,
    )


def inputs(family: str, prompts: list[Prompt], side: str = "left") -> dict[str, Tensor]:
    """A padded batch ready for ``generate``; placeholder counts come from the model itself."""
    made, rows = model(family), []
    for one in prompts:
        ids = list(one.before)
        for image, size in zip(one.pixels, one.sizes, strict=True):
            ids += [IMAGE_TOKEN] * n_tokens(made, family, image, size) + [4]
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
    if family == "llava":
        feed["pixel_values"] = torch.cat(images)
    else:
        crops = max(len(p) for p in images)
        padded = [torch.cat([p, p.new_zeros(crops - len(p), *p.shape[1:])]) for p in images]
        feed["pixel_values"] = torch.stack(padded)
        feed["image_sizes"] = torch.tensor([s for one in prompts for s in one.sizes])
    return feed


def n_tokens(made: nn.Module, family: str, image: Tensor, size: tuple[int, int]) -> int:
    """Visual tokens the model makes of one image."""
    with torch.no_grad():
        if family == "llava":
            out = made.model.get_image_features(image)
        else:
            out = made.model.get_image_features(image[None], torch.tensor([size]))
    return len(out.pooler_output[0])


def generate(made: nn.Module, feed: dict[str, Tensor], steps: int = 9, **kw: object):
    """Greedy generation with logits of every step; never emits an image placeholder."""
    with torch.no_grad():
        return made.generate(
            **feed,
            max_new_tokens=steps,
            do_sample=False,
            suppress_tokens=[IMAGE_TOKEN],
            output_logits=True,
            return_dict_in_generate=True,
            **kw,
        )
