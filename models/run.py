"""The handle of an open pruning context: names go in, records come out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vtprune.methods import PruningMethod
from vtprune.models.input_stage import InputStage
from vtprune.models.record import SampleRecord, Unreduced


@dataclass(frozen=True)
class Begun:
    """What the next prompts are called, and what was given along with them."""

    names: list[str]
    foreground: list[list[Tensor]] | None
    questions: list[str] | None


class PruningRun:
    """Handle of an open :func:`prune` context: names samples, hands out their records.

    ``clock`` is what selections are timed with; whoever measures on a device gives one that waits.
    """

    def __init__(self, method: PruningMethod) -> None:
        self.method = method
        self.clock: Callable[[], float] = time.perf_counter
        self.shared: Any = None  # remembers encoder calls across runs
        self._records: list[SampleRecord] = []
        self._begun: Begun | None = None
        self._input: InputStage | None = None
        self._unreduced: list[Unreduced] | None = None

    def reduce(self, images: list[list[Any]], processor: Any) -> tuple[list[list[Any]], Any]:
        """Pictures and processor for the next prefill; unchanged unless the method changes those.

            (pictures,), processor = run.reduce([[picture]], processor)
            model.generate(**processor(text=text, images=pictures or None))

        A method that leaves pictures out returns none, and the text is to be made without them.

        Args:
            images: RGB pictures of every row of the batch.

        Raises:
            MethodError: a picture cannot be made so small.
        """
        if self._input is None:
            return images, processor
        images, processor, self._unreduced = self._input.reduce(images, processor)
        return images, processor

    def reduced(self, accounts: list[Unreduced] | None) -> None:
        """Say that the pictures of the next prompts were made smaller already, per row from what;
        for prompts that were not made by :meth:`reduce`."""
        self._unreduced = accounts

    def begin(
        self,
        sample_ids: list[str],
        foreground: list[list[Tensor]] | None = None,
        questions: list[str] | None = None,
    ) -> None:
        """Name the rows of the next prefill; stochastic methods draw from these names.

        Args:
            foreground: per row and image a mask ``[height, width]`` of annotated objects, for
                methods that read the signal ``fg_mask``.
            questions: per row what is asked, for methods that read ``clip_similarity``.
        """
        self._begun = Begun([str(s) for s in sample_ids], foreground, questions)

    @property
    def begins(self) -> bool:
        """Prompts were named that have not come yet."""
        return self._begun is not None

    def begun(self) -> Begun | None:
        """What :meth:`begin` was given for the prompts that come now; they are no longer due."""
        given, self._begun = self._begun, None
        return given

    def add(self, records: list[SampleRecord]) -> None:
        """Records of prompts that were asked, one a row; for the runtime."""
        self._records += records

    @property
    def records(self) -> list[SampleRecord]:
        """Records made and not yet taken, in row order, with their tensors on the host."""
        for record in self._records:
            record.settle()
        return self._records

    def take(self) -> list[SampleRecord]:
        """Records made since the last call, in row order; they leave the run."""
        taken, self._records = self.records, []
        return taken
