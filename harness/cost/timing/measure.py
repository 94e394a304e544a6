"""One ``generate`` call in stages, and the same call untouched.

    setup      from the call to the encoder: the library's own preparation
    vision     tower, projector, packing, and what a method reads there
    selection  everything a method does, inside layers too
    prefill    from the encoder to the first token's logits, without the selection
    decode     the other tokens

Stage clocks wait for the device at every mark, so end to end is measured apart, in calls with no
clock inside; that both agree says that the marks miss nothing and disturb little.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vtprune.harness.cost.timing.clock import cache_bytes
from vtprune.models import cache as kv
from vtprune.models.shadow import shadowed

STAGES = ("setup", "vision", "selection", "prefill", "decode")


class Generation:
    """Greedy generation of exactly ``new_tokens`` tokens by a model inside a ``prune`` context."""

    def __init__(self, model: Any, run: Any, new_tokens: int, now: Callable[[], float]) -> None:
        self.model, self.run, self.new_tokens, self.now = model, run, new_tokens, now
        run.clock = now

    def generate(self, feed: dict[str, Any], processors: tuple[Any, ...] = ()) -> Any:
        """The library's ``generate``; end tokens do not end it."""
        self.run.take()
        with torch.inference_mode():
            return self.model.generate(
                **feed,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                use_cache=True,
                min_new_tokens=self.new_tokens,
                max_new_tokens=self.new_tokens,
                pad_token_id=0,
                logits_processor=list(processors),
                return_dict_in_generate=True,
            )

    def end_to_end(self, feed: dict[str, Any]) -> float:
        """Seconds of one call with no clock inside."""
        start = self.now()
        self.generate(feed)
        return self.now() - start

    def stages(self, feed: dict[str, Any]) -> dict[str, float]:
        """Seconds of one call by stage."""
        marks: dict[str, float] = {}
        first = _FirstToken(self.now, marks)
        with self._encoder_marks(marks):
            start = self.now()
            self.generate(feed, (first,))
            end = self.now()
        marks.setdefault("vision_start", start)  # without an image there is no encoder to wait for
        marks.setdefault("vision_end", marks["vision_start"])
        selection = sum(record.selection_seconds for record in self.run.take())
        return {
            "setup": marks["vision_start"] - start,
            "vision": marks["vision_end"] - marks["vision_start"],
            "selection": selection,
            "prefill": marks["first"] - marks["vision_end"] - selection,
            "decode": end - marks["first"],
        }

    def memory(self, feed: dict[str, Any], peak: Any) -> dict[str, Any]:
        """Bytes of the finished cache, peak bytes of the call, and the records of its rows."""
        peak.start()
        output = self.generate(feed)
        return {
            "kv_cache_bytes": cache_bytes(kv.returned(output)),
            "peak_bytes": peak.read(),
            "records": self.run.take(),
        }

    @contextlib.contextmanager
    def _encoder_marks(self, marks: dict[str, float]) -> Iterator[None]:
        def encode(inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
            marks["vision_start"] = self.now()
            output = inner(*args, **kwargs)
            marks["vision_end"] = self.now()
            return output

        with shadowed(self.model.model, "get_image_features", encode):
            yield


class _FirstToken:
    """A logits processor that changes nothing and marks when the first logits exist."""

    def __init__(self, now: Callable[[], float], marks: dict[str, float]) -> None:
        self.now, self.marks = now, marks

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if "first" not in self.marks:
            self.marks["first"] = self.now()
        return scores
