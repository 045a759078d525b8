"""Load the models a command names: Hugging Face directories, hetmerge directories, factories."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hetmerge as hm
from hetmerge.errors import CheckpointError, InputError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".th", ".pkl")


def load_model(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model that `name` stands for, in eval mode.

    Args:
        name: a Hugging Face directory, a directory written by hetmerge, or `module:function`.
        dtype: of floating-point weights.

    Raises:
        InputError: there is no such directory or factory.
        CheckpointError: the directory holds no model, or only pickled weights.
    """
    if Path(name).is_dir():
        check_source(name)
        _be_silent()
        return hm.load(name).to(dtype).eval()
    if ":" in name:
        return load_factory(name).to(dtype).eval()
    raise InputError(f"{name}: no such directory (and not of the form module:function)")


def check_source(name: str) -> None:
    """Fail early where loading a directory would: nothing is loaded."""
    path = Path(name)
    if not path.is_dir():
        raise InputError(f"{name}: no such directory")
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(file.name for file in path.iterdir() if file.suffix in PICKLED)
    if pickled:
        raise CheckpointError(
            f"{path}: {pickled[0]} is a pickle, which can run code when opened; "
            "convert it to safetensors first"
        )
    raise CheckpointError(f"{path}: holds no .safetensors file")


def load_factory(name: str) -> nn.Module:
    """Call `module:function`, found from the current folder too; it must return a module."""
    module_name, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{name}: cannot be imported ({error})") from error
    model = factory()
    if not isinstance(model, nn.Module):
        raise InputError(f"{name}: expected it to return an nn.Module, got {type(model).__name__}")
    return model


def is_huggingface(path: Path) -> bool:
    """Whether the directory's config.json names a transformers architecture."""
    file = path / "config.json"
    if not file.is_file():
        return False
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error})") from error
    return isinstance(config, dict) and bool(config.get("architectures"))


def empty_model(path: Path) -> nn.Module:
    """A Hugging Face directory's model on the meta device: its config is read, its weights not."""
    config = _huggingface_config(path)
    import transformers

    name = config.architectures[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise CheckpointError(f"{path}: transformers {transformers.__version__} has no {name}")
    with torch.device("meta"):
        model: nn.Module = kind._from_config(config)
    return model.eval()


def dummy_inputs(path: Path) -> dict[str, torch.Tensor]:
    """Small inputs for a Hugging Face model, by what its config speaks of."""
    config = _huggingface_config(path)
    if getattr(config, "vocab_size", None):
        return {"input_ids": torch.arange(8)[None] % config.vocab_size}
    if getattr(config, "num_channels", None):
        size = getattr(config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.zeros(1, config.num_channels, height, width)}
    raise InputError(f"{path}: its config tells no input shape; give one with --input")


def load_tokenizer(path: Path) -> Any:
    """The directory's own tokenizer."""
    _huggingface_config(path)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{path}: no usable tokenizer ({_line(error)})") from error


def _huggingface_config(path: Path) -> Any:
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise InputError(f"{path}: needs transformers; install hetmerge[hf]") from error
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: config.json is not usable ({_line(error)})") from error


def _be_silent() -> None:
    """Keep transformers' loading bars out of the one line per error on stderr."""
    try:
        from transformers.utils import logging
    except ImportError:
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
