"""What reaches a model's ``generate`` and what comes out, row by row. Imports nothing of ours."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: settings that decide which tokens come out of greedy decoding
SETTINGS = (
    "max_new_tokens", "num_beams", "do_sample", "top_k", "repetition_penalty",
    "no_repeat_ngram_size", "suppress_tokens", "eos_token_id",
)  # fmt: skip

_APART = ("max_new_tokens", "eos_token_id")


class Recorder:
    """Rows of all ``generate`` calls inside :meth:`listening`, filed under :attr:`asking`.

    Attributes:
        asking: row numbers of the prompts of the next call, set by whoever knows them.
        rows: row number -> ids, settings, pixels and new tokens.
    """

    def __init__(self) -> None:
        self.asking: Sequence[int] = ()
        self.rows: dict[int, dict[str, Any]] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[Recorder]:
        """Log every ``generate`` of the library inside the block."""
        from transformers import GenerationMixin

        real = GenerationMixin.generate

        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            settings = _settings(model, kwargs)
            output = real(model, *args, **kwargs)
            self._log(kwargs, settings, output)
            return output

        GenerationMixin.generate = generate
        try:
            yield self
        finally:
            GenerationMixin.generate = real

    def _log(self, given: dict[str, Any], settings: dict[str, Any], output: torch.Tensor) -> None:
        ids, mask = given["input_ids"], given["attention_mask"]
        assert len(ids) == len(self.asking), f"{len(ids)} prompts for rows {self.asking}"
        pixels = _pixels(given, len(ids))
        new = output[:, ids.shape[1] :]
        ends = settings["eos_token_id"] or []
        for place, row in enumerate(self.asking):
            assert row not in self.rows, f"row {row} was asked twice"
            self.rows[row] = {
                "ids": ids[place][mask[place].bool()].tolist(),
                "new": _until(new[place].tolist(), ends),
                "limit": settings["max_new_tokens"],
                "ends": settings["eos_token_id"],
                "settings": {k: v for k, v in settings.items() if k not in _APART},
                "pixels": pixels[place],
            }

    def save(self, folder: Path, **more: Any) -> None:
        """``rows.json`` with hashes of the pixels, and the pixels themselves in ``pixels.npz``."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {str(row): entry["pixels"] for row, entry in self.rows.items()}
        np.savez(folder / "pixels.npz", **arrays)
        rows = {row: {**entry, "pixels": digest(entry["pixels"])}
                for row, entry in self.rows.items()}  # fmt: skip
        text = json.dumps({"rows": rows, **more}, default=str)
        (folder / "rows.json").write_text(text, encoding="utf-8")


def digest(array: np.ndarray) -> str:
    """Shape and hash of the float32 values."""
    content = np.ascontiguousarray(array, dtype=np.float32).tobytes()
    return f"{tuple(array.shape)} {hashlib.sha256(content).hexdigest()[:16]}"


def _settings(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The generation settings in force: the call's own over the model's generation_config."""
    config = model.generation_config.to_dict()
    found = {name: given.get(name, config.get(name)) for name in SETTINGS}
    ends = found["eos_token_id"]
    found["eos_token_id"] = sorted(ends) if isinstance(ends, list) else [ends] if ends else None
    found["num_beams"] = found["num_beams"] or 1
    found["repetition_penalty"] = found["repetition_penalty"] or 1.0
    found["no_repeat_ngram_size"] = found["no_repeat_ngram_size"] or 0
    found["suppress_tokens"] = found["suppress_tokens"] or None
    # What is sampled from one candidate is its best one.
    found["do_sample"] = bool(found["do_sample"]) and found["top_k"] != 1
    del found["top_k"]
    return found


def _until(new: list[int], ends: Sequence[int]) -> list[int]:
    stop = next((place for place, token in enumerate(new) if token in ends), len(new))
    return new[: stop + 1]


def _pixels(given: dict[str, Any], rows: int) -> list[np.ndarray]:
    """Pixels of each row, one picture a row; padding of any-resolution views left out."""
    values = given.get("pixel_values")
    if values is None:
        return [np.zeros(0, dtype=np.float32)] * rows
    values = values.float().cpu()
    if (grid := given.get("image_grid_thw")) is not None:
        assert len(grid) == rows
        return [part.numpy() for part in values.split(grid.prod(-1).tolist())]
    assert len(values) == rows, f"{len(values)} pictures in {rows} prompts"
    if values.dim() == 4:  # one view a picture
        return [row.numpy() for row in values]
    found = []
    for views in values:
        used = [place for place, view in enumerate(views) if view.abs().sum() > 0]
        found.append(views[: used[-1] + 1].numpy())
    return found
