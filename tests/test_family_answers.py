"""What a family may be asked, and what holds of the answers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests import tiny
from vtprune.models.families import family_of
from vtprune.models.families.base import Family


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_layout_of_a_picture_of_so_many_pixels_is_that_of_the_encoder_call(family):
    adapter = family_of(tiny.model(family))
    for size in tiny.SIZES[family]:
        feed = tiny.encoder_feed(family, [tiny.pixels(size, 0, family)], [size])
        with torch.no_grad():
            features = list(adapter.core.get_image_features(**feed).pooler_output)
        (picture,) = adapter.pictures("image", feed, features)
        planned = adapter.layout(*size)
        for field in dataclasses.fields(planned):
            one, other = getattr(planned, field.name), getattr(picture.layout, field.name)
            same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
            assert same, field.name


def test_the_list_of_questions_is_the_one_that_is_written_down():
    """A question that is added to the base is added to its table, and the other way round."""
    import vtprune.models.families.base as base

    table = base.__doc__.partition("======\nquestion")[2]
    answers = {name for name in vars(Family) if not name.startswith("_")}
    answers -= {"images", "kernel", "offers"}  # worked out from the answers
    assert {name for name in answers if f"``{name}``" not in table} == set()
