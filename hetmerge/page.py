"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from hetmerge.agreement import BINS, sentence
from hetmerge.pictures import agreement_figure, cka_figure, fits_figure, svg
from hetmerge.polishing import Polished

if TYPE_CHECKING:
    from hetmerge.planning import AlignmentPlan
    from hetmerge.report import Report, SpaceReport

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead { border-bottom: 1px solid #999; }
svg { max-width: 100%; height: auto; } .verdict { font-size: 1.1rem; }
"""

SPACE_COLUMNS = (
    "space",
    "features",
    "width",
    "shared",
    "across",
    "within",
    "correlation",
    "chance",
)
SPACE_LEGEND = (
    "<p>shared: features that are averaged or left out; across, within: pairs of them of different "
    "parents and of one; correlation: mean over the pairs across; chance: the same for parents "
    "that see different inputs.</p>"
)


def render(report: Report, plan: AlignmentPlan) -> str:
    """[HTML] what was merged, what met what, how well it agrees, what refit gained."""
    free = [s for s in report.spaces if s.free]
    spaces = [s for s in free if sum(n is not None for n in s.sizes) > 1]
    agreements = {s.name: s.agreement for s in spaces if s.agreement is not None}
    parts = [
        "<h1>Merge report</h1>",
        f"<p class='verdict'>{escape(sentence(list(agreements.values())))}</p>",
        _table(("", "parameters", "MFLOPs", "weight"), _parents(report)),
    ]
    if report.exact:
        parts.append("<p>Exact: the outputs are the parents' own, averaged or side by side.</p>")
    if report.scores:
        names = sorted({name for scores in report.scores.values() for name in scores})
        rows = [[who, *(_number(s.get(n)) for n in names)] for who, s in report.scores.items()]
        parts += ["<h2>Evaluation</h2>", _table(("", *names), rows)]
    if plan.similarity:
        parts += ["<h2>Depth</h2>", svg(cka_figure(plan.similarity, plan.segments))]
    if spaces:
        parts += ["<h2>Width</h2>", _table(SPACE_COLUMNS, map(_space, spaces)), SPACE_LEGEND]
        parts.append(f"<p>{len(free) - len(spaces)} spaces that one parent has alone.</p>")
    seen = {name: a.across for name, a in agreements.items() if sum(a.across)}
    if seen:
        parts.append(svg(agreement_figure(seen, BINS)))
    if report.fits:
        fits = [(_short(fit["layers"]), fit["before"], fit["after"]) for fit in report.fits]
        parts += ["<h2>Refit</h2>", svg(fits_figure(fits))]
    if report.polish:
        text = escape(str(Polished(**report.polish)))
        parts += ["<h2>Polish (training)</h2>", f"<p>The merged model was {text}.</p>"]
    if report.left_out:
        parts += ["<p>Not refitted:</p>", _table(("layer", "why"), report.left_out.items())]
    if report.notes:
        parts += ["<h2>Remarks</h2>", "<ul>", *(f"<li>{escape(n)}</li>" for n in report.notes)]
        parts.append("</ul>")
    options = ((name, repr(value)) for name, value in report.options.items())
    parts += ["<h2>Options</h2>", _table(("option", "value"), options)]
    return _document("\n".join(parts))


def _document(body: str) -> str:
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<title>Merge report</title>"
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _parents(report: Report) -> list[list[str]]:
    rows = [
        [_named(report, m), f"{count:,}", _mega(work), f"{weight:.3g}"]
        for m, (count, work, weight) in enumerate(
            zip(report.parameters, report.flops, report.weights, strict=True)
        )
    ]
    return [*rows, ["merged", f"{report.merged_parameters:,}", _mega(report.merged_flops), ""]]


def _named(report: Report, parent: int) -> str:
    """A parent with the name and commit it was loaded by."""
    source = report.sources[parent] if report.sources else {}
    sha = source.get("sha")
    commit = f"@{sha[:12]}" if sha else ""
    return f"parent {parent}" + (f": {source['name']}{commit}" if source else "")


def _mega(count: int) -> str:
    return f"{count / 1e6:,.4g}"


def _space(space: SpaceReport) -> list[str]:
    sizes = " + ".join("-" if n is None else str(n) for n in space.sizes)
    row = [space.name, sizes, str(space.width), str(space.merged)]
    found = space.agreement
    if found is None:
        return [*row, "", "", "", ""]
    counts = [str(sum(found.across)), str(sum(found.within))]
    return [*row, *counts, _number(found.mean), _number(found.chance)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>\n{body}\n</tbody></table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _short(layers: Sequence[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} + {len(layers) - 1}"
