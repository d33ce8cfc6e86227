"""The model configuration: the fields of the published config.json."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config
from glmcore.errors import CheckpointError
from glmcore.model.config_json import config_json, fields_of
from glmcore.model.presets import preset_values

Checkpointing = Literal["none", "selective", "full"]
"""What a block keeps for its backward pass: all that autograd asks for; the results of matrix products and attention,
everything else being computed again; its input alone, all of it being computed again. Gradients are the same."""


class GlmConfig(Config):
    """One GLM mixture-of-experts model. Field names are those of the published `config.json` (Glm4Moe).

    In a recipe `preset = "glm-4.6"` stands for all fields of a published model; fields beside it replace its own.
    """

    vocab_size: PositiveInt = 151_552
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    """Width of the feed-forward layer in the first, dense layers."""
    num_hidden_layers: PositiveInt
    first_k_dense_replace: NonNegativeInt = 1
    """Number of leading layers with a dense feed-forward layer; the rest are mixtures of experts."""
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    partial_rotary_factor: PositiveFloat = 0.5
    rope_theta: PositiveFloat = 1_000_000.0
    max_position_embeddings: PositiveInt = 131_072
    attention_bias: bool = True
    """Biases on the query, key and value projections; the output projection never has one."""
    use_qk_norm: bool = True
    rms_norm_eps: PositiveFloat = 1e-5
    n_routed_experts: PositiveInt
    n_shared_experts: PositiveInt = 1
    num_experts_per_tok: PositiveInt
    moe_intermediate_size: PositiveInt
    n_group: PositiveInt = 1
    topk_group: PositiveInt = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: PositiveFloat = 1.0
    num_nextn_predict_layers: NonNegativeInt = 1
    """Multi-token-prediction layers: 0 or 1."""
    tie_word_embeddings: bool = False
    initializer_range: PositiveFloat = 0.02
    eos_token_id: list[NonNegativeInt] = Field(default=[151_329, 151_336, 151_338])
    """Tokens that end a text: `<|endoftext|>`, `<|user|>`, `<|observation|>`."""
    pad_token_id: NonNegativeInt = 151_329

    @model_validator(mode="before")
    @classmethod
    def _take_in_preset(cls, values: Any) -> Any:
        if not (isinstance(values, dict) and "preset" in values):
            return values
        return preset_values(values["preset"]) | {key: value for key, value in values.items() if key != "preset"}

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"partial_rotary_factor={self.partial_rotary_factor} of head_dim={self.head_dim} "
                f"gives {self.rotary_dim} rotated channels; it must be even and at most head_dim"
            )
        if self.n_routed_experts % self.n_group or self.topk_group > self.n_group:
            raise ValueError(
                f"n_group={self.n_group} must divide n_routed_experts={self.n_routed_experts} "
                f"and be at least topk_group={self.topk_group}"
            )
        if self.n_group > 1 and self.n_routed_experts == self.n_group:
            raise ValueError(f"n_group={self.n_group} leaves groups of one expert; a group scores its two best")
        selectable = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > selectable:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds the {selectable} selectable experts"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace={self.first_k_dense_replace} exceeds num_hidden_layers={self.num_hidden_layers}"
            )
        if self.num_nextn_predict_layers > 1:
            raise ValueError("num_nextn_predict_layers must be 0 or 1")
        return self

    @property
    def rotary_dim(self) -> int:
        """Number of leading channels of each head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` object, in the form of the published GLM-4.5 and GLM-4.6 files."""
        return config_json(self.model_dump())

    @classmethod
    def from_hf(cls, file: Path) -> Self:
        """Read a `config.json` as the hub ships it, with old or new names of the rotary fields.

        A key that is missing has the default of transformers' `Glm4MoeConfig`. Null for `pad_token_id`, which the model
        does not see, becomes the first end token.

        Raises:
            CheckpointError: The file cannot be read.
            ConfigError: It is not of a Glm4Moe model; a key is missing, unknown or has a wrong value; or it asks for
                something that the model does not have, such as scaled rotary embeddings or a sliding window.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"cannot read {file}: {error.strerror}") from None
        except ValueError as error:
            raise CheckpointError(f"{file}: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: not a JSON object")
        return cls.from_dict(fields_of(values, set(cls.model_fields), str(file)), origin=str(file))

    @classmethod
    def from_preset(cls, name: str) -> Self:
        """A published model: `glm-4.5`, `glm-4.5-air`, `glm-4.6` or `glm-4.7`.

        Raises:
            ConfigError: There is no such preset.
        """
        return cls.from_dict({"preset": name}, origin="model")
