"""What a model computes when nothing prunes it: plain forward hooks on the eager class.

The oracle of ``test_selection_equality.py``. Nothing here comes from the product: which encoder
token lies behind which place of the prompt is found by comparing values, attention is what the
eager kernel returns, keys are those in the model's own cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from tests import tiny

NEWLINE, SHRUNK = -1, -2


@contextlib.contextmanager
def watching(hooks: list[tuple[nn.Module, str, object]]) -> Iterator[None]:
    """Hooks ``(module, "in" or "out", function(arguments or output))`` for one call."""
    handles = []
    for module, side, note in hooks:
        if side == "in":
            handles.append(
                # In front of other hooks: what enters, before anybody rewrites it.
                module.register_forward_pre_hook(
                    lambda m, args, kw, note=note: note(args, kw), prepend=True, with_kwargs=True
                )
            )
        else:
            handles.append(module.register_forward_hook(lambda m, args, out, note=note: note(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Picture:
    """One picture. ``tokens [n, d]`` as they enter the language model, and for each of them the
    crop and the encoder token behind it (``tile``, ``patch``; NEWLINE, SHRUNK)."""

    tokens: Tensor
    tile: Tensor
    patch: Tensor
    encoder: dict[str, Tensor]  # per encoder token, [tiles, P, ...]
    grid: tuple[int, int]  # of one crop
    mosaic: tuple[int, int]  # crops behind the base one
    size: tuple[int, int]
    resized: tuple[int, int] | None = None  # a canvas that the model shrinks

    @property
    def row_end(self) -> Tensor:
        return self.tile == NEWLINE

    @property
    def frames(self) -> int:
        return len(self.encoder["tile_features"])

    @property
    def framed(self) -> bool:
        """A video: every crop is a view of its own."""
        return self.frames > 1 and self.mosaic == (0, 0)

    @property
    def base(self) -> Tensor:
        """bool ``[n]``: tokens of the first crop, which is the base view."""
        return self.tile == 0

    def only(self, slots: Tensor, tokens: Tensor) -> Picture:
        """What a first method leaves for a second: some slots, holding ``tokens``."""
        tile, patch = self.tile[slots], self.patch[slots]
        return dataclasses.replace(self, tokens=tokens, tile=tile, patch=patch)

    def signal(self, name: str) -> Tensor:
        """An encoder signal ``[tiles, P, ...]``."""
        assert name in self.encoder, f"tests/unpruned.py does not read '{name}' off the model"
        return self.encoder[name]

    def packed(self, name: str) -> Tensor:
        """An encoder signal in the order of the prompt, 0 where no encoder token is."""
        signal = self.signal(name)
        found = signal.new_zeros(len(self.tokens), *signal.shape[2:])
        exact = self.tile >= 0
        found[exact] = signal[self.tile[exact], self.patch[exact]]
        if self.resized is not None:
            found[self.tile == SHRUNK] = self.shrunk(signal)
        return found

    def shrunk(self, signal: Tensor) -> Tensor:
        """The canvas ``[rows * cols, ...]`` of a signal: crops side by side, padding off, small."""
        rest = signal.shape[2:]
        flat = signal[1:].reshape(*self.mosaic, *self.grid, -1)
        canvas = flat.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
        rows, cols = canvas.shape[1:]
        height, width = self.size
        if width / height > cols / rows:
            cut = (rows - int(round(height * cols / width, 7))) // 2
            canvas = canvas[:, cut : rows - cut]
        else:
            cut = (cols - int(round(width * rows / height, 7))) // 2
            canvas = canvas[:, :, cut : cols - cut]
        small = nn.functional.interpolate(canvas[None], self.resized, mode="bilinear")[0]
        return small.flatten(1).T.reshape(-1, *rest)

    def place(self) -> Tensor:
        """``[tiles, P]`` rank of every encoder token in base view, then padded mosaic."""
        down, across = self.grid
        if self.framed:
            return torch.arange(self.frames * down * across).reshape(self.frames, -1)
        rank = torch.arange(down * across).reshape(1, -1)
        whole = torch.arange(self.mosaic[0] * down * self.mosaic[1] * across)
        whole = whole.reshape(self.mosaic[0], down, self.mosaic[1], across).transpose(1, 2)
        return torch.cat([rank, whole.reshape(-1, down * across) + down * across])


@dataclass
class Capture:
    """One prompt batch through the unmodified eager model."""

    family: str
    prompts: list[tiny.Prompt]
    feed: dict[str, Tensor]
    hidden: list[Tensor] = field(default_factory=list)  # [B, L, d] entering each decoder layer
    attention: list[Tensor] = field(default_factory=list)  # [B, H, L, L] of each of them
    keys: list[Tensor] = field(default_factory=list)  # [B, H_kv, L, dh] in the cache
    values: list[Tensor] = field(default_factory=list)
    entered: Tensor | None = None
    positions: Tensor | None = None
    seen: dict[str, list[Tensor]] = field(default_factory=dict)

    @cached_property
    def model(self) -> nn.Module:
        return tiny.model(self.family, "eager")

    @property
    def valid(self) -> Tensor:
        return self.feed["attention_mask"].bool()

    @property
    def visual(self) -> Tensor:
        ids = self.feed["input_ids"]
        return (ids == tiny.IMAGE_TOKEN) | (ids == tiny.VIDEO_TOKEN)

    @cached_property
    def pictures(self) -> list[list[Picture]]:
        """Per row of the batch."""
        return _pictures(self)

    def text(self, row: int) -> Tensor:
        """Columns of the text after the first picture of a row."""
        after = self.visual[row].long().cumsum(0) > 0
        return torch.nonzero(after & self.valid[row] & ~self.visual[row]).squeeze(1)


def video(family: str, frames: int = 3) -> tuple[list[tiny.Prompt], dict[str, Tensor]]:
    """A prompt with one video, for the Qwen families, and what the model takes for it."""
    size = (32, 48)
    clip = tiny.pixels(size, 5, family, frames)
    one = tiny.Prompt([1, 10], [20, 21, 22], [clip], [size])
    n = len(clip) // 4
    ids = torch.tensor([[*one.before, *[tiny.VIDEO_TOKEN] * n, 4, *one.after]])
    feed = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": clip,
        "video_grid_thw": torch.tensor([[frames, size[0] // tiny.PATCH, size[1] // tiny.PATCH]]),
        "mm_token_type_ids": (ids == tiny.VIDEO_TOKEN).int() * 2,
    }
    if family == "qwen2_5_vl":
        feed["second_per_grid_ts"] = torch.tensor([1.0])
    return [one], feed


def capture(
    family: str, prompts: list[tiny.Prompt], feed: dict[str, Tensor], vision: bool = True
) -> Capture:
    """Run the prompts once and note what every part of the model takes and gives.

    Without ``vision`` only the language model is watched.
    """
    made = Capture(family, prompts, feed)
    model, seen = made.model, made.seen

    def note(name: str):
        return lambda out: seen.setdefault(name, []).append(
            out[0] if isinstance(out, tuple) else out
        )

    def entering(args: tuple, kw: dict) -> None:
        made.entered, made.positions = kw["inputs_embeds"], kw.get("position_ids")

    lm = model.model.language_model
    hooks = [(lm, "in", entering)]
    for layer in lm.layers:
        hooks.append((layer, "in", lambda args, kw: made.hidden.append(args[0])))
        hooks.append((layer.self_attn, "out", lambda out: made.attention.append(out[1])))
    if vision:
        hooks += _tower_hooks(made, note)
    with watching(hooks), torch.no_grad():
        cache = model(**made.feed, use_cache=True).past_key_values
    made.keys = [layer.keys for layer in cache.layers]
    made.values = [layer.values for layer in cache.layers]
    return made


def _tower_hooks(made: Capture, note) -> list:
    core = made.model.model
    if made.family in tiny.M_ROPE:
        tower = core.visual
        hooks = [(tower.merger, "in", lambda args, kw: note("projector_in")(args[0]))]
        hooks.append((tower.merger, "out", note("projector_out")))
        for number, block in enumerate(tower.blocks):
            segments = lambda args, kw, n=number: _segments(made, n, kw)  # noqa: E731
            hooks.append((block.attn, "in", segments))
            hooks.append((block.attn.qkv, "out", note(f"qkv.{number}")))
            hooks.append((block, "out", note(f"out.{number}")))
        return hooks
    hooks = [(core.multi_modal_projector, "out", note("projector_out"))]
    layers = next(m for n, m in core.vision_tower.named_modules() if n.endswith("layers"))
    hooks.append((layers[0], "in", lambda args, kw: note("states")(args[0])))
    for number, layer in enumerate(layers):
        hooks.append((layer, "out", note("states")))
        hooks.append((layer.self_attn, "out", lambda out: note("maps")(out[1])))
        hooks.append((layer.self_attn.q_proj, "out", note(f"q.{number}")))
        hooks.append((layer.self_attn.k_proj, "out", note(f"k.{number}")))
        hooks.append((layer.self_attn.v_proj, "out", note(f"v.{number}")))
    return hooks


def _segments(made: Capture, number: int, kw: dict) -> None:
    made.seen[f"cu.{number}"] = [kw["cu_seqlens"]]
    made.seen[f"rope.{number}"] = list(kw["position_embeddings"])


# --- pictures -----------------------------------------------------------------------------------


def _pictures(made: Capture) -> list[list[Picture]]:
    out = made.seen["projector_out"][0]
    signals = _qwen_signals(made) if made.family in tiny.M_ROPE else _tower_signals(made)
    rows, start = [], 0
    for row, one in enumerate(made.prompts):
        columns, mine = torch.nonzero(made.visual[row]).squeeze(1), []
        for pixels, size in zip(one.pixels, one.sizes, strict=True):
            if made.family in tiny.M_ROPE:
                grid = (size[0] // tiny.PATCH // 2, size[1] // tiny.PATCH // 2)
                frames = len(pixels) // (4 * grid[0] * grid[1])
                picture = _qwen_picture(made, signals, out, row, columns, grid, size, frames)
            else:
                crops = len(pixels)
                own = {name: value[start : start + crops] for name, value in signals.items()}
                count = tiny.n_tokens(made.model, made.family, pixels, size)
                picture = _crop_picture(made, own, made.entered[row, columns[:count]], size)
                start += crops
            mine.append(picture)
            columns = columns[len(picture.tokens) :]
        assert not len(columns), "the pictures do not fill the placeholders of the prompt"
        rows.append(mine)
    return rows


def _match(tokens: Tensor, rows: Tensor) -> Tensor:
    """For every token the row of the same value, -1 where there is none."""
    same = (tokens[:, None] == rows[None]).all(-1)
    return torch.where(same.any(1), same.long().argmax(1), torch.tensor(-1))


def _crop_picture(
    made: Capture, own: dict[str, Tensor], tokens: Tensor, size: tuple[int, int]
) -> Picture:
    crops, n = own["tile_features"].shape[:2]
    side = tiny.CROP // tiny.PATCH
    newline = getattr(made.model.model, "image_newline", None)
    place = _match(tokens, own["tile_features"].flatten(0, 1))
    tile, patch = place // n, place % n
    if newline is not None:
        end = (tokens == newline).all(1)
        tile = torch.where(end, NEWLINE, torch.where(place < 0, SHRUNK, tile))
    mosaic, resized = (0, 0), None
    if crops > 1:
        from transformers.image_processing_utils import select_best_resolution

        best = select_best_resolution(list(size), tiny.PINPOINTS)
        mosaic = (best[0] // tiny.CROP, best[1] // tiny.CROP)
    if bool((tile == SHRUNK).any()):
        down = int((tile == NEWLINE).sum())
        resized = (down, int((tile == SHRUNK).sum()) // down)
    picture = Picture(tokens, tile, patch, own, (side, side), mosaic, size, resized)
    if resized is not None:
        canvas = picture.shrunk(own["tile_features"])
        assert torch.allclose(canvas, tokens[tile == SHRUNK], atol=1e-5), "own shrinking is wrong"
    return picture


def _tower_signals(made: Capture) -> dict[str, Tensor]:
    """CLIP and SigLIP towers: every signal at the layer that counts, and at each of all layers."""
    config, seen = made.model.config, made.seen
    first = int(config.vision_feature_select_strategy == "default")
    index = range(len(seen["states"]))[config.vision_feature_layer]
    # states[0] entered the first layer
    found = _by_layer(lambda n: _tower_layer(made, n, first), index - 1, len(seen["maps"]))
    found["vision_features"] = seen["states"][index][:, first:]
    found["tile_features"] = seen["projector_out"][0]
    return found


def _by_layer(of: Callable[[int], dict[str, Tensor]], default: int, depth: int) -> dict:
    """Signals of one layer under ``name`` (``last_...``: of the last), of any as ``name@layer``."""
    found: dict[str, Tensor] = {}
    for number in range(depth):
        for name, value in of(number).items():
            found[f"{name}@{number}"] = value
            if number == (depth - 1 if name.startswith("last_") else default):
                found[name] = value
    return found


def _tower_layer(made: Capture, layer: int, first: int) -> dict[str, Tensor]:
    weights, seen = made.seen["maps"][layer], made.seen
    heads = weights.shape[1]
    query, key, value = (seen[f"{x}.{layer}"][0] for x in "qkv")
    found = {
        "received_attention": weights.mean((1, 2))[:, first:],
        "vision_keys": key.unflatten(-1, (heads, -1)).mean(2)[:, first:],
        "vision_values": value.unflatten(-1, (heads, -1))[:, first:],
        "encoder_states": seen["states"][layer + 1][:, first:],
        "last_keys": key[:, first:],
    }
    if first:
        found["cls_attention"] = weights[:, :, 0, 1:].transpose(1, 2)
        logits = (key @ query[:, 0, :, None]).squeeze(2) * key.shape[-1] ** -0.5
        found["last_attention"] = logits.softmax(-1)[:, 1:]
    return found


def _qwen_signals(made: Capture) -> dict[str, Tensor]:
    """Patches in the encoder's own order, four of them behind each row of the merger."""
    tower = made.model.model.visual
    full = getattr(tower, "fullatt_block_indexes", None)
    block = len(tower.blocks) - 1 if full is None else max(full)
    patches = _by_layer(lambda n: _qwen_layer(made, n), block, len(tower.blocks))
    patches["vision_features"] = made.seen["projector_in"][0]
    return {name: x.reshape(-1, 4, *x.shape[1:]).mean(1) for name, x in patches.items()}


