"""Kept tokens and the content of their slots, recomputed from a :class:`tests.unpruned.Capture`.

Views, layer signals and the way from picks to slots are built here without the product; only the
method itself is asked, ``select`` with those inputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tests import tiny, unpruned
from tests.unpruned import Picture
from vtprune import methods
from vtprune.methods import LayerMethod, LayerSignals, Selection, TokenMethod, View
from vtprune.methods.ops import Merged
from vtprune.models import prune
from vtprune.models.oracle import masked

NAMES = ("a", "b")
#: values of slots, absolute; states of these models have entries of about 1 to 30
ATOL = 2e-4


@dataclass(frozen=True)
class Batch:
    """Prompts of a family, and the kernel of the run that is pruned; see :func:`captured`."""

    family: str
    kernel: str = "sdpa"
    video: bool = False


@cache
def _captured(family: str, video: bool) -> unpruned.Capture:
    prompts = [tiny.prompt(family, 0), tiny.prompt(family, 1, images=2)]
    feed = None if video else tiny.inputs(family, prompts)
    return unpruned.capture(family, *(unpruned.video(family) if video else (prompts, feed)))


def captured(batch: Batch | str) -> unpruned.Capture:
    """The unpruned model on a ragged batch whose second row has two pictures of different sizes;
    or on one video."""
    if isinstance(batch, str):
        return _captured(batch, False)
    return _captured(batch.family, batch.video)


def records_of(
    batch: Batch, method: methods.PruningMethod, tower=None, **named: object
) -> list:
    model, made = tiny.model(batch.family, batch.kernel), captured(batch)
    with prune(model, method, text_tower=tower) as run, torch.no_grad():
        run.begin(list(NAMES[: len(made.prompts)]), **named)
        model(**made.feed)
        return run.take()


# --- before the language model ------------------------------------------------------------------


def views_of(method: TokenMethod, picture: Picture, key: tuple, project) -> list[View]:
    """The graphs of one picture: every crop, both views, or all tokens together."""
    whole = picture.encoder["tile_features"]
    if method.scope == "per_tile":
        table = torch.full(whole.shape[:2], -1)
        real = picture.tile >= 0
        table[picture.tile[real], picture.patch[real]] = torch.nonzero(real).squeeze(1)
        return [
            View(
                "tile", whole[crop], table[crop], picture.grid, (*key, crop),
                lambda name, crop=crop: picture.signal(name)[crop], project,
            )
            for crop in range(len(whole))
        ]  # fmt: skip
    inside = torch.ones_like(picture.base) if method.newline == "candidate" else ~picture.row_end
    groups = [inside] if method.scope == "joint" else [inside & picture.base]
    if method.scope != "joint" and picture.framed:
        groups = [inside & (picture.tile == frame) for frame in range(picture.frames)]
    elif method.scope != "joint" and bool((inside & ~picture.base).any()):
        groups.append(inside & ~picture.base)
    found = []
    for number, member in enumerate(groups):
        index = torch.nonzero(member).squeeze(1)
        grid = picture.grid
        if number and not picture.framed:
            down = int(picture.row_end.sum())
            grid = (down, int((~picture.base).sum()) // down - (method.newline != "candidate"))
        found.append(
            View(
                "any", picture.tokens[index], index, None if method.scope == "joint" else grid,
                (*key, number), lambda name, index=index: picture.packed(name)[index], project,
            )
        )  # fmt: skip
    return found


def as_selection(picked: Tensor | Selection) -> Selection:
    return picked if isinstance(picked, Selection) else Selection(picked)


def expected_entry(
    method: TokenMethod, picture: Picture, key: tuple, project
) -> tuple[Tensor, Tensor]:
    """Slots of one picture that stay, in order, and what each of them holds."""
    views = views_of(method, picture, key, project)
    picks = list(map(as_selection, method.select_all(views, [method.count(len(v)) for v in views])))
    places, rows, ranks = [], [], []
    for number, (view, pick) in enumerate(zip(views, picks, strict=True)):
        held = view.features[pick.indices] if pick.features is None else pick.features
        if pick.features is not None:
            # A list of merged tokens fills the slots in the order in which it comes.
            assert len(pick.features) == len(pick.indices)
        places.append(view.index[pick.indices])
        rows.append(held)
        if method.scope == "per_tile":
            ranks.append(picture.place()[number][pick.indices])
    place, row = torch.cat(places), torch.cat(rows)
    if bool((place < 0).any()) and method.padding == "keep":
        # No slot for what was cut as padding: all that stays moves to the front, in raster order.
        order = torch.argsort(torch.cat(ranks))
        return torch.arange(len(order)), row[order]
    row, place = row[place >= 0], place[place >= 0]
    if method.newline == "keep":
        end = torch.nonzero(picture.row_end).squeeze(1)
        place, row = torch.cat([place, end]), torch.cat([row, picture.tokens[end]])
    order = torch.argsort(place)
    return place[order], row[order]


def check_entry(batch: Batch, parts: list[TokenMethod], records: list, more=None) -> None:
    made = captured(batch)
    projector = getattr(made.model.model, "multi_modal_projector", None)
    for row, record in enumerate(records):
        visual = torch.nonzero(made.visual[row]).squeeze(1)
        assert record.visual_tokens == len(visual)
        places, held, offset = [], [], 0
        for number, picture in enumerate(made.pictures[row]):
            with torch.no_grad():
                if more is not None:
                    extra = {**picture.encoder, **more(row, picture)}
                    picture = dataclasses.replace(picture, encoder=extra)
                key, left = (NAMES[row], number), picture
                kept, rows = torch.arange(len(picture.tokens)), picture.tokens
                for part in parts:
                    slots, rows = expected_entry(part, left, key, projector)
                    kept, left = kept[slots], left.only(slots, rows)
            places.append(offset + kept)
            held.append(rows)
            offset += len(picture.tokens)
        found = torch.nonzero(record.alive(0)).squeeze(1)
        assert found.tolist() == torch.cat(places).tolist(), f"row {row}"
        values = torch.cat([p.tokens for p in made.pictures[row]])
        check_slots(record, 0, values, found, torch.cat(held))


def check_slots(record, layer: int, values: Tensor, kept: Tensor, expected: Tensor) -> None:
    """Values ``[V, d]`` with what the record rewrote at a layer, at the ``kept`` ranks."""
    values = values.clone()
    if layer in record.rewrites:
        where, vectors = record.rewrites[layer]
        rank = torch.full((record.prompt_length,), -1)
        rank[record.visual] = torch.arange(record.visual_tokens)
        assert bool((rank[where] >= 0).all()), "text was rewritten"
        values[rank[where]] = vectors
    torch.testing.assert_close(values[kept], expected, rtol=1e-4, atol=ATOL)


# --- inside the language model ------------------------------------------------------------------


def layer_signals(
    batch: Batch, made: unpruned.Capture, row: int, layer: int, alive: Tensor, entry: Tensor,
    gone: Tensor | None,
) -> LayerSignals:  # fmt: skip
    """What a method may read in front of ``layer``, from the run ``made``.

    ``alive`` are ranks of the visual tokens, ``entry`` those that entered layer 0, ``gone`` the
    columns dropped before, where positions are renumbered.
    """
    visual = torch.nonzero(captured(batch).visual[row]).squeeze(1)
    columns, text, last = visual[alive], made.text(row), int(made.valid[row].nonzero().max())
    hidden, weights = made.hidden[layer][row], made.attention[layer - 1][row]
    norm = made.model.model.language_model.norm
    positions = torch.arange(len(hidden))
    if made.positions is not None:
        ids = made.positions
        positions = (ids[-3:].amax(0) if ids.dim() == 3 else ids)[row]
    if gone is not None:
        positions = positions - gone.long().cumsum(0)
    keys = made.keys[layer - 1][row].transpose(0, 1)
    top = weights.amax(0)

    def normed(x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        return x * scale * norm.weight

    found = {
        "last_row": lambda: weights[:, last, columns],
        "next_row": lambda: made.attention[layer][row][:, last, columns],
        "text_rows": lambda: weights[:, text][:, :, columns],
        "cross": lambda: top[text][:, columns].sum(0),
        "self": lambda: top[columns][:, columns].mean(0),
        "hidden": lambda: hidden[columns],
        "normed": lambda: normed(hidden[columns]),
        "text_normed": lambda: normed(hidden[text]),
        "keys": lambda: keys[columns],
        "text_keys": lambda: keys[text],
        "values": lambda: made.values[layer - 1][row].transpose(0, 1)[columns],
        "text_distance": lambda: positions[text][:, None] - positions[columns][None],
        "image_embeddings": lambda: made.entered[row][visual[entry]],
        "text_embeddings": lambda: made.entered[row][text],
    }
    return LayerSignals(
        layer - 1, len(made.hidden), alive, len(visual), lambda name: found[name]()
    )


LAYER_SIGNALS = (
    "last_row", "next_row", "text_rows", "cross", "self", "hidden", "normed", "text_normed", "keys",
    "text_keys", "values", "text_distance", "image_embeddings", "text_embeddings",
)  # fmt: skip


def replayed(batch: Batch, records: list, before: int) -> unpruned.Capture:
    """The full model while layers below ``before`` do without what the records dropped there.

    Up to the first drop this is the unpruned model itself. Merged slots are those of the records:
    they have been compared by then.
    """
    shorter = [_until(record, before) for record in records]
    made = captured(batch)
    with masked(made.model, shorter):
        return unpruned.capture(batch.family, made.prompts, made.feed, vision=False)


def _until(record, before: int):
    return dataclasses.replace(
        record,
        stages=[(layer, alive) for layer, alive in record.stages if layer < before],
        rewrites={layer: w for layer, w in record.rewrites.items() if layer < before},
    )


def check_layers(batch: Batch, method: LayerMethod, records: list, positions: str) -> None:
    depth = records[0].n_layers
    plans = [method.checked_schedule(depth, int(r.alive(0).sum())) for r in records]
    drops = sorted({b for p in plans for b in range(1, depth) if p[b] < p[b - 1]})
    assert drops, "no layer drops anything: the test has no power"
    fresh, made = "next_row" in method.needs, replayed(batch, records, depth)
    for layer in drops:
        if fresh:  # the attention of the layer itself, before it drops anything
            made = replayed(batch, records, layer)
        for row, (record, plan) in enumerate(zip(records, plans, strict=True)):
            if plan[layer] < plan[layer - 1]:
                check_drop(batch, method, made, row, record, layer, plan[layer], positions)


def check_drop(
    batch: Batch, method: LayerMethod, made, row: int, record, layer: int, count: int,
    positions: str,
) -> None:  # fmt: skip
    alive, entry = record.alive(layer - 1), torch.nonzero(record.alive(0)).squeeze(1)
    visual, gone = torch.nonzero(made.visual[row]).squeeze(1), None
    if positions == "compact":
        gone = torch.zeros(made.visual.shape[1], dtype=torch.bool)
        gone[visual[~alive]] = True
    ranks = torch.nonzero(alive).squeeze(1)
    signals = layer_signals(batch, made, row, layer, ranks, entry, gone)
    kept, expected = ranks[:0], None
    if count:
        with torch.no_grad():
            picked = as_selection(method.select(signals, count))
        order = torch.argsort(picked.indices)
        kept = ranks[picked.indices[order]]
        expected = None if picked.features is None else picked.features[order]
    found = torch.nonzero(record.alive(layer)).squeeze(1)
    assert found.tolist() == kept.tolist(), f"row {row}, layer {layer}"
    values = made.hidden[layer][row][visual]
    check_slots(record, layer, values, found, values[found] if expected is None else expected)


# --- merging between encoder layers -------------------------------------------------------------


def merged_tower(
    model: torch.nn.Module, method: methods.EncoderMethod, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Projected survivors ``[crops, k, d]`` and their places ``[crops, k]``, layer by layer."""
    tower, config = model.model.vision_tower, model.config
    layers = next(m for n, m in tower.named_modules() if n.endswith("layers"))
    last = range(len(layers) + 1)[config.vision_feature_layer] - 1
    started = []
    with unpruned.watching([(layers[0], "in", lambda args, kw: started.append(args[0]))]):
        tower(pixels)
    tokens, places = [], []
    for crop in started[0]:
        n, hidden, keys = len(crop) - 1, crop[None], None
        state = Merged(crop[1:], torch.ones(n), torch.arange(n), torch.arange(n))
        plan = [0, *method.plan(last, n)]
        for number, layer in enumerate(layers[: last + 1]):
            if plan[number]:
                state = state._replace(features=hidden[0, 1:])
                state = method.merge(state, keys, plan[number])
                hidden = torch.cat([hidden[:, :1], state.features[None]], dim=1)
            entering = layer.layer_norm1(hidden)
            heads = layer.self_attn.num_heads
            keys = layer.self_attn.k_proj(entering)[0].unflatten(-1, (heads, -1)).mean(1)[1:]
            weight = torch.cat([torch.ones(1), state.size]).log()[None, None, None]
            hidden = layer(hidden, weight.expand(1, 1, hidden.shape[1], -1))
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        tokens.append(model.model.multi_modal_projector(hidden[:, 1:])[0])
        places.append(state.representative)
    return torch.stack(tokens), torch.stack(places)


def check(
    batch: Batch | str, method: methods.PruningMethod, more=None, **named: object
) -> None:
    """All parts of a method, against the record of a run on a batch, or on a family's usual one.

    ``more(row, picture)`` are signals besides those of the encoder; ``named`` goes to the run.
    """
    batch = Batch(batch) if isinstance(batch, str) else batch
    records = records_of(batch, method, **named)
    assert [r.sample_id for r in records] == list(NAMES[: len(captured(batch).prompts)])
    early = [part for part in method.chain if part.place == "tokens"]
    if early:
        check_entry(batch, early, records, more)
    for part in method.chain:
        if part.place == "layers":
            check_layers(batch, part, records, method.positions)
