"""Small checkpoints in the hub's exact format: its key names, its files, its geometry.

Sizes of layers and vocabulary are small; what decides shapes of inputs is the real thing (336 / 14
and its grid pinpoints, 384 / 14, patches of 14 merged by two, pixel limits). Folders differ in what
the hub differs in: processor files of older versions or one new file, one weight file or shards,
tied embeddings, flat or nested config, sampling in generation_config.json. Weights are bfloat16 of
one seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests import checkpoint_tools, tiny

TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
          "num_attention_heads": 2, "patch_size": 14}  # fmt: skip
LLAVA_WORDS = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
LLAMA3_WORDS = ["<unk>", "<|begin_of_text|>", "<|eot_id|>", "<image>", "<pad>",
                "<|start_header_id|>", "<|end_header_id|>"]  # fmt: skip
QWEN_WORDS = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>",
              "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
ONEVISION_WORDS = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
# The chat templates in use, as the hub has them (pictures first, then texts).
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{'<|eot_id|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
QWEN = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CLIP_NUMBERS = {"image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip


def llava15(folder: Path) -> Path:
    """llava-hf/llava-1.5-7b-hf: processor files of an older version, weights in shards."""
    config = {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "ignore_index": -100, "image_token_index": 3, "pad_token_id": 4,
        "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "text_config": {"model_type": "llama", "torch_dtype": "bfloat16", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336,
                          "projection_dim": 32, **VISION},
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    }  # fmt: skip
    words(folder, LLAVA_WORDS, "<s>", "</s>", "<pad>", begins=True)
    write(folder, "chat_template.json", {"chat_template": VICUNA})
    crops(folder, "CLIPImageProcessor", "LlavaProcessor")
    write(
        folder,
        "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    write(
        folder,
        "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 4},
    )
    return weights(folder, config, shards=3)


def llama3_next(folder: Path) -> Path:
    """llava-hf/llama3-llava-next-8b-hf: any resolution, one weight file."""
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config = {
        "architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next",
        "ignore_index": -100, "image_token_index": 3, "image_grid_pinpoints": pinpoints,
        "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "use_image_newline_parameter": True,
        "text_config": {"model_type": "llama", "rope_theta": 500000.0, "bos_token_id": 1,
                        "eos_token_id": 2, "torch_dtype": "bfloat16", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336,
                          "projection_dim": 32, **VISION},
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    }  # fmt: skip
    words(folder, LLAMA3_WORDS, "<|begin_of_text|>", "<|eot_id|>", "<pad>", begins=True)
    write(folder, "chat_template.json", {"chat_template": LLAMA3})
    crops(folder, "LlavaNextImageProcessor", "LlavaNextProcessor",
          image_grid_pinpoints=pinpoints, aspect_ratio_setting="anyres", do_pad=True)  # fmt: skip
    write(folder, "processor_config.json", {
        "image_token": "<image>", "patch_size": 14, "processor_class": "LlavaNextProcessor",
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1})  # fmt: skip
    write(folder, "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2,
                                             "pad_token_id": 4})  # fmt: skip
    return weights(folder, config)


def qwen2_vl(folder: Path) -> Path:
    """Qwen/Qwen2-VL-2B-Instruct: flat config, tied embeddings, one weight file."""
    config = _qwen("Qwen2VLForConditionalGeneration", "qwen2_vl", {
        "depth": 3, "embed_dim": 32, "hidden_size": TEXT["hidden_size"], "num_heads": 2,
        "mlp_ratio": 2, "in_chans": 3, "patch_size": 14, "spatial_patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2})  # fmt: skip
    _qwen_files(folder, "Qwen2VLImageProcessor", "Qwen2VLProcessor", 1.0)
    return weights(folder, {**config, "tie_word_embeddings": True})


def qwen2_5_vl(folder: Path) -> Path:
    """Qwen/Qwen2.5-VL-7B-Instruct: windows in the tower, shards, a repetition penalty of 1.05."""
    config = _qwen("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", {
        "depth": 3, "hidden_size": 32, "out_hidden_size": TEXT["hidden_size"], "num_heads": 2,
        "intermediate_size": 48, "in_chans": 3, "patch_size": 14, "spatial_patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": [1], "hidden_act": "silu"})  # fmt: skip
    _qwen_files(folder, "Qwen2VLImageProcessor", "Qwen2_5_VLProcessor", 1.05)
    return weights(folder, {**config, "tie_word_embeddings": False}, shards=2)


def onevision(folder: Path) -> Path:
    """llava-hf/llava-onevision-qwen2-7b-ov-hf: the newest form of processor and template files."""
    sides = [384 * n for n in range(1, 7)]
    pinpoints = [[height, width] for height in sides for width in sides]
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision", "image_token_index": 4, "video_token_index": 5,
        "image_grid_pinpoints": pinpoints, "vision_aspect_ratio": "anyres_max_9",
        "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "text_config": {"model_type": "qwen2", "bos_token_id": 1, "eos_token_id": 3, **TEXT},
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 384,
                          "vision_use_head": False, **VISION},
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "use_image_newline_parameter": True,
    }  # fmt: skip
    words(folder, ONEVISION_WORDS, None, "<|im_end|>", "<|endoftext|>")
    (folder / "chat_template.jinja").write_text(ONEVISION, encoding="utf-8")
    half = [0.5, 0.5, 0.5]
    images = {"do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True,
              "do_resize": True, "image_grid_pinpoints": pinpoints, "image_mean": half,
              "image_std": half, "resample": 3, "rescale_factor": 1 / 255,
              "size": {"height": 384, "width": 384}}  # fmt: skip
    write(folder, "processor_config.json", {
        "image_processor": {**images, "image_processor_type": "LlavaOnevisionImageProcessor"},
        "video_processor": {
            "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
            "image_mean": half, "image_std": half, "resample": 3, "rescale_factor": 1 / 255,
            "size": {"height": 384, "width": 384},
            "video_processor_type": "LlavaOnevisionVideoProcessor"},
        "image_token": "<image>", "video_token": "<video>", "num_image_tokens": 729,
        "processor_class": "LlavaOnevisionProcessor", "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_select_strategy": "full"})  # fmt: skip
    write(folder, "generation_config.json", {"bos_token_id": 1, "eos_token_id": [3, 1],
                                             "pad_token_id": 1})  # fmt: skip
    return weights(folder, config)


BUILDERS = {
    "llava15": llava15, "llama3_next": llama3_next, "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl, "onevision": onevision,
}  # fmt: skip
#: the config file of our own that a checkpoint stands in for
CONFIG = {
    "llava15": "llava15_7b", "llama3_next": "llava_next_8b", "qwen2_vl": "qwen2_vl_7b",
    "qwen2_5_vl": "qwen2_5_vl_7b", "onevision": "llava_onevision_7b",
}  # fmt: skip


def build(name: str, folder: Path) -> Path:
    """Write the checkpoint ``name`` into ``folder``, which is made."""
    folder.mkdir(parents=True)
    return BUILDERS[name](folder)


def _qwen(architecture: str, kind: str, vision: Mapping[str, Any]) -> dict[str, Any]:
    """The flat form: entries of the language model stand at the top."""
    return {
        "architectures": [architecture], "model_type": kind, "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": 3, "vision_start_token_id": 4,
        "vision_end_token_id": 5, "vision_token_id": 0, "image_token_id": 6, "video_token_id": 7,
        "attention_dropout": 0.0, "initializer_range": 0.02, "max_window_layers": 3,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 1000000.0,
        "sliding_window": 32768, "use_sliding_window": False, "use_cache": True,
        "torch_dtype": "bfloat16", "vision_config": {"model_type": kind, **vision}, **TEXT,
    }  # fmt: skip


def _qwen_files(folder: Path, images: str, processor: str, penalty: float) -> None:
    words(folder, QWEN_WORDS, None, "<|im_end|>", "<|endoftext|>", template=QWEN)
    write(folder, "chat_template.json", {"chat_template": QWEN})
    write(folder, "preprocessor_config.json", {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
        "merge_size": 2, **CLIP_NUMBERS, "image_processor_type": images,
        "processor_class": processor})  # fmt: skip
    write(
        folder,
        "generation_config.json",
        {
            "bos_token_id": 1,
            "pad_token_id": 1,
            "do_sample": True,
            "eos_token_id": [3, 1],
            "repetition_penalty": penalty,
            "temperature": 0.01,
            "top_p": 0.001,
            "top_k": 1,
        },
    )


def write(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def words(
    folder: Path, special: list[str], begin: str | None, end: str, pad: str,
    begins: bool = False, template: str | None = None,
) -> None:  # fmt: skip
    """The tokenizer's files; one token a character beside the family's special ones."""
    from tokenizers import decoders

    image = next((word for word in special if "image" in word), None)
    made = checkpoint_tools.tokenizer(special, image, names=(begin, end, pad), bos=begins)
    made.backend_tokenizer.decoder = decoders.Fuse()  # texts without spaces between characters
    made.save_pretrained(folder)
    if template:
        file = folder / "tokenizer_config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**content, "chat_template": template}), encoding="utf-8")


def crops(folder: Path, images: str, processor: str, **more: Any) -> None:
    """preprocessor_config.json of the families that crop squares of 336."""
    write(
        folder,
        "preprocessor_config.json",
        {
            "crop_size": {"height": 336, "width": 336},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            **CLIP_NUMBERS,
            "image_processor_type": images,
            "processor_class": processor,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": 336},
            **more,
        },
    )


def weights(folder: Path, config: Mapping[str, Any], shards: int = 1) -> Path:
    """config.json, and random weights under the names that the hub's files have."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    write(folder, "config.json", config)
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(
        AutoConfig.from_pretrained(folder), dtype=torch.float32
    )
    tiny.rescale(made)
    tensors = {}
    for key, value in made.state_dict().items():
        if not (config["tie_word_embeddings"] and key == "lm_head.weight"):
            tensors[hub_key(config["model_type"], key)] = value.to(torch.bfloat16).clone()
    _save(folder, tensors, shards)
    return folder


def hub_key(kind: str, key: str) -> str:
    """The name a weight has in the hub's files, which are older than the library's own names."""
    key = key.removeprefix("model.")
    if kind.startswith("qwen"):
        if key.startswith("language_model."):
            return "model." + key.removeprefix("language_model.")
        return key
    if key.startswith("vision_tower.") and not key.startswith("vision_tower.vision_model."):
        return key.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if key.startswith("language_model."):
        return key.replace("language_model.", "language_model.model.", 1)
    return "language_model." + key if key.startswith("lm_head.") else key


def _save(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    from safetensors.torch import save_file

    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, place = sorted(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        place |= dict.fromkeys(part, file)
    size = sum(value.nbytes for value in tensors.values())
    write(folder, "model.safetensors.index.json",
          {"metadata": {"total_size": size}, "weight_map": place})  # fmt: skip
