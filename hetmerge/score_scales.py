"""Attention scores of parents whose heads differ in size: queries make up for the root of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from hetmerge.attention import Attention, Factor
from hetmerge.errors import PlanError
from hetmerge.network import Network
from hetmerge.partition import merged_size
from hetmerge.setting import Setting

CLOSE = 1e-6  # relative difference of scales that are the same


def score_factors(setting: Setting, widths: Mapping[int, int]) -> list[dict[str, Factor]]:
    """Per parent, tensor of the skeleton -> what its features are multiplied by; mostly nothing."""
    found: list[dict[str, Factor]] = [{} for _ in setting.parents]
    for own in setting.skeleton.attentions.values():
        scale = merged_scale(setting, own, widths)
        for m, theirs in _theirs(setting, own).items():
            if not math.isclose(theirs.scale, scale, rel_tol=CLOSE):
                link = setting.links[m]
                names = {link.tensors[q.tensor]: q.tensor for q in own.made}
                for q in theirs.made:
                    values = torch.where(q.used, theirs.scale / scale, 1.0).double()
                    found[m][names[q.tensor]] = Factor(q.dim, q.offset, values)
    return found


def merged_scale(setting: Setting, own: Attention, widths: Mapping[int, int]) -> float:
    """One over the root of the merged size if all parents' scales are that of theirs; else what the
    base parent's configuration says."""
    theirs = _theirs(setting, own).values()
    if all(math.isclose(a.scale * math.sqrt(a.size), 1, rel_tol=CLOSE) for a in theirs):
        return 1 / math.sqrt(merged_size(setting.skeleton.graph.values[own.query][-1], widths))
    return own.scale


def check_scores(setting: Setting, merged: Network, widths: Mapping[int, int]) -> None:
    """The merged network multiplies its scores by what the parents' queries were scaled for.

    Raises:
        PlanError: it does not.
    """
    for name, own in setting.skeleton.attentions.items():
        wanted, found = merged_scale(setting, own, widths), merged.attentions[name].scale
        if not math.isclose(wanted, found, rel_tol=CLOSE):
            module = merged.nodes.stacks[name][-1:] or ("the model itself",)
            raise PlanError(
                f"the merged module multiplies attention scores by {found:g} in {module[0]}, the "
                f"merge needs {wanted:g}; give parents whose heads have equal sizes"
            )


def unscaled(setting: Setting, widths: Mapping[int, int]) -> list[str]:
    """Remarks on attention whose queries nothing can scale."""
    found = []
    for own in setting.skeleton.attentions.values():
        scale = merged_scale(setting, own, widths)
        for m, theirs in _theirs(setting, own).items():
            if not theirs.made and not math.isclose(theirs.scale, scale, rel_tol=CLOSE):
                found.append(
                    f"models[{m}]: its attention scores are multiplied by {scale:g} instead of "
                    f"{theirs.scale:g} ({theirs.node}); no weight of its queries can make up for it"
                )
    return found


def _theirs(setting: Setting, own: Attention) -> dict[int, Attention]:
    """Parent -> the attention that stands there, of the parents that have it."""
    found = {}
    for m, link in enumerate(setting.links):
        node = link.node(own.node)
        if node in link.parent.attentions:
            found[m] = link.parent.attentions[node]
    return found
