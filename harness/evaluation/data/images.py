"""Pictures of any mode as 8-bit RGB, the one thing every processor agrees on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB, upright.

    The EXIF note of how a camera was held is followed, as `datasets` does when it decodes: it makes
    no difference which engine hands the picture over. 16-bit values are scaled (Pillow alone would
    clip them to white), transparency is laid over white (Pillow alone would uncover whatever colour
    lies below it).
    """
    image = _upright(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return _scaled(image)
    if "A" in image.mode or "transparency" in image.info:
        import PIL.Image

        layer = image.convert("RGBA")
        ground = PIL.Image.new("RGBA", layer.size, "white")
        return PIL.Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    import PIL.ImageOps

    return PIL.ImageOps.exif_transpose(image)


def _scaled(image: Image.Image) -> Image.Image:
    import numpy as np
    import PIL.Image

    values = np.asarray(image).astype(np.float64)
    top = 65535.0 if image.mode.startswith("I") and values.max(initial=0) > 255 else 255.0
    if image.mode == "F" and values.max(initial=0) <= 1:
        top = 1.0
    grey = np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8)
    return PIL.Image.fromarray(grey).convert("RGB")
