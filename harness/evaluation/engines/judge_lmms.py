"""Put a rule in the place of the language model that an lmms-eval task would call as a judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtprune.harness.evaluation.engines.judge_rule import first_word, wanted_words


def apply(rule: str, config: dict[str, Any]) -> dict[str, Any]:
    """The task config with its judge replaced; prompts and everything else as they were."""
    return _RULES[rule](config)


def _wanted_words(config: dict[str, Any]) -> dict[str, Any]:
    """MM-Vet: score each answer by the words it contains; the task's own aggregation stays."""

    def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        return {
            "gpt_eval_score": {
                "question_id": doc["question_id"],
                "capabilities": doc["capability"],
                "score": wanted_words(doc["answer"], results[0]),
                "eval_model": "rule",
            }
        }

    return {**config, "process_results": process_results}


def _option_letter(config: dict[str, Any]) -> dict[str, Any]:
    """MMBench in a language without a static task: the evaluator's own static extraction."""
    metrics = []
    for metric in config["metric_list"]:
        if metric["metric"] == "gpt_eval_score":
            # Without this, 45 s of attempts for an unparsed answer, and then a random letter.
            evaluator = metric["aggregation"].__globals__["mmbench_evaluator"]
            metric = {**metric, "aggregation": Static(evaluator)}
        metrics.append(metric)
    return {**config, "metric_list": metrics}


def _yes_no_figures(config: dict[str, Any]) -> dict[str, Any]:
    """HallusionBench: the first word says yes or no; anything else is wrong.

    ``aAcc`` is over questions; ``qAcc`` counts a question whose answer is right for every figure,
    ``fAcc`` a figure with every question right (Guan et al. 2024, section 4).
    """
    keys = {
        "aAcc": ("set_id", "figure_id", "question_id"),
        "qAcc": ("set_id", "question_id"),
        "fAcc": ("set_id", "figure_id"),
    }

    def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        said = first_word(results[0])
        right = said == {"1": "yes", "0": "no"}.get(str(doc["gt_answer"]))
        about = {name: str(doc[name]) for name in ("category", "subcategory", *keys["aAcc"])}
        return {metric: {**about, "score": float(right)} for metric in keys}

    def whole(metric: str) -> Callable[[list[dict[str, Any]]], float]:
        def aggregation(results: list[dict[str, Any]]) -> float:
            groups: dict[tuple[str, ...], float] = {}
            for one in results:
                key = tuple(one[k] for k in ("category", "subcategory", *keys[metric]))
                groups[key] = min(groups.get(key, 1.0), one["score"])
            return 100 * sum(groups.values()) / len(groups)

        return aggregation

    metrics = [{**one, "aggregation": whole(one["metric"])} for one in config["metric_list"]]
    return {**config, "process_results": process_results, "metric_list": metrics}


def _no_guess(config: dict[str, Any]) -> dict[str, Any]:
    """MMMU: an answer without a letter is wrong, where the task draws one of the letters.

    A drawn letter makes the score another one at every run.
    """
    own = config["process_results"]
    shared = own.__globals__["parse_mmmu_multi_choice_response"].__globals__

    def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        before = shared["random"]
        shared["random"] = _NoDraw
        try:
            return own(doc, results)
        finally:
            shared["random"] = before

    return {**config, "process_results": process_results}


class _NoDraw:
    """Stands for the module ``random`` where a letter would be drawn."""

    @staticmethod
    def choice(letters: list[str]) -> str:
        return "-"


class Static:
    """The evaluator's aggregation by rule; finds it again for scores of single samples."""

    def __init__(self, evaluator: Any) -> None:
        self.evaluator = evaluator

    def __call__(self, results: list[dict[str, Any]], args: Any = None) -> float:
        overall, _, _ = self.evaluator.eval_result(results, eval_method="static")
        return overall * 100


_RULES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "wanted_words": _wanted_words,
    "option_letter": _option_letter,
    "yes_no_figures": _yes_no_figures,
    "no_guess": _no_guess,
}
