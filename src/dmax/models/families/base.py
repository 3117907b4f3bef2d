"""What a model family is: how its checkpoints spell what the one model definition computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


class ConfigError(ValueError):
    """A ``config.json`` that does not describe a model this package can build."""


@dataclass(frozen=True)
class Family:
    """One family: its names, its configuration, its tensors, and what applies where a checkpoint says nothing.

    Fields are those of :class:`~dmax.models.config.ModelConfig`, keys those of ``config.json``. A package adds a family
    through the entry-point group ``dmax.families``.
    """

    model_type: str
    architecture: str
    """The class that ``config.json`` names."""
    also: tuple[str, ...] = ()
    """Other model types that mean the same."""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A field -> its keys, where they are not the field's own name. All are read, and the first that says something
    counts; the first is written."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """A field -> the value that it has in the whole family, which no key may change."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """A field -> its value where ``config.json``, and for special tokens the tokenizer, say nothing."""
    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """A key -> the only values that can be computed; absent and null go too, and the first is written."""
    modules: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """A module of the definition -> its name in the files; several where its outputs are stored apart, in order."""
    block_length: int = 32
    """Tokens denoised together in its published models, as far as they do not say."""
    decoder_tokens: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """A decoder -> those of its options that are token ids -> the token's role, such as ``split_token``."""
    mask_token: str | None = None
    """The mask token's text, for tokenizers that do not say which of their tokens it is."""
    adapted_from: str | None = None
    """Model type of the autoregressive models that have its tensors under the same names."""

    def read(self, values: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
        """Return what a parsed ``config.json`` says of some fields; those of which nothing is said are left out.

        Raises:
            ConfigError: it asks for something that cannot be computed.
        """
        values = _without_idle_window(values)
        for key, allowed in self.allowed.items():
            if values.get(key) is not None and values[key] not in allowed:
                raise ConfigError(f"config key {key} is {values[key]!r}; only {allowed[0]!r} is supported.")
        values = _with_rotary({key: value for key, value in values.items() if value is not None})
        found: dict[str, Any] = {}
        for name in fields:
            said = next((values[key] for key in self.keys_of(name) if key in values), self.defaults.get(name))
            if name in self.fixed:
                found[name] = self.fixed[name]
            elif said is not None:
                found[name] = said
        return found

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ``config.json`` that says this of the fields; the inverse of :meth:`read`."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **{self.keys_of(name)[0]: value for name, value in values.items() if name not in self.fixed},
            **{key: allowed[0] for key, allowed in self.allowed.items()},
        }

    def keys_of(self, name: str) -> tuple[str, ...]:
        """Return the keys of a field."""
        return self.keys.get(name, (name,))

    def spellings(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield every module whose name in the files is another one, with that name or those of its parts."""
        for native, stored in self.modules.items():
            yield native, (stored,) if isinstance(stored, str) else stored


def _without_idle_window(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out a sliding window that no layer has; models with experts have theirs in every layer."""
    layers, first = values.get("num_hidden_layers"), values.get("max_window_layers")
    if values.get("sliding_window", 0) is None:
        idle = True
    elif values.get("num_experts"):
        idle = False
    elif isinstance(values.get("layer_types"), list):
        idle = "sliding_attention" not in values["layer_types"]
    else:
        idle = isinstance(first, int) and isinstance(layers, int) and first >= layers
    return {**values, "use_sliding_window": None} if idle else values


def _with_rotary(values: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the ways to write the rotary settings down to one.

    They are ``rope_theta``, ``partial_rotary_factor`` and, where angles are not plain, ``rope_scaling``. Of what is
    written twice, the same counts as in transformers: ``rope_scaling``, then ``rope_parameters``, then a key by itself.
    """
    scaling: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        nested = values.get(key, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"config key {key} is {nested!r}; it must be a mapping, or null.")
        scaling = scaling or dict(nested)
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    found = dict(values)
    for key in ("rope_theta", "partial_rotary_factor"):
        if scaling.get(key) is not None:
            found[key] = scaling.pop(key)
    if scaling["rope_type"] in ("llama3", "yarn"):
        length = "original_max_position_embeddings"
        scaling[length] = values.get(length, scaling.get(length) or values.get("max_position_embeddings"))
    for key in ("rope_scaling", "rope_parameters"):
        found.pop(key, None)
    if scaling["rope_type"] != "default":
        found["rope_scaling"] = {key: value for key, value in scaling.items() if value is not None}
    rotary_dim, head_dim = found.get("rotary_dim"), found.get("head_dim")
    if isinstance(rotary_dim, int) and isinstance(head_dim, int) and head_dim > 0:
        factor = found.setdefault("partial_rotary_factor", rotary_dim / head_dim)
        if int(head_dim * factor) != rotary_dim:
            raise ConfigError(
                f"rotary_dim ({rotary_dim}) is not partial_rotary_factor ({factor}) of head_dim ({head_dim})."
            )
    return found


APART: Mapping[str, str | tuple[str, ...]] = MappingProxyType(
    {
        "word_embeddings": "embed_tokens",
        "attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.query_layernorm": "self_attn.q_norm",
        "attention.key_layernorm": "self_attn.k_norm",
        "attention.dense": "self_attn.o_proj",
    }
)
"""Tensor names of the decoders in transformers that store queries, keys and values apart."""

DENSE: Mapping[str, Any] = MappingProxyType(
    {
        "num_experts": None, "num_experts_per_tok": 1, "num_shared_experts": None, "moe_intermediate_size": None,
        "first_k_dense_replace": 0, "mlp_only_layers": (), "decoder_sparse_step": 1, "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 1.0, "score_function": "sigmoid", "norm_topk_prob": True,
        "moe_router_enable_expert_bias": False, "expert_capacity": 0, "routing_block_length": 32,
    }
)  # fmt: skip
"""The fields of experts, for families that have none."""

PLAIN: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {"hidden_act": ("silu", "swish"), "use_sliding_window": (False,)}
)
"""What the decoders in transformers may be asked for and the definition does not have."""
