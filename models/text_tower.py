"""The text half of the CLIP checkpoint that a vision tower came from: patches against a question.

A LLaVA checkpoint holds the vision half only. What brings patches and text into one space (text
model, both projections, the norm in front of the visual one) is read from the CLIP checkpoint.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.methods import ops
from vtprune.models.errors import ModelLoadError

#: what benchmarks add to a question for answers of one word; it says nothing about the picture
INSTRUCTION = "Answer the question using a single word or phrase."


def question_of(prompt: str) -> str:
    """The question alone, of what a benchmark asks: no placeholder, no instruction at the end."""
    text = prompt.replace("<image>", " ").strip()
    return text.removesuffix(INSTRUCTION).strip()


@dataclass(frozen=True)
class TextTower:
    """CLIP's joint space, in float32.

    Attributes:
        text_model, text_projection: from a text to the joint space ``[P]``.
        norm, projection: from encoder tokens ``[.., C]`` to the joint space ``[.., P]``.
        tokenizer: CLIP's own; texts are truncated at the model's context.
    """

    text_model: Any
    text_projection: nn.Linear
    norm: nn.LayerNorm
    projection: nn.Linear
    tokenizer: Any

    @property
    def width(self) -> int:
        """Width of the encoder tokens it understands."""
        return self.projection.in_features

    def tokens(self, question: str) -> Tensor:
        """Ids ``[1, n]`` of a question."""
        limit = self.text_model.config.max_position_embeddings
        made = self.tokenizer([question], truncation=True, max_length=limit, return_tensors="pt")
        return made["input_ids"].to(self.projection.weight.device)

    def text(self, ids: Tensor) -> Tensor:
        """Unit vector ``[P]`` of a tokenised question."""
        with torch.no_grad():
            pooled = self.text_model(input_ids=ids).pooler_output
            return ops.unit(self.text_projection(pooled)[0])

    def patches(self, features: Tensor) -> Tensor:
        """Unit vectors ``[.., P]`` of encoder tokens ``[.., C]``, those before the projector."""
        with torch.no_grad():
            x = features.to(self.projection.weight.device).float()
            return ops.unit(self.projection(self.norm(x)))

    def macs(self, n_text: int, n_patches: int) -> int:
        """Multiply-accumulates of one question and ``n_patches`` encoder tokens."""
        config, joint = self.text_model.config, self.projection.out_features
        width, mlp = config.hidden_size, config.intermediate_size
        layer = n_text * (4 * width**2 + 2 * width * mlp) + 2 * n_text**2 * width
        text = config.num_hidden_layers * layer + width * joint
        return text + n_patches * joint * (self.width + 1)


@functools.lru_cache(maxsize=1)
def load(path: str | Path, device: str = "cpu") -> TextTower:
    """The text tower in a CLIP checkpoint (a folder with safetensors and tokenizer).

    The last one loaded stays in memory, so that a sweep loads it once.

    Raises:
        ModelLoadError: one line saying what is wrong.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer, CLIPModel

    try:
        kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if kind != "clip":
            raise ValueError(f"it is a {kind}, not a CLIP model")
        loaded: Any = CLIPModel.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
        model, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ModelLoadError(f"model.clip: cannot load {path}: {reason.strip()}") from error
    if absent := sorted(info["missing_keys"]):  # the library puts random numbers in their place
        raise ModelLoadError(f"model.clip: {path} lacks {len(absent)} weights, e.g. {absent[0]}")
    model.eval().requires_grad_(False)
    return TextTower(
        text_model=model.text_model.to(device),
        text_projection=model.text_projection.to(device),
        norm=model.vision_model.post_layernorm.to(device),
        projection=model.visual_projection.to(device),
        tokenizer=tokenizer,
    )
