"""Checkpoint folders as the hub has them: older and partial ones load right, or say what is wrong.

Each folder is a tiny model in the hub's format from which something was taken away or changed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import family_checkpoints
from vtprune.harness.request import checkpoint
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Model
from vtprune.models import load as load_module
from vtprune.models import processor
from vtprune.models.errors import ModelLoadError
from vtprune.models.load import load

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = family_checkpoints.save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return of


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to take things away from."""

    def of(family: str) -> Path:
        target = tmp_path / family
        shutil.copytree(whole(family), target)
        return target

    return of


def edited(file: Path, **changes) -> None:
    """Set keys of a JSON file; None takes a key away."""
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    content = {k: v for k, v in content.items() if v is not None}
    file.write_text(json.dumps(content), encoding="utf-8")


def legacy(folder: Path) -> None:
    """As older versions of the library wrote it: no processor_config.json at all."""
    content = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    images = content["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    (folder / "processor_config.json").unlink()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_folder_loads_without_a_note(whole, family):
    assert load({"path": whole(family)}).notes == ()


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_folder_without_processor_config_takes_the_sizes_from_config_json(folder, family):
    made = folder(family)
    legacy(made)
    vlm = load({"path": made})
    assert vlm.processor.patch_size == vlm.model.config.vision_config.patch_size
    assert vlm.processor.vision_feature_select_strategy == "default"
    assert vlm.processor.num_additional_image_tokens == 1
    (note,) = vlm.notes
    assert "patch_size=4" in note and "config.json" in note


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize(
    "missing", ["num_additional_image_tokens", "vision_feature_select_strategy", "patch_size"]
)
def test_one_missing_entry_of_the_processor_is_filled_and_said(folder, family, missing):
    made = folder(family)
    edited(made / "processor_config.json", **{missing: None})
    vlm = load({"path": made})
    assert len(vlm.notes) == 1 and missing in vlm.notes[0]


def test_a_wrong_entry_is_refused_before_any_sample_with_both_counts(folder):
    made = folder("llava")
    edited(made / "processor_config.json", num_additional_image_tokens=5)
    with pytest.raises(ModelLoadError, match="68 placeholders .* 64 features"):
        load({"path": made})


def test_a_template_in_the_tokenizer_alone_is_used(folder):
    made = folder("llava")
    text = (made / "chat_template.jinja").read_text(encoding="utf-8")
    (made / "chat_template.jinja").unlink()
    edited(made / "tokenizer_config.json", chat_template=text)
    vlm = load({"path": made})
    assert vlm.processor.chat_template == text


def test_no_template_at_all_names_the_remedy_and_the_remedy_works(folder, tmp_path):
    made = folder("llava")
    text = (made / "chat_template.jinja").read_text(encoding="utf-8")
    (made / "chat_template.jinja").unlink()
    with pytest.raises(ModelLoadError, match=r"model\.chat_template=.*chatml, llama3") as told:
        load({"path": made})
    assert str(told.value).count("cannot load") == 1
    own = tmp_path / "own.jinja"
    own.write_text(text, encoding="utf-8")
    assert load({"path": made, "chat_template": str(own)}).processor.chat_template == text
    assert "ASSISTANT:" in load({"path": made, "chat_template": "llava"}).processor.chat_template


def test_a_misspelt_template_names_the_nearest(whole):
    with pytest.raises(ModelLoadError, match="did you mean 'mistral'"):
        load({"path": whole("llava"), "chat_template": "mistrl"})


def test_a_template_that_forgets_the_picture_is_refused(folder, tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}hello{% endfor %}", encoding="utf-8")
    with pytest.raises(ModelLoadError, match="puts no picture into the prompt"):
        load({"path": folder("llava"), "chat_template": str(own)})


@pytest.mark.parametrize("name", processor.templates())
def test_every_shipped_template_renders_picture_text_and_the_turn_of_the_model(name):
    import jinja2

    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    made = jinja2.Template(processor.template(name)).render(
        messages=messages, add_generation_prompt=True
    )
    assert made.count("<image>") == 1 and made.index("<image>") < made.index("What?")


def test_the_original_llava_format_is_named_before_torch_is_imported(tmp_path):
    config = {"model_type": "llava", "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "clip"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="original LLaVA format.*llava-hf"):
        checkpoint.find(Model(path=str(tmp_path)))


def test_joined_encoder_layers_are_refused_by_name(folder):
    made = folder("llava")
    edited(made / "config.json", vision_feature_layer=[-2, -1])
    with pytest.raises(ModelLoadError, match=r"vision_feature_layer=\[-2, -1\] joins several"):
        load({"path": made})


def test_a_list_of_one_encoder_layer_is_that_layer(folder):
    made = folder("llava")
    picture, seen = processor._picture(), []
    for layer in (-2, [-2]):
        edited(made / "config.json", vision_feature_layer=layer)
        load_module._CACHE.clear()
        vlm = load({"path": made})
        pixels = vlm.processor.image_processor(images=[picture], return_tensors="pt")
        seen.append(vlm.model.model.get_image_features(**pixels).pooler_output[0])
    assert seen[0].equal(seen[1])
