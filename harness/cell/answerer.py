"""The model as answerer: prompts to tokens, generate under pruning, tokens to text, with clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vtprune.harness import cost
from vtprune.harness.cell import effective
from vtprune.harness.evaluation.data import truncated
from vtprune.harness.evaluation.data.images import as_rgb
from vtprune.harness.evaluation.engines.base import Answer, Question
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.presets import Settings
from vtprune.models import generation, pictures
from vtprune.models.load import VLM


class ModelAnswerer:
    """Answers questions with a VLM inside an open ``prune`` context.

    Args:
        vlm: the loaded model.
        run: what ``models.prune`` yields; names the samples and hands out what was kept.
        settings: what stands between a question and the model.
        on_first: called once, with what the first batch was turned into.
        truncated_images: what is done with a picture that is cut short, ``refuse`` or ``accept``.
    """

    def __init__(
        self,
        vlm: VLM,
        run: Any,
        settings: Settings,
        on_first: Callable[[dict[str, Any]], None] | None = None,
        truncated_images: str = truncated.REFUSE,
    ) -> None:
        self._truncated_images = truncated_images
        self.vlm, self.run, self.settings, self._on_first = vlm, run, settings, on_first
        neutral = settings.generation_config == "neutral"
        self.generation = generation.config(vlm.model, vlm.processor.tokenizer, neutral)
        if not getattr(vlm.processor, "chat_template", None):
            raise HarnessError(f"{vlm.name}: the processor has no chat template to prompt with")

    def answer(self, batch: Sequence[Question]) -> list[Answer]:
        """One answer per question; rows without an image go in a batch of their own."""
        decoded = [truncated.opened(q.images, as_rgb, self._truncated_images) for q in batch]
        images = [pictures for pictures, _ in decoded]
        answers: list[Answer | None] = [None] * len(batch)
        for with_images in (True, False):
            rows = [i for i, found in enumerate(images) if bool(found) == with_images]
            if rows:
                made = self._generate([batch[i] for i in rows], [images[i] for i in rows])
                for row, answer in zip(rows, made, strict=True):
                    answers[row] = answer
                    if decoded[row][1]:
                        answer.extra["truncated_image"] = True
        return [answer for answer in answers if answer is not None]

    def _generate(self, batch: Sequence[Question], images: list[list[Any]]) -> list[Answer]:
        # A control may ask about smaller pictures, or about none.
        images, processor = self.run.reduce(
            pictures.prepared(self.vlm.prepare, images), self.vlm.processor
        )
        inputs = chat_inputs(self.vlm, batch, images, self.settings.system, processor)
        self._tell_first(inputs)
        self.run.take()  # a batch that failed may have left records behind
        self.run.begin([q.sample_id for q in batch], questions=[q.prompt for q in batch])
        clock = FirstToken(self.vlm.device)
        limit = batch[0].max_new_tokens or self.settings.max_new_tokens
        output = self._greedy(inputs, limit, clock)
        seconds = clock.stop()
        records = self.run.take()
        if len(records) != len(batch):
            raise HarnessError(f"{len(batch)} prompts left {len(records)} pruning records")
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = self.vlm.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        clocks = {
            "generate_s": round(seconds / len(batch), 6),
            "prefill_s": None if clock.first is None else round(clock.first / len(batch), 6),
            "generate_rows": len(batch),
        }
        return [
            Answer(text, generated_tokens=n, prompt_tokens=record.prompt_length,
                   extra={**self._counts(record), **clocks})
            for text, n, record in zip(texts, self._lengths(new), records, strict=True)
        ]  # fmt: skip

    def _greedy(self, inputs: Any, limit: int, clock: FirstToken) -> torch.Tensor:
        try:
            with torch.inference_mode(), generation.in_force(self.vlm.model, self.generation):
                return self.vlm.model.generate(
                    **inputs,
                    **generation.GREEDY,
                    # A method that decides anew at every step needs the whole prompt each time.
                    use_cache=not getattr(self.run.method, "redecide", False),
                    max_new_tokens=limit,
                    logits_processor=[clock],
                )
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # the samples are asked again one by one and need the room
            raise

    def _tell_first(self, inputs: Any) -> None:
        if self._on_first is not None:
            tell, self._on_first = self._on_first, None
            tell(effective.describe(self.vlm, self.settings, self.generation, inputs))

    def _counts(self, record: Any) -> dict[str, Any]:
        config = self.vlm.model.config
        kept = record.visual_per_layer
        pruned = cost.prefill(config, record, self.run.method)
        full = cost.prefill_full(config, record)
        return {
            "visual_tokens": record.visual_tokens_asked,
            "visual_kept": sum(kept) / len(kept),
            "mean_removal": record.mean_removal,
            "selection_s": round(record.selection_seconds, 6),
            "macs": pruned,
            "macs_full": full["total"],
            "pruning": record.to_json(),
        }

    def _lengths(self, new: torch.Tensor) -> list[int]:
        """Generated tokens of each row up to and including the end token."""
        ends = self.generation.eos_token_id or ()
        lengths = []
        for row in new.tolist():
            stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
            lengths.append(stop + 1)
        return lengths


class FirstToken:
    """A logits processor that changes nothing and notes when the first token's logits exist."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self.first: float | None = None
        self._start = self._now()

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.first is None:
            self.first = self._now() - self._start
        return scores

    def stop(self) -> float:
        return self._now() - self._start


def chat_inputs(
    vlm: VLM,
    batch: Sequence[Question],
    images: Sequence[Sequence[Any]],
    system: str | None = None,
    processor: Any = None,
) -> Any:
    """Model inputs of a batch of questions: chat template, left padding, on the model's device.

    ``processor`` takes the place of the model's own.

    Raises:
        HarnessError: there is a system message and the chat template leaves it out.
    """
    processor = processor or vlm.processor
    chats = [_messages(q.prompt, len(i), system) for q, i in zip(batch, images, strict=True)]
    texts = [processor.apply_chat_template(c, add_generation_prompt=True) for c in chats]
    if system is not None and system not in texts[0]:
        raise HarnessError(
            f"{vlm.name}: its chat template drops system messages; model.prompt.system=null"
        )
    flat = [as_rgb(image) for found in images for image in found]
    bos = processor.tokenizer.bos_token
    inputs = processor(
        text=texts,
        images=flat or None,
        padding=True,
        return_tensors="pt",
        # Some templates write the begin token themselves; it must not stand there twice.
        add_special_tokens=not (bos and texts[0].startswith(bos)),
    )
    return inputs.to(vlm.device, getattr(torch, vlm.dtype))


def _messages(prompt: str, images: int, system: str | None) -> list[dict[str, Any]]:
    content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
    first = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*first, {"role": "user", "content": content}]
