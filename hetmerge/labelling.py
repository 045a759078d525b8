"""Clusters of features by their similarity, as the options of a merge ask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.labels import permute_labels, zip_labels
from hetmerge.options import Options


class Labelling:
    """Labels of blocks of features; a parent of weight 0 has no say in them.

    Args:
        options: of the merge.
        weights: per parent, summing to 1.
        notes: where remarks for the plan go.
        overwrite: similarities may be used as workspace.
    """

    def __init__(
        self, options: Options, weights: Sequence[float], notes: list[str], overwrite: bool
    ) -> None:
        self.options, self.weights, self.notes = options, weights, notes
        self.overwrite = overwrite

    def labels(
        self,
        name: str,
        match: str,
        similarity: Tensor,
        blocks: Sequence[tuple[int, int]],
        target: int,
    ) -> tuple[int, tuple[Tensor, ...]]:
        """Match the blocks whose parents have a weight; the others join what they resemble.

        Args:
            name: of the space, for messages.
            match: "permute", or how features are matched where they may become fewer.
            similarity: [O, O], O the features of all blocks.
            blocks: (parent, features) one after the other.
            target: clusters wanted; there are no more than features that are heard.

        Returns:
            The number of clusters, and int64 [features] per block, on the CPU.
        """
        counts = [count for _, count in blocks]
        where = similarity.device
        silent = torch.tensor([self.weights[m] == 0 for m, _ in blocks], device=where)
        silent &= ~silent.all()
        active = [n for n, quiet in zip(counts, silent.tolist(), strict=True) if not quiet]
        width = min(target, sum(active))
        flat = torch.empty(sum(counts), dtype=torch.int64, device=where)
        quiet = silent.repeat_interleave(torch.tensor(counts, device=where))
        nearest = similarity[quiet][:, ~quiet].argmax(1)
        shown = similarity[~quiet][:, ~quiet] if bool(silent.any()) else similarity
        found = torch.arange(width, device=where)
        if width < sum(active):
            found = self._match(name, match, shown, active, width)
        flat[~quiet] = found
        flat[quiet] = found[nearest]
        return width, flat.cpu().split(counts)

    def _match(
        self, name: str, match: str, similarity: Tensor, counts: list[int], target: int
    ) -> Tensor:
        options = self.options
        # A selection keeps heads whole and pairs their features, unless they become fewer.
        if match == "permute" or (match in ("select", "pca") and target >= max(counts)):
            if target < max(counts):
                raise InputError(
                    f"width: {target} for space {name!r} is below its widest parent "
                    f"({max(counts)}); match='permute' cannot shrink a parent: use match='zip' "
                    "or a larger width"
                )
            return permute_labels(similarity, counts, target)
        labels, relaxed = zip_labels(
            similarity,
            counts,
            target,
            options.alpha,
            options.beta,
            options.backend,
            overwrite=self.overwrite,
        )
        note = f"space {name!r}: within-model budgets ran out and were relaxed"
        if relaxed and note not in self.notes:
            self.notes.append(note)
        return labels
