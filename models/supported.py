"""Architectures that can be pruned: ``model_type`` in config.json -> adapter in models/families.

The one list that a new family is added to. Plain words, so that a wrong checkpoint is refused
before torch is imported.
"""

ADAPTERS: dict[str, str] = {
    "llava": "llava:Llava",
    "llava_next": "llava_next:LlavaNext",
    "llava_onevision": "llava_onevision:LlavaOnevision",
    "qwen2_vl": "qwen2_vl:Qwen2VL",
    "qwen2_5_vl": "qwen2_vl:Qwen25VL",
}

SUPPORTED_MODEL_TYPES: tuple[str, ...] = tuple(ADAPTERS)
