"""Everything the stages of a merge share: canonical parents, their alignment, the skeleton."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hetmerge.alignment import Alignment
from hetmerge.batches import Call
from hetmerge.branches import Passage, passage
from hetmerge.correspondence import Correspondence
from hetmerge.errors import AlignmentError
from hetmerge.network import Network
from hetmerge.outline import Stage, Unit, stages_in
from hetmerge.partition import merged_size
from hetmerge.repeating import stands_at
from hetmerge.resizing import group_counts, resize, set_tensors
from hetmerge.tracing.expr import Leaf


@dataclass(frozen=True)
class Setting:
    """Parents, the merged network's skeleton, and the links between them.

    Attributes:
        parents: the canonical parents.
        skeleton: a network with the merged depth (its widths are those of the base parent).
        stages: the skeleton's stages.
        links: per parent, the map from the skeleton to it.
        passages: (stage, position) -> how a parent without a unit of its own there passes it.
        call: example inputs.
    """

    parents: tuple[Network, ...]
    skeleton: Network
    stages: list[Stage]
    alignment: Alignment
    links: tuple[Correspondence, ...]
    passages: dict[tuple[int, int], Passage]
    call: Call

    def members(self, space: int) -> tuple[int, ...]:
        """The parents that have this space of the skeleton."""
        return tuple(m for m, link in enumerate(self.links) if space in link.spaces)

    @property
    def repeats(self) -> bool:
        """A parent has a unit that stands at several positions."""
        return any(link.again for link in self.links)

    def width(self, parent: int, space: int) -> int:
        """Size of the skeleton's `space` in one parent."""
        link = self.links[parent]
        return link.parent.graph.spaces[link.spaces[space]].size


def build_setting(networks: Sequence[Network], alignment: Alignment, call: Call) -> Setting:
    """Grow the skeleton to the merged depth and link every parent to it."""
    base = networks[alignment.base]
    grown = [
        alignment.depth(s) - len(stage.units)
        for s, stage in enumerate(alignment.stages[alignment.base])
    ]
    skeleton, stages = base, alignment.stages[alignment.base]
    if any(grown):
        if not base.in_memory:
            raise AlignmentError(
                "the deepest checkpoint is shallower than another in some stage; merge such "
                "parents as modules in memory"
            )
        model = _grow(networks, alignment, grown)
        skeleton = Network(model, call, "merged network", fold=False)
        stages = _stages_again(skeleton, stages)
    passages: dict[tuple[int, int], Passage] = {}
    for slots in alignment.slots:
        for s, row in enumerate(slots):
            for i in set(range(len(row))).difference(stands_at(row)):
                if (s, i) not in passages:
                    passages[s, i] = passage(skeleton, stages[s].units[i])
    links = tuple(
        Correspondence(skeleton, network, (stages, own), slots, passages)
        for network, own, slots in zip(networks, alignment.stages, alignment.slots, strict=True)
    )
    return Setting(tuple(networks), skeleton, stages, alignment, links, passages, call)


def _grow(networks: Sequence[Network], alignment: Alignment, grown: list[int]) -> nn.Module:
    """The base parent's modules with units of deeper parents, in its own widths, where they are."""
    base, stages = networks[alignment.base], alignment.stages[alignment.base]
    model = copy.deepcopy(base.model)
    for s, extra in reversed(list(enumerate(grown))):
        if not extra:
            continue
        stage = stages[s]
        if stage.units[0].kind == "custom":
            raise AlignmentError(
                f"stage {stage.name!r}: the network that is deepest elsewhere is shallower here, "
                "and blocks named by hand cannot be added; make one parent the deepest everywhere"
            )
        deepest = max(range(len(networks)), key=lambda m: len(alignment.stages[m][s].units))
        donor, unit = networks[deepest], alignment.stages[deepest][s].units[-1]
        container = model.get_submodule(stage.container)
        children = list(container.named_children())
        last = stage.units[-1].paths[-1].rpartition(".")[2]
        position = [name for name, _ in children].index(last) + 1
        widths = _carried_widths(donor, unit, base, stage.units[-1])
        copies = [m for _ in range(extra) for m in _resized(donor, unit, widths)]
        modules = [m for _, m in children]
        modules[position:position] = copies
        container._modules = OrderedDict((str(i), m) for i, m in enumerate(modules))
    return model


def _carried_widths(donor: Network, unit: Unit, base: Network, own: Unit) -> dict[int, int]:
    """The donor's spaces at the unit's output, in the base's sizes."""
    pairs = zip(donor.graph.values[unit.output], base.graph.values[own.output], strict=True)
    return {
        theirs.space: mine.size
        for theirs, mine in pairs
        if isinstance(theirs, Leaf) and isinstance(mine, Leaf) and theirs.space >= 0
    }


def _resized(donor: Network, unit: Unit, widths: dict[int, int]) -> list[nn.Module]:
    """Copies of the unit's modules whose tensors have these widths; their values do not matter."""
    groups = group_counts(donor, widths)
    copies = []
    for path in unit.paths:
        module = copy.deepcopy(donor.model.get_submodule(path))
        prefix = f"{path}."
        state = {
            name.removeprefix(prefix): donor.state[name].new_ones(
                [merged_size(expr, widths) for expr in exprs]
            )
            for name, exprs in donor.graph.tensors.items()
            if name.startswith(prefix)
        }
        set_tensors(module, state)
        resize(module, {p.removeprefix(prefix): n for p, n in groups.items()})
        copies.append(module)
    return copies


def _stages_again(skeleton: Network, stages: list[Stage]) -> list[Stage]:
    paths = list(dict.fromkeys(stage.container for stage in stages))
    found = [
        stage
        for path in paths
        for stage in stages_in(skeleton.model.get_submodule(path), path, skeleton.nodes)
    ]
    order = skeleton.nodes.order
    found.sort(key=lambda stage: order[stage.units[0].output])
    if len(found) != len(stages):
        raise AlignmentError("the deepened network's stages differ from its parent's")
    return found


def passage_notes(setting: Setting, missing: str) -> list[str]:
    """Remarks on parents that pass a unit in a way that is not exact."""
    empty = sorted({at for link in setting.links for at in link.missing()})
    paths = {(s, i): setting.stages[s].units[i].paths[0] for s, i in empty}
    bad = [path for at, path in paths.items() if not setting.passages[at].exact]
    found = []
    if missing == "repeat" and paths:
        first = next(iter(paths.values()))
        found.append(
            f"missing='repeat': a parent without unit {first!r} passes it as with 'zero', because "
            "its unit before takes other features than it gives, or has other tensors"
        )
    if bad:
        choice = "; missing='repeat' repeats its unit before instead" if missing == "zero" else ""
        found.append(
            f"a parent without unit {bad[0]!r} passes it by an identity layer, which is not exact "
            f"here: its activation or norm changes values that it has already seen{choice}"
        )
    return found


def pattern_notes(setting: Setting) -> list[str]:
    """Remarks on units that meet others whose code does something else."""
    notes = []
    for m, link in enumerate(setting.links):
        if moved := list(link.out_of_pattern()):
            more = f" (and {len(moved) - 1} more)" if len(moved) > 1 else ""
            notes.append(
                f"models[{m}]: unit {moved[0][0]!r} stands at {moved[0][1]!r}{more}, whose code "
                "does something else, such as attention with shifted windows or another mask; the "
                "merge is not exact there"
            )
    return notes
