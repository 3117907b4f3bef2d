"""The static key/value cache: allocated once for a batch, written in place, read through views.

A pass works on *entries*. An entry is a run of positions of one slot; its queries see everything the slot holds up to
the entry's own end. So a block that is decoded and the finished block before it, whose hard tokens still have to be
stored, are two entries of one slot, and the older cannot see the newer (SPEC section 3.7).

Shape suffixes: E entries, K key/value heads, T positions of an entry, S key positions, C head channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmax.models.attention import KeyValueStore
from dmax.models.config import ModelConfig


@dataclass(frozen=True)
class Window:
    """Where the entries of a pass lie: all that the model needs beside their embeddings."""

    position_ids: Tensor
    """``(E, T)`` int64."""
    mask: Tensor | None
    """``(E, T, S)`` bool, True where a key may be seen; None where every entry sees every key that is read."""
    store: KeyValueStore


class KVCache:
    """Keys and values of every layer, for a fixed number of slots (one running sequence each) of a fixed length.

    The memory starts as zeros: a masked key has the weight 0, and 0 times whatever an unset slot held must be 0.

    Args:
        config: the model's.
        slots: sequences that run at the same time.
        length: positions of a slot.
        device: where the model is.
        dtype: of the model.
    """

    def __init__(
        self, config: ModelConfig, slots: int, length: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, slots, config.num_key_value_heads, length, config.head_dim)
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)

    def window(self, slots: list[int], starts: list[int], width: int) -> Window:
        """Open the positions ``starts[e] .. starts[e] + width - 1`` of slot ``slots[e]`` for every entry ``e``.

        The window may serve any number of passes, for as long as the slots keep their owners.
        """
        device = self._keys.device
        starts_E1 = torch.tensor(starts, device=device)[:, None]
        positions_ET = starts_E1 + torch.arange(width, device=device)
        end = max(starts) + width
        mask_ETS = None
        if min(starts) != max(starts):
            mask_E1S = torch.arange(end, device=device) < (starts_E1 + width)[:, :, None]
            mask_ETS = mask_E1S.expand(-1, width, -1)
        one_after_another = starts == list(range(starts[0], end, width))
        store: KeyValueStore = (
            _OneSlot(self._keys, self._values, slots[0], starts[0], len(starts), width)
            if len(set(slots)) == 1 and one_after_another
            else _ManySlots(self._keys, self._values, slots, positions_ET, end)
        )
        return Window(positions_ET, mask_ETS, store)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another, whose owner has left."""
        for memory in (self._keys, self._values):
            memory[:, target, :, :length] = memory[:, source, :, :length]


class _OneSlot:
    """Neighbouring entries of a single slot: both reading and writing go through views, nothing is gathered."""

    def __init__(self, keys: Tensor, values: Tensor, slot: int, start: int, entries: int, width: int) -> None:
        end = start + entries * width

        def targets(memory: Tensor) -> list[Tensor]:
            return [layer.unflatten(1, (entries, width)).transpose(0, 1) for layer in memory[:, slot, :, start:end]]

        def sources(memory: Tensor) -> list[Tensor]:
            return [layer.expand(entries, -1, -1, -1) for layer in memory[:, slot : slot + 1, :, :end]]

        self._targets = list(zip(targets(keys), targets(values), strict=True))
        self._sources = list(zip(sources(keys), sources(values), strict=True))

    def update(self, layer: int, keys_EKTC: Tensor, values_EKTC: Tensor) -> tuple[Tensor, Tensor]:
        target_keys, target_values = self._targets[layer]
        target_keys.copy_(keys_EKTC)
        target_values.copy_(values_EKTC)
        return self._sources[layer]


class _ManySlots:
    """Entries of any slots. Where they are not simply slots 0, 1, 2, ... reading gathers the slots' memory."""

    def __init__(self, keys: Tensor, values: Tensor, slots: list[int], positions_ET: Tensor, end: int) -> None:
        self._keys, self._values = keys, values
        self._slots_E = torch.tensor(slots, device=keys.device)
        self._positions_ET = positions_ET
        self._end = end
        self._in_order = slots == list(range(len(slots)))

    def update(self, layer: int, keys_EKTC: Tensor, values_EKTC: Tensor) -> tuple[Tensor, Tensor]:
        return self._exchange(self._keys[layer], keys_EKTC), self._exchange(self._values[layer], values_EKTC)

    def _exchange(self, memory: Tensor, fresh_EKTC: Tensor) -> Tensor:
        memory[self._slots_E[:, None], :, self._positions_ET] = fresh_EKTC.transpose(1, 2)
        filled = memory[:, :, : self._end]
        return filled[: len(self._slots_E)] if self._in_order else filled.index_select(0, self._slots_E)
