"""Pictures cut short: an error of their sample, or, where that is asked, answered and marked.

Importing lmms-eval tells Pillow, for the whole process, to fill the missing part of a picture with
grey. Such a picture would be answered and scored as if it were whole, and a run of both engines
would differ from each alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ACCEPT, REFUSE = "accept", "refuse"
CHOICES = (REFUSE, ACCEPT)


@contextlib.contextmanager
def pillow_fills(fill: bool) -> Iterator[None]:
    """Whether Pillow fills up what is missing of a picture, inside the block."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = fill
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before  # also what an import inside has set


def opened(
    images: Callable[[], Sequence[Any]], finish: Callable[[Any], Any], policy: str
) -> tuple[list[Any], bool]:
    """The pictures of a question, decoded, and whether one of them was cut short.

    Args:
        images: opens them; decoding may wait until they are used.
        finish: what is done with each; decodes it.
        policy: ``refuse`` or ``accept``.

    Raises:
        OSError: one is cut short and is not to be accepted, or is no picture.
    """
    try:
        with pillow_fills(False):
            return [finish(image) for image in images()], False
    except OSError as error:
        if policy != ACCEPT or "truncated" not in str(error):
            raise
    with pillow_fills(True):
        return [finish(image) for image in images()], True
