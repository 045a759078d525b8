"""What has to be seen of the parents' features for the options of a merge."""

from __future__ import annotations

from dataclasses import dataclass

from hetmerge.options import Options
from hetmerge.setting import Setting
from hetmerge.widths import target_width


@dataclass(frozen=True)
class Scope:
    """What moments are gathered of.

    Attributes:
        within: also between features of one parent.
        whole: also of whole axes of all heads, not only of those inside groups, and how loud all
            streams without a preferred basis are, for orthogonal maps.
        alone: also of spaces that one parent has alone, which may become narrower.
    """

    within: bool = True
    whole: bool = False
    alone: bool = False

    @staticmethod
    def of(setting: Setting, options: Options) -> Scope:
        """For options with a way of matching."""
        fewer = options.budget is not None or shrinks(setting, options)
        within = options.match != "permute" or options.budget is not None
        whole = options.match == "pca" or options.budget is not None
        return Scope(within, whole, fewer)


def shrinks(setting: Setting, options: Options) -> bool:
    """Some space would be narrower than a parent's, which one-to-one matching cannot do."""
    for space in setting.skeleton.graph.spaces:
        sizes = [setting.width(m, space.index) for m in setting.members(space.index)]
        if space.free and sizes and target_width(options.width, space, sizes) < max(sizes):
            return True
    return False
