"""Losses on packed questions: answers, where to look, and the names of what is drawn.

The grounding loss asks the answer rows to look at the words of the question that name the object
(layer 0), at the patches of the object (layers 2 and 3), and at the character to be written next or
the right option (layer 4). Layers 0 and 1 are never told where in the picture to look, so ranking
tokens by their attention (FastV with K = 2) is not taught here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.harness.evaluation.data.mini import world
from vtprune.training import packing
from vtprune.training.common import HIDDEN
from vtprune.training.speaker import Speaker, word_id

WORD_LAYERS, OBJECT_LAYERS, CHAR_LAYERS = (0,), (2, 3), (4,)


def wanted_attention(batch: dict[str, Tensor], keep: Tensor, length: int) -> dict[int, Tensor]:
    """Layer -> (B, R, L) marks. `keep` (B, V) are the visual positions that are present."""
    b, v = keep.shape
    r = batch["rows"].shape[1]
    front = len(packing.PREFIX)
    question = batch["question"].clamp(min=0)
    valid = batch["question"] >= 0
    objects = batch["objects"].gather(
        1, question[:, :, None].expand(-1, -1, batch["objects"].shape[2])
    )
    safe = keep.clamp(min=0)[:, None].expand(-1, r, -1)
    present = (keep >= 0)[:, None] & valid[:, :, None]
    same = (batch["block"][:, None] == batch["question"][:, :, None]) & valid[:, :, None]

    def blank() -> Tensor:
        return torch.zeros(b, r, length, dtype=torch.bool, device=keep.device)

    words, things, chars = blank(), blank(), blank()
    words[:, :, front + v :] = same & batch["words"][:, None]
    things[:, :, front : front + v] = objects.gather(2, safe) & present
    chars[:, :, front : front + v] = batch["chars"].gather(2, safe) & present
    chars[:, :, front + v :] = same & batch["option"][:, None]
    return (
        dict.fromkeys(WORD_LAYERS, words)
        | dict.fromkeys(OBJECT_LAYERS, things)
        | dict.fromkeys(CHAR_LAYERS, chars)
    )


def grounding_loss(
    lost: dict[int, Tensor], wanted: dict[int, Tensor], weight: Tensor
) -> tuple[Tensor, dict[int, float]]:
    """Mean over the rows that have a target; also one number a layer for the log."""
    total, shown = weight.new_zeros(()), {}
    for number, loss in lost.items():
        has = wanted[number].any(-1) & (weight > 0.5)
        mean = (loss * has).sum() / has.sum().clamp(min=1)
        total = total + mean
        shown[number] = round(mean.item(), 3)
    return total, shown


def answer_loss(
    speaker: Speaker, states: Tensor, batch: dict[str, Tensor], front: int
) -> tuple[Tensor, Tensor]:
    """Weighted cross entropy on answer rows; returns it with the logits (B, R, vocabulary)."""
    at = (batch["rows"] + front)[:, :, None].expand(-1, -1, HIDDEN)
    logits = speaker.llm.lm_head(states.gather(1, at)).float()
    loss = F.cross_entropy(
        logits.flatten(0, 1), batch["target"].flatten(), reduction="none", ignore_index=-100
    )
    weight = batch["weight"].flatten()
    return (loss * weight).sum() / weight.sum(), logits


def naming_loss(speaker: Speaker, states: Tensor, batch: dict[str, Tensor], keep: Tensor) -> Tensor:
    """The output layer names what is drawn at each visual position (characters, shapes, ground)."""
    vocab = speaker.vocab
    kinds = [word_id(vocab, k, False) if k not in ("glyph",) else 0 for k in world.KINDS]
    device = states.device
    names = torch.tensor(kinds, device=device)
    chars = torch.tensor([vocab[c] for c in world.CHARS], device=device)
    kind, glyph = batch["kind"].long(), batch["glyph"].long()
    target = torch.where(glyph >= 0, chars[glyph.clamp(min=0)], names[kind.clamp(min=0)])
    target = torch.where(kind < 0, -100, target).gather(1, keep)
    front = len(packing.PREFIX)
    logits = speaker.llm.lm_head(states[:, front : front + keep.shape[1]]).float()
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)
