"""How a model wants its questions worded: the ``prompt`` entry of conf/model, one word per engine.

Both engines word some questions differently for some models. Which wording a model gets is the
model's policy, checked before anything is loaded, and part of a cell's identity.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vtprune import places
from vtprune.harness.request.errors import ConfigError, unknown

#: names of the prompt blocks in lmms-eval's task files for our benchmarks, and VLMEvalKit's styles
CHOICES = {
    "lmms_eval": ("default", "qwen_vl", "plm", "gpt4v", "idefics2", "otterhd", "xcomposer2_4khd",
                  "qwen3_vl"),
    "vlmevalkit": ("generic", "llava", "qwen2vl"),
}
PLAIN = {"lmms_eval": "default", "vlmevalkit": "generic"}


def policy(model: dict[str, Any]) -> dict[str, Any]:
    """The model's policy with everything it leaves out filled in: the engines' plain wording.

    Raises:
        ConfigError: an engine or a wording that does not exist.
    """
    given = dict(model.get("prompt") or {})
    for key in given:
        if key not in (*CHOICES, "system"):
            raise ConfigError(unknown("model.prompt entry", key, (*CHOICES, "system")))
    for engine, choices in CHOICES.items():
        wording = given.setdefault(engine, PLAIN[engine])
        if wording not in choices:
            raise ConfigError(unknown(f"model.prompt.{engine}", str(wording), choices))
    system = given.setdefault("system", None)
    if system is not None and (not isinstance(system, str) or not system.strip()):
        raise ConfigError("model.prompt.system must be a text, or null for the template's own")
    return given


def wording(model: dict[str, Any], engine: str) -> str | None:
    """What the engine is told: a style, a block, or None where it is the engine's plain one."""
    chosen = str(policy(model)[engine])
    return None if chosen == PLAIN[engine] else chosen


def chat_template(model: dict[str, Any]) -> str | None:
    """Fingerprint of the template that stands in for the checkpoint's own; None: that one.

    Raises:
        ConfigError: there is neither such a file nor one that ships.
    """
    asked = model.get("chat_template")
    if asked is None:
        return None
    shipped = {file.stem: file for file in places.path("models/templates").glob("*.jinja")}
    file = Path(str(asked)).expanduser()
    if not file.is_file():
        if str(asked) not in shipped:
            raise ConfigError(
                f"model.chat_template={asked}: there is no such file; "
                + unknown("template", str(asked), sorted(shipped))
            )
        file = shipped[str(asked)]
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


