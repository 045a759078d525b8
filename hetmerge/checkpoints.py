"""Merged models on disk: safetensors, and what is needed to build the model again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hetmerge.blueprint import Blueprint, construct, describe, is_description, same_code
from hetmerge.errors import CheckpointError
from hetmerge.files import new_directory
from hetmerge.huggingface import is_pretrained
from hetmerge.page import render
from hetmerge.pretrained import load_pretrained

if TYPE_CHECKING:
    from hetmerge.applying import MergeResult

FORMAT, VERSION = "hetmerge model", 1
WEIGHTS, BUILD = "model.safetensors", "hetmerge.json"


def save(
    merged: MergeResult | nn.Module, directory: str | Path, max_shard_size: str = "5GB"
) -> None:
    """Write a model to a new directory; it appears whole or not at all.

    A merge result brings its plan (`plan/`) and report (`report.json`, and `report.html` for a
    person). A Hugging Face model is written as `save_pretrained` writes it and loads with
    `from_pretrained`; any other as `model.safetensors` and `hetmerge.json`, and loads with
    :func:`load`.

    Args:
        max_shard_size: of a file of weights of a Hugging Face model, such as "5GB".

    Raises:
        CheckpointError: the directory exists or cannot be written.
    """
    model = merged if isinstance(merged, nn.Module) else merged.model
    with new_directory(directory) as draft:
        if is_pretrained(model):
            model.save_pretrained(draft, max_shard_size=max_shard_size)  # type: ignore[operator]
        else:
            blueprint = Blueprint() if isinstance(merged, nn.Module) else merged.blueprint
            _write_model(model, blueprint, draft)
        if not isinstance(merged, nn.Module):
            merged.plan.save(draft / "plan")
            text = json.dumps(merged.report.to_dict(), indent=1)
            (draft / "report.json").write_text(text + "\n")
            (draft / "report.html").write_text(render(merged.report, merged.plan))


def load(directory: str | Path, template: nn.Module | None = None) -> nn.Module:
    """A saved model, in eval mode.

    Args:
        directory: written by :func:`save`.
        template: any module of the parents' class, as deep as the deepest parent where blocks are
            single layers; its weights are not used and it is not changed. Not needed for Hugging
            Face models, for trees of torch's own modules, and for imported classes whose
            constructor arguments are attributes of the same name.

    Raises:
        CheckpointError: missing or damaged files, or a template that does not fit.
    """
    path = Path(directory)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory")
    if not (path / BUILD).is_file():
        if (path / "config.json").is_file():
            return load_pretrained(path)
        raise CheckpointError(f"{path}: neither {BUILD} nor config.json is there")
    body = _read_build(path / BUILD)
    tensors = _read_tensors(path / WEIGHTS, body)
    if template is None:
        spec = body["model"]
        template = construct(spec)
        if template is None:
            name = f"{spec['module']}.{spec['class']}"
            raise CheckpointError(
                f"{path}: {name} cannot be built from what is saved; import its module first, or "
                "pass template= with a module of that class"
            )
    return Blueprint.read(body["blueprint"], path / BUILD).rebuild(template, tensors)


def _write_model(model: nn.Module, blueprint: Blueprint, draft: Path) -> None:
    tensors, tied = _tensors(model)
    try:
        save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise CheckpointError(f"{WEIGHTS}: cannot be written ({error})") from error
    spec = describe(model)
    twin = construct(spec)
    named = {**tensors, **{alias: tensors[name] for alias, name in tied.items()}}
    if twin is None or not same_code(model, _rebuilt(blueprint, twin, named)):
        spec = {k: spec[k] for k in ("module", "class")}
    body = {
        "format": FORMAT,
        "version": VERSION,
        "model": spec,
        "blueprint": asdict(blueprint),
        "tied": tied,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    (draft / BUILD).write_text(json.dumps(body, indent=1) + "\n")


def _rebuilt(
    blueprint: Blueprint, template: nn.Module, tensors: dict[str, Tensor]
) -> nn.Module | None:
    try:
        return blueprint.rebuild(template, tensors)
    except CheckpointError:
        return None


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under their first names, and the other names of tied ones."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    persistent = set(model.state_dict())
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if name not in persistent:
            continue
        owner = first.setdefault(id(tensor), name)
        if owner == name:
            tensors[name] = tensor.detach().contiguous()
        else:
            tied[name] = owner
    return tensors, tied


def _read_build(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a hetmerge model")
    if body.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: version {body.get('version')!r}; this release reads {VERSION}"
        )
    needed = {"model", "blueprint", "tied", "tensors"}
    if missing := sorted(needed - set(body)):
        raise CheckpointError(f"{path}: has no {missing[0]!r}; it was changed or cut short")
    shapes, tied = body["tensors"], body["tied"]
    sound = {
        "model": is_description(body["model"]),
        "tensors": isinstance(shapes, dict),
        "tied": isinstance(tied, dict) and all(name in shapes for name in tied.values()),
    }
    if wrong := [name for name, fine in sound.items() if not fine]:
        raise CheckpointError(f"{path}: {wrong[0]!r} is damaged; it was changed after it was saved")
    return body


def _read_tensors(path: Path, body: dict[str, Any]) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != body["tensors"]:
        wrong = next(
            n for n in {*found, *body["tensors"]} if found.get(n) != body["tensors"].get(n)
        )
        raise CheckpointError(
            f"{path}: tensor {wrong!r} is {found.get(wrong)}, "
            f"{BUILD} says {body['tensors'].get(wrong)}"
        )
    tensors.update({alias: tensors[name] for alias, name in body["tied"].items()})
    return tensors
