"""Architecture of a LLaDA2 model, as its ``config.json`` describes it (algorithm.md#the-model)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MODEL_TYPE = "llada2_moe"
MERGED_MODEL_TYPE = "llada2_moe_veomni"
"""What the published training code calls the same model when its experts are stacked."""
ARCHITECTURE = "LLaDA2MoeModelLM"
PUBLISHED_BLOCK_LENGTH = 32


class ConfigError(ValueError):
    """A ``config.json`` that does not describe a model this package can build."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of one LLaDA2 model; field names are those of the published ``config.json``.

    ``num_experts=None`` gives the dense variant, in which every layer is a SwiGLU of width ``intermediate_size``.
    Token ids have no defaults: they come from the checkpoint (or its tokenizer), never from code.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    head_dim: int
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    rope_theta: float = 600_000.0
    partial_rotary_factor: float = 1.0
    num_experts: int | None = None
    num_experts_per_tok: int = 1
    num_shared_experts: int | None = None
    moe_intermediate_size: int | None = None
    first_k_dense_replace: int = 0
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    block_length: int | None = None
    """Tokens denoised together in training; None where the checkpoint does not say."""
    further_eos_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, too; training lets answers end with ``eos_token_id``."""
    decoder_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """By decoder, the options that this checkpoint is best decoded with where a request names none."""

    def __post_init__(self) -> None:
        positive = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*positive, "num_key_value_heads", "head_dim", "n_group"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})."
            )
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ConfigError(
                f"partial_rotary_factor {self.partial_rotary_factor} of head_dim {self.head_dim} gives "
                f"{self.rotary_dim} rotary channels; the number must be even, above 0 and at most head_dim."
            )
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            self._check_token(name, getattr(self, name))
        for token_id in self.further_eos_token_ids:
            self._check_token("eos_token_id", token_id)
        if self.block_length is not None and self.block_length < 1:
            raise ConfigError(f"block_length is {self.block_length}; it must be at least 1.")
        if self.num_experts is not None:
            self._check_experts(self.num_experts)

    def _check_token(self, name: str, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise ConfigError(f"{name} is {token_id}, outside the vocabulary of {self.vocab_size}.")

    def _check_experts(self, num_experts: int) -> None:
        if not self.moe_intermediate_size:
            raise ConfigError("a model with experts needs moe_intermediate_size.")
        if num_experts % self.n_group:
            raise ConfigError(f"num_experts ({num_experts}) must be a multiple of n_group ({self.n_group}).")
        if not 1 <= self.topk_group <= self.n_group:
            raise ConfigError(f"topk_group is {self.topk_group}; it must lie between 1 and n_group ({self.n_group}).")
        reachable = num_experts // self.n_group * self.topk_group
        if not 1 <= self.num_experts_per_tok <= reachable:
            raise ConfigError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; the {self.topk_group} kept groups "
                f"hold {reachable} experts."
            )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that end an answer."""
        return self.eos_token_id, *self.further_eos_token_ids

    @property
    def usual_block_length(self) -> int:
        """Tokens denoised together where nobody says: as in training, else as in the published models."""
        return self.block_length or PUBLISHED_BLOCK_LENGTH

    @property
    def rotary_dim(self) -> int:
        """Channels of each head that rotary position embedding turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    def is_moe_layer(self, index: int) -> bool:
        """Tell whether layer ``index`` routes over experts (the first ``first_k_dense_replace`` layers never do)."""
        return self.num_experts is not None and index >= self.first_k_dense_replace

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build from the parsed ``config.json``; keys that do not shape the model are passed over.

        Raises:
            ConfigError: a key is missing, or asks for something this architecture does not have.
        """
        model_type = values.get("model_type", MODEL_TYPE)
        if model_type not in (MODEL_TYPE, MERGED_MODEL_TYPE):
            raise ConfigError(f"model_type is {model_type!r}; this package loads {MODEL_TYPE!r} checkpoints.")
        for key, allowed in _FIXED.items():
            if values.get(key) is not None and values[key] not in allowed:
                raise ConfigError(f"config key {key} is {values[key]!r}; only {allowed[0]!r} is supported.")
        values = _with_rotary({key: value for key, value in values.items() if value is not None})
        picked = _with_defaults({f.name: values[f.name] for f in fields(cls) if f.name in values})
        missing = sorted(_REQUIRED - picked.keys())
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}.")
        return cls(**picked)

    def to_dict(self) -> dict[str, Any]:
        """Return the ``config.json`` of a checkpoint in the published layout."""
        values = asdict(self)
        if not self.decoder_defaults:
            del values["decoder_defaults"]
        if self.block_length is None:
            del values["block_length"]
        if values.pop("further_eos_token_ids"):
            values["eos_token_id"] = list(self.eos_token_ids)
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            **values,
            "hidden_act": "silu",
            "use_bias": False,
            "use_qkv_bias": False,
            "use_qk_norm": True,
            "rope_scaling": None,
            "norm_topk_prob": True,
            "score_function": "sigmoid",
        }


