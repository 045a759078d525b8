"""The orthogonal map of a space without preferred basis: principal directions of all parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hetmerge.ops.moments import Moments
from hetmerge.ops.selection import Gram
from hetmerge.partition import Partition
from hetmerge.selecting import importance_of, spans_of

FLOOR = 1e-3  # of the mean importance: no direction is worth nothing


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions of all parents' features side by side, the best first.

    Attributes:
        sizes: parent -> features; O is their sum.
        basis: [O, O] float64, one direction per column; rows of parents of weight 0 are 0.
        energy: [O] float64, second moment along each.
        shares: [O] float64, what a parent's features count in the basis; 0 without a weight.
        second: [O, O] float64, second moments of what layers read.
        loudness: parent -> root mean square of its stream in front of the norms; empty where layers
            read the space as it is.
        costs: [O] float64, what the loss of each direction costs.
    """

    sizes: dict[int, int]
    basis: Tensor
    energy: Tensor
    shares: Tensor
    second: Tensor
    loudness: dict[int, float]
    costs: Tensor

    def lost(self) -> Tensor:
        """[O + 1] float64, share that is lost where only the first k directions are kept."""
        kept = torch.cat([self.costs.new_zeros(1), self.costs.cumsum(0)])
        return 1 - kept / kept[-1] if kept[-1] > 0 else torch.zeros_like(kept)

    def partition(self, width: int) -> Partition:
        """The map that keeps the first `width` directions.

        With y the parents' features as layers read them, each parent's times the root of its share,
        and V the directions, the merged features are V'y and a parent's are read as V V'y. Behind
        norms, what is read has the same mean square in every network, whatever its width: reading
        compensates for that, and writing brings every parent's stream to the same loudness first.
        """
        heard = int((self.shares > 0).sum())
        kept = min(width, heard)
        basis = self.basis[:, :kept]
        if width >= heard:  # everything is kept: no need to turn it
            basis = torch.eye(len(self.shares)).to(self.shares)[:, self.shares > 0]
        root = self.shares.sqrt()
        gain = root.new_ones(())
        volume = torch.ones_like(root)
        if self.loudness:
            seen, whole = basis * root[:, None], (self.second.diagonal() * self.shares).sum()
            kept_share = (seen * (self.second @ seen)).sum() / whole
            gain = (kept_share * self.shares.sum() / width).sqrt()
            volume = self._volume() / gain
        reads = self._reads(basis, root) * gain
        writes = basis * (root * volume)[:, None]
        reads, writes = (F.pad(x, (0, width - kept)) for x in (reads, writes))
        spans = spans_of(self.sizes)
        return Partition(
            width,
            {m: torch.full((n,), -1) for m, n in self.sizes.items()},
            {m: reads[span].contiguous() for m, span in spans.items()},
            {m: writes[span].contiguous() for m, span in spans.items()},
        ).cpu()

    def _volume(self) -> Tensor:
        """[O]: brings each parent's stream to the loudness of their weighted geometric mean."""
        spans = spans_of(self.sizes)
        weights = torch.stack([self.shares[spans[m]][0] for m in self.sizes])
        logs = (
            torch.tensor([self.loudness[m] for m in self.sizes], dtype=torch.float64)
            .to(weights)
            .log()
        )
        factor = ((weights * logs).sum() / weights.sum() - logs).exp()
        counts = torch.tensor(list(self.sizes.values()), device=factor.device)
        return factor.repeat_interleave(counts)

    def _reads(self, basis: Tensor, root: Tensor) -> Tensor:
        """[O, kept]: how features are read; those of parents without a weight by least squares."""
        reads = basis / torch.where(root > 0, root, 1.0)[:, None]
        silent = root == 0
        if bool(silent.any()):
            seen = basis * root[:, None]
            inverse = torch.linalg.pinv(seen.T @ self.second @ seen, hermitian=True)
            reads[silent] = self.second[silent] @ seen @ inverse
        return reads


def directions(
    second: Tensor,
    sizes: Mapping[int, int],
    importances: Mapping[int, Sequence[Tensor | Gram]],
    weights: Sequence[float],
    loudness: Mapping[int, float],
) -> Directions:
    """Principal directions, ordered by what their loss costs.

    With C = V diag(l) V' the second moments of all features, what is lost without a set of
    directions is the sum of ``l_i v_i' Q v_i`` over them, because they are uncorrelated. Keeping
    eigenvectors, and not the minimiser of tr(Q E) over all subspaces, leaves lengths as they are,
    which the norms behind the space need.

    Args:
        second: [O, O] float64 second moments about zero of what layers read, parent after parent.
        sizes: parent -> features; O is their sum.
        importances: parent -> per place that reads its features, [size, size].
        weights: of all parents.
        loudness: parent -> root mean square in front of the norms; empty without norms.
    """
    total = sum(weights[m] for m in sizes)
    known = {m: weights[m] if total > 0 else 1.0 for m in sizes}
    mean = sum(known.values()) / sum(w > 0 for w in known.values())
    counts = torch.tensor(list(sizes.values()), device=second.device)
    shares = torch.tensor([w / mean for w in known.values()], dtype=torch.float64).to(second)
    shares = shares.repeat_interleave(counts)
    root = shares.sqrt()
    energy, basis = torch.linalg.eigh(second * root[:, None] * root)
    importance = importance_of(second, sizes, importances, weights)
    inverse = torch.where(root > 0, 1 / root.clamp_min(1e-30), 0.0)
    seen = basis * inverse[:, None]
    matters = (seen * (importance @ seen)).sum(0)
    matters = matters + (FLOOR * matters.mean() if bool(matters.any()) else 1.0)
    silent = basis[shares == 0].square().sum(0) > 0.5
    costs = (energy.clamp_min(0) * matters).masked_fill(silent, -1)
    order = costs.argsort(descending=True)
    kept = (basis[:, order], energy[order], shares, second, dict(loudness))
    return Directions(dict(sizes), *kept, costs[order].clamp_min(0))


def about_zero(moments: Moments) -> Tensor:
    """Second moments about zero, [O, O] float64."""
    mean = moments.mean()
    return moments.covariance().addr_(mean, mean)
