"""After the prefill: forwards that continue a cache find its chain, or are refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.models import cache as kv
from vtprune.models.batch import row_positions
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import Family
from vtprune.models.stage import Chain, Step

#: arguments of a forward with one value per column that it computes
_PER_COLUMN = ("input_ids", "position_ids", "mm_token_type_ids", "token_type_ids")


def own_chain(chain: Chain | None, owner: int) -> Chain:
    """The chain of a cache that is continued in context ``owner``.

    Raises:
        PruningUnsupported: the cache was filled elsewhere.
    """
    if chain is None:
        raise PruningUnsupported(
            "this cache was not filled in a pruning context: its visual tokens cannot be dropped "
            "any more; start inside the context with an empty cache"
        )
    if chain.owner != owner:
        raise PruningUnsupported(
            "this cache was filled in another pruning context: go on inside that one"
        )
    return chain


def follow(family: Family, chain: Chain, named: dict[str, Any]) -> Step:
    """One forward that continues the cache of ``chain``; completes its arguments in place.

    Raises:
        PruningUnsupported: it brings a picture, or does not say which columns it computes.
    """
    ids, cache = named.get("input_ids"), kv.given(named)
    done = cache.get_seq_length() - chain.stages[0].width
    if ids is None:
        if chain.drops:
            raise PruningUnsupported("a pruned prompt goes on with input_ids, not inputs_embeds")
        return Step(family, chain, chain.last_position[:, None], done, decoding=True)
    if chain.drops and ids.shape[1] > 1:
        ids = _without_repeats(chain, named, done)
    if ids.shape[1] > 1 and bool(family.modality_codes(ids).any()):
        raise PruningUnsupported(
            "chunked prefill cannot be pruned: an image came late; give the whole prompt at once, "
            "in an empty cache"
        )
    grown = done + ids.shape[1]
    if chain.said is not None:
        chain.said.append(ids)
    step = Step(family, chain, chain.last_position[:, None], grown, decoding=True)
    if not chain.drops:
        return step
    step.tail = _tail(chain, named.get("attention_mask"), grown)
    if named.get("position_ids") is None:
        # The library would count from the shortened cache.
        steps = torch.arange(done + 1, grown + 1, device=ids.device)
        named["position_ids"] = chain.last_position.to(ids.device)[:, None] + steps
    return step


def _tail(chain: Chain, mask: Tensor | None, grown: int) -> Tensor | None:
    """bool ``[B, grown]`` visible columns behind the prompt; None: all."""
    if mask is None:
        return None
    wanted = chain.width + grown
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] != wanted:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise PruningUnsupported(
            f"attention_mask is {shape}; the prompt and what followed have {wanted} columns"
        )
    return mask[:, chain.width :].bool()


def _without_repeats(chain: Chain, named: dict[str, Any], done: int) -> Tensor:
    """New ids of a turn: ``generate`` cuts the ids of all turns by the length of the cache, which
    is shorter than what was read, and so gives the last columns again."""
    ids, gone = named["input_ids"], chain.gone
    n, mask, positions = ids.shape[1], named.get("attention_mask"), named.get("position_ids")
    if not 0 < gone < n:
        return ids
    if isinstance(mask, Tensor) and mask.dim() == 2:
        repeats = mask.shape[1] - chain.width - done == n - gone
    elif positions is not None:
        first = chain.last_position.to(positions.device) + done + 1
        given = row_positions(positions, ids[..., None])
        repeats = bool((given[:, gone] == first).all())
        if not repeats and not bool((given[:, 0] == first).all()):
            raise PruningUnsupported("position_ids do not continue those of this cache's prompt")
    else:
        repeats = False
        said = None if chain.said is None else torch.cat(chain.said, dim=1)
        if said is not None and torch.equal(said[:, -gone:], ids[:, :gone]):
            raise PruningUnsupported(
                f"the first {gone} of {n} ids repeat what this cache has read: give new ids only, "
                "or the attention_mask of all turns"
            )
    if not repeats:
        return ids
    for name in _PER_COLUMN:
        value = named.get(name)
        if isinstance(value, Tensor) and value.shape[-1] == n:
            named[name] = value[..., gone:]
    return named["input_ids"]
