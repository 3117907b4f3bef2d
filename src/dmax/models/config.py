"""What a model computes, as the ``config.json`` of its family describes it (algorithm.md#the-model)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

from dmax.models.families import DEFAULT, ConfigError, get_family
from dmax.models.rotary_scaling import check_scaling

__all__ = ["ConfigError", "ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of one model; field names are those of LLaDA2's ``config.json``, where it has the field.

    ``num_experts=None`` gives the dense variant, in which every layer is a SwiGLU of width ``intermediate_size``.
    Token ids have no defaults: they come from the checkpoint, its tokenizer or its family's file.
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
    family: str = DEFAULT
    """Its ``model_type``: how its checkpoints spell configuration and tensors."""
    default_decoder: str = "soft-parallel"
    """What a decode takes that names none."""
    shift_logits: bool = False
    """Whether a token is read one position before its own, as in an autoregressive model."""
    use_qkv_bias: bool = False
    use_bias: bool = False
    """Of the projection behind attention."""
    use_qk_norm: bool = True
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)
    """Its ``rope_type`` and that type's numbers (:mod:`dmax.models.rotary_scaling`); None for plain angles."""
    score_function: str = "sigmoid"
    """How a router scores experts: ``sigmoid``, each by itself, or ``softmax``."""
    norm_topk_prob: bool = True
    """Whether the weights of a token's experts are normalised to one sum."""
    moe_router_enable_expert_bias: bool = True
    """Whether checkpoints hold a bias that routers choose by."""
    mlp_only_layers: tuple[int, ...] = ()
    """Further layers without experts."""
    decoder_sparse_step: int = 1
    """Every how many layers one has experts."""
    expert_capacity: int = 0
    """Experts that the tokens of a block may go to, all together; 0 leaves the choice to each token's own groups."""
    routing_block_length: int = 32
    """Of the blocks that ``expert_capacity`` is for."""
    block_length: int | None = None
    """Tokens denoised together in training; None where the checkpoint does not say."""
    further_eos_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, too; training lets answers end with ``eos_token_id``."""
    decoder_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """By decoder, the options that this checkpoint is best decoded with where a request names none."""

    def __post_init__(self) -> None:
        positive = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        counts = ("num_key_value_heads", "head_dim", "n_group", "decoder_sparse_step", "routing_block_length")
        for name in (*positive, *counts):
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
        if self.rope_scaling is not None:
            check_scaling(self.rope_scaling)
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
        if self.score_function not in ("sigmoid", "softmax"):
            raise ConfigError(f"score_function is {self.score_function!r}; it must be 'sigmoid' or 'softmax'.")
        if self.expert_capacity and not self.num_experts_per_tok <= self.expert_capacity <= num_experts:
            raise ConfigError(
                f"expert_capacity is {self.expert_capacity}; it must lie between num_experts_per_tok "
                f"({self.num_experts_per_tok}) and num_experts ({num_experts}), or be 0."
            )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that end an answer."""
        return self.eos_token_id, *self.further_eos_token_ids

    @property
    def usual_block_length(self) -> int:
        """Tokens denoised together where nobody says: as in training, else as is usual in the family."""
        return self.block_length or get_family(self.family).block_length

    @property
    def rotary_dim(self) -> int:
        """Channels of each head that rotary position embedding turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    def is_moe_layer(self, index: int) -> bool:
        """Tell whether layer ``index`` routes over experts."""
        is_sparse = index >= self.first_k_dense_replace and index not in self.mlp_only_layers
        return self.num_experts is not None and is_sparse and (index + 1) % self.decoder_sparse_step == 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from the parsed ``config.json``; keys that do not shape the model are passed over.

        Raises:
            ConfigError: a key is missing, or asks for something this architecture does not have.
        """
        family = get_family(values.get("model_type", DEFAULT))
        names = [each.name for each in fields(cls) if each.name not in ("family", "further_eos_token_ids")]
        picked = _with_defaults({**family.read(values, names), "family": family.model_type})
        missing = sorted(family.keys_of(name)[0] for name in _REQUIRED - picked.keys())
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}.")
        return cls(**picked)

    def to_dict(self) -> dict[str, Any]:
        """Return the ``config.json`` of a checkpoint, as its family writes it."""
        family, values = get_family(self.family), asdict(self)
        for each in fields(self):
            if each.name in _SELDOM_SAID and values[each.name] == family.defaults.get(each.name, _default(each)):
                del values[each.name]
        if values.pop("further_eos_token_ids"):
            values["eos_token_id"] = list(self.eos_token_ids)
        del values["family"]
        return family.write(values)


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


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
    if "mlp_only_layers" in picked:
        picked["mlp_only_layers"] = tuple(picked["mlp_only_layers"])
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
    "str": (str,),
    "tuple[int, ...]": (list, tuple),
    "Mapping[str, Any] | None": (dict,),
    "Mapping[str, Mapping[str, Any]]": (dict,),
}

_SELDOM_SAID = {
    "decoder_defaults",
    "block_length",
    "default_decoder",
    "moe_router_enable_expert_bias",
    "mlp_only_layers",
    "decoder_sparse_step",
    "expert_capacity",
    "routing_block_length",
    "shift_logits",
}
"""Fields that a ``config.json`` leaves out where it would only say what applies anyway."""

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
