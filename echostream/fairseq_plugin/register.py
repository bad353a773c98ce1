"""Register task, criterion and architectures with fairseq. Importing this module does it."""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch

try:
    import fairseq  # noqa: F401
except ImportError as error:
    raise ImportError(
        "training needs fairseq, of the extra 'train'. docs/tutorials/train-on-your-data.md says "
        f"how to install it ({error})"
    ) from error

from echostream.fairseq_plugin import criterion, model, task

logger = logging.getLogger(__name__)

__all__ = ["criterion", "model", "task"]


def allow_own_checkpoints() -> None:
    """Let ``torch.load`` read what fairseq puts into a checkpoint besides tensors.

    Since PyTorch 2.6 loading admits tensors and plain containers only, and fairseq asks for
    nothing else, so that resuming would fail on its settings and on numbers that its meters keep
    as NumPy scalars. All of these are data; none runs anything when loaded.
    """
    scalar_dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)]
    scalar = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals([argparse.Namespace, scalar, np.dtype, *scalar_dtypes])


allow_own_checkpoints()
