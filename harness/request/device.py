"""Which device and dtype a run will use, decided without importing torch."""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from vtprune.harness.request.errors import ConfigError, unknown
from vtprune.harness.request.request import Model

DTYPES = ("auto", "float32", "bfloat16", "float16")
KERNELS = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True)
class Runtime:
    """What a model will run on and with; nothing in it is ``auto`` any more."""

    device: str
    dtype: str
    attention: str
    threads: int | None = None
    device_map: str | None = None

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``, without the number of the device."""
        return self.device.partition(":")[0]

    def entries(self) -> dict[str, Any]:
        """As ``models.load`` takes it."""
        return asdict(self)


def cuda_devices() -> int:
    """Number of CUDA devices this process may use, 0 if torch was built without CUDA."""
    if "+cpu" in version("torch"):
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
        return count.value
    except OSError:
        return 0


def resolve(model: Model, config: dict[str, Any]) -> Runtime:
    """Turn ``auto`` into what will be used: device, dtype, attention kernel and CPU threads."""
    device, dtype, kernel = str(model.device), str(model.dtype), str(model.attention)
    if device == "auto":
        device = "cuda" if cuda_devices() else "cpu"
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"model.device must be auto, cpu, cuda or cuda:<n>, got {device!r}")
    if kind == "cuda" and not cuda_devices():
        raise ConfigError(f"model.device={device}: no CUDA device is visible here")
    if dtype not in DTYPES:
        raise ConfigError("model.dtype: " + unknown("dtype", dtype, DTYPES))
    if kernel not in KERNELS:
        raise ConfigError("model.attention: " + unknown("kernel", kernel, KERNELS))
    if kernel == "flash_attention_2" and kind == "cpu":
        raise ConfigError("model.attention=flash_attention_2 needs a CUDA device; use sdpa")
    if dtype == "auto":
        stored = str(config.get("dtype") or config.get("torch_dtype"))
        half = stored if stored in ("bfloat16", "float16") else "bfloat16"
        dtype = half if kind == "cuda" else "float32"
    threads = model.threads
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"model.threads must be a whole number >= 1 or null: got {threads!r}")
    spread = model.device_map
    if spread not in (None, "auto", "balanced", "sequential"):
        raise ConfigError(
            f"model.device_map must be null, auto, balanced or sequential, got {spread!r}"
        )
    return Runtime(device, dtype, kernel, threads, spread)
