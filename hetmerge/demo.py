"""The main job on an embedded default: merge two digit specialists of different shape."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.controls import Ensemble, head_control
from hetmerge.demo_models import HALVES, DigitNet, Digits, digits, train
from hetmerge.pictures import cka_picture

SHAPES = (((4, 4), (16, 32)), ((2, 2), (12, 24)))
EPOCHS = 15
CALIBRATION = 1000
BATCH = 250
PICTURE = "cka.png"

MERGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("permute", {"match": "permute", "refit": False}),
    ("permute + REPAIR", {"match": "permute", "refit": False, "repair": "repair"}),
    ("permute + refit", {"match": "permute"}),
    ("zip", {"match": "zip", "refit": False}),
    ("zip + refit", {"match": "zip"}),
    ("select + refit", {"match": "select"}),
    ("auto + refit", {}),
    ("union", {"match": "zip", "width": "union", "refit": False}),
)


@dataclass(frozen=True)
class Row:
    """One line of the table; accuracies on held-out images, None where they do not apply."""

    name: str
    joint: float
    first_half: float | None
    second_half: float | None
    parameters: int
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """All rows, what they were measured on, and where the picture lies."""

    rows: list[Row]
    seed: int
    train_images: int
    calibration_images: int
    test_images: int
    seconds: float
    torch: str
    machine: str
    picture: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(output: Path, seed: int = 0, progress: Callable[[str], None] | None = None) -> DemoResult:
    """Train both parents, merge them in every way, and write the picture into `output`.

    Args:
        output: folder for the picture; made if missing.
        seed: for the split, both trainings and the merge.
        progress: called with the name of each step before it starts.
    """
    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    picture = output / PICTURE
    data = digits(seed)
    with _one_thread():
        rows = list(_rows(data, seed, picture, progress or (lambda _step: None)))
    return DemoResult(
        rows=rows,
        seed=seed,
        train_images=len(data.train_images),
        calibration_images=min(CALIBRATION, len(data.train_images)),
        test_images=len(data.test_images),
        seconds=round(time.perf_counter() - start, 2),
        torch=torch.__version__,
        machine=f"{platform.machine()}, 1 thread",
        picture=str(picture),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """These networks are so small that more threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rows(data: Digits, seed: int, picture: Path, progress: Callable[[str], None]) -> Iterator[Row]:
    parents: list[DigitNet] = []
    for index, classes in enumerate(HALVES):
        progress(f"training parent {'AB'[index]}")
        with _Clock() as clock:
            parents.append(_parent(data, seed, index))
        yield _parent_row(parents[-1], data, classes, f"parent {'AB'[index]}", clock.seconds)
    batches = list(data.train_images[:CALIBRATION].split(BATCH))
    yield _row("ensemble", Ensemble(parents, "concat"), data, 0.0)
    standardised = Ensemble(parents, "concat", batches)
    yield _row("ensemble, scaled logits", standardised, data, 0.0)
    for index, body in enumerate(parents):
        with _Clock() as clock:
            control = head_control(body, parents, batches, head="head", outputs="concat")
        yield _row(f"head only, body {'AB'[index]}", control, data, clock.seconds)
    drawn = False
    for name, options in MERGES:
        progress(name)
        with _Clock() as clock:
            result = hm.merge(
                parents, batches, outputs="concat", seed=seed, progress=False, **options
            )
        if not drawn:
            cka_picture(result.plan.similarity, result.plan.segments, picture)
            drawn = True
        yield _row(name, result.model, data, clock.seconds)


def _parent(data: Digits, seed: int, index: int) -> DigitNet:
    blocks, widths = SHAPES[index]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2 * seed + index)
        net = DigitNet(blocks, widths, len(HALVES[index]))
    train(
        net,
        data.train_images,
        data.train_labels,
        HALVES[index],
        epochs=EPOCHS,
        seed=2 * seed + index,
    )
    return net


def _parent_row(
    net: nn.Module, data: Digits, classes: tuple[int, ...], name: str, seconds: float
) -> Row:
    guesses = torch.tensor(classes)[_logits(net, data).argmax(dim=1)]
    right = (guesses == data.test_labels).float()
    own = round(right[torch.isin(data.test_labels, torch.tensor(classes))].mean().item(), 4)
    first, second = (own, None) if classes == HALVES[0] else (None, own)
    joint = round(right.mean().item(), 4)
    return Row(name, joint, first, second, _parameters(net), round(seconds, 2))


def _row(name: str, net: nn.Module, data: Digits, seconds: float) -> Row:
    logits, labels = _logits(net, data), data.test_labels
    joint = (logits.argmax(dim=1) == labels).float().mean().item()
    halves = []
    for classes in map(torch.tensor, HALVES):
        rows = torch.isin(labels, classes)
        guesses = classes[logits[rows][:, classes].argmax(dim=1)]
        halves.append(round((guesses == labels[rows]).float().mean().item(), 4))
    return Row(name, round(joint, 4), halves[0], halves[1], _parameters(net), round(seconds, 2))


def _logits(net: nn.Module, data: Digits) -> Tensor:
    net.eval()
    with torch.no_grad():
        return net(data.test_images)  # type: ignore[no-any-return]


def _parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


class _Clock:
    """Wall time of a `with` block, in `seconds`."""

    def __enter__(self) -> "_Clock":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start


def table(result: DemoResult) -> Table:
    """The rows for a terminal."""
    shown = Table(
        title="Two digit specialists of different depth and width, merged without training",
        caption=(
            f"accuracy on {result.test_images} held-out images; merges and heads read "
            f"{result.calibration_images} unlabelled training images"
        ),
    )
    shown.add_column("model")
    for heading in ("all ten", "0-4", "5-9", "parameters", "seconds"):
        shown.add_column(heading, justify="right")
    for row in result.rows:
        halves = ["-" if x is None else f"{x:.3f}" for x in (row.first_half, row.second_half)]
        shown.add_row(
            row.name, f"{row.joint:.3f}", *halves, f"{row.parameters:,}", f"{row.seconds:.1f}"
        )
    return shown
