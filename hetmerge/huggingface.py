"""Merged Hugging Face models: a valid configuration of the same family, and its modules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from hetmerge.errors import PlanError
from hetmerge.fields import Config, fields_of, leaf, said, with_fields
from hetmerge.network import cast_parameters, state_of
from hetmerge.partition import merged_size
from hetmerge.resizing import set_tensors
from hetmerge.setting import Setting
from hetmerge.tracing import export
from hetmerge.tracing.expr import Leaf, Product
from hetmerge.weights import tensors_of

_TRIALS = 128
HEAD_SIZE = "head_dim"
# Fields (or parts of their names) that do not change what a trained model computes.
_UNHEARD = (
    *(
        "token",
        "drop",
        "init",
        "dtype",
        "head_dim",
        "version",
        "architectures",
        "layer_types",
        "use_cache",
    ),
    *("label", "name", "return_dict", "output_", "problem_type", "chunk_size", "tie_", "loss"),
)

Sizes = list[tuple[tuple[int | None, ...], int]]  # sizes in the parents (None: absent), merged size


def is_pretrained(model: nn.Module) -> bool:
    """The module is a transformers model, with a configuration that describes it."""
    return hasattr(model, "config") and hasattr(model, "save_pretrained")


def rebuild(setting: Setting, widths: Mapping[int, int], state: Mapping[str, Tensor]) -> nn.Module:
    """A model of the base parent's class and adjusted configuration that holds these tensors.

    Raises:
        PlanError: no configuration of the family has these shapes.
    """
    return filled(setting.skeleton.model, merged_config(setting, widths)[0], state)


def merged_config(setting: Setting, widths: Mapping[int, int]) -> tuple[Config, ExportedProgram]:
    """The base parent's configuration, adjusted to the merged sizes, and what a model of it runs,
    exported on the meta device.

    A number in the configuration may follow a space, or the length of a list of blocks, whose sizes
    it equals in every parent. A choice is accepted only if all its tensors and all values that the
    model computes have the merged shapes; then every change that is not needed is taken back.

    Raises:
        PlanError: no configuration of the family has these shapes.
    """
    base: Any = setting.skeleton.model
    values, sizes = _values(base.config), _sizes(setting, widths)
    fields, wanted = _fields(setting, widths), merged_shapes(setting, widths)
    for choice in itertools.islice(_choices(fields), _TRIALS):
        if not _holds(base, choice, wanted):
            continue
        least = _fewest(choice, values, lambda fewer: _holds(base, fewer, wanted))
        if program := _program(setting, widths, least):
            return with_fields(base.config, least), program
        if _program(setting, widths, choice):
            fewest = _fewest(choice, values, lambda x: bool(_program(setting, widths, x)))
            if program := _program(setting, widths, fewest):
                return with_fields(base.config, fewest), program
    raise PlanError(_refusal(type(base).__name__, setting, sizes))


def is_likely(setting: Setting, widths: Mapping[int, int]) -> bool:
    """The likeliest configurations of these sizes have the merged tensors; quickly told."""
    base: Any = setting.skeleton.model
    fields, wanted = _fields(setting, widths), merged_shapes(setting, widths)
    return any(_holds(base, choice, wanted) for choice in itertools.islice(_choices(fields), 4))


def _fields(setting: Setting, widths: Mapping[int, int]) -> dict[str, list[Any]]:
    """Fields of the configuration that may change -> their values, likeliest first."""
    base: Any = setting.skeleton.model
    values = _values(base.config)
    configs = [_values(_source(parent.model)) for parent in setting.parents]
    sizes = _sizes(setting, widths)
    fields = {
        name: _candidates(value, [config.get(name) for config in configs], sizes)
        for name, value in values.items()
    }
    unset = [name for name, value in fields_of(base.config).items() if follows(name, value)]
    fields |= {name: list(dict.fromkeys([None, *(n for _, n in sizes)])) for name in unset}
    theirs = [head_size(parent.model) for parent in setting.parents]
    if all(theirs):  # read by some classes that do not declare it
        declared = values.get(HEAD_SIZE)
        fields[HEAD_SIZE] = _candidates(declared, theirs, sizes)
    return {name: found for name, found in fields.items() if found != [values.get(name)]}


def _fewest(
    choice: dict[str, Any], values: Mapping[str, Any], fine: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The changes that are needed: every other one is taken back."""
    for name in list(choice):
        fewer = {k: v for k, v in choice.items() if k != name}
        if choice[name] == values.get(name) or fine(fewer):
            choice = fewer
    return choice


