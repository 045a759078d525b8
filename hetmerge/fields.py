"""Fields of a Hugging Face configuration; those of a part have its name in front of theirs, such as
vision_config.hidden_size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAYER_TYPES = "layer_types"
Config = Any  # transformers.PretrainedConfig, which has no types


def said(config: Config, field: str) -> Any:
    """What a configuration says; None where it says nothing, or something else of each layer."""
    try:
        return getattr(config, field, None)
    except Exception:  # transformers has an error of its own for that
        return None


def fields_of(config: Config) -> dict[str, Any]:
    """Everything that a configuration and its parts say."""
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        part = said(config, name) if isinstance(value, dict) else None
        if hasattr(part, "to_dict"):
            found |= {f"{name}.{inner}": given for inner, given in fields_of(part).items()}
        else:
            found[name] = value
    return found


def leaf(path: str) -> str:
    """The name of a field within its part."""
    return path.rpartition(".")[2]


def with_fields(config: Config, choice: Mapping[str, Any]) -> Config:
    """A configuration with these values, made as if it were read from a file; those that are None
    stay as they are."""
    values = config.to_dict()
    for path, value in choice.items():
        if value is not None:
            *parts, name = path.split(".")
            place = values
            for part in parts:
                place = place[part]
            place[name] = value
    _forget_layers(values)
    found = type(config).from_dict(values)
    found._attn_implementation = config._attn_implementation
    return found


def _forget_layers(values: dict[str, Any]) -> None:
    """What is said of each layer is made anew where there are more or fewer."""
    kinds = values.get(LAYER_TYPES)
    if isinstance(kinds, list) and len(kinds) != values.get("num_hidden_layers"):
        del values[LAYER_TYPES]
    for inner in values.values():
        if isinstance(inner, dict):
            _forget_layers(inner)
