"""How errors in the parents' features count, at every place that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from torch import Tensor

from hetmerge.batches import Call
from hetmerge.features import View, views_of
from hetmerge.importance import ByWeights, fisher
from hetmerge.ops.selection import Gram
from hetmerge.options import Options
from hetmerge.setting import Setting
from hetmerge.streams import whole_axis
from hetmerge.tracing.expr import Expr


class Places:
    """Importances of all parents, computed when they are asked for; gradients only once.

    Gradients need the whole of a parent, so parents on disk go by the weights behind a place.
    """

    def __init__(self, setting: Setting, calls: Sequence[Call], options: Options) -> None:
        self.setting, self.calls, self.options = setting, calls, options
        self.by_weights = options.importance == "weights" or not setting.skeleton.in_memory

    def of(self, parent: int, space: int) -> Sequence[Tensor | Gram]:
        """Per place that reads this space of the skeleton in one parent, [size, size]."""
        theirs = self.setting.links[parent].spaces[space]
        if self.by_weights:
            return ByWeights(self.setting.parents[parent], theirs)
        known = self._fisher[parent]
        return [known[view] for view in self._views[parent].get(theirs, ()) if view in known]

    def of_axis(self, outer: int, parents: Iterable[int]) -> dict[int, list[Tensor]]:
        """The same of all heads or groups with what is inside them, in these parents."""
        found: dict[int, list[Tensor]] = {}
        axis = whole_axis(self.setting, outer)
        assert axis is not None
        for m in parents:
            node = self.setting.links[m].node(axis)
            assert node is not None
            parent = self.setting.parents[m]
            if self.by_weights:
                readers = [x for x in parent.layers if x.source == node]
                rows = [parent.state[x.weight].double() for x in readers]
                rows = [w.T if x.transposed else w for w, x in zip(rows, readers, strict=True)]
                found[m] = [w.T @ w for w in rows]
            else:
                view = _axis_view(parent.graph.values[node], node)
                found[m] = [self._fisher[m][view]] if view in self._fisher[m] else []
        return found

    @cached_property
    def _views(self) -> list[dict[int, list[View]]]:
        return [views_of(network) for network in self.setting.parents]

    @cached_property
    def _fisher(self) -> list[dict[View, Tensor]]:
        """Per parent, the Fisher information wherever layers read a space, and of whole axes."""
        spaces = self.setting.skeleton.graph.spaces
        found = []
        for m, network in enumerate(self.setting.parents):
            views = [view for listed in self._views[m].values() for view in listed]
            if self.options.match == "pca":
                axes = {whole_axis(self.setting, s.index) for s in spaces if s.free}
                theirs = {self.setting.links[m].node(axis) for axis in axes if axis}
                views += [_axis_view(network.graph.values[n], n) for n in theirs if n]
            found.append(fisher(network, self.calls, self.options.seed, views))
        return found


def _axis_view(exprs: Sequence[Expr], node: str) -> View:
    """All of the last dimension of a node."""
    return View(node, len(exprs) - 1, ())
