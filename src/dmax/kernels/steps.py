"""Places for functions that were compiled ahead of time (see :mod:`dmax.kernels.ahead`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmax.kernels.ahead import Library


class Step:
    """A function that a module may call in place of its own operations, once there is one.

    A copy of a module has its places empty, and what is given to a place is never stored with a model.

    Args:
        name: of the function.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._run: Library | None = None
        self._dtype: torch.dtype | None = None

    def fill(self, run: Library, dtype: torch.dtype) -> None:
        """Take a function for tensors of one dtype, that of the weights."""
        self._run, self._dtype = run, dtype

    def clear(self) -> None:
        """Have no function."""
        self._run = self._dtype = None

    @property
    def filled(self) -> torch.dtype | None:
        """The dtype that there is a function for; None where there is no function."""
        return self._dtype

    def usable(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the function may be called here and now.

        Args:
            x: what it reads.
            weight: the parameter it is used with.
        """
        return self._run is not None and x.dtype == self._dtype == weight.dtype and self.callable_on(x)

    def callable_on(self, x: Tensor) -> bool:
        """Whether the function, if there is one, may be called here and now, whatever the dtype."""
        return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The function's results. It knows nothing of strides, so every tensor is made contiguous."""
        assert self._run is not None
        return self._run([tensor.contiguous() for tensor in tensors])

    def __deepcopy__(self, memo: dict[int, Any]) -> Step:
        return Step(self.name)

    def __reduce__(self) -> tuple[type[Step], tuple[str]]:
        return Step, (self.name,)


class Steps:
    """Places for one function in several variants, for functions that belong to no module.

    Args:
        name: of the function.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._places: dict[tuple[object, ...], Step] = {}

    def at(self, *variant: object) -> Step:
        """The place of a variant, whatever tells it from the others."""
        if variant not in self._places:
            self._places[variant] = Step(self._name)
        return self._places[variant]
