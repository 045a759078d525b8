"""Rows of the results table: what a case costs, beside its baselines and the machine's limits."""

from __future__ import annotations

import csv
import datetime
import platform
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Timing:
    """One implementation of one case: milliseconds at the 20th, 50th and 80th percentile."""

    case: str
    implementation: str
    p20: float
    p50: float
    p80: float
    flops: float = 0.0
    bytes: float = 0.0
    dtype: str = "float32"
    error: float | None = None  # largest difference from float64, relative to its largest entry

    @property
    def ours(self) -> bool:
        return self.implementation.startswith("hetmerge")


@dataclass(frozen=True)
class Roofs:
    """What the machine can do at most, measured in the same run."""

    bandwidth: float  # bytes per second, read and written
    flops: dict[str, float]  # operations per second of a large matrix product, by dtype

    def seconds(self, timing: Timing) -> float:
        """Least time the counted bytes and operations take."""
        peak = self.flops.get(timing.dtype, self.flops["float32"])
        return max(timing.bytes / self.bandwidth, timing.flops / peak)


@dataclass(frozen=True)
class Row:
    case: str
    implementation: str
    device: str
    threads: int
    date: str
    commit: str
    ms_p20: str
    ms_p50: str
    ms_p80: str
    gb_per_s: str
    tflop_per_s: str
    roof_fraction: str
    ratios: str  # "baseline 12.3; ...": how many times longer each baseline takes
    error: str


def rows_of(timings: list[Timing], roofs: Roofs, device: str, threads: int) -> list[Row]:
    """One row per case and implementation of ours."""
    today, commit = datetime.date.today().isoformat(), _commit()
    rows = []
    for ours in (t for t in timings if t.ours):
        others = [t for t in timings if t.case == ours.case and not t.ours]
        seconds, least = ours.p50 / 1e3, roofs.seconds(ours)
        rows.append(
            Row(
                case=ours.case,
                implementation=ours.implementation,
                device=device,
                threads=threads,
                date=today,
                commit=commit,
                ms_p20=_short(ours.p20),
                ms_p50=_short(ours.p50),
                ms_p80=_short(ours.p80),
                gb_per_s=_short(ours.bytes / seconds / 1e9) if ours.bytes else "",
                tflop_per_s=_short(ours.flops / seconds / 1e12) if ours.flops else "",
                roof_fraction=_short(least / seconds) if least else "",
                ratios="; ".join(f"{t.implementation} {_short(t.p50 / ours.p50)}" for t in others),
                error="" if ours.error is None else f"{ours.error:.1e}",
            )
        )
    return rows


def table(rows: list[Row]) -> str:
    """The rows as text: times, rates, and how many times longer each baseline takes."""
    head = ("case", "by", "ms", "GB/s", "TFLOP/s", "of roof", "error", "baselines take, times ours")
    lines = [head] + [
        (
            r.case,
            r.implementation,
            r.ms_p50,
            r.gb_per_s,
            r.tflop_per_s,
            r.roof_fraction,
            r.error,
            r.ratios,
        )
        for r in rows
    ]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def save(rows: list[Row], path: Path) -> None:
    """Write the table; cases that were not run keep the row they had."""
    names = [field.name for field in fields(Row)]
    kept: dict[tuple[str, str], dict[str, str]] = {}
    if path.exists():
        with path.open(newline="") as file:
            kept = {(r["case"], r["implementation"]): r for r in csv.DictReader(file)}
    kept.update({(r.case, r.implementation): asdict(r) for r in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept[key] for key in sorted(kept))


def device_name(device: str) -> str:
    """Such as "AMD EPYC, 2 cores" or "NVIDIA H200"."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    text = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        text = models[0] if models else text
        return f"{text}, {len(models)} cores"
    return text


def slug(name: str) -> str:
    """A device's name as a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _short(value: float) -> str:
    return f"{value:.4g}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
