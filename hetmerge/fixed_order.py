"""Features in an order that constants give them, such as the frequencies of rotary embeddings.

Where a constant varies along a space, its features are told apart by what the constant is there:
those of two parents that meet the same constants are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hetmerge.batches import Call
from hetmerge.errors import PlanError
from hetmerge.fields import with_fields
from hetmerge.huggingface import HEAD_SIZE, head_size, is_pretrained
from hetmerge.layers import op_name, tensor_names
from hetmerge.lazy import empty
from hetmerge.network import Network
from hetmerge.ops.assignment import linear_sum_assignment
from hetmerge.options import Options
from hetmerge.outputs import is_output, output_partition
from hetmerge.partition import Partition
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Concat, Expr, Leaf, leaves, size
from hetmerge.tracing.rules.contraction import EXPERTS
from hetmerge.tracing.rules.elementwise import NARY
from hetmerge.uniform import alike
from hetmerge.weights import OnDisk

_SCORES = "scaled_dot_product_attention"
_ADDED = NARY | {"baddbmm", _SCORES}  # operators that constants meet values in
NEAR = 1e-2  # mean squared difference of constants that count as the same, of their mean square
BY_NUMBER = (
    "experts are chosen by number: each meets those of its number in the other parents, as in "
    "models of one lineage"
)
Met = dict[int, list[Tensor]]  # parent -> the constants that the features of a space meet
Pairing = tuple[Partition, dict[int, int]]  # and per parent, how many features are left out


@dataclass(frozen=True)
class _Meeting:
    """A constant meets the features of a space: `constant` varies along `dim` (from the right)."""

    constant: str
    dim: int
    expr: Expr


class Constants:
    """The constants that vary along the spaces of one network, on the inputs of one batch."""

    def __init__(self, network: Network, call: Call) -> None:
        self._walker = network.walk([call])
        self._along: dict[int, list[Tensor]] = {}
        self._known: list[Tensor] = []
        self._meetings: dict[int, dict[_Meeting, None]] = {}
        names = tensor_names(network.graph.program)
        for node in network.graph.program.graph.nodes:
            if node.name in network.graph.values and op_name(node) in _ADDED:
                for constant in node.all_input_nodes:
                    if constant.name not in names and constant.name not in network.graph.values:
                        self._note(node, constant, network.graph.values[node.name])

    def _note(self, node: Node, constant: Node, exprs: Sequence[Expr]) -> None:
        shape = getattr(constant.meta.get("val"), "shape", ())
        own = -2 if op_name(node) == _SCORES else 0  # the last are positions in a mask
        for dim in range(-min(len(shape), len(exprs)), own):
            if shape[dim] == size(exprs[dim]) > 1:
                meeting = _Meeting(constant.name, dim, exprs[dim])
                for leaf in leaves(exprs[dim]):
                    if leaf.space >= 0:
                        self._meetings.setdefault(leaf.space, {})[meeting] = None

    def along(self, space: int) -> list[Tensor]:
        """Per place where a constant meets the space, [features, times, ...] float64.

        Equal ones are one tensor: every layer has its own copy of the rotary frequencies.
        """
        if space not in self._along:
            self._along[space] = [self._shared(value) for value in self._computed(space)]
        return self._along[space]

    def _shared(self, value: Tensor) -> Tensor:
        for known in self._known:
            if torch.equal(known, value):
                return known
        self._known.append(value)
        return value

    def _computed(self, space: int) -> Iterator[Tensor]:
        for meeting in self._meetings.get(space, ()):
            (value,) = self._walker.value(meeting.constant)
            if value.is_complex():
                value = torch.stack([value.real, value.imag])
            value = value.double().cpu().movedim(meeting.dim, 0)
            owner = _features(meeting.expr, space)
            order = owner.argsort(stable=True)[int((owner < 0).sum()) :]
            features = int(owner.max()) + 1
            yield value[order].reshape(features, -1, *value.shape[1:])


class FixedOrder:
    """Partitions of the spaces that must keep their order: outputs, positions, frequencies."""

    def __init__(self, setting: Setting, call: Call) -> None:
        self.setting, self.call = setting, call
        self._grown: dict[int, Constants | None] = {}  # by the size of heads
        self._alike: dict[tuple[Any, ...], bool] = {}  # by the tensors that are compared
        self._known: dict[tuple[Any, ...], Pairing | None] = {}

    @cached_property
    def _constants(self) -> list[Constants]:
        return [Constants(parent, self.call) for parent in self.setting.parents]

    def partition(
        self, space: int, sizes: dict[int, int], options: Options
    ) -> tuple[Partition, list[str]]:
        """The map of one space of the skeleton, and remarks.

        Raises:
            InputError: `outputs` or `labels` do not fit.
            PlanError: sizes differ, and nothing says which features are the same.
        """
        setting, spaces = self.setting, self.setting.skeleton.graph.spaces
        owned = self._owners.get(space) or self._members([space])
        pins = [
            pin
            for m, own in owned[space].items()
            for pin in setting.parents[m].graph.spaces[own].pins
        ]
        if not is_output(pins) and len({m for own in owned.values() for m in own}) > 1:
            paired = self._paired(space, owned, options)
            if paired is not None and not (paired[1] and self._is_read(space)):
                return paired[0], [_left_out(m, n, sizes) for m, n in paired[1].items()]
        found = output_partition(spaces[space].name, pins, sizes, options.outputs, options.labels)
        experts = len(sizes) > 1 and any(pin.startswith(EXPERTS) for pin in pins)
        return found, [BY_NUMBER] if experts else []

    def _is_read(self, space: int) -> bool:
        """A weight reads these features, so none of them can be left out: a stream, not queries."""
        graph = self.setting.skeleton.graph
        return any((o.tensor, o.dim) in graph.consumed for o in graph.spaces[space].where)

    @cached_property
    def _owners(self) -> dict[int, dict[int, dict[int, int]]]:
        """Space -> those that must be as wide, and of each, per parent, the parent's space."""
        spaces = [space.index for space in self.setting.skeleton.graph.spaces]
        groups = alike(self.setting, spaces, free=False)
        return {k: self._members(group) for group in groups for k in group}

    def _members(self, spaces: Sequence[int]) -> dict[int, dict[int, int]]:
        links = self.setting.links
        return {k: {m: links[m].spaces[k] for m in self.setting.members(k)} for k in spaces}

    def _paired(
        self, space: int, owned: Mapping[int, Mapping[int, int]], options: Options
    ) -> Pairing | None:
        """By the constants of the base parent's configuration at the greatest width there, or where
        the same width is needed; by the widest parent's where there is no such configuration."""
        setting, weights = self.setting, options.shares(len(self.setting.parents))
        met = self._met(owned[space])
        places = [k for k in owned if k == space or self._are_alike(met, self._met(owned[k]))]
        m, k = max(
            ((m, k) for k in places for m in owned[k]),
            key=lambda at: (
                weights[at[0]] > 0,
                setting.width(*at),
                at[0] == setting.alignment.base,
            ),
        )
        merged, base = self._constants[m].along(owned[k][m]), setting.alignment.base
        if m != base and base in met and weights[base] > 0:
            merged = self._of_base(space, setting.width(m, k)) or merged
        key = (_key(met), tuple(map(id, merged)))
        if key not in self._known:
            self._known[key] = by_constants(met, merged)
        return self._known[key]

    def _are_alike(self, mine: Met, theirs: Met) -> bool:
        key = (_key(mine), _key(theirs))
        if key not in self._alike:
            self._alike[key] = _alike(mine, theirs)
        return self._alike[key]

    def _of_base(self, space: int, width: int) -> list[Tensor]:
        """The constants along a space of this width that the base parent's configuration speaks of;
        none where it has no such configuration."""
        base: Any = self.setting.skeleton.model
        size = head_size(base) if is_pretrained(base) else None
        if size is None:
            return []
        size = size * width // self.setting.skeleton.graph.spaces[space].size
        if size not in self._grown:
            self._grown[size] = constants_of(self.setting, {HEAD_SIZE: size})
        grown = self._grown[size]
        found = grown.along(space) if grown else []
        return found if all(len(x) == width for x in found) else []

    def _met(self, own: Mapping[int, int]) -> Met:
        return {m: self._constants[m].along(space) for m, space in own.items()}


