"""An autoregressive checkpoint in a GGUF file (Qwen2, Qwen3, Llama), dequantised as it is read."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from dmax.models.foreign import is_pointer
from dmax.models.gguf_tokenizer import read_tokenizer
from dmax.models.rotary_scaling import scaled_frequencies
from dmax.models.source import CheckpointError, StoredTensor, listing
from dmax.models.tokenizer import Tokenizer

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length",
}
"""A key of ``config.json`` -> what it is called in the file, behind the architecture's name."""
_NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps")
_DTYPES = {"F32", "F16", "BF16"}
"""Kinds of weights that are not packed."""
_ROTARY_TABLE = "rope_freqs.weight"


class GgufSource:
    """A GGUF file.

    Args:
        place: of the file.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        if not place.is_file():
            raise CheckpointError(f"There is no file {place}.")
        if is_pointer(place):
            raise CheckpointError(f"{place} is a Git LFS pointer, not the weights: run `git lfs pull` there.")
        try:
            self._reader = gguf.GGUFReader(place)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            self.values: dict[str, Any] = self._config()
            self.stored: dict[str, StoredTensor] = self._list()
        except CheckpointError:
            raise
        except Exception as error:  # what the reader makes of a torn file can be any of numpy's errors
            raise CheckpointError(f"{place} is not a whole GGUF file ({error}): fetch it again.") from error

    def tokenizer(self) -> Tokenizer:
        """Rebuild the tokenizer that the file describes."""
        return read_tokenizer(self.place, self.field)

    def field(self, key: str, default: Any = None) -> Any:
        """Return what the file says under a key, or the default."""
        found = self._reader.get_field(key)
        return default if found is None else found.contents()

    def read(self, name: str, first: int, end: int) -> Tensor:
        """Return some rows of a tensor, dequantised."""
        tensor, order = self._tensors[self._names[name]], self._order(name)
        rows = tensor.data[first:end] if order is None else tensor.data[order[first:end]]
        values = gguf.quants.dequantize(rows, tensor.tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32))  # a copy: the file is mapped for reading alone

    def _config(self) -> dict[str, Any]:
        """Return what the file says, as transformers would write it."""
        kind = self.field("general.architecture")
        if kind not in _ARCHITECTURES:
            raise CheckpointError(
                f"{self.place} holds a model of architecture {kind!r}; {', '.join(_ARCHITECTURES)} can be adapted."
            )
        if self.field("split.count", 1) > 1:
            raise CheckpointError(
                f"{self.place} is one of {self.field('split.count')} parts: put them together by "
                "`llama-gguf-split --merge`."
            )
        found = {name: self.field(f"{kind}.{key}") for name, key in _KEYS.items()}
        lacking = [f"{kind}.{_KEYS[name]}" for name in _NEEDED if found[name] is None]
        if lacking:
            raise CheckpointError(f"{self.place} lacks {listing(lacking)}.")
        if self.field(f"{kind}.expert_count", 0):
            raise CheckpointError(f"{self.place} holds a model with experts, which cannot be adapted.")
        head_dim = found["head_dim"] or found["hidden_size"] // found["num_attention_heads"]
        if self.field(f"{kind}.rope.dimension_count", head_dim) != head_dim:
            raise CheckpointError(f"{self.place} turns a part of each head, which cannot be adapted.")
        theta = found["rope_theta"] or 10_000.0
        return {
            **found, "model_type": kind, "head_dim": head_dim, "rope_theta": theta,
            "rope_scaling": self._scaling(kind, head_dim, theta),
            "vocab_size": int(self._tensors["token_embd.weight"].shape[1]),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": "blk.0.attn_q.bias" in self._tensors,
            "eos_token_id": self._ends(),
        }  # fmt: skip

    def _ends(self) -> list[int] | None:
        """Return the tokens that end an answer: that of a turn first, which chats end with."""
        ends = [self.field(f"tokenizer.ggml.{role}_token_id") for role in ("eot", "eos")]
        return [end for end in dict.fromkeys(ends) if end is not None] or None

    def _scaling(self, kind: str, head_dim: int, theta: float) -> dict[str, Any] | None:
        """Return the ``rope_scaling`` of a model that was stretched.

        Llama 3's numbers are in the file as a table of divisors alone, from which they are guessed and held to it.
        """
        key = f"{kind}.rope.scaling"
        said = {
            "rope_type": self.field(f"{key}.type", "none"),
            "factor": self.field(f"{key}.factor"),
            "original_max_position_embeddings": self.field(f"{key}.original_context_length"),
        }
        if _ROTARY_TABLE not in self._tensors:
            return said if said["rope_type"] != "none" else None
        table = torch.from_numpy(np.array(self._tensors[_ROTARY_TABLE].data, dtype=np.float32))
        guess = {
            "rope_type": "llama3", "factor": table.max().item(), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip
        plain = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        scaled, _ = scaled_frequencies(plain, head_dim, theta, guess)
        if table.shape != plain.shape or not torch.allclose(plain / table, scaled, rtol=1e-3):
            raise CheckpointError(
                f"{self.place} stretches its rotary embedding by a table that is not Llama 3's: adapt the "
                "safetensors checkpoint that it was made from."
            )
        return guess

    @cached_property
    def _names(self) -> dict[str, str]:
        """The names that transformers gives the tensors -> those in the file."""
        blocks = self.values["num_hidden_layers"]
        known = gguf.get_tensor_name_map(_ARCHITECTURES[self.values["model_type"]], blocks)
        linear = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
        norms = ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"]
        modules = [f"model.layers.{block}.{module}" for block in range(blocks) for module in (*linear, *norms)]
        full = [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
        full += [f"{module}.weight" for module in ("model.embed_tokens", "model.norm", "lm_head")]
        theirs = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in full}
        return {name: other for name, other in theirs.items() if other in self._tensors}

    def _list(self) -> dict[str, StoredTensor]:
        unknown = self._tensors.keys() - set(self._names.values()) - {_ROTARY_TABLE}
        if unknown:
            raise CheckpointError(
                f"{self.place} holds tensors that a {self.values['model_type']} has not: {listing(sorted(unknown))}."
            )
        kinds = {tensor.tensor_type.name for tensor in self._tensors.values()}
        # Norms are float32 always: what the table of embeddings is, the projections are.
        dtype = self._tensors["token_embd.weight"].tensor_type.name if kinds <= _DTYPES else "F32"
        stored = {}
        for name, other in self._names.items():
            tensor = self._tensors[other]
            try:
                gguf.quants.dequantize(tensor.data[:1], tensor.tensor_type)
            except NotImplementedError:
                raise CheckpointError(
                    f"{self.place} has weights in {tensor.tensor_type.name}, which the gguf package does not "
                    "dequantise: take a file in Q8_0, F16 or BF16."
                ) from None
            stored[name] = StoredTensor(self.place, tuple(int(size) for size in reversed(tensor.shape)), dtype)
        return stored

    def _order(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return where the rows of a projection are in the file; None where they are in order.

        Llama's queries and keys are stored for rotations of neighbouring channels; ours, as transformers', turn the
        first half of a head's channels against the second.
        """
        module = name.rpartition(".")[0]
        if self.values["model_type"] != "llama" or not module.endswith(("q_proj", "k_proj")):
            return None
        rows, head_dim = self.stored[name].shape[0], self.values["head_dim"]
        return np.arange(rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
