"""Load the models a command names: Hugging Face and hetmerge directories, the hub, factories."""

import sys
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

import hetmerge as hm
from hetmerge.checkpoints import BUILD
from hetmerge.errors import CheckpointError, InputError
from hetmerge.hub import fetch, find
from hetmerge.pretrained import is_huggingface, load_pretrained
from hetmerge.shards import shards_of


def load_model(
    name: str, dtype: torch.dtype = torch.float32, remote_code: bool = False
) -> nn.Module:
    """The model that `name` stands for, in eval mode.

    Args:
        name: a Hugging Face directory, a hub id `org/name[@revision]`, a directory written by
            hetmerge, or `module:function`.
        dtype: of floating-point weights.
        remote_code: run the code that a Hugging Face directory brings, where transformers lacks
            its family.

    Raises:
        InputError: there is no such directory, hub model or factory.
        CheckpointError: the directory holds no model, or only pickled weights.
    """
    if is_factory(name):
        return load_factory(name).to(dtype).eval()
    path = fetch(find(name))
    check_source(path)
    be_silent()
    if (path / BUILD).is_file() or not is_huggingface(path):
        return hm.load(path).to(dtype).eval()
    return load_pretrained(path, remote_code).to(dtype).eval()


def is_factory(name: str) -> bool:
    """`module:function` rather than a directory."""
    return ":" in name and not Path(name).is_dir()


def check_source(path: Path) -> None:
    """Fail early where loading a directory would: only headers are read."""
    shards_of(path)
    if not (path / BUILD).is_file() and not is_huggingface(path):
        raise CheckpointError(f"{path}: neither {BUILD} nor a config.json with architectures")


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


def be_silent() -> None:
    """Keep transformers' loading bars out of the one line per error on stderr."""
    try:
        from transformers.utils import logging
    except ImportError:
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
