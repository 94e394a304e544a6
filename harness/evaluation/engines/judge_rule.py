"""Rules that stand in for a language model as judge.

MM-Vet's: which of the wanted words does the answer contain? HallusionBench's: the first word.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+(?:[.,]\d+)*|[^\w\s]")


def wanted_words(truth: str, answer: str) -> float:
    """Share of the wanted elements that occur in the answer, 0.0 to 1.0 in steps of 0.1.

    ``<AND>`` lists elements that all belong to a right answer, ``<OR>`` alternatives, of which the
    best counts; ``<AND>`` binds tighter. An element occurs if its words stand in the answer one
    after the other, whatever the case. This is not MM-Vet's score: a paraphrase gets nothing.
    """
    said = _words(answer)
    best = 0.0
    for alternative in truth.split("<OR>"):
        elements = [words for part in alternative.split("<AND>") if (words := _words(part))]
        if elements:
            best = max(best, sum(_occurs(e, said) for e in elements) / len(elements))
    return round(best, 1)


def first_word(answer: str) -> str:
    """The first word in small letters, without punctuation around it; "" if there is none."""
    found = re.search(r"\w+", answer.lower())
    return found[0] if found else ""


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in ".,;:!?\"'"]


def _occurs(wanted: list[str], said: list[str]) -> bool:
    n = len(wanted)
    return any(said[i : i + n] == wanted for i in range(len(said) - n + 1))
