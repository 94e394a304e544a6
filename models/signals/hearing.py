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
from vtprune.models.signals.registry import LAYERED, Asked, Signal, asked, available
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


def told(family: Family, capture: VisionCapture) -> dict[str, tuple[Signal, list[Any]]]:
    """Every signal whose source was heard in a call, with what was heard.

    Those asked for at a layer of their own stand under the name they were asked by.
    """
    plain, found = available("encoder"), {}
    taps_of: dict[tuple[str, str], str] = {}  # looking for the encoder's layers takes a while
    for text in (*plain, *sorted(capture.asked - plain.keys())):
        one = asked(text, "encoder")
        if one.signal.cls and not family.has_cls:
            continue
        where = (one.signal.hears, one.signal.layer if one.layer is None else str(one.layer))
        if where not in taps_of:
            taps_of[where] = tap_of(family, one)
        values = capture.values(one.signal.hears, taps_of[where])
        if values is not None:
            found[text] = (one.signal, values)
    return found


def signals_of(
    family: Family, picture: Picture, heard: Mapping[str, tuple[Signal, list[Any]]]
) -> dict[str, Callable[[], Tensor]]:
    """The signals of one picture, each computed when it is called: ``[tiles, P, ...]``."""
    return {name: functools.partial(_compute, family, picture, *heard[name]) for name in heard}


def _compute(family: Family, picture: Picture, signal: Signal, values: list[Any]) -> Tensor:
    own = family.own(picture, signal.hears, values)
    made = [signal.recipe(one) for one in own]
    for value, one in zip(made, own, strict=True):
        _check(signal.name, value, one)
    return family.per_token(picture, signal.hears, made)


def _check(name: str, value: Tensor, heard: Any) -> None:
    """A recipe keeps the patch dimension: its values are folded onto tokens later."""
    shape = heard.k.shape if isinstance(heard, Heard) else heard.shape
    batch, n = shape[0], shape[-2] if isinstance(heard, Heard) else shape[1]
    if value.dim() < 2 or tuple(value.shape[:2]) != (batch, n):
        raise MethodError(
            f"signal '{name}': its recipe returned {tuple(value.shape)} for {batch} x {n} patches; "
            f"expected ({batch}, {n}, ...)"
        )
