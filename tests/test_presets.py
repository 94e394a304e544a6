"""Settings in force: presets by engine and family, what overrides them, what is refused."""

from __future__ import annotations

import copy
import io
import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests import family_checkpoints
from vtprune.harness import cli
from vtprune.harness.request import compose as wanted
from vtprune.harness.request import identity, known, presets
from vtprune.harness.request.errors import ConfigError
from vtprune.models import generation, pictures
from vtprune.models.load import load


def settings(model="llava15_7b", **options):
    return presets.of(wanted.compose({"model": model, "bench": "gqa", **options}))


@pytest.mark.parametrize("engine", ["lmms_eval", "vlmevalkit"])
def test_the_default_is_the_preset_of_the_engine_in_use(engine):
    assert settings(engine=engine).preset == engine


@pytest.mark.parametrize("model", ["embedded", "embedded_llava_next"])
def test_the_small_models_keep_their_own_files_and_length(model):
    assert settings(model) == presets.Settings("checkpoint", {}, "checkpoint", 32, None)


@pytest.mark.parametrize("model, engine, processor, tokens, generation_config", [
    ("llava15_7b", "lmms_eval", {}, 1024, "checkpoint"),
    ("llava_onevision_7b", "lmms_eval", {}, 1024, "checkpoint"),
    ("qwen2_5_vl_7b", "lmms_eval",
     {"min_pixels": 200704, "max_pixels": 1605632, "resize_min_pixels": 3136,
      "resize_max_pixels": 12845056}, 128, "checkpoint"),
    ("qwen2_vl_7b", "lmms_eval",
     {"min_pixels": 3136, "max_pixels": 602112, "resize_min_pixels": 3136,
      "resize_max_pixels": 602112, "jpeg_quality": 85}, 128, "checkpoint"),
    ("qwen2_vl_7b", "vlmevalkit",
     {"resize_min_pixels": 1003520, "resize_max_pixels": 12845056}, 2048, "neutral"),
])  # fmt: skip
def test_a_preset_is_what_the_client_does(model, engine, processor, tokens, generation_config):
    made = settings(model, engine=engine)
    assert made.processor == processor
    assert (made.max_new_tokens, made.generation_config) == (tokens, generation_config)


def test_vlmevalkit_asks_ocrbench_with_another_limit():
    asked = {"model": "qwen2_vl_7b", "engine": "vlmevalkit", "bench": "ocrbench"}
    assert presets.of(wanted.compose(asked)).processor["resize_min_pixels"] == 78400
    asked["model"] = "llava15_7b"
    assert presets.of(wanted.compose(asked)).processor == {}


def test_llavas_scripts_pad_and_send_the_vicuna_text():
    made = settings(**{"model.preset": "llava_scripts"})
    assert made.processor == {"do_pad": True} and made.max_new_tokens == 128
    assert made.system.startswith("A chat between a curious user and an artificial")
    assert settings(**{"model.preset": "llava_scripts",
                       "model.prompt.system": "Be brief."}).system == "Be brief."  # fmt: skip


def test_an_option_of_ones_own_wins_over_the_preset():
    made = settings("qwen2_vl_7b", **{
        "model.processor.max_pixels": 802816, "decoding.max_new_tokens": 7,
        "decoding.generation_config": "neutral",
    })  # fmt: skip
    assert made.processor["max_pixels"] == 802816 and made.processor["jpeg_quality"] == 85
    assert (made.max_new_tokens, made.generation_config) == (7, "neutral")


def key(**options):
    config = wanted.compose({"model": "qwen2_5_vl_7b", "bench": "gqa", "ratio": 0.5,
                             "method": "random", **options})  # fmt: skip
    return identity.canonical_json(identity.asked(config))


def test_a_preset_changes_the_key_and_the_same_settings_spelled_out_do_not():
    own = key()
    assert own == key(**{"model.preset": "lmms_eval"})
    assert own == key(**{"model.processor.max_pixels": 1605632, "decoding.max_new_tokens": 128})
    assert len({own, key(**{"model.preset": "checkpoint"}),
                key(**{"model.preset": "vlmevalkit"})}) == 3  # fmt: skip


