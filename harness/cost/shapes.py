"""What an image of a given size becomes in a model, without weights, pixels or network.

Token counts come from the library's own functions: the model is built on the meta device from its
config, and its packing is asked where each token would lie.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vtprune.harness.request import presets
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Model, Request

if TYPE_CHECKING:
    from torch import nn

    from vtprune.methods import PruningMethod, TokenLayout
    from vtprune.models.describe import Described
    from vtprune.models.record import SampleRecord, Unreduced

Size = tuple[int, int]  # (width, height) in pixels


def parse_size(text: Any, name: str = "image_size") -> Size:
    """``"672x336"`` as (width, height)."""
    match = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", str(text).strip())
    if not match:
        raise ConfigError(f"{name} must be <width>x<height> in pixels, e.g. 672x672: got {text!r}")
    return int(match[1]), int(match[2])


def seen(size: Size, request: Request, described: Described) -> tuple[Size, dict[str, Any]]:
    """The size a picture has when the processor gets it, and the limits of that processor.

    Both follow the settings in force, so that a prediction speaks of the pictures a cell sees.

    Args:
        size: of the picture as it lies in the data, in pixels.
        described: the model's sizes; its image processor has the checkpoint's limits.
    """
    from vtprune.models import pictures
    from vtprune.models.describe import hf_config

    options = presets.of(request.config, described.config["model_type"]).processor
    width, height = size
    steps = pictures.preparation(options, hf_config(described))
    height, width = steps.sized(height, width)
    limits = {k: options[k] for k in ("min_pixels", "max_pixels") if k in options}
    return (width, height), {**described.image_processor, **limits}


def skeleton(config: Any, attention: str = "sdpa") -> nn.Module:
    """The model with all its modules and no memory, on the meta device."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, attn_implementation=attention).eval()


