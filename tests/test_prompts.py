"""The prompt policy of a model: known wordings, its place in the key, what the model is asked."""

from __future__ import annotations

import types

import pytest

from tests import bench_tools as tools
from tests import family_checkpoints
from vtprune.harness.cell.answerer import chat_inputs
from vtprune.harness.evaluation.engines import lmms_data
from vtprune.harness.request import benches, prompts
from vtprune.harness.request import identity as cell
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.known import entries, groups
from vtprune.harness.request.request import Task


def asked(model, engine="vlmevalkit", bench="gqa"):
    chosen = benches.for_engine(tools.config(bench), {"name": engine}, model)
    config = {
        "model": model, "bench": chosen, "engine": {"name": engine}, "method": {"name": "none"},
        "ratio": 0, "seed": 0, "decoding": {}, "batch_size": 1,
    }  # fmt: skip
    return cell.asked(config)


@pytest.mark.parametrize("name", groups()["model"])
def test_every_model_of_the_repository_states_a_policy_that_exists(name):
    model = entries("model", name)
    assert set(prompts.policy(model)) == {"lmms_eval", "vlmevalkit", "system"}
    # Its entry in VLMEvalKit's registry says use_custom_prompt=False.
    own = None if "qwen2_5" in name else "qwen2vl" if "qwen" in name else "llava"
    assert prompts.wording(model, "vlmevalkit") == own


@pytest.mark.parametrize("engine, other", [("lmms_eval", "qwen_vl"), ("vlmevalkit", "llava")])
def test_the_wording_of_the_engine_in_use_belongs_to_the_cell(engine, other):
    plain = asked({}, engine)
    assert asked({"prompt": {engine: other}}, engine) != plain
    unused = "vlmevalkit" if engine == "lmms_eval" else "lmms_eval"
    elsewhere = {"lmms_eval": "qwen_vl", "vlmevalkit": "llava"}[unused]
    assert asked({"prompt": {unused: elsewhere}}, engine) == plain
    assert asked({"prompt": {engine: prompts.PLAIN[engine], "system": None}}, engine) == plain


def test_the_system_message_belongs_to_the_cell():
    assert asked({"prompt": {"system": "Be brief."}}) != asked({})
    assert asked({"prompt": {"system": "Be brief."}}) != asked({"prompt": {"system": "Be kind."}})


@pytest.mark.parametrize(
    "policy, near",
    [
        ({"vlmevalkit": "lava"}, "did you mean 'llava'"),
        ({"lmms_eval": "qwen"}, "did you mean 'qwen_vl'"),
        ({"vlmeval": "llava"}, "did you mean 'vlmevalkit'"),
        ({"system": ""}, "null for the template's own"),
    ],
)
def test_a_wording_that_does_not_exist_names_the_nearest(policy, near):
    with pytest.raises(ConfigError, match=near):
        prompts.policy({"prompt": policy})


def test_the_known_blocks_are_those_of_the_task_files():
    found = {"default"}
    for name in tools.BENCHES:
        if (engine := tools.config(name)["engines"].get("lmms_eval")) is None:
            continue
        with lmms_data.importable_without_key():
            task = lmms_data.task_manager(Task.of(engine))._get_config(engine["task"])
        found |= set(task.get("lmms_eval_specific_kwargs") or {})
    assert found == set(prompts.CHOICES["lmms_eval"])


@pytest.mark.parametrize(
    "block, end",
    [("default", "using a single word or phrase."), ("qwen_vl", " Answer:")],
)
def test_lmms_eval_asks_in_the_block_of_the_policy(block, end, tmp_path):
    from vtprune.harness.store.journal import Journal

    with Journal(tmp_path / "samples.jsonl") as journal:
        job = tools.job(tmp_path, "gqa", journal, samples=2, model={"prompt": {"lmms_eval": block}})
        answerer = tools.constant()
        from vtprune.harness.evaluation import engines

        engines.get("lmms_eval").run(job, answerer)
    assert answerer.asked[0].prompt.endswith(end)


@pytest.fixture(scope="module")
def qwen():
    vlm = types.SimpleNamespace(name="tiny", device="cpu", dtype="float32")
    vlm.processor = family_checkpoints.processor("qwen2_vl")
    return vlm


def spelled(vlm, inputs):
    """The prompt without blanks: the tiny tokenizer writes one after every letter."""
    return vlm.processor.tokenizer.decode(inputs["input_ids"][0]).replace(" ", "")


def test_the_system_message_stands_before_the_question(qwen):
    ask = types.SimpleNamespace(prompt="What?")
    inputs = chat_inputs(qwen, [ask], [[]], system="Be brief.")
    text = spelled(qwen, inputs)
    assert 0 <= text.index("Bebrief.") < text.index("What?")
    assert "Bebrief." not in spelled(qwen, chat_inputs(qwen, [ask], [[]]))


def test_a_template_that_drops_the_system_message_is_an_error(qwen):
    silent = types.SimpleNamespace(**{**vars(qwen), "processor": qwen.processor})
    template = qwen.processor.chat_template
    qwen.processor.chat_template = "{% for m in messages[1:] %}x{% endfor %}"
    try:
        with pytest.raises(HarnessError, match="drops system messages"):
            chat_inputs(silent, [types.SimpleNamespace(prompt="What?")], [[]], system="Be brief.")
    finally:
        qwen.processor.chat_template = template
