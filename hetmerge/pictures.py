"""A picture of how two depths were aligned."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

ALIGNED = "#d62728"
MOST_CELLS_WITH_NUMBERS = 160


def cka_picture(
    similarity: Mapping[str, Sequence[Sequence[float]]],
    segments: Mapping[str, Sequence[int]],
    path: str | Path,
) -> None:
    """Draw each stage's CKA map with the chosen alignment, and write it as a PNG.

    Args:
        similarity: stage name -> CKA [deep layers, shallow layers]; stages of one layer are left
            out unless there are no others.
        segments: stage name -> for each shallow layer the deep layer where its segment starts.
        path: file to write.
    """
    stages = [name for name in similarity if len(similarity[name]) > 1] or list(similarity)
    maps = [np.asarray(similarity[name], dtype=float) for name in stages]
    widths = [max(2.6, 0.62 * m.shape[1] + 1.2) for m in maps]
    height = max(3.2, 0.42 * max((len(m) for m in maps), default=1) + 1.7)
    figure = Figure(figsize=(sum(widths) + 1.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=widths)[0]
    low = min((float(m.min()) for m in maps), default=0.0)
    image = None
    for axis, name, values in zip(axes, stages, maps, strict=True):
        image = axis.imshow(values, cmap="viridis", vmin=low, vmax=1.0, aspect="auto")
        _label(axis, name, values, low)
        _path(axis, segments[name], len(values))
    axes[0].set_ylabel("layer of the deeper parent")
    figure.supxlabel("layer of the shallower parent", fontsize=10)
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="CKA", fraction=0.05)
    figure.suptitle(
        "Red box: the run of deep layers that one shallow layer stands for\n"
        "red dot: the deep layer it is merged with",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)


def _label(axis: Axes, name: str, values: NDArray[np.float64], low: float) -> None:
    deep, shallow = values.shape
    axis.set_title(name, fontsize=10)
    axis.set_xticks(range(shallow))
    axis.set_yticks(range(deep))
    if values.size > MOST_CELLS_WITH_NUMBERS:
        return
    for (row, column), value in np.ndenumerate(values):
        dark = value < low + 0.6 * (1.0 - low)
        colour = "white" if dark else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)


def _path(axis: Axes, starts: Sequence[int], deep: int) -> None:
    """Box each segment, and mark the deep layer that the shallow layer is merged into."""
    ends = [*starts[1:], deep]
    for column, (start, end) in enumerate(zip(starts, ends, strict=True)):
        box = (column - 0.5, start - 0.5)
        axis.add_patch(Rectangle(box, 1, end - start, fill=False, edgecolor=ALIGNED, linewidth=2.2))
        axis.plot(column - 0.38, start - 0.3, marker="o", markersize=5, color=ALIGNED)
