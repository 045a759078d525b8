"""Rows of the vision benchmarks: accuracy, parameters and seconds of one network."""

import os
import platform
import time
from dataclasses import dataclass
from datetime import datetime, timezone

import torch
from torch import Tensor, nn

BATCH = 250


@dataclass(frozen=True)
class Task:
    """Held-out images with ten-class labels, and the classes that each parent knows."""

    images: Tensor
    labels: Tensor
    halves: tuple[tuple[int, ...], ...]

    @property
    def joint(self) -> bool:
        """Whether the parents know different classes, so that outputs are concatenated."""
        return len(set(self.halves)) > 1


@dataclass(frozen=True)
class Row:
    """One line of the table; accuracies in [0, 1]."""

    name: str
    accuracy: float
    halves: tuple[float | None, ...]
    parameters: int
    seconds: float
    note: str = ""

    @property
    def mean(self) -> float | None:
        """Accuracy within a half, averaged over the halves; None where one is not known."""
        known = [half for half in self.halves if half is not None]
        return sum(known) / len(known) if known and len(known) == len(self.halves) else None


def logits(net: nn.Module, images: Tensor) -> Tensor:
    """Outputs on the CPU; the images travel to the network's device batch by batch."""
    net.eval()
    device = next(net.parameters()).device
    with torch.no_grad():
        return torch.cat([net(batch.to(device)).cpu() for batch in images.split(BATCH)])


def row(
    name: str,
    net: nn.Module,
    task: Task,
    seconds: float = 0.0,
    note: str = "",
    parent: int | None = None,
) -> Row:
    """Measure a network.

    Its outputs are those of the parents, averaged or concatenated; or of one of them, named by its
    index in `parent`, which then has no accuracy in the half that it does not know.
    """
    outputs = logits(net, task.images)
    classes = sum(task.halves, ()) if task.joint else task.halves[0]
    if parent is not None:
        classes = task.halves[parent]
    halves: list[float | None] = []
    for half in dict.fromkeys(task.halves) if task.joint else ():
        mine = torch.isin(task.labels, torch.tensor(half))
        columns = [classes.index(c) for c in half if c in classes]
        known = len(columns) == len(half)
        halves.append(
            _accuracy(outputs[mine][:, columns], half, task.labels[mine]) if known else None
        )
    accuracy = _accuracy(outputs, classes, task.labels)
    return Row(name, accuracy, tuple(halves), count(net), round(seconds, 1), note)


def _accuracy(outputs: Tensor, classes: tuple[int, ...], labels: Tensor) -> float:
    guesses = torch.tensor(classes)[outputs.argmax(dim=1)]
    return round((guesses == labels).float().mean().item(), 4)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def machine() -> dict[str, str | int]:
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


class Clock:
    """Wall time of a `with` block, in `seconds`."""

    def __enter__(self) -> "Clock":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
