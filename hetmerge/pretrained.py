"""Hugging Face directories: their configuration, class, model and tokenizer; local files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from hetmerge.errors import CheckpointError, InputError
from hetmerge.shards import shards_of

CONFIG = "config.json"


def is_huggingface(path: Path) -> bool:
    """Whether the directory's config.json names a transformers architecture."""
    return (path / CONFIG).is_file() and bool(architecture_of(path))


def architecture_of(path: Path) -> str:
    """The class that the directory's config.json names; empty where it names none."""
    return str((_read_json(path / CONFIG).get("architectures") or [""])[0])


def config_of(path: Path, remote_code: bool = False) -> Any:
    """The directory's transformers configuration.

    Raises:
        CheckpointError: it is damaged, of a family that transformers lacks, or transformers is not
            installed.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise CheckpointError(f"{path}: needs transformers; install hetmerge[hf]") from error
    _refuse_code(path, _read_json(path / CONFIG), "AutoConfig", remote_code)
    try:
        return AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: {CONFIG} is not usable ({_line(error)})") from error


def class_of(path: Path, remote_code: bool = False) -> Any:
    """The model class that the directory's configuration names.

    Args:
        remote_code: where transformers lacks the class, take it from the code in the directory.

    Raises:
        CheckpointError: there is no such class.
    """
    import transformers

    body = _read_json(path / CONFIG)
    names = body.get("architectures") or [None]
    kind = getattr(transformers, str(names[0]), None)
    if kind is not None:
        return kind
    own = {text.rpartition(".")[2]: key for key, text in _own_code(body).items()}
    if names[0] in own:
        _refuse_code(path, body, own[names[0]], remote_code)
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(_own_code(body)[own[names[0]]], path)
    raise CheckpointError(
        f"{path / CONFIG}: architectures is {names}; allowed: a class of transformers "
        f"(version {transformers.__version__} is installed)"
    )


def load_pretrained(path: Path, remote_code: bool = False) -> nn.Module:
    """The directory's model as the class its configuration names, in eval mode.

    Args:
        remote_code: where transformers lacks the class, run the code that lies in the directory.

    Raises:
        CheckpointError: pickled weights, shards missing or at odds with the index, a tensor
            missing, an unknown class, damaged files, or transformers missing.
    """
    refuse_quantized(path)
    shards_of(path)
    config = config_of(path, remote_code)
    try:
        model, info = class_of(path, remote_code).from_pretrained(
            path, config=config, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: cannot be loaded ({first})") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{path}: holds no tensor {missing[0]!r} ({len(missing)} of {type(model).__name__} are "
            "missing)"
        )
    assert isinstance(model, nn.Module)
    return model.eval()


def refuse_quantized(path: Path) -> None:
    """Refuse a directory whose weights are stored with scales beside them.

    Raises:
        CheckpointError: they are.
    """
    found = _read_json(path / CONFIG).get("quantization_config")
    if found:
        method = found.get("quant_method") if isinstance(found, dict) else None
        raise CheckpointError(
            f"{path}: its weights are quantized ({method or 'quantization_config'} in {CONFIG}), "
            "which cannot be averaged; write them in full precision first: load the model with "
            "transformers, model.dequantize(), model.save_pretrained(new_folder)"
        )


def load_tokenizer(path: Path, remote_code: bool = False) -> Any:
    """The directory's own tokenizer.

    Raises:
        CheckpointError: there is none, it is damaged, or needs code of its own.
    """
    config_of(path, remote_code)
    from transformers import AutoTokenizer

    file = path / "tokenizer_config.json"
    if file.is_file():
        _refuse_code(path, _read_json(file), "AutoTokenizer", remote_code)
    try:
        return AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=remote_code
        )
    except Exception as error:  # the tokenizers library raises bare exceptions for damaged files
        raise CheckpointError(f"{path}: no usable tokenizer ({_line(error)})") from error


def dummy_inputs(path: Path) -> dict[str, torch.Tensor]:
    """Small inputs for a Hugging Face model, by what its config speaks of."""
    config = config_of(path)
    if getattr(config, "vocab_size", None):
        return {"input_ids": torch.arange(8)[None] % config.vocab_size}
    if getattr(config, "num_channels", None):
        size = getattr(config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.zeros(1, config.num_channels, height, width)}
    raise InputError(f"{path}: its config tells no input shape; give one with --input")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(body, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return body


def _own_code(body: dict[str, Any]) -> dict[str, str]:
    """What the directory brings code for: auto class -> file.Class."""
    own = body.get("auto_map")
    return {k: v for k, v in own.items() if isinstance(v, str)} if isinstance(own, dict) else {}


def _refuse_code(path: Path, body: dict[str, Any], kind: str, allowed: bool) -> None:
    """Refuse code of the directory that transformers would otherwise need, unless asked for."""
    if kind in _own_code(body) and not allowed and not _known(body):
        raise CheckpointError(
            f"{path}: needs its own code ({_own_code(body)[kind]}), which is not run; set "
            "trust_remote_code: true if you trust it"
        )


def _known(body: dict[str, Any]) -> bool:
    """Transformers has this family itself."""
    from transformers import CONFIG_MAPPING

    return body.get("model_type") in CONFIG_MAPPING


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
