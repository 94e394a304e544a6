"""One encoder call, heard: hooks for just what some signals read, and lazy recipes behind them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vtprune.methods import MethodError
from vtprune.models.errors import PruningUnsupported
from vtprune.models.signals.registry import LAYERED, Asked, asked, available
from vtprune.models.signals.tap import AttentionTap, Heard

if TYPE_CHECKING:
    from vtprune.models.families.base import Family, Picture


@dataclass
class VisionCapture:
    """Tensors seen while the encoder ran once; signals are computed from them on demand.

    Attributes:
        projector_input, projector_output: of the call of the projector.
        merge_slots: bool ``[crops, P]`` places that hold a token, where a method merged inside.
        attention: per layer, named as in :func:`tap_of`, every attention in the order of calls.
        states: per layer the hidden states that left it.
        asked: signals that were asked for, as methods spell them.
    """

    projector_input: Tensor | None = None
    projector_output: Tensor | None = None
    merge_slots: Tensor | None = None
    attention: dict[str, list[Heard]] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    def values(self, source: str, tap: str) -> list[Any] | None:
        """What was heard of a source, in the order of calls; None if nothing was."""
        if source == "attention":
            return self.attention.get(tap)
        if source == "states":
            return [self.states[tap]] if tap in self.states else None
        kept = {
            "projector_in": self.projector_input,
            "projector_out": self.projector_output,
            "merging": self.merge_slots,
        }.get(source)
        return None if kept is None else [kept]


def tap_of(family: Family, one: Asked) -> str:
    """Name of what has to be heard: ``attention@5``, ``states@5`` or ``projector``.

    Raises:
        PruningUnsupported: the encoder has no such layer.
    """
    source = one.signal.hears
    if source not in LAYERED:
        # A question is compared with what the projector reads.
        return "projector" if source.startswith("projector") or source == "question" else source
    depth = len(family.vision_layers())
    number = one.layer
    if number is None:
        number = depth - 1 if one.signal.layer == "last" else family.feature_layer()
    if number >= depth:
        raise PruningUnsupported(
            f"signal '{one.text}': the encoder has layers 0 to {depth - 1}"
        )
    return f"{source}@{number}"


def taps(family: Family, needs: Iterable[str]) -> dict[str, nn.Module]:
    """Modules to be heard for the signals ``needs``, by the names that :func:`tap_of` gives."""
    found: dict[str, nn.Module] = {}
    for text in needs:
        name = tap_of(family, asked(text, "encoder"))
        source, _, layer = name.partition("@")
        if source == "projector":
            found[name] = family.projector()
        elif layer:
            whole = family.vision_layers()[int(layer)]
            found[name] = family.vision_attention(whole) if source == "attention" else whole
    return found


@contextlib.contextmanager
def listening(heard: Mapping[str, nn.Module], capture: VisionCapture) -> Iterator[None]:
    """While open, the modules of :func:`taps` fill ``capture``."""
    listeners = {
        module: capture.attention.setdefault(name, []).append
        for name, module in heard.items()
        if name.startswith("attention@")
    }
    with contextlib.ExitStack() as stack:
        for name, module in heard.items():
            if name == "projector":
                hook = functools.partial(_remember_projection, capture)
            elif name.startswith("states@"):
                hook = functools.partial(_remember_states, capture, name)
            else:
                continue
            stack.callback(module.register_forward_hook(hook).remove)
        if listeners:
            kernels = {str(module.config._attn_implementation) for module in listeners}  # type: ignore[union-attr]
            stack.enter_context(AttentionTap(listeners, kernels))
        yield


def _remember_projection(
    capture: VisionCapture, module: nn.Module, args: tuple, output: Tensor
) -> None:
    capture.projector_input, capture.projector_output = args[0], output


def _remember_states(
    capture: VisionCapture, name: str, module: nn.Module, args: tuple, output: Any
) -> None:
    capture.states[name] = output[0] if isinstance(output, tuple) else output


class EncoderSignals(Mapping[str, Callable[[], Tensor]]):
    """Signals of one picture by name, each computed when it is called: ``[tiles, P, ...]``.

    It holds what was heard: every signal whose source is there, and those that were asked for at a
    layer of their own, under the name they were asked by.
    """

    def __init__(self, family: Family, picture: Picture, capture: VisionCapture) -> None:
        self._family, self._picture, self._capture = family, picture, capture

    def __iter__(self) -> Iterator[str]:
        plain = available("encoder")
        special = sorted(text for text in self._capture.asked if text not in plain)
        return (text for text in (*plain, *special) if self._heard(text) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> Callable[[], Tensor]:
        values = self._heard(name)
        if values is None:
            raise KeyError(name)
        signal = asked(name, "encoder").signal

        def compute() -> Tensor:
            own = self._family.own(self._picture, signal.hears, values)
            made = [signal.recipe(one) for one in own]
            for value, one in zip(made, own, strict=True):
                _check(name, value, one)
            return self._family.per_token(self._picture, signal.hears, made)

        return compute

    def _heard(self, name: str) -> list[Any] | None:
        try:
            one = asked(name, "encoder")
            if one.signal.cls and not self._family.has_cls:
                return None
            return self._capture.values(one.signal.hears, tap_of(self._family, one))
        except PruningUnsupported:
            return None


def _check(name: str, value: Tensor, heard: Any) -> None:
    """A recipe keeps the patch dimension: its values are folded onto tokens later."""
    shape = heard.k.shape if isinstance(heard, Heard) else heard.shape
    batch, n = shape[0], shape[-2] if isinstance(heard, Heard) else shape[1]
    if value.dim() < 2 or tuple(value.shape[:2]) != (batch, n):
        raise MethodError(
            f"signal '{name}': its recipe returned {tuple(value.shape)} for {batch} x {n} patches; "
            f"expected ({batch}, {n}, ...)"
        )
