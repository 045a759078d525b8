"""Parents of different families in the words of one of them, where that is the same function.

Llama with biases of zero is a Qwen2; Phi-3 with its fused layers taken apart is a Llama. Which
families can state which is not written down: the configuration's common fields are given to the
other class, tensors go by name, and both classes compute the same inputs at a small size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hetmerge.errors import AlignmentError
from hetmerge.fields import said
from hetmerge.huggingface import is_pretrained
from hetmerge.lazy import Checkpoint, empty
from hetmerge.network import state_of
from hetmerge.resizing import set_tensors
from hetmerge.weights import OnDisk

# Layers that some families fuse: name -> the names of its rows' parts in others, in order.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
# Sizes at which two classes are compared; what else is in a configuration stays as it is.
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 24,
    "sliding_window": 4,
    "max_window_layers": 1,
}
_OWN = {"model_type", "architectures", "transformers_version"}  # fields that name the class
_TOKENS = 12
_CLOSE = 1e-5  # of the outputs' deviation, in float32


@dataclass(frozen=True)
class Restated:
    """How a model is stated by a class.

    Attributes:
        config: of that class.
        module: of that class, its parameters on the meta device.
        tensors: name there -> (name in the model, its rows); None for zeros.
    """

    config: Any
    module: nn.Module
    tensors: dict[str, tuple[str, range] | None]


def restated(
    models: Sequence[nn.Module | Checkpoint],
) -> tuple[list[nn.Module | Checkpoint], list[str]]:
    """The parents, all in one class if they have several and one of these can state all of them.

    Returns:
        The parents, and remarks on those that change.

    Raises:
        AlignmentError: classes with tensors of the same names make other functions of them.
    """
    found, notes = list(models), []
    for m, how in enumerate(_found(models)):
        if how is not None:
            mine, theirs = type(_module(models[m])).__name__, type(how.module).__name__
            found[m] = _as(models[m], how)
            notes.append(f"models[{m}]: {mine} is stated as {theirs}, which computes the same")
    return found, notes


def _found(models: Sequence[nn.Module | Checkpoint]) -> list[Restated | None]:
    """Per parent how it is stated; None where it stays."""
    modules = [_module(model) for model in models]
    nothing: dict[int, Restated | None] = dict.fromkeys(range(len(modules)))
    kinds = list(dict.fromkeys(type(module) for module in modules))
    if len(kinds) < 2 or not all(is_pretrained(module) for module in modules):
        return list(nothing.values())
    differ = False
    for kind in kinds:
        others = [m for m, module in enumerate(modules) if type(module) is not kind]
        found, same = dict(nothing), True
        for m in others:
            found[m], same = _restate(modules[m], kind)
            differ = differ or not same
        if all(found[m] for m in others):
            return list(found.values())
    names = [{_pattern(name) for name in module.state_dict()} for module in modules]
    if differ and all(mine == names[0] for mine in names):
        shown = ", ".join(kind.__name__ for kind in kinds)
        raise AlignmentError(
            f"models: {shown} have tensors of the same names and compute different things from "
            "them; the parents must be of one family"
        )
    return list(nothing.values())


def _module(model: nn.Module | Checkpoint) -> Any:
    return model.module if isinstance(model, Checkpoint) else model


def _pattern(name: str) -> str:
    """A tensor's name without the numbers of layers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _restate(module: Any, kind: Any) -> tuple[Restated | None, bool]:
    """None where the class cannot state the model; False where it computes something else."""
    mine = _small_one(module)
    if mine is None:
        return None, True
    same: bool | None = None
    size = {"head_dim": getattr(module.config, "head_dim", None)}
    everywhere = {"sliding_window": None}
    # Fields that some classes read and do not declare, or that only the other class has.
    for more in ({}, size, everywhere, {**size, **everywhere}):
        how, less = _words(module, kind, {}, more), _words(mine, kind, SMALL, more)
        if how and less:
            same = _same(mine, _stated(mine, less))
            if same:
                return how, True
    return None, same is not False


