"""What a forward costs a device besides arithmetic: operators, and waits for their results."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: functions that hand a value to the host, or whose result has a size that only the device knows
WAITS = {
    "cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero",
    "argwhere", "masked_select", "unique", "unique_consecutive", "_unique2", "equal", "allclose",
    "is_nonzero", "bincount", "__array__",
}  # fmt: skip
#: the library may repeat rows by a tensor of counts; by a number is no wait
INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_"}


class Operators(TorchDispatchMode):
    """Counts every operator that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.count.values())


class OnDevice(torch.Tensor):
    """A tensor that stands for one on an accelerator: its results are too, waits are counted.

    What comes back from :meth:`cpu` is an ordinary tensor, so work on the host costs nothing.
    """

    waits: ClassVar[Counter[str]] = Counter()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        name = getattr(func, "__name__", str(func))
        if name in WAITS or (name in INDEXING and _by_mask(args)) or _by_counts(name, args):
            cls.waits[name] += 1
        if name in ("cpu", "tolist", "numpy"):
            with torch._C.DisableTorchFunctionSubclass():
                made = func(*args, **(kwargs or {}))
            return made.as_subclass(torch.Tensor) if isinstance(made, torch.Tensor) else made
        return super().__torch_function__(func, types, args, kwargs or {})


def _by_mask(args: tuple) -> bool:
    """Indexing by a bool tensor: how many there are is only known on the device."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in index)


def _by_counts(name: str, args: tuple) -> bool:
    return name == "repeat_interleave" and any(isinstance(a, torch.Tensor) for a in args[1:])


def on_device(feed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.as_subclass(OnDevice) for name, value in feed.items()}