def _with_rotary(values: dict[str, Any]) -> dict[str, Any]:
    """Bring the ways to write the rotary settings down to ``rope_theta`` and ``partial_rotary_factor``."""
    for key in ("rope_parameters", "rope_scaling"):
        nested = values.get(key, {})
        kind = nested.get("rope_type", nested.get("type", "default")) if isinstance(nested, dict) else nested
        if kind != "default":
            raise ConfigError(f"config key {key} asks for {kind!r}; only plain rotary embedding is supported.")
        values = {**nested, **values}
    rotary_dim, head_dim = values.get("rotary_dim"), values.get("head_dim")
    if isinstance(rotary_dim, int) and isinstance(head_dim, int) and head_dim > 0:
        factor = values.setdefault("partial_rotary_factor", rotary_dim / head_dim)
        if int(head_dim * factor) != rotary_dim:
            raise ConfigError(
                f"rotary_dim ({rotary_dim}) is not partial_rotary_factor ({factor}) of head_dim ({head_dim})."
            )
    return values


def _with_defaults(picked: dict[str, Any]) -> dict[str, Any]:
    """Check the kind of each value, then fill in what other values imply."""
    ends = picked.get("eos_token_id")
    if isinstance(ends, list) and ends:
        if not all(type(token_id) is int for token_id in ends):
            raise ConfigError(f"config key eos_token_id is {ends!r}; it must hold token ids.")
        picked["eos_token_id"], *further = dict.fromkeys(ends)
        picked["further_eos_token_ids"] = tuple(further)
    for each in fields(ModelConfig):
        value = picked.get(each.name)
        kinds = _KINDS[str(each.type)]
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ConfigError(f"config key {each.name} is {value!r}; it must be of type {kinds[0].__name__}.")
    for decoder, options in picked.get("decoder_defaults", {}).items():
        if not isinstance(options, dict):
            raise ConfigError(f"config key decoder_defaults.{decoder} is {options!r}; it must map options to values.")
    if "eos_token_id" in picked:
        picked.setdefault("pad_token_id", picked["eos_token_id"])
    if not picked.get("num_experts"):
        picked["num_experts"] = None
    heads = picked.get("num_attention_heads", 0)
    if heads > 0:
        picked["num_key_value_heads"] = picked.get("num_key_value_heads") or heads
        if "hidden_size" in picked:
            picked.setdefault("head_dim", picked["hidden_size"] // heads)
    return picked


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int,),
    "float": (float, int),
    "bool": (bool,),
    "tuple[int, ...]": (tuple,),
    "Mapping[str, Mapping[str, Any]]": (dict,),
}

_FIXED: dict[str, tuple[Any, ...]] = {
    "use_bias": (False,),
    "use_qkv_bias": (False,),
    "use_qk_norm": (True,),
    "use_sliding_window": (False,),
    "hidden_act": ("silu",),
    "norm_head": (False,),
    "norm_topk_prob": (True,),
    "score_function": ("sigmoid",),
    "router_dtype": ("fp32", "float32"),
}
"""What this architecture fixes: the key may be absent or null, else it must have one of these values."""

_REQUIRED = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "mask_token_id",
    "eos_token_id",
    "pad_token_id",
    "head_dim",
}
