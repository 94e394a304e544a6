"""What a run keeps is what its method selects from the tensors of the unpruned model.

Masking equivalence proves masks, positions and caches for *any* selection. Here ``select`` is asked
again, with inputs that :mod:`tests.unpruned` reads off the eager model, and the kept tokens, and
what their slots hold, must be those of the record.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.method_tools import built, chosen
from tests.selection_tools import Batch, captured, check, check_slots, merged_tower, records_of
from tests.test_text_tower import CONTEXT, save_clip
from tests.unpruned import Picture
from vtprune import methods
from vtprune.models import text_tower


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method" in metafunc.fixturenames:
        names = chosen(metafunc.config)
        places = {name: methods.get(name).stage for name in names}
        metafunc.parametrize("method", [n for n in names if places[n] not in ("none", "input")])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_kept_is_what_the_method_selects_from_the_unpruned_model(method, family):
    check(family, built(method, family))


#: options that change which signal is read, or how slots are filled
VARIANTS: list[tuple[str, dict[str, object], tuple[str, ...]]] = [
    ("visionzip", {"metric": "features"}, tiny.WITH_CLS),
    ("visionzip", {"anyres": "unpad"}, ("llava_next", "llava_onevision")),
    ("visionzip", {"merge_space": "llm"}, ("llava_next",)),
    ("prumerge", {"order": "raster"}, ("llava_next",)),
    ("prumerge", {"source": "feature_layer"}, tiny.WITH_CLS),
    ("prumerge", {"anyres": "unpad"}, ("llava_next",)),
    ("prumerge_plus", {"source": "feature_layer", "score_source": "received"}, ("llava_next",)),
    ("prumerge_plus", {"anyres": "unpad"}, ("llava_next",)),
    ("vispruner", {"anyres": "unpad"}, ("llava_next", "llava_onevision")),
    ("vispruner", {"scope": "per_view", "newline": "keep"}, ("llava_next",)),
    ("fastervlm", {"anyres": "unpad"}, ("llava_next",)),
    ("fastervlm", {"score_source": "received"}, tiny.WITH_CLS),
    ("holov", {"variant": "clean"}, tiny.FAMILIES),
    ("holov", {"variant": "paper"}, tiny.FAMILIES),
    ("dpp", {"anyres": "unpad", "ratio": 0.7}, ("llava_next",)),
    ("l2norm", {"newline": "drop"}, ("llava_next", "llava_onevision")),
    ("l2norm", {"newline": "candidate"}, ("llava_next", "llava_onevision")),
    ("l2norm", {"scope": "joint", "ratio": 0.9}, ("llava_next", "llava_onevision")),
    ("l2norm", {"scope": "per_tile", "padding": "drop"}, ("llava_next",)),
    ("random", {"seed": 7, "ratio": 0.9}, tiny.FAMILIES),
    ("divprune", {"scope": "per_view", "newline": "keep"}, ("llava_next",)),
    ("gprune", {"scope": "joint", "threshold": 0.1}, ("llava_next",)),
    ("tome", {"metric": "clip_keys"}, tiny.FAMILIES),
    ("tome", {"order": "tome", "positions": "compact", "per_round": 5}, ("llava_next",)),
    ("dart", {"state": "hidden", "pivot_text": 0}, ("llava", "qwen2_5_vl")),
    ("pyramiddrop", {"row": "last"}, ("llava", "qwen2_vl")),
    ("pyramiddrop", {"positions": "original"}, ("llava",)),
    ("sparsevlm", {"raters": "last"}, ("llava", "qwen2_vl")),
    ("sparsevlm", {"positions": "original"}, ("llava",)),
    ("sparsevlm", {"recycle": 0.8}, ("llava",)),
    ("sparsevlm_plus", {"positions": "compact"}, ("llava_next",)),
    ("sparsevlm_plus", {"heads": 2}, tiny.FAMILIES),
    ("fastv", {"positions": "compact", "K": 3}, ("llava_next",)),
    ("fitprune", {"ratio_mode": "local", "ratio": 0.5}, ("llava",)),
    ("compose", {"first": "vispruner"}, ("llava", "llava_next")),
    ("compose", {"first": "visionzip", "then": "pyramiddrop"}, tiny.WITH_CLS),
    ("compose", {"first": "divprune", "then": "sparsevlm", "ratio": 0.7}, ("llava_next",)),
    ("compose", {"first": "l2norm", "then": "sparsevlm_plus", "positions": "original"}, ("llava",)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "family"),
    [(name, options, family) for name, options, families in VARIANTS for family in families],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, dict) else str(value),
)  # fmt: skip
def test_options_that_change_what_is_read_are_followed(name, options, family):
    check(family, built(name, family, **options))


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "qwen2_5_vl"])
def test_three_methods_in_a_row_each_see_what_those_before_left(family):
    parts = [{"name": "l2norm", "ratio": 0.2}, {"name": "gprune"}, {"name": "fastv"}]
    check(family, methods.build("compose", parts=parts, ratio=0.7, positions="original"))


@pytest.mark.parametrize("family", tiny.M_ROPE)
@pytest.mark.parametrize(
    "name", ["vispruner", "visionzip", "gprune", "random", "fastv", "sparsevlm_plus"]
)
def test_frames_of_a_video_are_pictures_of_their_own(name, family):
    check(Batch(family, video=True), built(name, family))


#: kernels of the encoder and the language model besides sdpa
KERNELS = ("eager", "segmented")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", ["vispruner", "visionzip", "fastv", "pyramiddrop", "fitprune"])
def test_every_kernel_lets_the_same_be_heard(name, family, kernel):
    check(Batch(family, kernel), built(name, family))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("options", [{}, {"anyres": "unpad"}, {"scope": "joint"}], ids=str)
@pytest.mark.parametrize("family", tiny.WITH_CLS)
def test_cdpruner_reads_each_rows_own_question(clip, family, options):
    """Relevance by the library's whole CLIP model, its extremes over all crops of a picture."""
    from transformers import AutoTokenizer, CLIPModel

    whole, words = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    questions = ["what is red?", "how many people"]

    def similarity(row: int, picture: Picture) -> dict[str, Tensor]:
        ids = words(questions[row], truncation=True, max_length=CONTEXT, return_tensors="pt")
        text = whole.get_text_features(**ids).pooler_output
        patches = whole.vision_model.post_layernorm(picture.encoder["vision_features"])
        joint = whole.visual_projection(patches)
        return {"clip_similarity": torch.nn.functional.cosine_similarity(joint, text, dim=-1)}

    one = methods.build("cdpruner", ratio=0.5, **options)
    check(family, one, similarity, tower=text_tower.load(clip), questions=questions)


