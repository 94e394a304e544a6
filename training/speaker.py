"""Projector and language model, and their forward pass over packed questions.

The pass runs the Hugging Face Llama modules under a block mask and gives, to the last bits of the
rounding, what the model in `export` gives for each question alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.training import packing
from vtprune.training.common import HIDDEN, TEXT_LAYERS, normalise, text_config
from vtprune.training.tokens import build_tokenizer

GROUND_HEADS = 2
EMBED_STD = 0.5


class Speaker(nn.Module):
    """Projector and language model: the parts of LLaVA behind the tower."""

    def __init__(self, seed: int = 0) -> None:
        from transformers import LlamaForCausalLM

        super().__init__()
        self.vocab = build_tokenizer(seed).get_vocab()
        self.llm = LlamaForCausalLM(text_config(len(self.vocab)))
        self.linear_1 = nn.Linear(HIDDEN, HIDDEN)
        self.linear_2 = nn.Linear(HIDDEN, HIDDEN)

    def project(self, features: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(features)))


def word_id(vocab: dict[str, int], word: str, space: bool = True) -> int:
    """Token of a word; the kinds that are no word of a question borrow one that is."""
    word = {"glyph": "sign"}.get(word, word)
    return vocab["Ġ" + word] if space else vocab[word]


@torch.no_grad()
def initialise(speaker: Speaker) -> None:
    """Wide embeddings; a word with and without its space starts equal; heads that match tokens.

    The output layer starts as a copy of the embeddings, so naming what a row holds comes for free.
    """
    llm, vocab = speaker.llm, speaker.vocab
    for name, weight in llm.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            deep = name.endswith(("o_proj.weight", "down_proj.weight"))
            weight.normal_(0, 0.06 / (math.sqrt(2 * TEXT_LAYERS) if deep else 1.0))
    table = llm.model.embed_tokens.weight
    table.normal_(0, EMBED_STD)
    for token, at in vocab.items():
        if token.startswith("Ġ") and token[1:] in vocab and len(token) > 2:
            table[vocab[token[1:]]] = table[at]
    llm.lm_head.weight.copy_(0.15 * table)
    for layer in llm.model.layers[1:-1]:
        width = 3 * HIDDEN // 4
        layer.self_attn.k_proj.weight[:width] = layer.self_attn.q_proj.weight[:width]


def see(tower: nn.Module, images: Tensor) -> Tensor:
    """Images (N, 112, 112, 3) uint8 -> penultimate features (N, 196, 128) without CLS."""
    out = tower(pixel_values=normalise(images), output_hidden_states=True)
    return out.hidden_states[-2][:, 1:]


def assemble(
    speaker: Speaker, visual: Tensor, places: Tensor, batch: dict[str, Tensor], total: int | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (B, L, 128), positions (B, L) and mask (B, 1, L, L) of a packed batch.

    `visual` (B, V, 128) sits at positions `places` (B, V); negative places are padding. The text
    starts at position `total`, the length of the whole unpruned prefix: a number, or (B, 1).
    """
    b = places.shape[0]
    device = visual.device
    table = speaker.llm.model.embed_tokens
    head = table(torch.tensor(packing.PREFIX, device=device)).expand(b, -1, -1)
    x = torch.cat([head, visual.to(head.dtype), table(batch["ids"])], 1)
    front = len(packing.PREFIX)
    first = torch.arange(front, device=device).expand(b, -1)
    position = torch.cat([first, places.clamp(min=0) + front, batch["pos"] + front + total], 1)
    group = torch.cat(
        [
            torch.full((b, front), -2, device=device),
            torch.where(places < 0, -3, -2),
            torch.where(batch["block"] < 0, -4, batch["block"]),
        ],
        1,
    )
    order = torch.arange(x.shape[1], device=device)
    mine = group[:, :, None] == group[:, None, :]
    prefix = (group[:, None, :] == -2) & (group[:, :, None] > -3)
    mask = (mine | prefix) & (order[:, None] >= order[None, :])
    return x, position, mask[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, prefix: int) -> Tensor:
    """Masked attention; the prefix rows skip the columns behind them, which saves a quarter."""
    if not prefix:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    p = prefix
    front = F.scaled_dot_product_attention(
        q[:, :, :p], k[:, :, :p], v[:, :, :p], attn_mask=bias[:, :, :p, :p].contiguous()
    )
    back = F.scaled_dot_product_attention(q[:, :, p:], k, v, attn_mask=bias[:, :, p:].contiguous())
    return torch.cat([front, back], 2)


def forward(
    speaker: Speaker,
    x: Tensor,
    position: Tensor,
    mask: Tensor,
    rows: Tensor | None = None,
    wanted: dict[int, Tensor] | None = None,
    prefix: int = 0,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run the layers on x (B, L, 128). The first `prefix` positions see only each other.

    `rows` (B, R) are the positions whose attention is read; `wanted[layer]` (B, R, L) marks where
    that attention should go. Returns the normalised states and, for each such layer, the negative
    log of the attention mass there, (B, R), mean over the grounded heads.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = speaker.llm.model
    cos, sin = model.rotary_emb(x, position)
    bias = torch.zeros(mask.shape, dtype=torch.float32, device=x.device)
    bias = bias.masked_fill_(~mask, -1e4)
    low = bias.to(torch.bfloat16) if torch.is_autocast_enabled(x.device.type) else bias
    b, length = x.shape[:2]
    lost: dict[int, Tensor] = {}
    for number, layer in enumerate(model.layers):
        attn, h = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            f(h).view(b, length, -1, attn.head_dim).transpose(1, 2)
            for f in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos.to(q.dtype), sin.to(q.dtype))
        if wanted and number in wanted:
            at = rows[:, None, :, None].expand(-1, GROUND_HEADS, -1, attn.head_dim)
            picked = q[:, :GROUND_HEADS].gather(2, at)
            score = (picked @ k[:, :GROUND_HEADS].transpose(2, 3)).float() * attn.scaling
            seen = bias[:, 0].gather(1, rows[:, :, None].expand(-1, -1, length))
            score = score + seen[:, None]
            hit = score.masked_fill(~wanted[number][:, None], -1e4)
            lost[number] = (score.logsumexp(-1) - hit.logsumexp(-1)).mean(1)
        mixed = attend(q, k, v, low, prefix)
        x = x + attn.o_proj(mixed.transpose(1, 2).reshape(b, length, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.norm(x), lost


def exact(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(B, Q) whether every token of the answer, the end included, is the most likely one."""
    good = (logits.argmax(-1) == batch["target"]) | (batch["target"] < 0)
    n = batch["objects"].shape[1]
    wrong = torch.zeros(len(good), n, device=good.device)
    wrong.scatter_add_(1, batch["question"].clamp(min=0), (~good).float())
    return wrong == 0