def _small_one(module: Any) -> nn.Module | None:
    """A model of its class at a small size, with random weights; None where there is none."""
    try:
        small = type(module.config).from_dict(_small(module.config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found: nn.Module = type(module)(small).float().eval()
            for parameter in found.parameters():  # scales and biases are not what they start as
                parameter.data.add_(torch.randn_like(parameter) / 4)
    except Exception:  # whatever a family's own code raises at sizes that it does not allow
        return None
    return found


def _words(
    module: Any, kind: Any, defaults: Mapping[str, Any], more: Mapping[str, Any]
) -> Restated | None:
    """The class's configuration and where its tensors come from.

    Args:
        defaults: of fields that only the other class has.
        more: fields that are given whether it declares them or not.
    """
    mine, known = module.config.to_dict(), kind.config_class().to_dict()
    shared = {k: v for k, v in mine.items() if k in known and k not in _OWN}
    own = {k: v for k, v in defaults.items() if known.get(k) is not None and k not in mine}
    try:
        config = kind.config_class.from_dict({**own, **shared, **more})
        config._attn_implementation = module.config._attn_implementation
        config.architectures = [kind.__name__]
        other = empty(kind, config)
    except Exception:  # as above
        return None
    tensors = _sources(module, other)
    return Restated(config, other, tensors) if tensors is not None else None


def _sources(mine: nn.Module, other: nn.Module) -> dict[str, tuple[str, range] | None] | None:
    """Where the tensors of `other` come from; None if one has no source, or a source no use."""
    known = {n: tuple(t.shape) for n, t in mine.state_dict().items()}
    wanted = {n: tuple(t.shape) for n, t in other.state_dict().items()}
    if () in {*known.values(), *wanted.values()}:  # single numbers have no rows
        return None
    found: dict[str, tuple[str, range] | None] = {}
    for name, shape in wanted.items():
        source = (name, range(shape[0])) if name in known else _fused(name, wanted)
        rest = known.get(source[0], ())[1:] if source else ()
        if source and source[0] in known and (len(source[1]), *rest) == shape:
            found[name] = source
        elif name not in known and name.endswith(".bias"):
            found[name] = None
        else:
            return None
    used = dict.fromkeys(known, 0)
    for source in found.values():
        if source is not None:
            used[source[0]] += len(source[1])
    return found if all(used[name] == shape[0] for name, shape in known.items()) else None


def _fused(name: str, wanted: Mapping[str, tuple[int, ...]]) -> tuple[str, range] | None:
    """The rows of a fused layer's tensor that a tensor is."""
    *path, layer, kind = name.split(".")
    for fused, parts in FUSED.items():
        if layer in parts:
            ends = [0]
            for part in parts:
                ends.append(ends[-1] + wanted[".".join([*path, part, kind])][0])
            at = parts.index(layer)
            return ".".join([*path, fused, kind]), range(ends[at], ends[at + 1])
    return None


def _small(config: Any) -> dict[str, Any]:
    """The configuration at another size, with a layer of every kind."""
    fields = {k: v for k, v in config.to_dict().items() if not k.endswith("token_id")}
    fields |= {k: v for k, v in SMALL.items() if said(config, k) is not None}
    kinds = list(dict.fromkeys(fields.get("layer_types") or ()))
    if kinds:
        fields["num_hidden_layers"] = max(2, len(kinds))
        fields["layer_types"] = (2 * kinds)[: fields["num_hidden_layers"]]
    return {**fields, "pad_token_id": None}


def _same(mine: nn.Module, theirs: nn.Module) -> bool | None:
    """Both answer random tokens alike; None where they do not answer tokens."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(SMALL["vocab_size"], (4, _TOKENS), generator=random)
    try:
        with torch.no_grad():
            wanted, found = (model(input_ids=ids).logits for model in (mine, theirs))
    except Exception:  # as above: other inputs, other outputs
        return None
    return bool((wanted - found).abs().max() <= _CLOSE * wanted.std())


def _as(model: nn.Module | Checkpoint, how: Restated) -> nn.Module | Checkpoint:
    if not isinstance(model, Checkpoint):
        return _stated(model, how)
    state, shapes = model.state, how.module.state_dict()
    stored = {n: state.stored[s[0]].part(s[1]) for n, s in how.tensors.items() if s}
    own = {n: torch.zeros(shapes[n].shape, dtype=state.dtype) for n in shapes if n not in stored}
    own |= {n: t for n, t in how.module.named_buffers() if n not in shapes}
    stated = OnDisk(stored, own, state.dtype, state.label, device=state.device)
    return Checkpoint(model.folder, how.module, stated)


def _stated(model: nn.Module, how: Restated) -> nn.Module:
    known, like = state_of(model), next(model.parameters())
    shapes = how.module.state_dict()
    tensors = {
        name: torch.zeros(shapes[name].shape) if s is None else known[s[0]][s[1].start : s[1].stop]
        for name, s in how.tensors.items()
    }
    with torch.random.fork_rng(devices=[]):
        found: nn.Module = type(how.module)(how.config)
    set_tensors(found, tensors)
    return found.to(like.device, like.dtype).eval()
