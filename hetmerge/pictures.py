"""Pictures of a merge: how depths were aligned, how features agree, what refit gained."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

ALIGNED = "#d62728"
MOST_CELLS_WITH_NUMBERS = 160
LETTERS = 12  # of a title, per inch
CKA_TITLE = (
    "Red box: the run of deep layers that one shallow layer stands for",
    "red dot: the deep layer it is merged with",
)


def cka_picture(
    similarity: Mapping[str, Sequence[Sequence[float]]],
    segments: Mapping[str, Sequence[int]],
    path: str | Path,
) -> None:
    """Write :func:`cka_figure` as a PNG."""
    cka_figure(similarity, segments).savefig(path, dpi=120)


def svg(figure: Figure) -> str:
    """The figure as an SVG element to stand inside a page, the same bytes every time."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "hetmerge", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def cka_figure(
    similarity: Mapping[str, Sequence[Sequence[float]]],
    segments: Mapping[str, Sequence[int]],
) -> Figure:
    """Draw each stage's CKA map with the chosen alignment.

    Args:
        similarity: stage name -> CKA [deep layers, shallow layers]; stages of one layer are left
            out unless there are no others.
        segments: stage name -> for each shallow layer the deep layer where its segment starts.
    """
    stages = [name for name in similarity if len(similarity[name]) > 1] or list(similarity)
    maps = [np.asarray(similarity[name], dtype=float) for name in stages]
    widths = [max(2.6, 0.62 * m.shape[1] + 1.2) for m in maps]
    width = sum(widths) + 1.2
    title = [line for text in CKA_TITLE for line in wrap(text, int(LETTERS * width))]
    height = max(3.2, 0.42 * max((len(m) for m in maps), default=1) + 1.3 + 0.2 * len(title))
    figure = Figure(figsize=(width, height), layout="constrained")
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
    figure.suptitle("\n".join(title), fontsize=10)
    return figure


def agreement_figure(across: Mapping[str, Sequence[int]], bins: int) -> Figure:
    """Histograms of the correlation of features put together, one row per space.

    Args:
        across: space -> pairs of different parents per bin of correlation from -1 to 1.
        bins: their number.
    """
    figure = Figure(figsize=(7.2, max(1.6, 0.34 * len(across) + 1.1)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    shares = [np.asarray(c, dtype=float) / max(1, sum(c)) for c in across.values()]
    image = axis.imshow(
        np.asarray(shares).reshape(len(shares), bins),
        aspect="auto",
        cmap="viridis",
        extent=(-1.0, 1.0, len(shares) - 0.5, -0.5),
        vmin=0.0,
    )
    axis.set_yticks(range(len(across)), list(across), fontsize=8)
    axis.set_xlabel("correlation of features of different parents that were put together")
    figure.colorbar(image, ax=axis, label="share of the pairs")
    return figure


def fits_figure(fits: Sequence[tuple[str, float, float]]) -> Figure:
    """Explained variance of every layer group before and after refit.

    Args:
        fits: (layers, before, after), front to back.
    """
    figure = Figure(figsize=(7.2, max(1.8, 0.22 * len(fits) + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    rows = range(len(fits))
    before = [max(-0.5, b) for _, b, _ in fits]  # far below zero says no more than below zero
    after = [max(-0.5, a) for _, _, a in fits]
    axis.hlines(rows, before, after, color="#bbbbbb", linewidth=2)
    axis.plot(before, rows, "o", color="#7f7f7f", markersize=4, label="projected")
    axis.plot(after, rows, "o", color=ALIGNED, markersize=4, label="after refit")
    axis.set_yticks(rows, [name for name, _, _ in fits], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(-0.55, 1.05)
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_xlabel("share of the targets' variance explained (below -0.5 is drawn at -0.5)")
    axis.legend(fontsize=8, loc="lower left")
    return figure


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
