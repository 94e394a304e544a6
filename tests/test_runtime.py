"""Pruning inside the model, beyond what every method owes: calls, caches, inputs, errors."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests import tiny
from vtprune import methods
from vtprune.models import prune, signals
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import family_of
from vtprune.models.families.base import VisionCapture
from vtprune.models.oracle import masked
from vtprune.models.record import pack_bits, unpack_bits
from vtprune.models.signals import AttentionTap, received_attention

OPTIONS = {"random": {"ratio": 0.5}, "fastv": {"ratio": 0.5, "K": 2}}
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
both_stages = pytest.mark.parametrize("name", list(OPTIONS))


def agree(model, feed, name, steps=tiny.STEPS, **kw):
    """Largest difference of logits between a pruned run and its masked re-run."""
    with prune(model, name, **{**OPTIONS[name], **kw}) as run:
        out = tiny.generate(model, dict(feed), steps=steps)
        records = run.take()
    with masked(model, records):
        reference = tiny.generate(model, dict(feed), steps=steps)
    assert torch.equal(out.sequences, reference.sequences)
    pairs = zip(out.logits, reference.logits, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs), records


@every_family
@both_stages
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_both_position_conventions_equal_the_masked_run(family, name, positions):
    feed = tiny.inputs(family, [tiny.prompt(family, i) for i in (0, 1)])
    if positions == "compact" and family in tiny.M_ROPE:
        with pytest.raises(PruningUnsupported, match="m-rope"):
            agree(tiny.model(family), feed, name, positions=positions)
        return
    error, _ = agree(tiny.model(family), feed, name, positions=positions)
    assert error <= 1e-4


@every_family
@both_stages
def test_two_images_in_one_row_and_none_in_another(family, name):
    rows = [tiny.prompt(family, 0, images=2), tiny.prompt(family, 1, images=0)]
    error, records = agree(tiny.model(family), tiny.inputs(family, rows), name)
    assert error <= 1e-4
    assert records[0].visual_tokens > 0 and records[0].mean_removal > 0.2
    assert records[1].visual_tokens == 0 and records[1].mean_removal == 0


@every_family
@both_stages
def test_a_text_only_batch_runs_unchanged_inside_the_context(family, name):
    model = tiny.model(family)
    feed = tiny.inputs(family, [tiny.prompt(family, 0, images=0)])
    plain = tiny.generate(model, dict(feed), steps=3)
    with prune(model, name, **OPTIONS[name]):
        inside = tiny.generate(model, dict(feed), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, inside.logits, strict=True))


@every_family
@both_stages
def test_a_direct_forward_with_right_padding_scores_the_last_real_token(family, name):
    model = tiny.model(family)
    prompts = [tiny.prompt(family, i) for i in (0, 1)]
    padded = tiny.inputs(family, prompts, side="right")
    with prune(model, name, **OPTIONS[name]) as run, torch.no_grad():
        run.begin(["a", "b"])
        model(**padded, use_cache=True)
        padded_records = run.take()
        run.begin(["a", "b"])
        model(**tiny.inputs(family, prompts), use_cache=True)
        left_records = run.take()
    for right, left in zip(padded_records, left_records, strict=True):
        assert right.prompt_length == left.prompt_length
        assert [a.tolist() for _, a in right.stages] == [a.tolist() for _, a in left.stages]


@both_stages
def test_a_manual_decoding_loop_needs_no_position_ids(name):
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    with prune(model, name, **OPTIONS[name]) as run, torch.no_grad():
        run.begin(["x"])
        wanted = tiny.generate(model, dict(feed), steps=5).sequences[0, -5:]
        run.begin(["x"])
        out = model(**feed, use_cache=True)
        tokens = [_likeliest(out)]
        for _ in range(4):
            out = model(
                input_ids=tokens[-1][:, None], past_key_values=out.past_key_values, use_cache=True
            )
            tokens.append(_likeliest(out))
    assert torch.cat(tokens).tolist() == wanted.tolist()


def _likeliest(out) -> torch.Tensor:
    """Next token of each row, without the placeholders that ``tiny.generate`` suppresses too."""
    logits = out.logits[:, -1].clone()
    logits[:, [tiny.IMAGE_TOKEN, tiny.VIDEO_TOKEN]] = -torch.inf
    return logits.argmax(-1)


@both_stages
def test_all_beams_of_a_sample_share_one_selection(name):
    model = tiny.model("llava_next")
    feed = tiny.inputs("llava_next", [tiny.prompt("llava_next", i) for i in (0, 1)])
    with prune(model, name, **OPTIONS[name]) as run, torch.no_grad():
        run.begin(["a", "b"])
        model.generate(**feed, num_beams=3, max_new_tokens=4, do_sample=False)
        beams = run.take()
        run.begin(["a", "b"])
        model.generate(**feed, max_new_tokens=1, do_sample=False)
        greedy = run.take()
    assert [r.sample_id for r in beams] == ["a", "b"]
    for one, other in zip(beams, greedy, strict=True):
        assert [a.tolist() for _, a in one.stages] == [a.tolist() for _, a in other.stages]


def test_an_error_inside_the_context_leaves_the_model_restored():
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    before = tiny.generate(model, dict(feed), steps=2)
    with pytest.raises(ZeroDivisionError), prune(model, "fastv", ratio=0.5):
        tiny.generate(model, dict(feed), steps=2)
        raise ZeroDivisionError
    after = tiny.generate(model, dict(feed), steps=2)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))


def test_the_inner_of_two_nested_contexts_acts_alone_and_the_outer_resumes():
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])

    def removal(run):
        tiny.generate(model, dict(feed), steps=2)
        return [r.mean_removal for r in run.take()]

    with prune(model, "l2norm", ratio=0.5) as outer:
        assert removal(outer) == [0.5]
        with prune(model, "fastv", ratio=0.75, ratio_mode="local", K=4) as inner:
            assert removal(inner) == [0.375]
            assert outer.take() == []
        assert removal(outer) == [0.5]


def test_repeated_contexts_give_the_same_answer():
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    outputs = []
    for _ in range(3):
        with prune(model, "random", ratio=0.5):
            outputs.append(tiny.generate(model, dict(feed), steps=3).sequences)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2])


def test_training_mode_is_refused():
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    model.train()
    try:
        with pytest.raises(PruningUnsupported, match="eval"), prune(model, "random", ratio=0.5):
            model(**feed)
    finally:
        model.eval()


def test_a_signal_no_family_offers_is_refused_naming_what_does_without():
    with (
        pytest.raises(PruningUnsupported, match="relevance=constant"),
        prune(tiny.model("llava"), "cdpruner", ratio=0.5),
    ):
        pass


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
@pytest.mark.parametrize("name", ["foreground", "background"])
def test_annotated_objects_decide_what_is_foreground(family, name):
    model, one = tiny.model(family), tiny.prompt(family, 0)
    height, width = one.sizes[0]
    mask = torch.zeros(height, width)
    mask[:, : width // 4] = 1  # the left quarter of the picture
    with prune(model, name, ratio=0.5, provider="annotation") as run, torch.no_grad():
        run.begin(["a"], foreground=[[mask]])
        model(**tiny.inputs(family, [one]))
        record = run.take()[0]
        with pytest.raises(methods.MethodError, match="fg_mask"):
            model(**tiny.inputs(family, [one]))
    features = list(model.model.get_image_features(
        **tiny.encoder_feed(family, one.pixels, one.sizes)).pooler_output)  # fmt: skip
    feed = tiny.encoder_feed(family, one.pixels, one.sizes)
    layout = family_of(model).images("image", feed, features, VisionCapture())[0].layout
    left = torch.zeros(len(layout), dtype=torch.bool)
    for view, (_, cols) in enumerate(layout.grids):
        left |= (layout.view == view) & ~layout.newline & (layout.col + 0.5 < cols / 4)
    kept = record.stages[0][1]
    if name == "foreground":
        assert kept[left].all()
    else:
        assert not kept[left].any()


def test_a_static_cache_is_refused():
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    with pytest.raises(PruningUnsupported, match="static"), prune(model, "random", ratio=0.5):
        tiny.generate(model, dict(feed), cache_implementation="static")


def test_chunked_prefill_is_refused():
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    with (
        pytest.raises(PruningUnsupported, match="chunked"),
        prune(model, "random", ratio=0.5),
        torch.no_grad(),
    ):
        first = model(input_ids=feed["input_ids"][:, :2], use_cache=True)
        model(
            input_ids=feed["input_ids"][:, 2:],
            pixel_values=feed["pixel_values"],
            past_key_values=first.past_key_values,
        )


def test_features_encoded_outside_the_context_are_refused():
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    with torch.no_grad():
        encoded = model.model.get_image_features(feed.pop("pixel_values"))
    with pytest.raises(PruningUnsupported, match="outside"), prune(model, "random", ratio=0.5):
        tiny.generate(model, {**feed, "mm_encoder_outputs": {"image": encoded}})


def test_an_unsupported_architecture_names_the_supported_ones():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**{**tiny.text_config(), "num_hidden_layers": 1}))
    with pytest.raises(PruningUnsupported, match=r"llama.*supported: llava"):
        family_of(model)


@pytest.mark.parametrize("version", ["4.57.1", "5.0.0", "6.0.0"])
def test_an_untested_transformers_version_is_refused_naming_the_range(monkeypatch, version):
    model = tiny.model("llava")  # first: the library replaces its own module while it loads
    import transformers

    monkeypatch.setattr(transformers, "__version__", version)
    with pytest.raises(PruningUnsupported, match=rf"{version}.*\[5.23, 6\)"):
        family_of(model)


def test_positions_of_the_default_sample_names_do_not_depend_on_the_batch():
    model = tiny.model("llava")
    with prune(model, "random", ratio=0.5) as run:
        tiny.generate(model, tiny.inputs("llava", [tiny.prompt("llava", 0)]), steps=1)
        alone = run.take()[0]
        tiny.generate(model, tiny.inputs("llava", [tiny.prompt("llava", i) for i in (0, 1)]))
        together = run.take()[0]
    assert alone.sample_id == together.sample_id
    assert alone.stages[0][1].tolist() == together.stages[0][1].tolist()


@every_family
def test_fastv_keeps_what_materialised_attention_says(family):
    """The recomputed query row against the weights an eager model returns, padding included."""
    eager = tiny.model(family, "eager")
    feed = tiny.inputs(family, [tiny.prompt(family, i) for i in (0, 1)])
    with torch.no_grad():
        weights = eager(**feed, output_attentions=True).attentions[2]
    with prune(tiny.model(family), "fastv", ratio=0.5, ratio_mode="local", K=3) as run:
        tiny.generate(tiny.model(family), dict(feed), steps=1)
        records = run.take()
    for row, record in enumerate(records):
        image = (feed["input_ids"][row] == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
        score = weights[row, :, -1, image].mean(0)
        best = torch.sort(score, descending=True, stable=True).indices[: len(image) // 2]
        kept = record.stages[0][1].nonzero().squeeze(1)
        assert kept.tolist() == best.sort().values.tolist()


@pytest.mark.parametrize("family", tiny.WITH_CLS)
def test_the_cls_row_is_that_of_the_layer_the_features_come_from(family):
    eager, one = tiny.model(family, "eager"), tiny.prompt(family, 0)
    with torch.no_grad():
        tower = eager.model.vision_tower(one.pixels[0], output_attentions=True)
    config = eager.config
    wanted = tower.attentions[config.vision_feature_layer][:, :, 0, 1:]
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Spy(methods.TokenMethod):
        needs = ("cls_attention",)

        def score(self, view):
            seen.append(view.signal("cls_attention"))
            return view.features.norm(dim=1)

    with prune(tiny.model(family), Spy(ratio=0.5, scope="per_tile")), torch.no_grad():
        tiny.model(family)(**tiny.inputs(family, [one]))
    assert torch.allclose(torch.stack(seen), wanted.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen2_5_vl"])
def test_received_attention_is_the_mean_over_heads_and_queries(family):
    eager, one = tiny.model(family, "eager"), tiny.prompt(family, 0)
    adapter, maps = family_of(eager), []
    (tap,) = signals.taps(adapter, ["received_attention"]).values()
    with torch.no_grad(), AttentionTap(
        {tap: lambda h: maps.append((h.q @ h.k.mT * h.scaling).softmax(-1).mean((1, 2)))}, {"eager"}
    ):
        eager.model.get_image_features(**tiny.encoder_feed(family, one.pixels, one.sizes))
    received = torch.cat(maps)
    assert torch.allclose(received.sum(-1), torch.ones(len(received)), atol=1e-5)
    q = torch.randn(2, 3, 700, 8)
    k = torch.randn(2, 3, 700, 8)
    whole = (q @ k.mT * 0.3).softmax(-1).mean((1, 2))
    assert torch.allclose(received_attention(q, k, 0.3), whole, atol=1e-6)


@pytest.mark.parametrize("name", ["l2norm", "fastv"])
def test_a_model_dispatched_by_accelerate_answers_as_before(name):
    import copy

    from accelerate import dispatch_model

    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", i) for i in (0, 1)])
    spread = copy.deepcopy(model)
    places = {n: "cpu" for n, m in spread.named_modules() if n.count(".") == 3 and "layers" in n}
    places |= {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    inner = ("embed_tokens", "norm", "rotary_emb")
    places |= {f"model.language_model.{part}": "cpu" for part in inner}
    dispatch_model(spread, places, force_hooks=True)
    outputs = []
    for one in (model, spread):
        with prune(one, name, ratio=0.5) as run:
            run.begin(["a", "b"])
            outputs.append(tiny.generate(one, dict(feed), steps=4))
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    pairs = zip(outputs[0].logits, outputs[1].logits, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_redecide_needs_and_uses_the_path_without_a_cache():
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    options = {"ratio": 0.5, "K": 2, "redecide": True}
    with pytest.raises(PruningUnsupported, match="use_cache=False"), prune(
        model, "fastv", **options
    ):
        tiny.generate(model, dict(feed), steps=2)
    with prune(model, "fastv", **options) as run:
        tiny.generate(model, dict(feed), steps=4, use_cache=False)
        records = run.take()
    assert len(records) == 1


def test_masks_survive_the_way_through_json():
    generator = torch.Generator().manual_seed(0)
    for n in (1, 7, 8, 9, 602):
        mask = torch.rand(n, generator=generator) > 0.5
        assert torch.equal(unpack_bits(pack_bits(mask), n), mask)


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_the_layout_finds_every_token_where_the_library_put_it(family):
    """Marks each encoder token with its own number and reads it back from the packed sequence."""
    model, one = tiny.model(family), tiny.prompt(family, 0)
    adapter = family_of(model)

    def number(module, args, output):
        tiles, patches, width = output.shape
        marks = torch.arange(tiles * patches, dtype=output.dtype).reshape(tiles, patches, 1)
        return marks.expand(tiles, patches, width)

    hook = adapter.projector().register_forward_hook(number)
    feed = tiny.encoder_feed(family, one.pixels, one.sizes)
    try:
        with torch.no_grad():
            features = list(model.model.get_image_features(**feed).pooler_output)
    finally:
        hook.remove()
    layout = adapter.images("image", feed, features, VisionCapture())[0].layout
    exact = layout.tile >= 0
    per_tile = layout.patch_grid[0] * layout.patch_grid[1]
    expected = (layout.tile * per_tile + layout.patch)[exact]
    assert torch.equal(features[0][exact, 0].long(), expected)
    assert exact.sum() >= per_tile
    for view, (rows, cols) in enumerate(layout.grids):
        mine = ~layout.newline & (layout.view == view)
        raster = layout.row[mine] * cols + layout.col[mine]
        assert torch.equal(raster, torch.arange(rows * cols))


@pytest.mark.parametrize("family", tiny.M_ROPE)
def test_encoder_signals_come_in_the_order_of_the_merged_tokens(family):
    """The merger's output per token equals what the model feeds its language model."""
    model, one = tiny.model(family), tiny.prompt(family, 0, images=2)
    adapter, seen = family_of(model), {}

    def watch(module, args, output):
        seen["capture"] = VisionCapture(args[0], output)

    hook = adapter.projector().register_forward_hook(watch)
    feed = tiny.encoder_feed(family, one.pixels, one.sizes)
    try:
        with torch.no_grad():
            features = list(model.model.get_image_features(**feed).pooler_output)
    finally:
        hook.remove()
    images = adapter.images("image", feed, features, seen["capture"])
    patches, merge = seen["capture"].projector_input, 4
    order = adapter.window_order(feed["image_grid_thw"])
    for image, own in zip(images, features, strict=True):
        signal = image.signals["vision_features"]().flatten(0, 1)
        for token in (0, 1, len(own) - 1):
            # Find the merged token by its projection, independently of any window arithmetic.
            match = (seen["capture"].projector_output - own[token]).abs().sum(1).argmin()
            mean = patches[match * merge : (match + 1) * merge].mean(0)
            assert torch.allclose(signal[token], mean, atol=1e-6)
    assert (order is None) == (family == "qwen2_vl")