@pytest.mark.parametrize("family", tiny.WITH_CLS)
@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 0.3, "per_round": 25}], ids=str)
def test_tome_in_the_tower_merges_what_a_tower_run_by_hand_merges(family, options):
    method, made = methods.build("tome", placement="vision_encoder", **options), captured(family)
    records = records_of(Batch(family), method)
    for row, record in enumerate(records):
        kept, held, offset = [], [], 0
        values = torch.cat([p.tokens for p in made.pictures[row]])
        pairs = zip(made.pictures[row], made.prompts[row].pixels, strict=True)
        for picture, pixels in pairs:
            with torch.no_grad():
                tokens, places = merged_tower(made.model, method.chain[0], pixels)
            content = torch.full((*picture.encoder["tile_features"].shape,), torch.nan)
            content.scatter_(1, places[:, :, None].expand(-1, -1, content.shape[-1]), tokens)
            behind = content[picture.tile.clamp(min=0), picture.patch]
            behind = torch.where(picture.row_end[:, None], picture.tokens, behind)
            there = ~behind.isnan().any(1)
            kept.append(offset + torch.nonzero(there).squeeze(1))
            held.append(behind[there])
            offset += len(picture.tokens)
        found = torch.nonzero(record.alive(0)).squeeze(1)
        assert found.tolist() == torch.cat(kept).tolist(), f"row {row}"
        check_slots(record, 0, values, found, torch.cat(held))


def test_the_batches_reach_what_they_are_for():
    """Rows of different lengths, cut crops, shrunk canvases, tokens out of raster order."""
    for family in tiny.FAMILIES:
        made = captured(family)
        assert len(set(made.valid.sum(1).tolist())) == 2
        assert [len(row) for row in made.pictures] == [1, 2]
    tall, wide = captured("llava_next").pictures[1][1], captured("llava_next").pictures[1][0]
    assert int((tall.tile >= 0).sum()) < tall.encoder["tile_features"][..., 0].numel()
    assert tall.mosaic != wide.mosaic and bool(tall.row_end.any())
    assert any(p.resized for row in captured("llava_onevision").pictures for p in row)
    windowed = captured("qwen2_5_vl")
    out = windowed.seen["projector_out"][0]
    tokens = torch.cat([p.tokens for row in windowed.pictures for p in row])
    assert tokens.shape == out.shape and not torch.equal(tokens, out)
