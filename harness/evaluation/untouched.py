"""Import a package without letting it change what belongs to the whole process."""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Afterwards as before: environment, warnings, random states, gradients, Pillow's leniency.

    Importing the engines touches each of these: lmms-eval lets Pillow fill up cut pictures and
    silences warnings; of VLMEvalKit's packages one seeds generators and one adds to
    LD_LIBRARY_PATH.
    """
    import numpy as np
    import torch
    from PIL import ImageFile

    environment, fill = dict(os.environ), ImageFile.LOAD_TRUNCATED_IMAGES
    python, numpy, drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gradients = torch.is_grad_enabled()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = fill
        torch.set_grad_enabled(gradients)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(drawn)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