def constants_of(setting: Setting, fields: Mapping[str, Any]) -> Constants | None:
    """Those of the base parent's configuration with these values; None where it allows none."""
    base: Any = setting.skeleton.model
    try:
        model = empty(type(base), with_fields(base.config, fields))
        state = OnDisk({}, dict(model.named_buffers()), torch.float32, "")
        network = Network(model, setting.call, fold=False, state=state)
    except Exception:  # whatever a family's own code raises for sizes it does not allow
        return None
    return Constants(network, setting.call)


def _left_out(parent: int, count: int, sizes: Mapping[int, int]) -> str:
    return (
        f"models[{parent}]: {count} of {sizes[parent]} features that rotary frequencies or other "
        "constants tell apart have no counterpart in the merged network; they are left out"
    )


def by_constants(
    constants: Mapping[int, Sequence[Tensor]], merged: Sequence[Tensor]
) -> Pairing | None:
    """Features join the merged ones that meet the same constants.

    Args:
        constants: parent -> what :meth:`Constants.along` found.
        merged: the same of the merged network.

    Returns:
        The partition, in which features without a counterpart are not kept (label -1), and how many
        those are of each parent; None where constants cannot be compared.
    """
    if not merged or any(len(mine) != len(merged) for mine in constants.values()):
        return None
    labels = {}
    for m, mine in constants.items():
        distance = _distances(mine, merged)
        if distance is None:
            return None
        labels[m] = _counterparts(distance)
    lost = {m: int((found < 0).sum()) for m, found in labels.items()}
    return Partition(len(merged[0]), labels), {m: n for m, n in lost.items() if n}


