"""Calls beyond one prefill and its own decoding: right, or refused in one line."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from tests import tiny
from vtprune import methods
from vtprune.models import prune
from vtprune.models.errors import PruningUnsupported
from vtprune.models.oracle import masked

OPTIONS = {
    "random": {"ratio": 0.5},
    "fastv": {"ratio": 0.5, "K": 2},
    "compose": {"ratio": 0.6, "first": "l2norm"},
}
every_kind = pytest.mark.parametrize("name", list(OPTIONS))
SUPPRESSED = [tiny.IMAGE_TOKEN, tiny.VIDEO_TOKEN]


def feed_of(number=0, family="llava", **kw):
    return tiny.inputs(family, [tiny.prompt(family, number, **kw)])


def ask(model, feed, steps=5, **kw):
    return tiny.generate(model, dict(feed), steps=steps, **kw)


def tokens(out, n=5):
    return out.sequences[:, -n:].tolist()


def logits_agree(a, b):
    pairs = list(zip(a.logits, b.logits, strict=True))
    assert pairs and max(float((x - y).abs().max()) for x, y in pairs) <= 1e-4


def kept(record):
    return [(layer, alive.tolist()) for layer, alive in record.stages]


def likeliest(out):
    scores = out.logits[:, -1].clone()
    scores[:, SUPPRESSED] = -torch.inf
    return scores.argmax(-1)[:, None]


# --- two caches alive ---------------------------------------------------------------------------


@every_kind
def test_two_requests_decoded_in_turns_answer_as_each_alone(name):
    model, feeds = tiny.model("llava_next"), [feed_of(n, "llava_next") for n in (0, 1)]
    alone, outs, got = [], [], [[], []]
    with prune(model, name, **OPTIONS[name]) as run, torch.no_grad():
        for number, feed in enumerate(feeds):
            run.begin([str(number)])
            alone.append(tokens(ask(model, feed)))
        run.take()
        for number, feed in enumerate(feeds):
            run.begin([str(number)])
            outs.append(model(**feed, use_cache=True))
            got[number].append(likeliest(outs[-1]))
        for _ in range(4):
            for number in (0, 1):
                outs[number] = model(
                    input_ids=got[number][-1],
                    past_key_values=outs[number].past_key_values,
                    use_cache=True,
                )
                got[number].append(likeliest(outs[number]))
        assert [r.sample_id for r in run.take()] == ["0", "1"]
    assert [torch.cat(one, dim=1).tolist() for one in got] == alone


@every_kind
@pytest.mark.parametrize("family", ["llava", "llava_next"])  # the library's Qwen cannot do it
def test_guidance_leaves_the_stream_that_was_asked_as_it_is_and_one_record(family, name):
    model, feed = tiny.model(family), feed_of(0, family)
    with prune(model, name, **OPTIONS[name]) as run:
        guided = ask(model, feed, guidance_scale=1.5)
        records = run.take()
    assert len(records) == 1 and records[0].mean_removal > 0.2
    said = iter(tokens(guided)[0])

    def follow(input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(said)] = 0
        return forced

    # `logits` are those of the prompt's own stream, before guidance mixes the other one in.
    with masked(model, records):
        logits_agree(guided, ask(model, feed, logits_processor=[follow]))
    unguided = ask(model, feed)
    assert tokens(unguided) != tokens(guided), "the test has no power"


@every_kind
def test_a_logits_processor_that_calls_the_model_changes_nothing_and_leaves_no_record(name):
    model, feed, other = tiny.model("llava"), feed_of(0), feed_of(1)

    def meddle(input_ids, scores):
        model(**other, use_cache=True)
        model(input_ids=input_ids[:, -2:], use_cache=False)
        return scores

    with prune(model, name, **OPTIONS[name]) as run:
        run.begin(["asked"])
        wanted = ask(model, feed)
        run.take()
        run.begin(["asked"])
        got = ask(model, feed, logits_processor=[meddle])
        records = run.take()
    assert [r.sample_id for r in records] == ["asked"]
    assert all(torch.equal(a, b) for a, b in zip(wanted.logits, got.logits, strict=True))


@every_kind
def test_two_threads_in_one_context_answer_as_one_after_the_other(name):
    model, feeds = tiny.model("llava_next"), [feed_of(n, "llava_next") for n in (0, 1)]
    found: dict[int, list] = {}
    with prune(model, name, **OPTIONS[name]) as run:
        wanted = [tokens(ask(model, feed, steps=12), 12) for feed in feeds]
        before = {r.sample_id: kept(r) for r in run.take()}
        together = threading.Barrier(2)

        def work(number):
            together.wait()
            found[number] = [tokens(ask(model, feeds[number], 12), 12) for _ in range(3)]

        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        records = run.take()
    assert found == {0: [wanted[0]] * 3, 1: [wanted[1]] * 3}
    assert len(records) == 6 and all(kept(r) == before[r.sample_id] for r in records)


def test_two_contexts_on_two_models_do_not_see_each_other():
    one, two = tiny.model("llava"), tiny.model("llava_next")
    with prune(one, "random", ratio=0.5) as a, prune(two, "fastv", ratio=0.5) as b:
        ask(one, feed_of(0))
        ask(two, feed_of(0, "llava_next"))
        assert len(a.take()) == 1 and len(b.take()) == 1


# --- later turns --------------------------------------------------------------------------------


def both_turns(out, more=(30, 31, 32, 33)):
    ids = torch.cat([out.sequences, torch.tensor([list(more)])], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@every_kind
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_a_second_turn_with_the_returned_cache_equals_the_masked_run(family, name):
    options = dict(OPTIONS[name])
    if family in tiny.M_ROPE:
        options["positions"] = "original"
    model, feed = tiny.model(family), feed_of(0, family)
    with prune(model, name, **options) as run:
        first = ask(model, feed)
        second = ask(model, both_turns(first), past_key_values=first.past_key_values)
        records = run.take()
    assert len(records) == 1
    with masked(model, records):
        first = ask(model, feed)
        wanted = ask(model, both_turns(first), past_key_values=first.past_key_values)
    logits_agree(second, wanted)


@every_kind
def test_new_ids_fed_by_hand_equal_the_masked_run(name):
    model, feed = tiny.model("llava"), feed_of(0)
    more = torch.tensor([[30, 31, 32]])

    def by_hand():
        out = model(**feed, use_cache=True)
        past = feed["input_ids"].shape[1]
        where = torch.arange(past, past + 3)[None]
        return model(
            input_ids=more, past_key_values=out.past_key_values, position_ids=where, use_cache=True
        )

    with torch.no_grad():
        with prune(model, name, **OPTIONS[name]) as run:
            got = by_hand()
            records = run.take()
        with masked(model, records):
            wanted = by_hand()
    assert (got.logits - wanted.logits).abs().max() <= 1e-4


def test_padding_in_a_later_turn_stays_hidden():
    model = tiny.model("llava")
    feed = feed_of(0)
    more = torch.tensor([[0, 0, 30, 31]])
    mask = torch.cat([feed["attention_mask"], torch.tensor([[0, 0, 1, 1]])], dim=1)
    with prune(model, "random", ratio=0.5), torch.no_grad():
        past = model(**feed, use_cache=True).past_key_values
        where = feed["input_ids"].shape[1] + torch.tensor([[0, 0, 0, 1]])
        padded = model(input_ids=more, attention_mask=mask, position_ids=where,
                       past_key_values=past)  # fmt: skip
        past = model(**feed, use_cache=True).past_key_values
        plain = model(input_ids=more[:, 2:], past_key_values=past)
    assert (padded.logits[:, -1] - plain.logits[:, -1]).abs().max() <= 1e-4


def test_ids_of_all_turns_cut_by_the_short_cache_are_refused_when_nothing_tells_them_apart():
    model, feed = tiny.model("llava"), feed_of(0)
    with prune(model, "random", ratio=0.1), torch.no_grad():
        past = model(**feed, use_cache=True).past_key_values
        again = torch.cat([feed["input_ids"], torch.tensor([[30, 31]])], dim=1)
        with pytest.raises(PruningUnsupported, match="repeat"):
            model(input_ids=again[:, past.get_seq_length() :], past_key_values=past)


def test_a_mask_of_another_width_is_refused_naming_the_columns():
    model, feed = tiny.model("llava"), feed_of(0)
    with prune(model, "random", ratio=0.5), torch.no_grad():
        past = model(**feed, use_cache=True).past_key_values
        n = past.get_seq_length() + 1
        with pytest.raises(PruningUnsupported, match="columns"):
            model(input_ids=torch.tensor([[30]]), attention_mask=torch.ones(1, n),
                  past_key_values=past)  # fmt: skip


@every_kind
def test_a_pruned_cache_is_refused_outside_and_in_another_context(name):
    model, feed = tiny.model("llava"), feed_of(0)
    with prune(model, name, **OPTIONS[name]):
        first = ask(model, feed)
    with pytest.raises(PruningUnsupported, match="inside the pruning context"):
        ask(model, both_turns(first), past_key_values=first.past_key_values)
    with prune(model, "l2norm", ratio=0.5), pytest.raises(PruningUnsupported, match="another"):
        ask(model, both_turns(first), past_key_values=first.past_key_values)


def test_a_cache_filled_outside_is_refused_unless_nothing_is_pruned():
    model, feed = tiny.model("llava"), feed_of(0)
    first = ask(model, feed)
    with prune(model, "random", ratio=0.5), pytest.raises(PruningUnsupported, match="not filled"):
        ask(model, both_turns(first), past_key_values=first.past_key_values)
    with prune(model, "none"):
        ask(model, both_turns(first), past_key_values=first.past_key_values)


@every_kind
def test_a_copy_of_the_cache_goes_on_like_the_cache(name):
    model, feed = tiny.model("llava"), feed_of(0)
    step = torch.tensor([[30]])
    with prune(model, name, **OPTIONS[name]), torch.no_grad():
        past = model(**feed, use_cache=True).past_key_values
        twin = copy.deepcopy(past)
        one = model(input_ids=step, past_key_values=past).logits
        assert torch.equal(one, model(input_ids=step, past_key_values=twin).logits)
        with pytest.raises(PruningUnsupported, match="cropped"):
            past.crop(-1)


@every_kind
def test_a_cache_whose_rows_are_chosen_again_is_followed(name):
    model = tiny.model("llava_next")
    feed = tiny.inputs("llava_next", [tiny.prompt("llava_next", i) for i in (0, 1)])
    with prune(model, name, **OPTIONS[name]), torch.no_grad():
        def past():
            return model(**feed, use_cache=True).past_key_values

        step = torch.tensor([[30], [31]])
        wanted = model(input_ids=step, past_key_values=past()).logits
        swapped = past()
        swapped.reorder_cache(torch.tensor([1, 0]))
        got = model(input_ids=step.flip(0), past_key_values=swapped).logits
        assert (got.flip(0) - wanted).abs().max() <= 1e-5
        twice = past()
        twice.batch_repeat_interleave(2)
        got = model(input_ids=step.repeat_interleave(2, 0), past_key_values=twice).logits
        assert (got[::2] - wanted).abs().max() <= 1e-5
        last = past()
        last.batch_select_indices(torch.tensor([1]))
        got = model(input_ids=step[1:], past_key_values=last).logits
        assert (got - wanted[1:]).abs().max() <= 1e-5


# --- without a cache ----------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_leaves_one_record_a_sample_with_and_without_a_cache(name, use_cache):
    model = tiny.model("llava_next")
    feed = tiny.inputs("llava_next", [tiny.prompt("llava_next", i) for i in (0, 1)])

    def beams(cache):
        with prune(model, name, **OPTIONS[name]) as run, torch.no_grad():
            out = model.generate(**feed, num_beams=3, max_new_tokens=6, do_sample=False,
                                 suppress_tokens=SUPPRESSED, use_cache=cache)  # fmt: skip
            return out, run.take()

    (out, records), (wanted, with_cache) = beams(use_cache), beams(True)
    assert len(records) == 2 and torch.equal(out, wanted)
    assert [kept(r) for r in records] == [kept(r) for r in with_cache]


@every_kind
def test_a_longer_prompt_about_another_picture_is_a_new_prompt(name):
    model, one = tiny.model("llava"), tiny.prompt("llava", 0)
    longer = tiny.Prompt(one.before, [*one.after, 40, 41], [one.pixels[0].flip(-1)], one.sizes)
    feeds = [tiny.inputs("llava", [p]) for p in (one, longer)]
    with prune(model, name, **OPTIONS[name]) as run:
        ask(model, feeds[0], use_cache=False)
        second = ask(model, feeds[1], use_cache=False)
        records = run.take()
        alone = ask(model, feeds[1])
        again = run.take()
    assert len(records) == 2 and kept(records[1]) == kept(again[0])
    assert torch.equal(second.sequences, alone.sequences)


def test_prompts_that_were_begun_are_new_prompts_even_with_the_same_picture():
    model, feed = tiny.model("llava"), feed_of(0)
    with prune(model, "random", ratio=0.5) as run, torch.no_grad():
        encoded = model.model.get_image_features(feed["pixel_values"])
        shared = {"mm_encoder_outputs": {"image": encoded}, "use_cache": False}
        ids = feed["input_ids"]
        run.begin(["a"])
        model(input_ids=ids, **shared)
        model(input_ids=torch.cat([ids, ids[:, -1:]], dim=1), **shared)
        run.begin(["b"])
        model(input_ids=torch.cat([ids, ids[:, -1:]], dim=1), **shared)
        assert [r.sample_id for r in run.take()] == ["a", "b"]


# --- names --------------------------------------------------------------------------------------


def test_equal_prompts_with_different_pictures_leave_one_record_a_row():
    model, one = tiny.model("llava"), tiny.prompt("llava", 0)
    others = [tiny.pixels((32, 32), seed, "llava") for seed in (5, 6)]
    rows = [tiny.Prompt(one.before, one.after, [p], one.sizes) for p in (*one.pixels, *others)]
    feed = tiny.inputs("llava", [rows[0], *rows])
    with prune(model, "l2norm", ratio=0.5) as run:
        ask(model, feed)
        records = run.take()
        ask(model, feed, num_return_sequences=2, num_beams=2)
        assert len(run.take()) == 4
    assert len(records) == 4
    assert kept(records[0]) == kept(records[1])
    assert len({str(kept(r)) for r in records}) == 3


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_names_for_another_number_of_prompts_are_an_error(names):
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", i) for i in (0, 1)])
    with prune(model, "random", ratio=0.5) as run:
        run.begin(names)
        with pytest.raises(PruningUnsupported, match=f"{len(names)} sample ids for a batch of 2"):
            ask(model, feed)


# --- refused ------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"assistant_model": "self"}, "assistant_model"),
        ({"prefill_chunk_size": 8}, "chunked prefill"),
    ],
)
def test_decoding_that_cannot_be_followed_is_refused_before_the_first_forward(name, options, word):
    model, feed, forwards = tiny.model("llava"), feed_of(0), []
    if "assistant_model" in options:
        options = {"assistant_model": model}
    hook = model.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        with prune(model, name, **OPTIONS[name]), pytest.raises(PruningUnsupported, match=word):
            ask(model, feed, **options)
    finally:
        hook.remove()
    assert not forwards


@every_kind
def test_a_compiled_model_is_refused_however_it_was_compiled(name):
    for compiled in ("module", "layer", "forward", "wrapper"):
        model = copy.deepcopy(tiny.model("llava"))
        if compiled == "module":
            model.compile(backend="eager")
        elif compiled == "layer":
            model.model.language_model.layers[3].compile(backend="eager")
        elif compiled == "forward":
            model.forward = torch.compile(model.forward, backend="eager")
        else:
            model = torch.compile(model, backend="eager")
        with pytest.raises(PruningUnsupported, match="compiled"):
            with prune(model, name, **OPTIONS[name]):
                pass


def test_a_model_compiled_inside_the_context_is_refused_at_the_next_call():
    model = copy.deepcopy(tiny.model("llava"))
    with prune(model, "random", ratio=0.5), pytest.raises(PruningUnsupported, match="compiled"):
        model.compile(backend="eager")
        ask(model, feed_of(0))


def test_a_context_whose_pictures_never_reached_a_prompt_ends_with_an_error():
    model, feed = tiny.model("llava"), feed_of(0)
    with pytest.raises(PruningUnsupported, match="no prompt reached"):
        with prune(model, "random", ratio=0.5), torch.no_grad():
            model.model.get_image_features(feed["pixel_values"])
    with pytest.raises(ZeroDivisionError):
        with prune(model, "random", ratio=0.5), torch.no_grad():
            model.model.get_image_features(feed["pixel_values"])
            raise ZeroDivisionError
    with prune(model, "none"), torch.no_grad():
        model.model.get_image_features(feed["pixel_values"])


def test_a_language_model_whose_hooks_do_not_run_is_an_error():
    model, feed = copy.deepcopy(tiny.model("llava")), feed_of(0)
    with prune(model, "random", ratio=0.5), torch.no_grad():
        lm = model.model.language_model
        lm.__dict__["_call_impl"] = lm.forward
        with pytest.raises(PruningUnsupported, match="hooks of the language model"):
            lm._compiled_call_impl = lm.forward
            model(**feed)


def test_the_language_model_by_itself_is_refused():
    model = tiny.model("llava")
    with prune(model, "random", ratio=0.5), pytest.raises(PruningUnsupported, match="by itself"):
        model.model.language_model(inputs_embeds=torch.zeros(1, 3, 48))


def test_a_copy_of_the_model_is_refused_inside_and_free_outside():
    model = tiny.model("llava")
    with prune(model, "fastv", ratio=0.5), pytest.raises(PruningUnsupported, match="copy"):
        copy.deepcopy(model)
    copy.deepcopy(model)


def test_a_model_in_a_peft_wrapper_is_pruned_as_the_model():
    from peft import LoraConfig, get_peft_model

    feed = feed_of(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=True)
    wrapped = get_peft_model(copy.deepcopy(tiny.model("llava")), config).eval()
    outs = []
    for model in (tiny.model("llava"), wrapped):
        with prune(model, "fastv", ratio=0.5) as run:
            outs.append(ask(model, feed))
            assert run.take()[0].mean_removal > 0.3
    logits_agree(*outs)


@pytest.mark.parametrize("kind", ["layer_types", "sliding_window", "chunked"])
def test_text_models_that_do_not_see_the_whole_prompt_are_refused(monkeypatch, kind):
    model = tiny.model("llava")
    config = model.model.language_model.config
    if kind == "sliding_window":
        monkeypatch.setattr(config, "layer_types", None, raising=False)
        monkeypatch.setattr(config, "sliding_window", 16, raising=False)
    else:
        attention = "sliding_attention" if kind == "layer_types" else "chunked_attention"
        monkeypatch.setattr(config, "layer_types", [attention] * 8, raising=False)
    with pytest.raises(PruningUnsupported, match="sliding-window"):
        with prune(model, "random", ratio=0.5):
            pass
    with prune(model, "none"):
        pass


@every_kind
def test_a_prompt_that_ends_with_its_picture_is_refused(name):
    model, feed = tiny.model("llava"), feed_of(0)
    last = int((feed["input_ids"][0] == tiny.IMAGE_TOKEN).nonzero().max())
    short = {k: v[:, : last + 1] if v.dim() == 2 else v for k, v in feed.items()}
    with prune(model, name, **OPTIONS[name]):
        with pytest.raises(PruningUnsupported, match="ends with a picture"):
            ask(model, short)
    with prune(model, "none"):
        ask(model, short)


def test_embeddings_are_refused_unless_nothing_is_pruned():
    model = tiny.model("llava")
    embeds = torch.randn(1, 6, 48)
    with prune(model, "none"), torch.no_grad():
        inside = model(inputs_embeds=embeds).logits
    with torch.no_grad():
        assert torch.equal(inside, model(inputs_embeds=embeds).logits)
    with prune(model, "random", ratio=0.5), pytest.raises(PruningUnsupported, match="embeds"):
        model(inputs_embeds=embeds)


# --- several pictures ---------------------------------------------------------------------------


def test_the_text_after_the_first_picture_is_that_of_the_prompt_when_the_picture_is_gone():
    from dataclasses import dataclass

    seen = []

    @dataclass(frozen=True, kw_only=True)
    class FirstGone(methods.LayerMethod):
        """Drops the first picture altogether at layer 2, then a token at layer 4."""

        needs = ("text_distance",)

        def schedule(self, n_layers, n_visual):
            half = n_visual // 2
            return (n_visual,) * 2 + (half,) * 2 + (half - 1,) * (n_layers - 4)

        def score(self, signals):
            seen.append(signals.signal("text_distance").shape[0])
            return signals.alive.float()

    model, feed = tiny.model("llava"), feed_of(0, images=2)
    ids = feed["input_ids"][0]
    pictures = (ids == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    text = int((ids[int(pictures[0]) :] != tiny.IMAGE_TOKEN).sum())
    with prune(model, FirstGone(ratio=0.5)):
        ask(model, feed, steps=1)
    assert seen == [text, text]
