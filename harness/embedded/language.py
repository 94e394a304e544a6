"""Stages 2a and 2b: align the projector, then teach the language model to answer.

The forward pass below runs the Hugging Face Llama modules on packed questions with a block mask.
Next to the answer loss, a grounding loss asks the answer rows where to look: at the words of the
question that name the object (layer 0), at the patches of the object (layers 2 and 3), and at the
character to be written next or the right option (layer 4). Layers 0 and 1 are never told where in
the picture to look, so ranking tokens by their attention (FastV with K = 2) is not taught here.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from harness.data import world
from harness.embedded import packing
from harness.embedded.common import (
    HIDDEN,
    IMAGE_TOKENS,
    TEXT_LAYERS,
    Budget,
    autocast,
    load_state,
    normalise,
    optimiser,
    save_state,
    seed_everything,
    set_rate,
    stream,
    text_config,
)
from harness.embedded.tokens import build_tokenizer
from harness.embedded.tower import build_tower, sine_positions, to_tensors

WORD_LAYERS, OBJECT_LAYERS, CHAR_LAYERS = (0,), (2, 3), (4,)
GROUND_HEADS = 2
EMBED_STD = 0.5
ALIGN = Budget(steps=200, batch=32, lr=3e-3, warmup=10)
BUDGET = Budget(steps=1600, batch=16, lr=1.7e-3, warmup=60)
LAST = 1200  # the run ends here: the joint stage takes over where all tokens would come back
KEPT = 80  # visual tokens that stay until then


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


def align_targets(speaker: Speaker, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
    """(N, 196, 128): the sum of the embeddings of a patch's words, its index and its position."""
    table, vocab = speaker.llm.model.embed_tokens.weight.detach(), speaker.vocab
    kinds = table[[word_id(vocab, k) for k in world.KINDS]]
    colors = torch.cat([table[[word_id(vocab, c) for c in world.COLORS]], extra["zero"]])
    chars = torch.cat([table[[vocab[c] for c in world.CHARS]], extra["zero"]])
    left = torch.cat([extra["left"], extra["zero"]])
    right = torch.cat([extra["right"], extra["zero"]])
    total = extra["position"][None].expand(batch["kind"].shape[0], -1, -1).clone()
    for name, rows in (("kind", kinds), ("color", colors), ("glyph", chars), ("left", left),
                       ("right", right)):  # fmt: skip
        index = batch[name].long()
        total += rows[torch.where(index < 0, len(rows) - 1, index)]
    return total


def align(speaker: Speaker, tower: nn.Module, seed: int, device: str, budget: Budget,
          worker: bool = True) -> float:  # fmt: skip
    """Regress the projector onto the embeddings; returns the share of variance explained."""
    from harness.embedded.tower import tower_batch

    draw = torch.Generator().manual_seed(seed)
    extra = {
        "zero": torch.zeros(1, HIDDEN),
        "left": 0.3 * torch.randn(world.MAX_INDEX + 1, HIDDEN, generator=draw),
        "right": 0.15 * torch.randn(world.MAX_INDEX + 1, HIDDEN, generator=draw),
        "position": 0.25 * sine_positions(world.GRID),
    }
    extra = {k: v.to(device) for k, v in extra.items()}
    opt = optimiser([(speaker.linear_1, 1.0), (speaker.linear_2, 1.0)], budget.lr)
    make = partial(tower_batch, seed=seed + 17, budget=Budget(1, budget.batch, 0))
    explained = 0.0
    bar = tqdm(stream(make, 0, budget.steps, worker), "align", budget.steps, mininterval=5)
    for step, raw in enumerate(bar):
        batch = to_tensors(raw, device)
        set_rate(opt, budget, step)
        with torch.no_grad():
            features = see(tower, batch["image"])
            want = align_targets(speaker, batch, extra)
        valid = batch["kind"] != world.IGNORE
        weight = torch.where(batch["kind"] > world.KIND["canvas"], 4.0, 0.6) * valid
        error = (speaker.project(features) - want).pow(2).mean(-1)
        loss = (error * weight).sum() / weight.sum()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        spread = ((want - want.mean((0, 1))).pow(2).mean(-1) * weight).sum() / weight.sum()
        explained = 1 - loss.item() / spread.item()
        bar.set_postfix(explained=f"{explained:.3f}")
    return round(explained, 4)


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


