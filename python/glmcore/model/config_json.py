"""config.json of a published checkpoint, in every form that the hub has, to and from the fields of `GlmConfig`.

What a file says is used, known to change nothing, or refused; nothing is passed over. Source: Glm4MoeConfig of
transformers 5.23 and 4.57.
"""

from typing import Any

from glmcore.errors import ConfigError

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151_552,
    "attention_bias": False,
    "use_qk_norm": False,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10_000.0,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""What a file means that lacks a key, where that is not the default of `GlmConfig`."""
_ALIASES = {"num_mtp_layers": "num_nextn_predict_layers", "num_local_experts": "n_routed_experts"}
_ROPE = ("rope_theta", "partial_rotary_factor")
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
"""Keys for which the model has one value; a file may leave them out."""
_WITHOUT_EFFECT = {
    "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder",
    "label2id", "model_type", "output_attentions", "output_hidden_states", "output_router_logits", "problem_type",
    "quantization_config", "return_dict", "router_aux_loss_coef", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Keys that do not change what the model computes, or that the reader of the weights looks at."""


def fields_of(values: dict[str, Any], known: set[str], origin: str) -> dict[str, Any]:
    """Fields of `GlmConfig`, not validated.

    Args:
        values: The JSON object.
        known: Names of the fields.
        origin: Names the file in errors.

    Raises:
        ConfigError: A key is unknown, contradicts another, or has a value that the model does not support.
    """
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    _refuse_other_models(values, origin)
    _take_in_rope(values, origin)
    for alias, key in _ALIASES.items():
        if alias in values:
            _put(values, key, values.pop(alias), alias, origin)
    for key, only in _FIXED.items():
        if values.get(key, only) != only:
            raise ConfigError(f"{origin}: {key}={values[key]!r} is not supported, only {only!r} is")
    if set(values.get("layer_types") or ()) - {"full_attention"}:
        raise ConfigError(f"{origin}: layer_types may only name 'full_attention', got {values['layer_types']!r}")
    unknown = values.keys() - known - _FIXED.keys() - _WITHOUT_EFFECT - {"layer_types"}
    for key in sorted(key for key in unknown if values[key] is not None):
        raise ConfigError(
            f"{origin}: unknown key {key!r}; remove it from the file if it does not change what the model computes"
        )
    fields = _DEFAULTS | {key: value for key, value in values.items() if key in known}
    if fields.get("head_dim") is None and {"hidden_size", "num_attention_heads"} <= fields.keys():
        fields["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
    fields["eos_token_id"] = _as_list(fields["eos_token_id"])
    if fields["pad_token_id"] is None:  # any token does: padding is masked
        fields["pad_token_id"] = next(iter(fields["eos_token_id"]), 0)
    return fields


def config_json(fields: dict[str, Any]) -> dict[str, Any]:
    """The object with the fields of a `GlmConfig`, in the form of the published GLM-4.5 and GLM-4.6 files."""
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        **fields,
        "rope_scaling": None,
        "hidden_act": _FIXED["hidden_act"],
        "attention_dropout": _FIXED["attention_dropout"],
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _refuse_other_models(values: dict[str, Any], origin: str) -> None:
    if values.get("model_type") != "glm4_moe":
        raise ConfigError(f"{origin}: model_type is {values.get('model_type')!r}, not 'glm4_moe'")
    architectures = values.get("architectures")
    if architectures and "Glm4MoeForCausalLM" not in architectures:
        raise ConfigError(f"{origin}: architectures is {architectures!r}, without 'Glm4MoeForCausalLM'")


def _take_in_rope(values: dict[str, Any], origin: str) -> None:
    """Move what `rope_parameters`, or `rope_scaling` as it was called, says to the top, where older files say it."""
    for section in ("rope_scaling", "rope_parameters"):
        told = values.pop(section, None) or {}
        if not isinstance(told, dict):
            raise ConfigError(f"{origin}: {section} must be an object, got {told!r}")
        for key, value in told.items():
            name = f"{section}.{key}"
            if key in _ROPE:
                _put(values, key, value, name, origin)
            elif key in ("rope_type", "type") and value != "default":
                raise ConfigError(f"{origin}: {name}={value!r} is not supported, only 'default' is")
            elif key not in ("rope_type", "type") and value is not None:
                raise ConfigError(f"{origin}: {name}={value!r} is not supported")


def _put(values: dict[str, Any], key: str, value: Any, name: str, origin: str) -> None:
    if values.setdefault(key, value) != value:
        raise ConfigError(f"{origin}: {key}={values[key]!r} and {name}={value!r} contradict each other")


def _as_list(ids: Any) -> Any:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]
