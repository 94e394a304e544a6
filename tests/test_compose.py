"""Methods in a row: what each removes, which options are honoured, and what is refused."""

from __future__ import annotations

import math

import pytest

from vtprune.methods import MethodError, build


def names(**options):
    return [part.name for part in build("compose", ratio=0.75, **options).chain]


def test_two_names_and_a_list_of_two_are_the_same_chain():
    listed = [{"name": "l2norm", "ratio": 0.5}, {"name": "fastv", "K": 3}]
    two = build("compose", ratio=0.75, first="l2norm", first_ratio=0.5, then_options={"K": 3})
    assert build("compose", ratio=0.75, parts=listed).chain == two.chain


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_parts_without_a_ratio_share_what_is_left_alike(count):
    chain = build("compose", ratio=0.75, parts=[{"name": "l2norm"}] * count).chain
    assert len({round(part.ratio, 12) for part in chain}) == 1
    assert math.prod(1 - part.ratio for part in chain) == pytest.approx(0.25)


def test_given_ratios_are_kept_and_the_rest_removes_what_is_left():
    chain = build("compose", ratio=0.75,
                  parts=[{"name": "l2norm"}, {"name": "random", "ratio": 0.2}]).chain  # fmt: skip
    assert [part.ratio for part in chain] == pytest.approx([1 - 0.25 / 0.8, 0.2])


def test_a_chain_of_a_chain_is_flat():
    inner = {"name": "compose", "parts": [{"name": "l2norm"}, {"name": "random"}]}
    assert names(parts=[inner, {"name": "fastv"}]) == ["l2norm", "random", "fastv"]


def test_options_of_all_reach_every_part_and_own_ones_only_theirs():
    one = build("compose", ratio=0.5, first="l2norm", seed=7, rounding="int_raw",
                compute_dtype="model", positions="original", then_options={"redecide": True},
                first_options={"newline": "drop"})  # fmt: skip
    for part in one.chain:
        assert (part.seed, part.rounding, part.compute_dtype) == (7, "int_raw", "model")
        assert part.positions == "original"
    assert one.redecide and one.part("tokens").newline == "drop"
    assert not build("compose", ratio=0.5).redecide


LIST = r"parts=.* must be a list like \[\{name: vispruner\}, \{name: fastv, K: 3\}\]"
REFUSED = {
    "first too large": ({"first_ratio": 0.9}, "first_ratio=0.9 must be in"),
    "ratio as an option": ({"first_options": {"ratio": 0.5}}, "first_options.ratio has no effect"),
    "wrong place first": ({"first": "fastv"}, "first=fastv does not act before the language model"),
    "wrong place second": ({"then": "l2norm"}, "then=l2norm does not act inside the language"),
    "unknown": ({"first": "l2nom"}, "first=l2nom: unknown method 'l2nom'; did you mean 'l2norm'"),
    "unknown option": ({"then_options": {"k": 3}}, "then=fastv: method 'fastv' has no option 'k'"),
    "value": ({"then_options": {"K": 0}}, "then=fastv: fastv: K=0 must be"),
    "positions": (
        {"first": "l2norm", "first_options": {"positions": "original"}},
        "positions=original cannot be kept, all parts follow positions=compact; use "
        "method.positions=original",
    ),
    "local": ({"then_options": {"ratio_mode": "local"}}, "ratio_mode=local cannot be kept"),
    "label": ({"then": "pyramiddrop", "then_options": {"nominal": 270}}, "nominal=270 cannot be"),
    "no list": ({"parts": "l2norm"}, LIST),
    "empty": ({"parts": []}, LIST),
    "nameless": ({"parts": [{"ratio": 0.5}]}, LIST),
    "both ways": ({"parts": [{"name": "l2norm"}], "first": "l2norm"}, "parts or first, not both"),
    "part ratio": ({"parts": [{"name": "l2norm", "ratio": 1.0}]}, "ratio=1.0 of part 1 is not in"),
    "too much": (
        {"parts": [{"name": "l2norm", "ratio": 0.9}, {"name": "fastv"}]},
        "remove 0.9 together, not ratio=0.75",
    ),
    "too little": ({"parts": [{"name": "l2norm", "ratio": 0.5}]}, "remove 0.5 together, not"),
    "order": (
        {"parts": [{"name": "fastv"}, {"name": "l2norm"}]},
        "l2norm acts before the language model and cannot follow fastv, which acts inside",
    ),
    "twice inside": ({"parts": [{"name": "fastv"}, {"name": "vtw"}]}, "vtw acts inside .* cannot"),
    "a control": ({"parts": [{"name": "downsample"}]}, "downsample cannot be a part"),
    "no crops left": (
        {"parts": [{"name": "l2norm"}, {"name": "vispruner"}]},
        "vispruner has no whole crops behind l2norm; use scope=per_view",
    ),
    "merged before": (
        {"parts": [{"name": "tome"}, {"name": "fastervlm", "scope": "per_view"}]},
        "says nothing of the tokens that tome merged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_follow_each_other_is_refused_in_one_line(case):
    options, line = REFUSED[case]
    with pytest.raises(MethodError, match=line) as error:
        build("compose", ratio=0.75, **options)
    assert str(error.value).startswith("compose: ") and "\n" not in str(error.value)