def answer_loss(speaker: Speaker, states: Tensor, batch: dict[str, Tensor], front: int):
    """Weighted cross entropy on answer rows; returns it with the logits (B, R, vocabulary)."""
    at = (batch["rows"] + front)[:, :, None].expand(-1, -1, HIDDEN)
    logits = speaker.llm.lm_head(states.gather(1, at)).float()
    loss = F.cross_entropy(
        logits.flatten(0, 1), batch["target"].flatten(), reduction="none", ignore_index=-100
    )
    weight = batch["weight"].flatten()
    return (loss * weight).sum() / weight.sum(), logits


def naming_loss(speaker: Speaker, states: Tensor, batch: dict[str, Tensor], keep: Tensor):
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


def exact(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(B, Q) whether every token of the answer, the end included, is the most likely one."""
    good = (logits.argmax(-1) == batch["target"]) | (batch["target"] < 0)
    n = batch["objects"].shape[1]
    wrong = torch.zeros(len(good), n, device=good.device)
    wrong.scatter_add_(1, batch["question"].clamp(min=0), (~good).float())
    return wrong == 0


def count_hits(
    tally: dict[str, list[int]], good: Tensor, blocks: list[list[packing.Block]]
) -> None:
    """Add a batch to the tally by question kind; multiple choice counts as `choice`."""
    for i, mine in enumerate(blocks):
        for j, k in enumerate(mine):
            name = "choice" if k.style in packing.questions.CHOICE_STYLES else k.kind
            one = tally.setdefault(name, [0, 0])
            one[0] += int(good[i, j])
            one[1] += 1


def held_out(
    first: int, count: int, per_picture: int, choices: float, size: tuple[int, int] | None = None
) -> tuple[list[world.Picture], list[list[packing.Block]]]:
    """Held-out pictures from number `first` on, with the blocks of their questions."""
    rng = np.random.default_rng([11, first])
    size = size or (world.TILE, world.TILE)
    pictures = [world.draw(world.HELD_OUT_SEED + first + i, size=size) for i in range(count)]
    asked = [packing.questions.sample(p, rng, per_picture, choices) for p in pictures]
    kept = [(p, a) for p, a in zip(pictures, asked, strict=True) if a]
    blocks = [[packing.make_block(q, s) for q, s in a] for _, a in kept]
    return [p for p, _ in kept], blocks


@torch.no_grad()
def evaluate(
    speaker: Speaker,
    tower: nn.Module,
    device: str,
    count: int = 128,
    per_picture: int = 10,
    choices: float = 0.25,
    first: int = 500_000,
) -> dict[str, float]:
    """Exact match by question kind on held-out pictures."""
    tally: dict[str, list[int]] = {}
    for start in range(0, count, 16):
        pictures, blocks = held_out(first + start, min(16, count), per_picture, choices)
        arrays = packing.pack_blocks(blocks)
        arrays["image"] = np.stack([p.image for p in pictures])
        batch = to_tensors(arrays, device)
        visual = speaker.project(see(tower, batch["image"]))
        places = torch.arange(IMAGE_TOKENS, device=device).expand(len(blocks), -1)
        x, position, mask = assemble(speaker, visual, places, batch, IMAGE_TOKENS)
        front = len(packing.PREFIX) + IMAGE_TOKENS
        states, _ = forward(speaker, x, position, mask, prefix=front)
        _, logits = answer_loss(speaker, states, batch, front)
        count_hits(tally, exact(logits, batch), blocks)
    return {k: round(a / n, 3) for k, (a, n) in sorted(tally.items())}


def language_plan(step: int, budget: Budget) -> dict[str, Any]:
    """Visual tokens kept, share of multiple choice, and loss weights of a step."""
    done = step / budget.steps
    fade = min(1.0, max(0.0, (0.75 - done) / 0.38))
    return {
        "kept": KEPT if done < 0.75 else IMAGE_TOKENS,
        "choices": 0.15 if done < 0.15 else 0.35,
        "ground": fade,
        "naming": 0.3 * fade,
    }


def language_make(step: int, seed: int, budget: Budget) -> dict:
    plan = language_plan(step, budget)
    return packing.language_batch(step, seed, 2, budget.batch, 10, plan["kept"], plan["choices"])


def load_tower(out: Path, device: str) -> nn.Module:
    tower = build_tower().to(device)
    tower.load_state_dict(load_state(out / "tower.pt")["tower"])
    return tower.eval().requires_grad_(False)


def run_align(
    out: Path,
    seed: int,
    device: str = "cpu",
    budget: Budget = ALIGN,
    resume: bool = True,
    bf16: bool = True,
    worker: bool = True,
) -> dict[str, Any]:
    """Stage 2a on its own; the state lands in `out/align.pt`."""
    del bf16, resume  # a minute long: always from the start
    seed_everything(seed + 1)
    speaker = Speaker()
    initialise(speaker)
    speaker.to(device)
    explained = align(speaker, load_tower(out, device), seed, device, budget, worker)
    save_state(out / "align.pt", speaker=speaker.state_dict())
    return {"explained": explained, "steps": budget.steps}


def train_language(
    out: Path,
    seed: int,
    device: str = "cpu",
    budget: Budget = BUDGET,
    resume: bool = True,
    bf16: bool = True,
    worker: bool = True,
    save_every: int = 150,
    stop_after: int | None = LAST,
    check: int = 128,
) -> dict[str, Any]:
    """Stage 2b with the tower frozen; the state lands in `out/language.pt`."""
    seed_everything(seed + 2)
    tower, speaker = load_tower(out, device), Speaker().to(device)
    speaker.load_state_dict(load_state(out / "align.pt")["speaker"])
    opt = optimiser([(speaker, 1.0)], budget.lr)
    path, start = out / "language.pt", 0
    if resume and path.exists():
        state = load_state(path)
        speaker.load_state_dict(state["speaker"])
        opt.load_state_dict(state["opt"])
        start = state["step"]
    last = budget.steps if stop_after is None else min(budget.steps, stop_after)
    make = partial(language_make, seed=seed, budget=budget)

    def save(step: int) -> None:
        save_state(path, speaker=speaker.state_dict(), opt=opt.state_dict(), step=step)

    bar = tqdm(stream(make, start, last, worker), "language", last, initial=start, mininterval=5)
    for step, raw in enumerate(bar, start):
        batch, plan = to_tensors(raw, device), language_plan(step, budget)
        set_rate(opt, budget, step)
        with autocast(device, bf16):
            loss, shown = language_step(speaker, tower, batch, plan)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(speaker.parameters(), 1.0)
        opt.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", **shown)
        if (step + 1) % save_every == 0 and step + 1 < last:
            save(step + 1)
            scores = evaluate(speaker, tower, device, 48)
            tqdm.write(f"language step {step + 1}: {shown} {scores}")
    save(last)
    scores = evaluate(speaker, tower, device, check)
    tqdm.write(f"language: {scores}")
    return {"exact": scores, "steps": last}


def language_step(
    speaker: Speaker, tower: nn.Module, batch: dict[str, Tensor], plan: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Loss of one packed batch with a frozen tower."""
    keep = batch["keep"]
    with torch.no_grad():
        features = see(tower, batch["image"])
        features = features.gather(1, keep[:, :, None].expand(-1, -1, HIDDEN))
    visual = speaker.project(features)
    x, position, mask = assemble(speaker, visual, keep, batch, IMAGE_TOKENS)
    front = len(packing.PREFIX) + keep.shape[1]
    wanted = wanted_attention(batch, keep, x.shape[1]) if plan["ground"] > 0 else None
    rows = batch["rows"] + front
    states, lost = forward(speaker, x, position, mask, rows, wanted, prefix=front)
    loss, logits = answer_loss(speaker, states, batch, front)
    shown: dict[str, Any] = {"ans": round(loss.item(), 3)}
    if wanted:
        ground, layers = grounding_loss(lost, wanted, batch["weight"])
        loss = loss + plan["ground"] * ground
        loss = loss + plan["naming"] * naming_loss(speaker, states, batch, keep)
        shown |= {f"g{k}": v for k, v in layers.items()}
    shown["hit"] = round(exact(logits, batch).float().mean().item(), 3)
    return loss, shown
