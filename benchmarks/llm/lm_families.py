"""Which families of transformers merge: tiny random members of different depth, width and heads.

python benchmarks/llm/lm_families.py                    # every causal language model, 20 minutes
python benchmarks/llm/lm_families.py --kinds llama,mixtral
python benchmarks/llm/lm_families.py --task masked      # or image
python benchmarks/llm/lm_families.py --page docs/families.md   # what is known, as a page

Of each family two models are made, written and merged from disk: with all weight on the smaller
number of layers, which must give that parent's outputs, and with equal weights, zip and refit.
"""

from __future__ import annotations

import argparse
import logging
import re
import resource
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import nn

import hetmerge as hm
from hetmerge.errors import HetmergeError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lines import FOLDER, read, write
from lm_members import DEEP, TASKS, TIMES, WIDE, inputs, pair

Batch = dict[str, torch.Tensor]

OUT = Console()
RESULTS = FOLDER / "families.csv"
LONGEST, LARGEST = 240, 12 << 30  # seconds and bytes of address space for one family
ALONE: dict[str, Any] = {"weights": [1, 0], "refit": False, "match": "permute"}
NEAR = 1e-4  # of the largest output: single precision, a few layers


@dataclass(frozen=True)
class Result:
    """What became of one family.

    Attributes:
        outcome: "merged"; "refused", with hetmerge's message; "failed", with another error; "not
            made", where no tiny member of the family could be made here.
        difference: of the outputs from those of the parent with all weight, of the largest.
        exact: the plan does not say that depth costs something.
    """

    task: str
    kind: str
    outcome: str
    difference: float
    exact: bool
    message: str

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.kind


def parsed(line: dict[str, str]) -> Result:
    return Result(
        line["task"], line["kind"], line["outcome"], float(line["difference"]),
        line["exact"] == "True", line["message"],
    )  # fmt: skip


def merge(task: str, kind: str) -> Result:
    """Make two members of a family, prove the spaces of one, and merge them twice."""

    def outcome(what: str, difference: float = 0.0, exact: bool = True, said: Any = "") -> Result:
        said = re.sub(r"/\S*/tmp\w+", "", " ".join(str(said).split()))  # no folder of this machine
        return Result(task, kind, what, difference, exact, said[:300])

    batches = inputs(task)
    try:
        wide, deep = pair(task, kind, batches[0])
    except Exception as error:
        return outcome("not made", said=f"{type(error).__name__}: {error}")
    try:
        hm.trace(wide, (), batches[0]).verify(wide, tolerance=NEAR)
        norms = any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in wide.modules()
        )
        difference, exact, finite = (in_memory if norms else from_disk)(wide, deep, batches)
        if exact and not difference < NEAR:
            return outcome("failed", difference, said="its outputs are not those of the parent")
        if not finite:
            return outcome("failed", said="the merge with equal weights is not finite")
        return outcome("merged", difference, exact)
    except HetmergeError as error:
        return outcome("refused", said=error)
    except Exception as error:
        what = "not made" if "allocate memory" in str(error) else "failed"  # more than LARGEST
        return outcome(what, said=f"{type(error).__name__}: {error}")


def from_disk(wide: nn.Module, deep: nn.Module, batches: list[Batch]) -> tuple[float, bool, bool]:
    """What is off with all weight on the wider, whether that should be exact, and whether equal
    weights give finite outputs."""
    family: Any = type(wide)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parents = [folder / "wide", folder / "deep"]
        for model, place in zip((wide, deep), parents, strict=True):
            model.save_pretrained(place)  # type: ignore[operator]
        one = hm.merge_to(folder / "one", parents, batches, progress=False, **ALONE)
        hm.merge_to(folder / "both", parents, batches, progress=False, match="zip")
        # some tie what was not tied before they were saved
        models = [family.from_pretrained(p) for p in (parents[0], folder / "one", folder / "both")]
    return compared(models, one, batches[0])


def in_memory(wide: nn.Module, deep: nn.Module, batches: list[Batch]) -> tuple[float, bool, bool]:
    """The same for networks with BatchNorms, which are not merged from disk."""
    one = hm.merge([wide, deep], batches, progress=False, **ALONE)
    both = hm.merge([wide, deep], batches, progress=False, match="zip")
    return compared([wide, one.model, both.model], one, batches[0])