@pytest.mark.parametrize("option, message", [
    ("model.preset=lmms_evall", "did you mean 'lmms_eval'?"),
    ("model.preset=llava_scripts", "is how LLaVA-1.5 was evaluated; a qwen2_5_vl has checkpoint"),
    ("model.processor.max_pixel=9", "did you mean 'processor.max_pixels'?"),
    ("model.processor.do_pad=true", "unknown option of model 'processor.do_pad'"),
    ("model.processor.min_pixels=2000000", "min_pixels=2000000 is above model.processor.max_pixels"
                                           "=1605632 (model.preset=lmms_eval"),
    ("model.processor.max_pixels=100", "at least 28 x 28 = 784 pixels"),
    ("model.processor.max_pixels=1e6", "must be a whole number"),
    ("model.processor.jpeg_quality=0", "must lie in 1 ... 100"),
    ("decoding.generation_config=neutrl", "did you mean 'neutral'?"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_a_model_is_looked_for(
    option, message, capsys
):
    assert cli.main(["model=qwen2_5_vl_7b", "method=none", "data=mini", option]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told and "\n" not in told


def test_one_of_two_limits_of_a_step_is_refused():
    with pytest.raises(ConfigError, match="resize_max_pixels together"):
        settings("qwen2_vl_7b", **{"model.preset": "checkpoint",
                                   "model.processor.resize_min_pixels": 3136})  # fmt: skip


def test_a_checkpoint_of_another_kind_than_its_sizes_say_is_refused():
    config = wanted.compose({"model": "llava15_7b", "bench": "gqa"})
    presets.check_found(config, "llava")
    with pytest.raises(ConfigError, match="the checkpoint is a qwen2_vl"):
        presets.check_found(config, "qwen2_vl")
    config["model"]["preset"] = "checkpoint"
    presets.check_found(config, "qwen2_vl")


@pytest.mark.parametrize("name", known.choices("model"))
def test_every_model_lists_the_processor_options_of_its_family_and_no_other(name):
    model = known.entries("model", name)
    kind = presets.type_of(wanted.compose({"model": name})["model"])
    assert tuple(model["processor"]) == presets.OPTIONS[kind]


# --- pictures -------------------------------------------------------------------------------------

COLOURS = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 100, 3), dtype=np.uint8))


def test_padding_puts_a_picture_in_the_middle_of_a_square_of_the_mean_colour():
    made = pictures.Preparation(background=(122, 116, 104))(COLOURS)
    assert made.size == (100, 100)
    pixels = np.asarray(made)
    assert (pixels[:30] == (122, 116, 104)).all() and (pixels[70:] == (122, 116, 104)).all()
    assert (pixels[30:70] == np.asarray(COLOURS)).all()


def test_resizing_before_the_processor_is_that_of_qwen_vl_utils():
    utils = pytest.importorskip("qwen_vl_utils.vision_process")
    steps = pictures.Preparation(resize=(1280 * 28 * 28, 16384 * 28 * 28), cell=28)
    for width, height in ((640, 480), (10, 8), (2000, 30), (1600, 1200)):
        picture = COLOURS.resize((width, height))
        theirs = utils.fetch_image({
            "image": picture, "min_pixels": 1280 * 28 * 28, "max_pixels": 16384 * 28 * 28,
        })  # fmt: skip
        mine = steps(picture)
        assert mine.size == theirs.size == steps.sized(height, width)[::-1]
        assert (np.asarray(mine) == np.asarray(theirs)).all()


def test_jpeg_is_written_and_read_again_at_its_quality():
    stream = io.BytesIO()
    COLOURS.save(stream, format="JPEG", quality=85)
    theirs = np.asarray(Image.open(stream).convert("RGB"))
    mine = np.asarray(pictures.Preparation(jpeg_quality=85)(COLOURS))
    assert (mine == theirs).all() and (mine != np.asarray(COLOURS)).any()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return family_checkpoints.save("qwen2_vl", tmp_path_factory.mktemp("qwen") / "tiny")


def test_limits_reach_the_processor_and_the_tokens_follow(qwen):
    tokens, size = {}, (280, 140)
    for most in (3136, 12845056):
        vlm = load({"path": qwen, "device": "cpu", "processor": {"max_pixels": most,
                                                                "min_pixels": 3136}})  # fmt: skip
        images = vlm.processor.image_processor
        shown = images(images=[COLOURS.resize(size)], return_tensors="pt")
        tokens[most] = int(shown["image_grid_thw"].prod()) // images.merge_size**2
        cell = images.patch_size * images.merge_size
    assert tokens[3136] * cell**2 <= 3136
    assert tokens[12845056] == round(280 / cell) * round(140 / cell)


def test_padded_pixels_are_those_of_the_librarys_own_padding(tmp_path):
    from transformers import LlavaImageProcessor

    folder = family_checkpoints.save("llava", tmp_path / "tiny")
    vlm = load({"path": folder, "device": "cpu", "processor": {"do_pad": True}})
    plain = vlm.processor.image_processor
    theirs = LlavaImageProcessor(**{**{k: v for k, v in plain.to_dict().items()
                                       if not k.endswith("_type")}, "do_pad": True})  # fmt: skip
    mine = plain(images=[vlm.prepare(COLOURS)], return_tensors="pt")["pixel_values"]
    other = theirs(images=[COLOURS], return_tensors="pt")["pixel_values"]
    assert torch.equal(mine, other)


# --- generation -----------------------------------------------------------------------------------


class Tokenizer:
    eos_token_id, pad_token_id = 7, 0


@pytest.fixture(scope="module")
def penalised(tmp_path_factory):
    folder = family_checkpoints.save("qwen2_vl", tmp_path_factory.mktemp("penalty") / "tiny")
    file = folder / "generation_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    content |= {"repetition_penalty": 20.0, "no_repeat_ngram_size": 1, "eos_token_id": [2, 5]}
    file.write_text(json.dumps(content), encoding="utf-8")
    return load({"path": folder, "device": "cpu"})


def test_neutral_decoding_takes_nothing_of_the_file_but_its_special_tokens(penalised):
    neutral = generation.config(penalised.model, Tokenizer, neutral=True)
    kept = generation.config(penalised.model, Tokenizer)
    assert neutral.repetition_penalty in (None, 1.0) and kept.repetition_penalty == 20.0
    assert neutral.eos_token_id == kept.eos_token_id == [2, 5, 7]
    assert not kept.do_sample and kept.num_beams == 1


def test_what_is_in_force_acts_in_generate_and_goes_with_the_block(penalised):
    model = penalised.model
    before = copy.deepcopy(model.generation_config.to_dict())
    ids = torch.tensor([[3, 4, 3, 4, 3, 4]])
    said = {}
    for name in (False, True):
        with generation.in_force(model, generation.config(model, Tokenizer, neutral=name)):
            said[name] = model.generate(input_ids=ids, **generation.GREEDY, max_new_tokens=8)
    assert not torch.equal(said[False], said[True])
    new = said[False][0, 6:].tolist()
    assert len(set(new)) == len(new)  # no token twice
    assert model.generation_config.to_dict() == before


# --- what is told ---------------------------------------------------------------------------------


def test_cell_yaml_holds_the_first_prompt_and_what_was_in_force(tmp_path):
    folder = family_checkpoints.save("llava", tmp_path / "tiny")
    assert cli.main(["method=none", "bench=textvqa", "data.samples=2", "progress=false",
                     "model=llava15_7b", f"model.path={folder}", "model.preset=llava_scripts",
                     "decoding.max_new_tokens=2", f"paths.results={tmp_path}"]) == 0  # fmt: skip
    (file,) = tmp_path.glob("runs/*/*/*/cell.yaml")
    told = yaml.safe_load(file.read_text(encoding="utf-8"))["effective"]
    assert told["preset"] == "llava_scripts"
    assert told["before_the_processor"] == {"do_pad": True}
    assert told["generation_config"]["max_new_tokens"] == 2
    assert "Achatbetweenacurioususer" in told["first_prompt"].replace(" ", "")
    assert re.search(r"\[<image> x \d+\]", told["first_prompt"])
    assert re.search(r"\[\d+ x \d+\]", told["first_token_ids"])
