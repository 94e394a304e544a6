"""VLMEvalKit's own clients, as its ``run.py`` would make them, on CPU in float32.

    python -m tests.parity.stock_vlm SPEC.json

As :mod:`tests.parity.stock_lmms`; a part is ``{"name", "client", "checkpoint", "root", "table",
"options"}``, with ``options`` of the client's class, as a registry entry of the library has them.

Shims, each because the client does not run without it: the device (``cuda``, flash attention and
half precision are written into the classes), and for transformers 5 the order of arguments of
``LlavaNextProcessor`` and an argument ``skip_special_token``, which nothing ever read;
and the small model's chat template, which ``LLaVA_Next`` cannot cut off its answers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.parity.recorder import Recorder
from tests.parity.stock_lmms import nothing_of_ours

DATA = "LMUData"  # the library's name of its data folder


def main(spec_file: str) -> None:
    """Run every part and leave ``<out>/<name>/rows.json``."""
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    out = Path(spec["out"])
    os.environ["PRED_FORMAT"] = "tsv"  # the library's own choice cuts long answers
    os.environ[DATA] = str(out)  # otherwise the import makes a folder at home
    made: dict[str, Any] = {}
    with on_cpu():
        for part in spec["parts"]:
            asked = json.dumps([part["client"], part["checkpoint"], part["options"]])
            if asked not in made:
                made.clear()
                made[asked] = client(part["client"], part["checkpoint"], part["options"])
            run(part, made[asked], out)
    nothing_of_ours()


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """The device shim: what the classes ask of CUDA happens on the CPU, in float32."""
    import torch
    import transformers
    import vlmeval.vlm.qwen2_vl.model as qwen

    torch.set_grad_enabled(False)
    loader = transformers.PreTrainedModel.from_pretrained.__func__
    mover, cuda = transformers.BatchFeature.to, torch.nn.Module.cuda
    memory = qwen.get_gpu_memory

    def from_pretrained(cls: Any, path: str, **kwargs: Any) -> Any:
        for name in ("torch_dtype", "device_map", "attn_implementation", "low_cpu_mem_usage"):
            kwargs.pop(name, None)
        return loader(cls, path, dtype=torch.float32, **kwargs)

    transformers.PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    transformers.BatchFeature.to = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args: self
    qwen.get_gpu_memory = lambda: [80]
    try:
        yield
    finally:
        transformers.PreTrainedModel.from_pretrained = classmethod(loader)
        transformers.BatchFeature.to, torch.nn.Module.cuda = mover, cuda
        qwen.get_gpu_memory = memory


class _Transformers5:
    """The processor shim of ``LLaVA_Next``: arguments by name, an unknown one left out."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, prompt: str, images: Any, **kwargs: Any) -> Any:
        return self._processor(text=prompt, images=images, **kwargs)

    def decode(self, ids: Any, skip_special_token: bool) -> str:
        # No such argument was ever read: special tokens stay, and the client cuts at them.
        return self._processor.decode(ids)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> str:
        return self._processor.apply_chat_template(*args, **kwargs)


def client(name: str, checkpoint: str, options: dict[str, Any]) -> Any:
    """An instance of ``vlmeval.vlm.<name>``."""
    import vlmeval.vlm

    made = getattr(vlmeval.vlm, name)(model_path=checkpoint, **options)
    if name == "LLaVA_Next":
        made.processor = _Transformers5(made.processor)
        made.output_process = functools.partial(_after_prompt, made.output_process)
    return made


def _after_prompt(known: Callable[[str], str], answer: str) -> str:
    """The client cuts the prompt off by the templates it knows; the small model's is another."""
    if "<|assistant|>" in answer:
        return answer.split("<|assistant|>")[1].split("<|end|>")[0].strip()
    return known(answer)


def run(part: dict[str, Any], model: Any, out: Path) -> None:
    """One table through the library's own inference loop and scorer."""
    from vlmeval.inference import infer_data_job
    from vlmeval.smp import get_pred_file_path, load

    folder, name = out / part["name"], part["table"]
    (folder / "lmu").mkdir(parents=True)
    shutil.copy(Path(part["root"]) / f"{name}.tsv", folder / "lmu")
    os.environ[DATA] = str(folder / "lmu")
    dataset = open_table(name, folder / "lmu" / f"{name}.tsv")
    if part["limit"]:
        dataset.data = dataset.data.iloc[: part["limit"]]
    recorder, row = Recorder(), iter(range(len(dataset)))
    real = type(model).generate

    def generate(message: Any, dataset: Any = None) -> Any:
        recorder.asking = (next(row),)
        return real(model, message, dataset)

    model.generate = generate
    with recorder.listening():
        infer_data_job(model, work_dir=str(folder), model_name="model", dataset=dataset)
    file = get_pred_file_path(str(folder), "model", name)
    answers = {i: str(text) for i, text in enumerate(load(file)["prediction"])}
    found = dataset.evaluate(file, model="exact_matching", nproc=1)
    recorder.save(folder, answers=answers, metrics=flat(found))


def open_table(name: str, file: Path) -> Any:
    """The data set object; a table that is not the published one would be downloaded again."""
    import hashlib

    import vlmeval.dataset

    cls = next(c for c in vlmeval.dataset.DATASET_CLASSES if name in c.supported_datasets())
    if name in cls.DATASET_MD5:
        cls.DATASET_MD5[name] = hashlib.md5(file.read_bytes()).hexdigest()
    return cls(dataset=name)


def flat(result: Any) -> dict[str, float]:
    """Numbers by label, ``<split>/<label>`` where the result has a column of splits."""
    if isinstance(result, dict):
        return {str(k): float(v) for k, v in result.items()}
    found = {}
    for row in result.to_dict("records"):
        split = row.pop("split", None)
        for label, value in row.items():
            found[f"{split}/{label}" if split is not None else str(label)] = float(value)
    return found


if __name__ == "__main__":
    main(sys.argv[1])
