"""GPU kernels behind the functions of the model, in Triton.

The model asks :func:`usable` of the tensors of a call and takes the kernel where the answer is yes, so a model that
moves between devices, or from inference to training, needs no switch. Every kernel has static shapes, allocates before
its launch and never waits for the device: a whole pass can be captured as a CUDA graph, once each kernel has run before
(its first launch compiles it).

The modules of kernels import Triton; this one does not, so that a machine without it can ask. On a CPU, chains of small
operations (:mod:`dmax.kernels.ahead`, :mod:`dmax.kernels.steps`), attention and experts (:mod:`dmax.kernels.cpu`) may
be compiled ahead of time in their place.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def usable(x: Tensor) -> bool:
    """Whether a call on ``x`` is the kernels' to serve: on a CUDA device, with no gradient to record."""
    return x.is_cuda and not torch.is_grad_enabled() and x.dtype in _DTYPES and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