@pytest.mark.parametrize("family", tiny.M_ROPE)
def test_video_frames_are_separate_views_and_survive_the_masked_check(family):
    model = tiny.model(family)
    frames, height, width = 3, 8, 8
    n = frames * height * width // 4
    ids = torch.tensor([[1, 10, *[tiny.VIDEO_TOKEN] * n, 4, 20, 21, 22]])
    feed = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": tiny.pixels((32, 32), 5, family, frames),
        "video_grid_thw": torch.tensor([[frames, height, width]]),
        "mm_token_type_ids": (ids == tiny.VIDEO_TOKEN).int() * 2,
    }
    if family == "qwen2_5_vl":
        feed["second_per_grid_ts"] = torch.tensor([1.0])
    error, records = agree(model, feed, "random")
    assert error <= 1e-4
    assert records[0].views == (16, 16, 16)
    assert records[0].visual_per_layer[0] == 24


def test_unknown_options_name_the_nearest_one():
    with pytest.raises(methods.MethodError, match="did you mean 'positions'"):
        methods.build("random", ratio=0.5, position="compact")
    with pytest.raises(methods.MethodError, match="did you mean 'gprune'"):
        methods.build("gprun")
    for bad in (1.0, -0.1, 1.5, "abc", float("nan")):
        with pytest.raises(methods.MethodError, match="ratio"):
            methods.build("random", ratio=bad)
