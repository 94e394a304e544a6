"""The encoder of one context, heard while it runs: which pictures there are, what is read of them.

``get_image_features`` is shadowed. Its result goes on unchanged; what a method wants to know of the
inside is heard by hooks that exist during the call only. A prompt then finds its pictures by the
identity of their features, which survives the expansion of beams.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vtprune.methods import PruningMethod
from vtprune.models import refuse, signals
from vtprune.models.batch import by_name
from vtprune.models.encoder_merge import EncoderMerging
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import CapturedImage, Family
from vtprune.models.input_stage import InputStage
from vtprune.models.shadow import shadowed

# The table of attention kernels belongs to the whole process: one encoder is heard at a time.
_HEARING = threading.RLock()


@dataclass
class _Call:
    """One call of the encoder: its pictures by the identity of their features, which it keeps."""

    features: list[Any] = field(default_factory=list)
    images: dict[int, list[CapturedImage]] = field(default_factory=dict)
    used: bool = False

    def hold(self, feature: Any, images: list[CapturedImage]) -> None:
        self.features.append(feature)
        self.images[id(feature)] = images


class Encoding:
    """Pictures that were encoded in a context.

    Args:
        method: its parts between encoder layers act here.
        needs: names of the signals that parts before the language model read.
        stage: what changes the input, if the method does.
        shared: gives what remembers encoder calls across contexts, or None.

    Attributes:
        calls: encoder calls so far.
    """

    def __init__(
        self,
        family: Family,
        method: PruningMethod,
        needs: frozenset[str],
        stage: InputStage | None,
        shared: Callable[[], Any],
    ) -> None:
        self.family, self.method, self.needs = family, method, needs
        self.stage, self.shared = stage, shared
        self.calls = 0
        self._held: list[_Call] = []
        self._thread = threading.local()

    @contextlib.contextmanager
    def attached(self, waiting: Callable[[], bool]) -> Iterator[None]:
        """The family's encoders are heard for the duration, except while ``waiting()``."""
        with contextlib.ExitStack() as undo:
            for modality, name in self.family.encoders.items():
                around = functools.partial(self._around, waiting, modality)
                undo.enter_context(shadowed(self.family.core, name, around))
            yield

    # -- what prompts ask -------------------------------------------------------------------------

    def new_forward(self) -> None:
        """A forward begins; pictures that it encodes itself are those of its prompts."""
        self._thread.fresh = {}

    def pictures(self, encoded: dict[str, Any] | None) -> dict[str, list[CapturedImage]]:
        """Pictures of this forward's prompts by modality, in prompt order.

        Args:
            encoded: encoder outputs that the forward was given (``mm_encoder_outputs``).

        Raises:
            PruningUnsupported: they were not computed in this context.
        """
        given = {
            modality: self._lookup(output.pooler_output)
            for modality, output in (encoded or {}).items()
            if output is not None
        }
        return given or getattr(self._thread, "fresh", {})

    def _lookup(self, features: Any) -> list[CapturedImage]:
        found: list[CapturedImage] = []
        for feature in self._whole(features) or features:
            call = next((c for c in self._held if id(feature) in c.images), None)
            if call is None:
                raise PruningUnsupported(
                    "image features were computed outside the pruning context, or before the "
                    "pictures of another prompt; encode inside it, right before the prompt"
                )
            call.used = True
            found += call.images[id(feature)]
        return found

    def _whole(self, features: Any) -> list[Any]:
        """Where all images come as one object, that object stands for them."""
        return [features] if any(id(features) in call.images for call in self._held) else []

    # -- one call ---------------------------------------------------------------------------------

    def _around(
        self, waiting: Callable[[], bool], modality: str, inner: Any, args: tuple, kwargs: dict
    ) -> Any:
        if waiting():
            return inner(*args, **kwargs)
        named = by_name(inspect.signature(inner), args, kwargs)
        with _HEARING, self._smaller_crops(named):
            return self._encode(modality, inner, args, kwargs, named)

    def _smaller_crops(self, named: dict[str, Any]) -> contextlib.AbstractContextManager:
        stage = self.stage
        if stage is None:
            return contextlib.nullcontext()
        pixels = named.get("pixel_values")
        if stage.side is not None and (pixels is None or pixels.shape[-1] != stage.pixels):
            raise refuse.unprepared(self.method)
        return stage.encoding()

    def _encode(
        self, modality: str, inner: Any, args: tuple, kwargs: dict[str, Any], named: dict[str, Any]
    ) -> Any:
        capture, merging = signals.VisionCapture(asked=self.needs), self._merging()
        output = self._heard(capture, merging, inner, args, kwargs)
        if merging is not None:
            capture.merge_slots = merging.slots
        features = list(output.pooler_output)
        images = self.family.images(modality, named, features, capture)
        if merging is not None:
            plan = tuple(merging.plan)
            images = [dataclasses.replace(image, merged=plan) for image in images]
        call = _Call()
        for feature, image in zip(features, images, strict=True):
            call.hold(feature, [image])
        call.hold(output.pooler_output, images)
        self.calls += 1
        self._held = [c for c in self._held if not c.used] + [call]
        fresh = getattr(self._thread, "fresh", {})
        fresh.setdefault(modality, []).extend(images)
        self._thread.fresh = fresh
        return output

    def _merging(self) -> EncoderMerging | None:
        part: Any = self.method.part("encoder")
        if part is None or self.method.ratio == 0:
            return None
        return EncoderMerging(self.family, part)

    def _heard(
        self,
        capture: signals.VisionCapture,
        merging: EncoderMerging | None,
        inner: Any,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> Any:
        """The call's output; ``capture`` then holds what the signals read."""
        heard = signals.taps(self.family, self.needs)
        with contextlib.ExitStack() as stack:
            if merging is not None:
                stack.enter_context(merging.active())
            stack.enter_context(signals.listening(heard, capture))
            shared = self.shared()
            if shared is None or merging is not None:
                return inner(*args, **kwargs)
            return shared.encode(inner, args, kwargs, capture, frozenset(heard))
