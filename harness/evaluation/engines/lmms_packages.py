"""What is used of lmms-eval, imported without what it never uses.

Its registry imports ``evaluate``, whose suite imports the pipelines of transformers, and by that
torchvision and the compiler of torch: half the time of the import.
"""

from __future__ import annotations

from vtprune.harness.evaluation import quiet
from vtprune.harness.evaluation.untouched import untouched

with quiet.without("transformers.pipelines"), untouched():
    import lmms_eval
    import lmms_eval.api.task as task_module
    import lmms_eval.evaluator as evaluator_module
    from lmms_eval.api.instance import GenerationResult, TokenCounts
    from lmms_eval.api.model import lmms
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

__all__ = [
    "ConfigurableTask", "GenerationResult", "TaskManager", "TokenCounts", "evaluator_module",
    "lmms", "lmms_eval", "simple_evaluate", "task_module",
]  # fmt: skip