def _qwen_layer(made: Capture, block: int) -> dict[str, Tensor]:
    tower = made.model.model.visual
    qkv = made.seen[f"qkv.{block}"][0]
    heads = tower.blocks[block].attn.num_heads
    q, k, v = qkv.reshape(len(qkv), 3, heads, -1).unbind(1)
    cos, sin = (x[:, None] for x in made.seen[f"rope.{block}"])

    def rotated(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    q, k = rotated(q), rotated(k)
    cuts = made.seen[f"cu.{block}"][0].tolist()
    received = []
    for start, stop in itertools.pairwise(cuts):
        logits = torch.einsum("qhd,khd->hqk", q[start:stop], k[start:stop])
        received.append((logits * q.shape[-1] ** -0.5).softmax(-1).mean((0, 1)))
    return {
        "received_attention": torch.cat(received),
        "vision_keys": k.mean(1),
        "vision_values": v,
        "encoder_states": made.seen[f"out.{block}"][0],
        "last_keys": k.flatten(1),
    }


def _qwen_picture(
    made: Capture, signals: dict[str, Tensor], out: Tensor, row: int, columns: Tensor,
    grid: tuple[int, int], size: tuple[int, int], frames: int,
) -> Picture:  # fmt: skip
    n = grid[0] * grid[1]
    tokens = made.entered[row, columns[: frames * n]]
    place = _match(tokens, out)
    assert bool((place >= 0).all()), "a visual token is no row of the merger"
    own = {name: value[place].unflatten(0, (frames, n)) for name, value in signals.items()}
    own["tile_features"] = tokens.unflatten(0, (frames, n))
    number = torch.arange(frames * n)
    return Picture(tokens, number // n, number % n, own, grid, (0, 0), size)