def encoder_inputs(model: nn.Module, size: Size, processor: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the image encoder for one image, pixels without memory."""
    from vtprune.models.families import family_of

    width, height = size
    return family_of(model).blank(height, width, processor)


def layout(model: nn.Module, inputs: dict[str, Any]) -> TokenLayout:
    """Where every token of the image comes from, as the runtime's family adapter says."""
    import torch

    from vtprune.models.families import family_of

    vision = model.config.vision_config
    patches = (getattr(vision, "image_size", 0) // vision.patch_size) ** 2
    features = [torch.empty(patches, 1)]  # only counted, and only by LLaVA-1.5
    return family_of(model).pictures("image", inputs, features)[0].layout


@dataclass(frozen=True)
class Picture:
    """One picture as a method hands it to the model.

    Attributes:
        inputs: arguments of the image encoder; None where the method leaves the picture out.
        layouts: of its tokens, one or none.
        unreduced: what was asked before, for methods that change the picture.
    """

    inputs: dict[str, Any] | None
    layouts: tuple[TokenLayout, ...]
    unreduced: Unreduced | None = None


@contextlib.contextmanager
def picture(
    model: nn.Module, size: Size, processor: dict[str, Any], method: PruningMethod | None = None
) -> Iterator[Picture]:
    """A picture of ``size`` under ``method``; inside, the model takes crops of the asked size.

    Raises:
        MethodError: the picture cannot be made as small as the method asks.
    """
    if method is None or method.stage != "input" or method.ratio == 0:
        inputs = encoder_inputs(model, size, processor)
        yield Picture(inputs, (layout(model, inputs),))
        return
    from PIL import Image

    from vtprune.models.families import family_of
    from vtprune.models.input_stage import InputStage

    stage = InputStage(family_of(model), method)
    pixels = Image.new("RGB", size)
    (made,), _, (account,) = stage.reduce([[pixels]], _stand_in(processor))
    if not made:
        yield Picture(None, (), account)
        return
    with stage.encoding():
        inputs = encoder_inputs(model, made[0].size, processor)
        yield Picture(inputs, (layout(model, inputs),), account)


def _stand_in(processor: dict[str, Any]) -> Any:
    """A processor that knows its pixel limits and nothing else."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    given = inspect.signature(smart_resize).parameters
    least, most = (processor.get(k, given[k].default) for k in ("min_pixels", "max_pixels"))
    limits = {"shortest_edge": least, "longest_edge": most}
    return SimpleNamespace(image_processor=SimpleNamespace(size=limits))


def record(
    model: nn.Module,
    layouts: Sequence[TokenLayout],
    text_tokens: int,
    method: PruningMethod | None = None,
    unreduced: Unreduced | None = None,
) -> SampleRecord:
    """The record a run of these images would leave; half of the text stands before them.

    ``unreduced`` as in :class:`Picture`. How many tokens a method keeps follows from its counting
    options alone. With ``padding=drop`` it depends on the picture how many of its picks lie in the
    padding; a random draw stands for it.
    """
    import torch

    from vtprune.models.record import SampleRecord

    depth = model.config.get_text_config().num_hidden_layers
    total = sum(map(len, layouts))
    before = text_tokens // 2
    made = SampleRecord(
        sample_id="profile",
        prompt_length=text_tokens + total,
        visual=torch.arange(before, before + total),
        n_layers=depth,
        crops=sum(one.n_tiles for one in layouts),
        grids=tuple((one.n_tiles, *one.patch_grid) for one in layouts),
        unreduced=unreduced,
    )
    if method is None or method.ratio == 0 or method.stage == "input":
        return made
    acting = [part for part in method.chain if part.ratio > 0]
    first = [part for part in acting if part.place in ("encoder", "tokens")]
    inside = next((part for part in acting if part.place == "layers"), None)
    if not acting or len(first) + (inside is not None) < len(acting):
        raise ConfigError(f"{method.name}: how many tokens it keeps is only known from a run")
    left = total
    if first:
        left = sum(_kept(one, first) for one in layouts)
        made.views = tuple(n for one in layouts for n in _views(one, first[0]))
        made.stages = [(0, torch.arange(total) < left)]
        made.merged = _merged(model, layouts, method.part("encoder"))
    if inside is not None:
        plan = inside.checked_schedule(depth, left)
        made.stages += [(i, torch.arange(total) < n) for i, n in enumerate(plan)]
    return made


def _merged(model: nn.Module, layouts: Sequence[TokenLayout], part: Any) -> tuple[int, ...]:
    """Patches merged away in front of each encoder layer, by the part that merges there."""
    from vtprune.models.families import family_of

    if part is None or part.ratio == 0:
        return ()
    rows, cols = layouts[0].patch_grid
    return tuple(part.plan(family_of(model).feature_layer(), rows * cols))


def _views(one: TokenLayout, part: Any) -> list[int]:
    scope = getattr(part, "scope", "per_view")
    if scope == "joint" and part.newline == "candidate":
        return [len(one)]
    sizes = [int((~one.newline & (one.view == v)).sum()) for v in range(len(one.kinds))]
    return [sum(sizes)] if scope == "joint" else sizes


def _kept(one: TokenLayout, parts: Sequence[Any]) -> int:
    """Tokens of one picture that ``parts`` leave, one after another."""
    import torch

    from vtprune import methods

    per_crop = torch.zeros(one.n_tiles, one.patch_grid[0] * one.patch_grid[1], 1)
    signals = {"tile_features": lambda: per_crop}
    tokens = methods.ImageTokens(torch.zeros(len(one), 1), one, ("profile", 0), signals)
    for part in parts:
        rules = ("ratio", "rounding", "positions", "scope", "newline", "padding")
        options = {rule: getattr(part, rule) for rule in rules if hasattr(part, rule)}
        if part.place == "encoder":
            options["scope"] = "per_tile"  # every crop on its own, before padding is cut
            options["newline"] = "keep" if part.newline == "keep" else "drop"
        tokens = tokens.after(methods.build("random", **options).keep(tokens))
    return len(tokens.layout)


def architecture(model: Model) -> Any:
    """A model's sizes: of its local checkpoint if it has one, else of its architecture file.

    Raises:
        ConfigError: neither is there.
    """
    from vtprune.models.describe import describe
    from vtprune.models.errors import ModelLoadError

    found = model.path or model.architecture
    if not found:
        raise ConfigError("model.architecture: give a file like models/architectures/*.json")
    try:
        return describe(found)
    except ModelLoadError as error:
        raise ConfigError(f"model.architecture: {error}") from error
