"""CDPruner's relevance: patches against the question in the space of the encoder's CLIP."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests import checkpoint_tools, tiny
from vtprune import methods
from vtprune.harness import cli, cost
from vtprune.harness.cost import counter, ledger
from vtprune.methods.cdpruner import question_relevance
from vtprune.methods.diverse import greedy_dpp
from vtprune.models import prune, text_tower
from vtprune.models.errors import ModelLoadError, PruningUnsupported
from vtprune.models.oracle import masked

CONTEXT = 12
QUESTIONS = ["what is red?", "how many people", "where was this photograph taken, and by whom?"]


def save_clip(folder, width=32):
    """A random CLIP model as the hub has it: config, safetensors, tokenizer files."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    characters = [chr(c) for c in range(33, 127)]
    pieces = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    words = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    config = CLIPConfig(
        text_config={
            "vocab_size": len(pieces), "hidden_size": 24, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT,
            "bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1,
        },
        vision_config={**tiny.vision_config(), "hidden_size": width},
        projection_dim=20,
    )  # fmt: skip
    torch.manual_seed(1)
    model = CLIPModel(config)
    tiny.rescale(model, seed=5)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def tower(clip):
    return text_tower.load(clip)


@pytest.fixture(scope="module")
def reference(clip):
    """Cosines of encoder tokens ``[N, C]`` with a question by the library's own model."""
    from transformers import AutoTokenizer, CLIPModel

    whole, words = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)

    def cosines(patches, question):
        ids = words(question, truncation=True, max_length=CONTEXT, return_tensors="pt")
        with torch.no_grad():
            text = whole.get_text_features(**ids).pooler_output
            joint = whole.visual_projection(whole.vision_model.post_layernorm(patches))
        return cosine_similarity(joint, text, dim=-1)

    return cosines


def run(tower, questions, numbers=(0,), family="llava", steps=tiny.STEPS, ratio=0.5, **options):
    model = tiny.model(family)
    feed = tiny.inputs(family, [tiny.prompt(family, i) for i in numbers])
    with prune(model, "cdpruner", text_tower=tower, ratio=ratio, **options) as open_run:
        open_run.begin([f"s{i}" for i in numbers], questions=questions)
        return tiny.generate(model, dict(feed), steps=steps), open_run.take(), feed


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_similarity_is_the_cosine_that_the_whole_clip_model_gives(tower, reference, question):
    patches = torch.randn(7, 32, generator=torch.Generator().manual_seed(3)) * 4
    mine = tower.patches(patches) @ tower.text(tower.tokens(question))
    assert torch.allclose(mine, reference(patches, question), atol=1e-6)
    assert tower.tokens(question).shape[1] <= CONTEXT


def test_only_the_question_is_read():
    suffix = "\nAnswer the question using a single word or phrase."
    assert text_tower.question_of("<image>\nWhat is it?" + suffix) == "What is it?"
    assert text_tower.question_of("Answer the question?") == "Answer the question?"


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_the_tokens_kept_are_those_of_the_conditional_process(tower, reference, family):
    model, question = tiny.model(family), QUESTIONS[0]
    _, (record,), feed = run(tower, [question], family=family, steps=1)
    seen = {}
    hook = model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, out: seen.update(patches=args[0], tokens=out)
    )
    tiny.generate(model, dict(feed), steps=1)
    hook.remove()
    similarity = reference(seen["patches"], question)
    relevance = question_relevance(similarity)
    keep = relevance.shape[1] // 2
    order, _ = greedy_dpp(seen["tokens"], relevance, keep)
    if family == "llava":
        assert torch.nonzero(record.alive(0)).flatten().tolist() == order[0].sort().values.tolist()
    plain, _ = greedy_dpp(seen["tokens"], torch.ones_like(relevance), keep)
    assert sorted(plain[0].tolist()) != sorted(order[0].tolist()), "no power"


