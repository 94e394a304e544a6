"""What fvcore counts: a third opinion beside the ledger and torch's counter, stage by stage.

fvcore traces a module and adds up the operators it has a rule for: linear layers, convolutions and
plain matrix products, one per multiply-add. For others it has none and says so; of those the fused
attention kernel is the one that matters. Decoder layers of one shape that see equally many tokens
cost alike, so each such kind is traced once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.harness.cost import counter

#: operators with a rule that are no matrix products: fvcore adds them to its multiply-adds
NORMS = ("layer_norm", "batch_norm", "group_norm", "instance_norm")


@dataclass(frozen=True)
class Seen:
    """What fvcore makes of a stage.

    Attributes:
        macs: its count.
        norms: the part of it that norms have, which other counters leave out.
        skipped: calls of operators it has no rule for, by name.
    """

    macs: int
    norms: int
    skipped: Mapping[str, int]

    @property
    def products(self) -> int:
        """MACs of the matrix products it sees."""
        return self.macs - self.norms


def count_skeleton(
    model: nn.Module,
    inputs: Mapping[str, Any] | None,
    record: Any,
    traced: dict[Any, dict[str, Seen]],
) -> dict[str, Seen]:
    """As :func:`.counter.count_skeleton`, by fvcore: one image's prefill on the meta device.

    Args:
        traced: encoder calls of this model that were traced already, by their shapes; grows.
    """
    from vtprune.models.families import family_of

    family, found = family_of(model), {}
    if inputs is not None:
        shapes = tuple(sorted((name, str(_shape(value))) for name, value in inputs.items()))
        if shapes not in traced:
            traced[shapes] = _encoder(family, inputs)
        found = dict(traced[shapes])
    found["llm"] = _decoder(family, record.tokens_per_layer)
    text = model.config.get_text_config()
    hidden = torch.empty(1, 1, text.hidden_size, device="meta")
    found["lm_head"] = _seen(_analysis(model.lm_head, hidden))
    none = Seen(0, 0, {})
    return {"vision": none, "projector": none, **found}


def _shape(value: Any) -> Any:
    """A shape of pixels; a grid or a size of an image as it is."""
    return tuple(value.shape) if value.device.type == "meta" else value.tolist()


class _Encode(nn.Module):
    """Tower and projector as one module of one tensor, which is what can be traced."""

    def __init__(self, family: Any, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.core = family.core
        self.family, self.inputs = family, inputs

    def forward(self, pixels: Tensor) -> Any:
        return self.family.encode({**self.inputs, "pixel_values": pixels})


class _Layer(nn.Module):
    """A decoder layer without mask, cache and ids."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, angles: Tensor) -> Tensor:
        return self.layer(hidden, position_embeddings=(angles, angles), attention_mask=None)


def _encoder(family: Any, inputs: Mapping[str, Any]) -> dict[str, Seen]:
    module = _Encode(family, inputs)
    with _convolutions(module) as convolved:
        analysis = _analysis(module, inputs["pixel_values"])
        names = {id(inner): name for name, inner in module.named_modules()}
        whole, part = _seen(analysis), _seen(analysis, names[id(family.projector())])
    rest = Counter(dict(whole.skipped)) - Counter(dict(part.skipped))
    macs = whole.macs - part.macs + sum(convolved)
    return {"vision": Seen(macs, whole.norms - part.norms, dict(rest)), "projector": part}


@contextlib.contextmanager
def _convolutions(module: nn.Module) -> Iterator[list[int]]:
    """Counts convolutions by fvcore's rule for them, since none can be traced on the meta device.

    Inside, each gives an empty tensor of the right shape and puts its MACs into the list.
    """
    from fvcore.nn.jit_handles import conv_flop_count

    found: list[int] = []
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    convs = [inner for inner in module.modules() if isinstance(inner, kinds)]

    def counted(conv: Any, x: Tensor) -> Tensor:
        before = [int(n) for n in x.shape]
        padding = (0,) * len(conv.stride) if conv.padding == "valid" else conv.padding
        sizes = zip(before[2:], conv.kernel_size, conv.stride, padding, strict=True)
        after = [(n + 2 * p - k) // step + 1 for n, k, step, p in sizes]
        shape = [before[0], conv.out_channels, *after]
        found.append(int(conv_flop_count(before, list(conv.weight.shape), shape)))
        return x.new_empty(shape)

    for conv in convs:
        conv.forward = functools.partial(counted, conv)  # type: ignore[method-assign]
    try:
        yield found
    finally:
        for conv in convs:
            del conv.forward


def _decoder(family: Any, tokens: list[int]) -> Seen:
    macs, norms, skipped, kinds = 0, 0, Counter[str](), {}
    for layer, n in zip(family.layers, tokens, strict=True):
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        if (shapes, n) not in kinds:
            hidden, angles = counter.layer_inputs(family, n)
            kinds[shapes, n] = _seen(_analysis(_Layer(layer), hidden, angles))
        one = kinds[shapes, n]
        macs, norms = macs + one.macs, norms + one.norms
        skipped.update(one.skipped)
    return Seen(macs, norms, dict(skipped))


def _analysis(module: nn.Module, *inputs: Tensor) -> Any:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(module.eval(), inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none")


def _seen(analysis: Any, module: str = "") -> Seen:
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    before, logger.disabled = logger.disabled, True
    try:
        with torch.no_grad():
            counted = analysis.by_module_and_operator()[module]
            skipped = analysis.unsupported_ops(module)
    finally:
        logger.disabled = before
    norms = int(sum(counted.get(name, 0) for name in NORMS))
    names = {name.removeprefix("aten::"): n for name, n in skipped.items()}
    return Seen(int(sum(counted.values())), norms, names)
