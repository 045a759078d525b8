"""How to turn a model of a known class into a merged one before its tensors are loaded."""

from __future__ import annotations

import copy
import inspect
import sys
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from hetmerge.errors import CheckpointError
from hetmerge.resizing import resize, set_tensors
from hetmerge.shortcuts import shortcut_convolution

_TREES = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Blueprint:
    """What a merge changed in its modules besides tensor shapes.

    Attributes:
        shortcuts: module path -> [in, out, stride rows, stride columns] of an explicit shortcut.
        groups: module path -> groups of grouped convolutions and GroupNorms.
        sizes: module path -> integer attributes that composite modules keep.
        containers: path of a container of blocks -> number of its children.
    """

    shortcuts: dict[str, list[int]] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    containers: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Any, source: object) -> Blueprint:
        """From the JSON of `asdict`.

        Raises:
            CheckpointError: it was changed; `source` is named.
        """
        known = {f.name for f in fields(cls)}
        if isinstance(data, dict) and set(data) == known:
            found = cls(**data)
            if all(isinstance(data[name], dict) for name in known) and found._sound():
                return found
        raise CheckpointError(
            f"{source}: 'blueprint' is damaged; it was changed after it was saved"
        )

    def _sound(self) -> bool:
        numbers = [*self.groups.values(), *self.containers.values()]
        lists = [v for v in self.shortcuts.values() if isinstance(v, list) and len(v) == 4]
        tables = [v for v in self.sizes.values() if isinstance(v, dict)]
        if len(lists) < len(self.shortcuts) or len(tables) < len(self.sizes):
            return False
        numbers += [n for v in lists for n in v] + [n for v in tables for n in v.values()]
        return all(isinstance(n, int) and n > 0 for n in numbers)

    def rebuild(self, template: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        """A copy of `template` with these changes and tensors.

        Raises:
            CheckpointError: the template is of another class or lacks modules.
        """
        model = copy.deepcopy(template).eval()
        for path, count in self.containers.items():
            _extend(_module(model, path), path, count)
        for path, (width_in, width_out, rows, columns) in self.shortcuts.items():
            parent, _, name = path.rpartition(".")
            setattr(
                _module(model, parent),
                name,
                shortcut_convolution(width_in, width_out, (rows, columns)),
            )
        known = {n for n, _ in (*model.named_parameters(remove_duplicate=False),)}
        known |= {n for n, _ in model.named_buffers(remove_duplicate=False)}
        missing = sorted(set(tensors) - known)
        unset = sorted(n for n in dict(model.named_parameters()) if n not in tensors)
        if missing or unset:
            raise CheckpointError(
                f"template: {type(template).__name__} does not fit the checkpoint: "
                + (f"it has no tensor {missing[0]!r}" if missing else f"{unset[0]!r} is not saved")
            )
        set_tensors(model, tensors)
        model.requires_grad_(True)
        resize(model, self.groups)
        for path, changes in self.sizes.items():
            for name, value in changes.items():
                setattr(_module(model, path), name, value)
        return model


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise CheckpointError(
            f"template: {type(model).__name__} has no module {path!r}; "
            "give a module of the class and depth of the deepest parent"
        ) from None


def _extend(container: nn.Module, path: str, count: int) -> None:
    children = list(container.children())
    if len(children) >= count or not children:
        return
    if not list(children[-1].children()):
        raise CheckpointError(
            f"template: {path!r} has {len(children)} modules, the checkpoint {count}; "
            "give a module of the depth of the deepest parent"
        )
    for i in range(len(children), count):
        container.add_module(str(i), copy.deepcopy(children[-1]))


def describe(model: nn.Module) -> dict[str, Any]:
    """How to construct a module again: its class and constructor arguments, where they are known.

    A tree of torch's own modules is described whole. Another class is built only where it is
    already imported, from constructor arguments that it keeps as attributes of the same name.
    """
    kind = type(model)
    found: dict[str, Any] = {"module": kind.__module__, "class": kind.__qualname__}
    if isinstance(model, _TREES) and kind in _TREES:
        found["children"] = {name: describe(child) for name, child in model.named_children()}
        return found
    arguments = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if hasattr(model, name):
            value = _plain(getattr(model, name), name)
            if value is not _UNKNOWN:
                arguments[name] = value
                continue
        if parameter.default is parameter.empty:
            return found
    found["arguments"] = arguments
    return found


_UNKNOWN = object()


def _plain(value: Any, name: str) -> Any:
    if name == "bias" and (value is None or isinstance(value, Tensor)):
        return value is not None
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, (tuple, list)) and all(_plain(v, "") is not _UNKNOWN for v in value):
        return [_plain(v, "") for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        found = {k: _plain(v, "") for k, v in value.items()}
        return found if _UNKNOWN not in found.values() else _UNKNOWN
    return _UNKNOWN


def same_code(model: nn.Module, twin: nn.Module | None) -> bool:
    """Equal modules with equal numbers, flags and texts among their attributes."""
    if twin is None:
        return False
    mine, theirs = dict(model.named_modules()), dict(twin.named_modules())
    return mine.keys() == theirs.keys() and all(
        type(a) is type(theirs[path]) and _settings(a) == _settings(theirs[path])
        for path, a in mine.items()
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        name: _plain(value, "")
        for name, value in vars(module).items()
        if name != "training" and not name.startswith("_") and _plain(value, "") is not _UNKNOWN
    }


def is_description(spec: Any) -> bool:
    """This is what `describe` writes."""
    if not isinstance(spec, dict) or not all(
        isinstance(spec.get(k), str) for k in ("module", "class")
    ):
        return False
    children, arguments = spec.get("children", {}), spec.get("arguments", {})
    if not isinstance(children, dict) or not isinstance(arguments, dict):
        return False
    return all(is_description(child) for child in children.values())


def construct(spec: dict[str, Any]) -> nn.Module | None:
    """Build what `describe` described; None where that takes a template."""
    if spec["module"].split(".")[0] == "hetmerge":
        __import__(spec["module"])
    module = sys.modules.get(spec["module"])
    kind = getattr(module, spec["class"], None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        return None
    if "children" in spec:
        children = {name: construct(child) for name, child in spec["children"].items()}
        if any(child is None for child in children.values()):
            return None
        tree = kind()
        for name, child in children.items():
            tree.add_module(name, child)
        return tree
    if "arguments" not in spec:
        return None
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["arguments"].items()}
    try:
        with torch.random.fork_rng(devices=[]):
            return kind(**values)
    except Exception:  # the class takes other arguments than it keeps: a template is needed
        return None