def test_each_row_is_read_with_its_own_question_and_equals_its_masked_run(tower):
    out, records, feed = run(tower, QUESTIONS, (0, 1, 2))
    for i, question in enumerate(QUESTIONS):
        _, (alone,), _ = run(tower, [question], (i,))
        assert torch.equal(alone.alive(0), records[i].alive(0))
    _, (other,), _ = run(tower, [QUESTIONS[1]], (0,))
    assert not torch.equal(other.alive(0), records[0].alive(0)), "the question must matter"
    model = tiny.model("llava")
    with masked(model, records):
        full = tiny.generate(model, dict(feed))
    assert torch.equal(out.sequences, full.sequences)
    error = max((a - b).abs().max() for a, b in zip(out.logits, full.logits, strict=True))
    assert error <= 1e-4


def test_the_ledger_counts_the_text_tower(tower):
    with counter.Counter() as counted:
        ids = tower.tokens(QUESTIONS[0])
        tower.patches(torch.randn(64, 32)) @ tower.text(ids)
    assert tower.macs(ids.shape[1], 64) == counted.macs
    _, (record,), _ = run(tower, QUESTIONS[:1], steps=1)
    assert record.signal_macs == counted.macs
    arch = cost.architecture_of(tiny.model("llava").config)
    method = methods.build("cdpruner", ratio=0.5)
    own = method.cost(ledger.selection_shape(arch, record, method))
    assert ledger.prefill(arch, record, method).selection == own + counted.macs


def test_a_prompt_without_a_question_is_refused(tower):
    with pytest.raises(PruningUnsupported, match="questions="):
        run(tower, None)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava_onevision"])
def test_encoders_that_are_no_clip_are_refused_naming_the_substitute(tower, family):
    options = {"positions": "original", "scope": "per_view", "newline": "keep", "padding": "drop"}
    with pytest.raises(PruningUnsupported, match="relevance=constant"):
        run(tower, QUESTIONS[:1], family=family, anyres="unpad", **options)


def test_a_missing_or_foreign_tower_is_refused_naming_the_substitute(tmp_path):
    with pytest.raises(PruningUnsupported, match=r"model\.clip.*relevance=constant"):
        run(None, QUESTIONS[:1])
    other = text_tower.load(save_clip(tmp_path, width=64))
    with pytest.raises(PruningUnsupported, match="64 wide"):
        run(other, QUESTIONS[:1])


def test_a_checkpoint_that_is_no_clip_is_one_line(tmp_path):
    checkpoint_tools.save(tmp_path)
    with pytest.raises(ModelLoadError, match="not a CLIP model") as caught:
        text_tower.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_tools.save(tmp_path_factory.mktemp("tiny"))


def command(checkpoint, results, *more):
    return cli.main([
        "method=cdpruner", "ratio=0.5", f"model.path={checkpoint}", "bench.limit=2",
        "data.samples=2", "decoding.max_new_tokens=3", f"paths.results={results}", *more,
    ])  # fmt: skip


def test_a_run_reads_the_question_and_its_key_knows_the_clip_checkpoint(
    checkpoint, clip, tmp_path, capsys
):
    assert command(checkpoint, tmp_path, f"model.clip={clip}") == 0, capsys.readouterr().err
    (file,) = tmp_path.glob("runs/*/*/*/result.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["n_failed"] == 0 and result["identity"]["model"]["clip"]
    rows = [
        json.loads(line)
        for line in (file.parent / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert all(row["macs"]["selection"] > 100_000 for row in rows)


def test_a_run_without_a_clip_checkpoint_is_refused_in_one_line(checkpoint, tmp_path, capsys):
    assert command(checkpoint, tmp_path) == 2
    error = capsys.readouterr().err
    assert "relevance=constant" in error and "model.clip" in error and error.count("\n") == 1
    assert command(checkpoint, tmp_path, "method.relevance=constant") == 0
    assert command(checkpoint, tmp_path, f"model.clip={tmp_path}/none") == 2
    assert "no such checkpoint directory" in capsys.readouterr().err