def check_constants(setting: Setting, merged: Network, partitions: Mapping[int, Partition]) -> None:
    """Features in a fixed order meet the constants that they met in their parents.

    Raises:
        PlanError: they do not.
    """
    networks, found = (merged, *setting.parents), dict[int, Constants]()
    for k, partition in partitions.items():
        space = setting.skeleton.graph.spaces[k]
        if space.free or is_output(space.pins):
            continue
        for m, labels in partition.labels.items():
            for i in (0, m + 1):
                if i not in found:
                    found[i] = Constants(networks[i], setting.call)
            mine = found[m + 1].along(setting.links[m].spaces[k])
            if mine and not _agree(mine, found[0].along(k), labels):
                raise PlanError(
                    f"space {space.name!r}: the merged model does not compute the constants that "
                    f"models[{m}] has there (rotary frequencies follow the configuration of the "
                    "deepest parent); give parents of one rotary base, or of one head size"
                )


def _key(met: Met) -> tuple[Any, ...]:
    """The tensors themselves; whoever made them keeps them."""
    return tuple((m, *map(id, found)) for m, found in sorted(met.items()))


def _alike(mine: Met, theirs: Met) -> bool:
    """Parents that are in both meet the same constants: layers of one kind have one base."""
    both = [(mine[m], theirs[m]) for m in mine if m in theirs and mine[m] and theirs[m]]
    return bool(both) and all(
        len(a[0]) == len(b[0]) and _agree(a, b, torch.arange(len(a[0]))) for a, b in both
    )


def _agree(mine: Sequence[Tensor], theirs: Sequence[Tensor], labels: Tensor) -> bool:
    """Every kept feature (label not -1) meets the constants of its merged one."""
    joined = _joined(mine, theirs) if len(mine) == len(theirs) else None
    if joined is None:
        return False
    a, b = joined
    kept = labels >= 0
    return bool(((a[kept] - b[labels[kept]]).square().mean(1) <= NEAR).all())


def _distances(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor | None:
    """[features, features] mean squared difference of their constants, of the mean square."""
    joined = _joined(mine, theirs)
    if joined is None:
        return None
    apart = torch.cdist(*joined, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.square() / joined[0].shape[1]


def _joined(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """[features, ...] all constants of either where both have them, of mean square 1."""
    left, right = [], []
    for a, b in zip(mine, theirs, strict=True):
        if a.dim() != b.dim():
            return None
        shared = tuple(slice(min(m, n)) for m, n in zip(a.shape[1:], b.shape[1:], strict=True))
        index = (slice(None), *shared)
        left.append(a[index].flatten(1))
        right.append(b[index].flatten(1))
    a, b = torch.cat(left, 1), torch.cat(right, 1)
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return None
    scale = float(torch.cat([a, b]).square().mean()) ** 0.5 or 1.0
    return a / scale, b / scale


def _counterparts(distance: Tensor) -> Tensor:
    """[features] the counterpart of each, -1 for none; in order where that is as good."""
    count = min(distance.shape)
    if distance.shape[0] == distance.shape[1] and bool((distance.diagonal() <= NEAR).all()):
        return torch.arange(count)
    rows, columns = (x.long() for x in linear_sum_assignment(-distance))
    near = distance[rows, columns] <= NEAR
    labels = torch.full((len(distance),), -1)
    labels[rows[near]] = columns[near]
    return labels


def _features(expr: Expr, space: int) -> Tensor:
    """Along a dimension, which feature of the space each element belongs to; -1 for none."""
    if isinstance(expr, Leaf):
        found = torch.arange(expr.size)
        return found if expr.space == space else torch.full_like(found, -1)
    parts = [_features(part, space) for part in expr.parts]
    if isinstance(expr, Concat):
        return torch.cat(parts)
    total = torch.full((1,), -1)
    for part in parts:
        total = torch.maximum(total[:, None], part).flatten()
    return total
