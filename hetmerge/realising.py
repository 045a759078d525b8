"""A merged network from partitions: projected, built, corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetmerge.batches import Call
from hetmerge.blueprint import Blueprint
from hetmerge.building import build
from hetmerge.cutting import Cut
from hetmerge.errors import PlanError
from hetmerge.fixed_order import check_constants
from hetmerge.network import Network
from hetmerge.options import Options
from hetmerge.outputs import is_output
from hetmerge.partition import Partition, merged_size
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.refit import Fitter, Memory
from hetmerge.score_scales import check_scores
from hetmerge.setting import Setting
from hetmerge.systems import MOST_ROWS


@dataclass(frozen=True)
class Realised:
    """A merged network, the maps it comes from, and how it differs from its skeleton."""

    network: Network
    projector: Projector
    blueprint: Blueprint

    def holds(self, projector: Projector) -> bool:
        """Another merge of these widths can take its place."""
        return self.projector.widths == projector.widths

    def refilled(self, projector: Projector) -> Realised:
        """The same module with the tensors of another merge of its widths: no second trace."""
        for name, tensor in projector.state().items():
            self.network.state.put(name, tensor)
        return Realised(self.network, projector, self.blueprint)


def realise(setting: Setting, projector: Projector) -> Realised:
    """Project the parents' tensors and build the module.

    Raises:
        PlanError: the merged module computes something else than the skeleton.
    """
    model, blueprint = build(setting, projector.widths, projector.state())
    graph = setting.skeleton.graph
    same = all(
        projector.widths.get(space.index, space.size) == space.size for space in graph.spaces
    )
    program = graph.program if same else None  # no size is another one than the skeleton's
    merged = Network(model, setting.call, "merged model", fold=False, program=program)
    check_same(merged, projector)
    return Realised(merged, projector, blueprint)


def correct(
    made: Realised,
    options: Options,
    calls: Sequence[Call],
    progress: Progress,
    *,
    cut: Cut | None = None,
    rows: int = MOST_ROWS,
    memory: Memory | None = None,
) -> Fitter:
    """Refit or rescale the network in place.

    Args:
        cut: of a partial merge; only its trunk is corrected.
        rows: sampled positions that a layer is solved from, at most.
        memory: fits of an earlier run.

    Returns:
        The fitter after its walk, with what it found and, of a partial merge, what it kept.
    """
    exact = is_exact(made.projector.setting, made.projector.partitions, cut)
    fitter = Fitter(
        made.network,
        made.projector,
        calls,
        refit=options.refit and not exact,
        repair="none" if options.refit else options.repair,
        ridge=options.ridge,
        seed=options.seed,
        progress=progress,
        head=options.head,
        cut=cut,
        rows=rows,
        memory=memory,
    )
    fitter.run()
    return fitter


def is_exact(setting: Setting, partitions: dict[int, Partition], cut: Cut | None = None) -> bool:
    """Projection alone gives the parents' outputs (or what they are at the cut) as they should be.

    True if no unit is repeated, no free features of two parents share a cluster, no norm mixes what
    stands side by side, and no axis that must keep its order carries features of both.
    """
    if setting.repeats:
        return False
    spaces = setting.skeleton.graph.spaces
    mixing = set(setting.skeleton.graph.mixing)
    if cut is not None:
        partitions, mixing = cut.merged(partitions), mixing & cut.trunk
    plain = ("convolution kernel", "spatial position", "input ")
    for k, partition in partitions.items():
        space = spaces[k]
        if partition.union or is_output(space.pins):
            continue
        outer = [partitions[i] for i in space.structure if i in partitions]
        if any(other.union and len(other.labels) > 1 for other in outer):
            continue  # its axis is kept apart by the heads or groups it is nested in
        if space.free or not any(pin.startswith(plain) for pin in space.pins):
            return False
    return not mixing


def check_same(merged: Network, projector: Projector) -> None:
    """The merged network computes what its skeleton does, in the merged sizes, and with the
    constants and the scale of attention scores that the projection counts on.

    Raises:
        PlanError: it does not.
    """
    setting, widths = projector.setting, projector.widths
    check_same_program(setting.skeleton, merged, widths)
    check_scores(setting, merged, widths)
    check_constants(setting, merged, projector.partitions)


def check_same_program(skeleton: Network, merged: Network, widths: Mapping[int, int]) -> None:
    """The merged network computes what its skeleton does, in the merged sizes.

    Raises:
        PlanError: it does not.
    """
    mine, theirs = list(skeleton.nodes.order), list(merged.nodes.order)
    if mine != theirs:
        raise PlanError(
            "the merged module runs other operations than its parent "
            f"({len(theirs)} against {len(mine)}): its code depends on its sizes"
        )
    for name, exprs in skeleton.graph.values.items():
        wanted = [merged_size(expr, widths) for expr in exprs]
        found = list(merged.nodes.nodes[name].meta["val"].shape)
        if found != wanted:
            module = merged.nodes.stacks[name][-1:] or ("the model itself",)
            raise PlanError(
                f"the merged module computes {found} in {module[0]}, the merge needs {wanted}; "
                "its code splits features otherwise: give parents whose heads have equal sizes"
            )