def compared(models: list[Any], one: hm.MergeResult, batch: Batch) -> tuple[float, bool, bool]:
    with torch.no_grad():
        wanted, found, both = (model.eval()(**batch)[0] for model in models)
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    exact = not any("not exact" in note for note in one.report.notes)
    return difference, exact, bool(both.isfinite().all())


def apart(task: str, kind: str) -> Result:
    """The same in a process of its own, which may run out of time or memory."""
    command = [sys.executable, __file__, "--task", task, "--one", kind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return Result(task, kind, "not made", 0.0, True, f"more than {LONGEST} s")
    found = read(RESULTS, parsed).get((task, kind))
    if done.returncode or found is None:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Result(task, kind, "failed", 0.0, True, last[:300])
    return found


def keep(result: Result) -> None:
    known = read(RESULTS, parsed)
    known[result.key] = result
    write(RESULTS, known, lambda r: r.key)


INTRODUCTION = """# Families

What became of every family of transformers {version} that has a class for a task: two tiny random
members, one of {wide.layers} layers, width {wide.width} and {wide.heads} heads, one of
{deep.layers} layers, width {deep.width} and {deep.heads} heads (in stages: blocks of the second,
widths double up to the last; times the width and heads: {larger}), written and merged from disk, or
in memory where they have BatchNorms. A family counts as merged if the spaces of a member are proven
by permuting them, the merge with all weight on the wider parent gives its outputs ({near:g} of the
largest, single precision) unless it is told that it is not exact, and a merge with equal weights,
zip and refit is loaded and finite. That says nothing about how good merges of trained members are.

`python benchmarks/llm/lm_families.py --task TASK`, then `--page docs/families.md`; lines in
`benchmarks/results/families.csv`. Machine: 2 cores of an AMD EPYC, {date}.
"""
TITLES = {
    "causal": "Causal language models",
    "masked": "Masked language models",
    "image": "Image classification",
}


def page(path: Path) -> None:
    """Write what is known as Markdown."""
    today = datetime.now(timezone.utc).date().isoformat()
    known = {"version": transformers.__version__, "wide": WIDE, "deep": DEEP, "near": NEAR}
    known["larger"] = ", ".join(f"{kind} {times}" for kind, times in TIMES.items())
    parts = [INTRODUCTION.format(**known, date=today)]
    results = list(read(RESULTS, parsed).values())
    for task, title in TITLES.items():
        mine = [r for r in results if r.task == task]
        if not mine:
            continue
        merged = [r for r in mine if r.outcome == "merged"]
        made = sum(r.outcome != "not made" for r in mine)
        parts.append(f"## {title}\n\n{len(merged)} of {made} merge:")
        parts.append(", ".join(r.kind for r in merged if r.exact) + ".\n")
        if loose := [r.kind for r in merged if not r.exact]:
            said = (
                "Merged too, and told not to be exact (mostly: nothing makes a missing layer zero)"
            )
            parts.append(f"{said}: {', '.join(loose)}.\n")
        if others := [r for r in mine if r.outcome in ("refused", "failed")]:
            parts.append("| family | what stops it |\n|---|---|")
            parts += [f"| {r.kind} | {_cell(r)} |" for r in others]
        if unmade := [r.kind for r in mine if r.outcome == "not made"]:
            parts.append(f"\nNo tiny member could be made here: {', '.join(unmade)}.\n")
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _cell(result: Result) -> str:
    said = result.message.replace("|", "/")
    return said if result.outcome == "refused" else f"**{said}**"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="causal")
    parser.add_argument("--kinds", default="", help="families, separated by commas; default: all")
    parser.add_argument("--page", type=Path, help="write what is known to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        resource.setrlimit(resource.RLIMIT_AS, (LARGEST, LARGEST))
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
        keep(merge(chosen.task, chosen.one))
        return
    if chosen.page:
        page(chosen.page)
        return
    kinds = chosen.kinds.split(",") if chosen.kinds else list(TASKS[chosen.task])
    counts = Counter[str]()
    for kind in kinds:
        result = apart(chosen.task, kind)
        keep(result)
        counts[result.outcome] += 1
        OUT.print(f"{kind}: {result.outcome} {result.message}", highlight=False, markup=False)
    OUT.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


if __name__ == "__main__":
    main()
