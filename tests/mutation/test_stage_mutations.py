"""Defects in whose state a forward follows: each must turn a test of calls red.

A chain that belongs to nobody is often refused rather than silently wrong, which counts here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import test_calls
from tests.mutation.test_runtime_mutations import LAYER, TOKEN, check_masking_equivalence
from tests.mutation.tools import RED, Defects, assert_noticed
from vtprune.models import decode, holding, runtime
from vtprune.models.calls import Calls
from vtprune.models.errors import PruningUnsupported
from vtprune.models.run import PruningRun
from vtprune.models.runtime import Runtime
from vtprune.models.stage import Chain, Stage

Defect = Callable[[Defects], None]


def chain_of_the_last_prefill(put: Defects) -> None:
    """State of the context instead of state of the cache."""
    last = []

    def hold(inner):
        def noted(cache, chain):
            last.append(chain)
            inner(cache, chain)

        return noted

    put.swap(runtime, "hold", hold)
    put.swap(runtime, "chain_of", lambda inner: lambda cache: last[-1])


def rows_not_followed(put: Defects) -> None:
    put.swap(Chain, "rows", lambda inner: lambda self, index: None)


def anybody_goes_on_in_a_pruned_cache(put: Defects) -> None:
    def free(inner):
        return lambda self, *args, **kw: super(holding._Guard, self).update(*args, **kw)

    put.swap(holding._Guard, "update", free)


def any_context_goes_on(put: Defects) -> None:
    put.swap(decode, "own_chain", lambda inner: lambda chain, owner: chain)


def helper_streams_are_prompts(put: Defects) -> None:
    put.swap(Calls, "prompt", lambda inner: lambda self: (inner(self)[0], False))


def pictures_of_the_prompt_before(put: Defects) -> None:
    """A longer prompt is taken for the same one, whatever it shows."""

    def by_ids(inner):
        def goes_on(self, prompts):
            for chain in reversed(getattr(self._thread, "open", ())):
                width = chain.ids.shape[1]
                if (prompts.ids[:, :width] == chain.ids).all():
                    return chain
            return None

        return goes_on

    put.swap(Runtime, "_goes_on", by_ids)


def begun_prompts_are_continued(put: Defects) -> None:
    label = "PruningRun.begins"
    put.calls[label] = 0

    def never(self) -> bool:
        put.calls[label] += 1
        return False

    put.patch.setattr(PruningRun, "begins", property(never))


def one_record_for_equal_prompts(put: Defects) -> None:
    def once(inner):
        return lambda self, records: inner(self, list({r.sample_id: r for r in records}.values()))

    put.swap(PruningRun, "add", once)


def nothing_is_said_of_bypassed_hooks(put: Defects) -> None:
    put.swap(Runtime, "_nothing_bypassed", lambda inner: lambda self: None)


def padding_of_later_turns_is_seen(put: Defects) -> None:
    put.swap(decode, "_tail", lambda inner: lambda *args: None)


def repeated_ids_are_read_twice(put: Defects) -> None:
    def whole(chain, named, done):
        return named["input_ids"]

    put.swap(decode, "_without_repeats", lambda inner: whole)


def merged_vectors_are_forgotten(put: Defects) -> None:
    def bare(inner):
        def apply(self, x, grown=0):
            kept, self.rewrite = self.rewrite, None
            try:
                return inner(self, x, grown)
            finally:
                self.rewrite = kept

        return apply

    put.swap(Stage, "apply", bare)


def stages_begin_a_layer_late(put: Defects) -> None:
    put.swap(Chain, "at", lambda inner: lambda self, layer: inner(self, layer and layer - 1))


CALLS = test_calls
CASES: list[tuple[Defect, Callable[[], None]]] = [
    (
        chain_of_the_last_prefill,
        lambda: CALLS.test_two_requests_decoded_in_turns_answer_as_each_alone("random"),
    ),
    (
        chain_of_the_last_prefill,
        lambda: CALLS.test_two_requests_decoded_in_turns_answer_as_each_alone("fastv"),
    ),
    (
        rows_not_followed,
        lambda: CALLS.test_a_cache_whose_rows_are_chosen_again_is_followed("fastv"),
    ),
    (
        anybody_goes_on_in_a_pruned_cache,
        lambda: CALLS.test_a_pruned_cache_is_refused_outside_and_in_another_context("random"),
    ),
    (
        any_context_goes_on,
        lambda: CALLS.test_a_pruned_cache_is_refused_outside_and_in_another_context("random"),
    ),
    (
        helper_streams_are_prompts,
        lambda: CALLS.test_guidance_leaves_the_stream_that_was_asked_as_it_is_and_one_record(
            "llava", "random"
        ),
    ),
    (
        pictures_of_the_prompt_before,
        lambda: CALLS.test_a_longer_prompt_about_another_picture_is_a_new_prompt("fastv"),
    ),
    (
        begun_prompts_are_continued,
        CALLS.test_prompts_that_were_begun_are_new_prompts_even_with_the_same_picture,
    ),
    (
        one_record_for_equal_prompts,
        CALLS.test_equal_prompts_with_different_pictures_leave_one_record_a_row,
    ),
    (
        nothing_is_said_of_bypassed_hooks,
        CALLS.test_a_context_whose_pictures_never_reached_a_prompt_ends_with_an_error,
    ),
    (padding_of_later_turns_is_seen, CALLS.test_padding_in_a_later_turn_stays_hidden),
    (
        repeated_ids_are_read_twice,
        lambda: CALLS.test_a_second_turn_with_the_returned_cache_equals_the_masked_run(
            "llava", "random"
        ),
    ),
    (
        merged_vectors_are_forgotten,
        lambda: check_masking_equivalence("visionzip", family="llava", **TOKEN),
    ),
    (
        merged_vectors_are_forgotten,
        lambda: check_masking_equivalence("sparsevlm", family="llava", **TOKEN),
    ),
    (stages_begin_a_layer_late, lambda: check_masking_equivalence("fastv", rows=1, **LAYER)),
]


@pytest.mark.parametrize(
    ("defect", "check"), CASES, ids=[f"{d.__name__}-{i}" for i, (d, _) in enumerate(CASES)]
)
def test_calls_notice(
    defect: Defect, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    red = (*RED, PruningUnsupported, RuntimeError, pytest.fail.Exception)
    assert_noticed(monkeypatch, defect, check, red)
