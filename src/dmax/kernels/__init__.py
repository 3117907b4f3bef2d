"""GPU kernels in Triton, and kernels of a CPU in C++ (:mod:`dmax.kernels.cpu`), behind the backends of the engine.

Every kernel has static shapes, allocates before its launch and never waits for the device: a whole pass can be captured
as a CUDA graph, once each kernel has run before (its first launch compiles it). The modules of kernels import Triton;
this one does not, so that a machine without it can ask.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernels can serve such tensors: on a CUDA device, with Triton installed."""
    return device.type == "cuda" and dtype in _DTYPES and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
