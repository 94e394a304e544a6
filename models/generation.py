"""Greedy decoding, and what of a checkpoint's generation_config.json acts in it.

"Greedy" does not name all of it: a repetition penalty, suppressed tokens or an n-gram ban of that
file change answers without sampling. Clients differ in whether they let it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

#: sampling and beams, off whatever the file says
GREEDY: dict[str, Any] = {
    "do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None,
}  # fmt: skip


def config(model: Any, tokenizer: Any, neutral: bool = False) -> Any:
    """The generation config in force.

    Args:
        tokenizer: its end token ends an answer as well as those of the file.
        neutral: nothing of the file but its special tokens.
    """
    from transformers import GenerationConfig

    file = model.generation_config
    made = GenerationConfig(bos_token_id=file.bos_token_id) if neutral else copy.deepcopy(file)
    for name, value in GREEDY.items():
        setattr(made, name, value)
    made.eos_token_id = ends(file.eos_token_id, tokenizer.eos_token_id)
    made.pad_token_id = tokenizer.pad_token_id
    return made


def ends(*found: int | list[int] | None) -> list[int] | None:
    """Union of end tokens, in the order given; None where there is none."""
    flat: list[int] = []
    for one in found:
        flat += one if isinstance(one, list) else [] if one is None else [one]
    return list(dict.fromkeys(flat)) or None


@contextlib.contextmanager
def in_force(model: Any, made: Any) -> Iterator[None]:
    """``model.generate`` follows ``made`` inside the block.

    A config handed to ``generate`` is filled up from the model's own, so that takes its place.
    """
    before = model.generation_config
    model.generation_config = made
    try:
        yield
    finally:
        model.generation_config = before
