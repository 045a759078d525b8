"""The merged module: the skeleton's modules with every tensor and size attribute replaced."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hetmerge.blueprint import Blueprint
from hetmerge.errors import PlanError
from hetmerge.huggingface import is_pretrained, rebuild
from hetmerge.resizing import group_counts, resize, set_tensors
from hetmerge.setting import Setting


def build(
    setting: Setting, widths: Mapping[int, int], state: Mapping[str, Tensor]
) -> tuple[nn.Module, Blueprint]:
    """A module of the skeleton's class that holds the merged tensors and runs, and its blueprint.

    Raises:
        PlanError: a module's own code fixes a size that the merge changes.
    """
    skeleton = setting.skeleton
    if is_pretrained(skeleton.model):
        model, blueprint = rebuild(setting, widths, state), Blueprint()
    else:
        blueprint = _blueprint(setting, widths, state)
        model = copy.deepcopy(skeleton.model)
        set_tensors(model, state)
        resize(model, blueprint.groups)
        for path, changes in blueprint.sizes.items():
            for name, value in changes.items():
                setattr(model.get_submodule(path), name, value)
    check_runs(model, setting)
    return model, blueprint


def _blueprint(
    setting: Setting, widths: Mapping[int, int], state: Mapping[str, Tensor]
) -> Blueprint:
    model = setting.skeleton.model
    shortcuts = {}
    for path in _shortcut_paths(setting):
        stride: Any = model.get_submodule(path).stride
        rows, columns = stride
        shape = state[f"{path}.weight"].shape
        shortcuts[path] = [shape[1], shape[0], rows, columns]
    containers = {
        stage.container: len(list(model.get_submodule(stage.container).children()))
        for stage in setting.stages
        if stage.container
    }
    groups = group_counts(setting.skeleton, widths)
    return Blueprint(shortcuts, groups, composite_sizes(setting, widths), containers)


def _shortcut_paths(setting: Setting) -> list[str]:
    """Shortcuts that became convolutions, by their path in the skeleton."""
    link = setting.links[setting.alignment.base]
    theirs = set(setting.parents[setting.alignment.base].replaced)
    names = (path for path, _ in setting.skeleton.model.named_modules())
    return [path for path in names if link.module(path) in theirs]


def composite_sizes(setting: Setting, widths: Mapping[int, int]) -> dict[str, dict[str, int]]:
    """Integers that composite modules keep for their own code (number of heads and the like).

    An attribute follows a space if, in every parent, it equals that space's size, the space occurs
    in the module's tensors, and no other space explains it with another merged size.
    """
    changes: dict[str, dict[str, int]] = {}
    spaces = setting.skeleton.graph.spaces
    for path, module in setting.skeleton.model.named_modules():
        if not list(module.children()) or type(module) is nn.Sequential:
            continue
        prefix = f"{path}." if path else ""
        near = [
            space
            for space in spaces
            if space.index in widths and any(o.tensor.startswith(prefix) for o in space.where)
        ]
        for name, value in vars(module).items():
            if isinstance(value, bool) or not isinstance(value, int) or name.startswith("_"):
                continue
            sizes = {
                widths[space.index]
                for space in near
                if space.size == value and _parents_agree(setting, path, name, space.index)
            }
            if len(sizes) == 1 and (new := sizes.pop()) != value:
                changes.setdefault(path, {})[name] = new
    return changes


def _parents_agree(setting: Setting, path: str, name: str, space: int) -> bool:
    for m in setting.members(space):
        link = setting.links[m]
        theirs = link.module(path)
        if theirs is None:
            continue
        value = getattr(link.parent.model.get_submodule(theirs), name, None)
        if value != setting.width(m, space):
            return False
    return True


def check_runs(model: nn.Module, setting: Setting) -> None:
    """Run the merged module once on the example inputs."""
    try:
        with torch.no_grad():
            model(*setting.call[0], **setting.call[1])
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise PlanError(
            f"the merged {type(model).__name__} cannot run at its new sizes ({first}); its code "
            "fixes a size that this merge changes: use a width its code allows, such as 'max'"
        ) from error
