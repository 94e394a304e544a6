"""Write a trained model in Hugging Face form: `llava` and `llava-next` folders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vtprune.training.common import (
    FEATURE_LAYER,
    IMAGE_TOKENS,
    PINPOINTS,
    text_config,
    vision_config,
)
from vtprune.training.speaker import Speaker
from vtprune.training.tokens import BOS, END, IMAGE, PAD, build_processor


def assemble_model(tower: nn.Module, speaker: Speaker, newline: Tensor | None = None) -> nn.Module:
    """A LLaVA-1.5 model, or with `newline` (128,) a LLaVA-NeXT model, with these weights."""
    from transformers import (
        GenerationConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    shared = {
        "vision_config": vision_config(), "text_config": text_config(len(speaker.vocab)),
        "image_token_index": IMAGE, "projector_hidden_act": "gelu",
        "vision_feature_layer": FEATURE_LAYER, "vision_feature_select_strategy": "default",
        "image_seq_length": IMAGE_TOKENS, "multimodal_projector_bias": True,
        "tie_word_embeddings": False,
    }  # fmt: skip
    if newline is None:
        model = LlavaForConditionalGeneration(LlavaConfig(**shared))
    else:
        model = LlavaNextForConditionalGeneration(
            LlavaNextConfig(image_grid_pinpoints=PINPOINTS, **shared)
        )
        model.model.image_newline.data.copy_(newline)
    inner = model.model
    inner.vision_tower.load_state_dict(tower.state_dict())
    inner.multi_modal_projector.linear_1.load_state_dict(speaker.linear_1.state_dict())
    inner.multi_modal_projector.linear_2.load_state_dict(speaker.linear_2.state_dict())
    inner.language_model.load_state_dict(speaker.llm.model.state_dict())
    model.lm_head.load_state_dict(speaker.llm.lm_head.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=END, pad_token_id=PAD, max_new_tokens=16, do_sample=False
    )
    return model.eval()


def save_model(
    folder: Path, tower: nn.Module, speaker: Speaker, newline: Tensor | None = None
) -> int:
    """Write weights (float16) and processor; returns the bytes of the folder."""
    model = assemble_model(tower, speaker, newline).to(torch.float16)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    build_processor(anyres=newline is not None).save_pretrained(folder)
    size = 0
    for path in folder.iterdir():
        path.chmod(0o644)
        size += path.stat().st_size
    return size
