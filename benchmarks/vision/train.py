"""Train the networks of the protocol, each on its own classes of CIFAR-10.

python benchmarks/vision/train.py resnet333x1@0-4/0 resnet222x1@5-9/0
python benchmarks/vision/train.py --setting full resnet888x4@0-4/0       # hours on a CPU

A network that is in the cache folder already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from data import cifar10
from measure import logits
from rich.console import Console
from safetensors.torch import save_file
from specs import Spec
from torch import Tensor, nn

OUT = Console()
BATCH = 128


@dataclass(frozen=True)
class Setting:
    """How long, and on how many images."""

    epochs: int
    images: int  # of all ten classes
    rate: float = 0.2


SETTINGS = {
    "smoke": Setting(epochs=1, images=2000),
    "small": Setting(epochs=6, images=50000),
    "long": Setting(epochs=25, images=50000),
    "full": Setting(epochs=100, images=50000),
}


def own(images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The images of these classes, with labels from 0."""
    mine = (labels >= classes[0]) & (labels <= classes[-1])
    return images[mine], labels[mine] - classes[0]


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shifts by up to four pixels, and mirrors."""
    padded = F.pad(images, (4, 4, 4, 4))
    shift = torch.randint(9, (2, len(images)), generator=rng)
    mirrored = torch.rand(len(images), generator=rng) < 0.5
    views = []
    for image, dy, dx, flip in zip(padded, *shift.tolist(), mirrored.tolist(), strict=True):
        view = image[:, dy : dy + 32, dx : dx + 32]
        views.append(view.flip(-1) if flip else view)
    return torch.stack(views)


def train(spec: Spec, setting: Setting) -> tuple[nn.Module, float]:
    """The network, and its accuracy on test images of its own classes."""
    torch.manual_seed(1000 * spec.seed + spec.classes[0])
    rng = torch.Generator().manual_seed(spec.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # else ten times slower
    images, labels = own(*cifar10("train", setting.images), spec.classes)
    net = spec.build().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=setting.rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = setting.epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, setting.rate, steps, pct_start=0.2)
    for epoch in range(setting.epochs):
        net.train()
        began, total = time.perf_counter(), 0.0
        for index in torch.randperm(len(labels), generator=rng).split(BATCH):
            with torch.autocast(device, torch.bfloat16, enabled=half):
                views = augment(images[index], rng)
                outputs = net(views.to(device, memory_format=torch.channels_last))
                loss = F.cross_entropy(outputs.float(), labels[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        seconds = time.perf_counter() - began
        OUT.print(
            f"{spec.name}: epoch {epoch + 1}, loss {total / len(labels):.3f}, {seconds:.0f} s"
        )
    net = net.cpu().eval()
    images, labels = own(*cifar10("test", 10000), spec.classes)
    return net, float((logits(net, images).argmax(1) == labels).float().mean())


def ensure(spec: Spec, setting: str) -> None:
    """Train a network unless it is there."""
    path = spec.path(setting)
    if path.exists():
        return
    net, accuracy = train(spec, SETTINGS[setting])
    OUT.print(f"{spec.name}: accuracy on its own classes {accuracy:.4f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    metadata = {
        "name": spec.name,
        "classes": json.dumps(spec.classes),
        "setting": setting,
        "accuracy": f"{accuracy:.4f}",
    }
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, partial, metadata)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="+", type=Spec.parse)
    parser.add_argument("--setting", choices=SETTINGS, default="small")
    chosen = parser.parse_args()
    for spec in chosen.networks:
        ensure(spec, chosen.setting)


if __name__ == "__main__":
    main()
