"""Put a rule in the place of the language model that an lmms-eval task would call as a judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtprune.harness.evaluation.engines.judge_rule import wanted_words


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
}