def merged_shapes(setting: Setting, widths: Mapping[int, int]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that the merge makes, tied ones under each of their names."""
    graph = setting.skeleton.graph
    found = {
        name: tuple(merged_size(expr, widths) for expr in exprs)
        for name, exprs in graph.tensors.items()
    }
    return {**found, **{a: found[b] for a, b in graph.aliases.items() if b in found}}


def configuration_notes(setting: Setting) -> list[str]:
    """Remarks on what the parents' configurations say differently, besides sizes."""
    parents = [parent.model for parent in setting.parents]
    if not all(is_pretrained(model) for model in parents):
        return []
    fields = [fields_of(_source(model)) for model in parents]
    shown = []
    for name in fields[0]:
        values = [known.get(name) for known in fields]
        sizes = all(_whole(v) or _whole_list(v) for v in values)
        if sizes or any(word in name for word in _UNHEARD) or all(v == values[0] for v in values):
            continue
        shown.append(f"{name} ({', '.join(map(str, values))})")
    if not shown:
        return []
    return [
        f"the parents' configurations differ in {'; '.join(shown)}: the merged model has those of "
        f"models[{setting.alignment.base}]"
    ]


def follows(name: str, value: Any) -> bool:
    """A field of a configuration that counts something, and follows from others while it is None,
    such as n_inner of GPT-2."""
    return value is None and leaf(name).startswith(("n_", "num_"))


def head_size(model: nn.Module) -> int | None:
    """Features of an attention head as a configuration gives it; None where it gives none."""
    config = _source(model)
    given = said(config, HEAD_SIZE)
    if isinstance(given, int):
        return given
    width, heads = (said(config, n) for n in ("hidden_size", "num_attention_heads"))
    return width // heads if isinstance(width, int) and isinstance(heads, int) else None


def _source(model: nn.Module) -> Config:
    return model.config


def _values(config: Config) -> dict[str, Any]:
    """The whole numbers of a configuration, and its lists of them, by field; no names of tokens."""
    return {
        name: value
        for name, value in fields_of(config).items()
        if (_whole(value) or _whole_list(value)) and not name.endswith("token_id")
    }


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(_whole(v) for v in value)


def _sizes(setting: Setting, widths: Mapping[int, int]) -> Sizes:
    """What a configuration can speak of: widths of spaces, and lengths of lists of blocks."""
    found: Sizes = []
    parents = range(len(setting.links))
    known = {k: [m in setting.members(k) for m in parents] for k in widths}
    for space, width in widths.items():
        mine = [setting.width(m, space) if known[space][m] else None for m in parents]
        found.append((tuple(mine), width))
    for run in _products(setting, widths):
        sizes = [
            math.prod(setting.width(m, k) for k in run) if all(known[k][m] for k in run) else None
            for m in parents
        ]
        found.append((tuple(sizes), math.prod(widths[k] for k in run)))
    for path in dict.fromkeys(stage.container for stage in setting.stages):
        counts = [_children(parent.model, path) for parent in setting.parents]
        found.append((tuple(counts), _children(setting.skeleton.model, path)))
    return list(dict.fromkeys(found))


def _products(setting: Setting, widths: Mapping[int, int]) -> set[tuple[int, ...]]:
    """Spaces that stand side by side in one axis, such as key-value heads and queries per head."""
    found = set()
    for exprs in setting.skeleton.graph.tensors.values():
        for expr in exprs:
            spaces = [
                part.space if isinstance(part, Leaf) else -1 for part in getattr(expr, "parts", ())
            ]
            for i, j in itertools.combinations(range(len(spaces) + 1), 2):
                if isinstance(expr, Product) and all(k in widths for k in spaces[i:j]):
                    found.add(tuple(spaces[i:j]))
    return found


def _children(model: nn.Module, path: str) -> int:
    return len(list(model.get_submodule(path).children()))


def _candidates(value: Any, theirs: Sequence[Any], sizes: Sizes) -> list[Any]:
    """Values of a field, likeliest first: the merged sizes it may follow, then what it was."""
    if _whole_list(value):
        columns = [
            _candidates(v, [t[i] if _whole_list(t) and i < len(t) else None for t in theirs], sizes)
            for i, v in enumerate(value)
        ]
        return [list(v) for v in itertools.islice(itertools.product(*columns), _TRIALS)]
    follows = [
        (sum(size is None for size in parents), merged)
        for parents, merged in sizes
        if any(parents)
        and all(size in (None, given) for size, given in zip(parents, theirs, strict=True))
    ]
    found = [merged for _, merged in sorted(follows, key=lambda item: item[0])]
    return list(dict.fromkeys([*found, value]))


def _choices(fields: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination, those closest to the likeliest one first."""
    first = {name: values[0] for name, values in fields.items()}
    yield first
    for count in range(1, 4):
        for changed in itertools.combinations(fields, count):
            for values in itertools.product(*(fields[name][1:] for name in changed)):
                yield {**first, **dict(zip(changed, values, strict=True))}


def _holds(base: Any, choice: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> bool:
    """A model of this configuration has the merged tensors."""
    try:
        with torch.device("meta"):
            model = type(base)(with_fields(base.config, choice))
    except Exception:  # whatever a family's own code raises for sizes it does not allow
        return False
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model)}
    return all(shapes.get(name) == shape for name, shape in wanted.items())


def _program(
    setting: Setting, widths: Mapping[int, int], choice: Mapping[str, Any]
) -> ExportedProgram | None:
    """What a model of this configuration runs; None unless its values have the merged sizes."""
    base: Any = setting.skeleton.model
    if not _holds(base, choice, merged_shapes(setting, widths)):
        return None
    if not choice:  # the base's own configuration
        return setting.skeleton.graph.program
    try:
        program = _exported(setting, with_fields(base.config, choice))
    except Exception:  # as above
        return None
    nodes = {node.name: node for node in program.graph.nodes}
    fits = all(
        name in nodes
        and [merged_size(expr, widths) for expr in exprs] == list(nodes[name].meta["val"].shape)
        for name, exprs in setting.skeleton.graph.values.items()
    )
    return program if fits else None


def _exported(setting: Setting, config: Config) -> ExportedProgram:
    """What a model without weights runs where the skeleton was traced: on the meta device, or as
    if on the device of its tensors, whose operators may lay values out in another way."""
    skeleton, call = setting.skeleton, setting.call
    with torch.device("meta"):
        model = type(skeleton.model)(config).eval()
    cast_parameters(model, skeleton.state.dtype)
    if skeleton.in_memory:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model.to_empty(device=skeleton.state.device)
        call = pytree.tree_map_only(Tensor, mode.from_tensor, call)
    return export(model, *call)


def _refusal(family: str, setting: Setting, sizes: Sizes) -> str:
    shown = [
        f"{' + '.join('-' if s is None else str(s) for s in parents)} -> {merged}"
        for parents, merged in sizes
        if len({s for s in parents if s is not None} | {merged}) > 1
    ]
    return (
        f"no configuration of {family} has the merged sizes ({', '.join(shown[:8])}); its code "
        "ties them to one another: give parents whose heads have equal sizes, or width='max'"
    )


def filled(base: Any, config: Config, state: Mapping[str, Tensor]) -> nn.Module:
    """A model of the base's class and another configuration that holds these tensors."""
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = type(base)(config)
    config.dtype = next(base.parameters()).dtype
    saved = model.state_dict()  # buffers that are computed keep their values and precision
    unused = {n: t for n, t in state_of(base).items() if n not in state and n in saved}
    unused = {n: t for n, t in unused.items() if t.shape == saved[n].shape}
    set_tensors(model, {n: t for n, t in {**unused, **state}.items() if n in saved})
    return model.to(next(base.parameters()).device).eval()
