"""What is compared: clients, checkpoints, rows, and every difference that is known to stay.

A difference is a fact like any other: ``differs`` says how many rows are equal, and the comparison
fails when it is another number, a better one too. The reasons are in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: what a comparison counts, in the order a mistake travels
ASPECTS = ("ids", "pixels", "limit", "ends", "settings", "tokens", "answers")

#: with these equal, the same model says the same
INPUT = ("ids", "pixels", "settings")


@dataclass(frozen=True)
class Comparison:
    """One client on one checkpoint and one benchmark, and the cells that must equal it.

    Attributes:
        engine: lmms_eval | vlmevalkit.
        client: the engine's name of its class.
        checkpoint: of :mod:`tests.parity.checkpoints`, or a config of the small models.
        bench: of conf/bench.
        rows: how many; of mini data, or of the drawn pictures where ``pictures``.
        pictures: ask ChartQA's question about pictures of real shapes.
        options: of the client's class, as a user gives them.
        overrides: of the cell, beside model, bench, engine and data.
        special: the client leaves special tokens in its answers.
        differs: aspect -> rows that are equal, where not all are. Tokens and answers follow: they
            are equal wherever the input is, and metrics where all answers are.
    """

    engine: str
    client: str
    checkpoint: str
    bench: str
    rows: int
    pictures: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    special: bool = False
    differs: Mapping[str, int] = field(default_factory=dict)

    @property
    def limit(self) -> int | None:
        """Rows the client is asked for; mini data hold no more than are wanted."""
        return self.rows if self.pictures else None

    @property
    def name(self) -> str:
        """Unique, and fit for a folder."""
        return f"{self.client}-{self.checkpoint}-{self.bench}".replace(":", "_")


def _small(engine: str, client: str, model: str, benches: str, rows: int, **more: Any) -> Any:
    return [Comparison(engine, client, model, bench, rows, **more) for bench in benches.split()]


LMMS_BENCHES = (
    "gqa vqav2 mme pope mmbench_en chartqa docvqa scienceqa ocrbench textvqa vizwiz seedbench"
)
VLM_BENCHES = "gqa mme pope chartqa docvqa textvqa scienceqa vizwiz seedbench ocrbench"
#: the small models have a preset of their own; here they are asked as the engines' clients ask
AS_LMMS, AS_VLM = ("model.preset=lmms_eval",), ("model.preset=vlmevalkit",)

LMMS = (
    *_small("lmms_eval", "llava_hf", "embedded", LMMS_BENCHES, 4, overrides=AS_LMMS),
    *_small("lmms_eval", "llava_hf", "embedded_llava_next", "mme textvqa", 4, overrides=AS_LMMS),
    Comparison("lmms_eval", "llava_hf", "llava15", "chartqa", 12, pictures=True),
    Comparison("lmms_eval", "llava_hf", "llama3_next", "chartqa", 12, pictures=True),
    Comparison("lmms_eval", "llava_hf", "onevision", "chartqa", 6, pictures=True,
               overrides=("batch_size=1",), differs={"ends": 0}),
    # Both hand pictures on as JPEG or within other limits: the preset does the same.
    Comparison("lmms_eval", "qwen2_vl", "qwen2_vl", "chartqa", 12, pictures=True,
               differs={"ends": 0}),
    Comparison("lmms_eval", "qwen2_5_vl", "qwen2_5_vl", "chartqa", 12, pictures=True,
               differs={"ends": 0}),
    *_small("lmms_eval", "qwen2_5_vl", "qwen2_5_vl", "gqa mme", 4, differs={"ends": 0}),
)  # fmt: skip
#: what a random model says has no end; a user's option on both sides
SHORT = {"max_new_tokens": 12}
SHORT_CELL = ("decoding.max_new_tokens=12", "batch_size=1")
#: as the entries of Qwen2-VL-7B-Instruct and Qwen2.5-VL-7B-Instruct in the library's registry
REGISTRY = {"min_pixels": 1280 * 28 * 28, "max_pixels": 16384 * 28 * 28, **SHORT}
VLM = (
    *_small(
        "vlmevalkit", "Qwen2VLChat", "qwen2_vl", "pope textvqa ocrbench", 4, options=REGISTRY,
        overrides=SHORT_CELL,
    ),
    *_small(
        "vlmevalkit", "Qwen2VLChat", "qwen2_vl", "mmbench_en mmbench_cn", 1, options=REGISTRY,
        overrides=SHORT_CELL,
    ),
    *_small(
        "vlmevalkit", "Qwen2VLChat", "qwen2_5_vl", "textvqa mme", 2,
        options={**REGISTRY, "use_custom_prompt": False}, overrides=SHORT_CELL,
    ),
    *_small("vlmevalkit", "LLaVA_Next", "embedded_llava_next", VLM_BENCHES, 4, overrides=AS_VLM),
    *_small("vlmevalkit", "LLaVA_Next", "embedded_llava_next", "mmbench_en mmbench_cn", 1,
            overrides=AS_VLM),
    Comparison("vlmevalkit", "LLaVA_Next", "llama3_next", "chartqa", 11, pictures=True,
               options=SHORT, overrides=SHORT_CELL, special=True,
               differs={"ids": 10, "pixels": 10}),
    Comparison("vlmevalkit", "Qwen2VLChat", "qwen2_vl", "chartqa", 6, pictures=True,
               options=REGISTRY, overrides=SHORT_CELL, differs={"pixels": 5}),
    Comparison("vlmevalkit", "Qwen2VLChat", "qwen2_5_vl", "chartqa", 6, pictures=True,
               options={**REGISTRY, "use_custom_prompt": False}, overrides=SHORT_CELL,
               differs={"pixels": 5}),
)  # fmt: skip
ALL = (*LMMS, *VLM)
