"""Names of the networks that the protocol trains: what they are, and where they are kept."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cifar_models import VGG, ResNet
from torch import nn

CHANNELS = (16, 32, 64)  # of width x1
_FORM = re.compile(r"(resnet|vgg)(\d)(\d)(\d)x(\d+)@(\d)-(\d)/(\d+)")


@dataclass(frozen=True)
class Spec:
    """One network: `resnet333x2@0-4/1` has 3 blocks per stage, twice the channels, knows the
    classes 0 to 4, and was trained with seed 1."""

    family: str
    blocks: tuple[int, int, int]
    multiplier: int
    classes: tuple[int, ...]
    seed: int

    @staticmethod
    def parse(name: str) -> Spec:
        found = _FORM.fullmatch(name)
        if found is None:
            raise SystemExit(
                f"network {name!r}: allowed are names such as resnet333x1@0-4/0 or vgg444x1@5-9/0"
            )
        family, *numbers = found.groups()
        a, b, c, multiplier, first, last, seed = map(int, numbers)
        return Spec(family, (a, b, c), multiplier, tuple(range(first, last + 1)), seed)

    @property
    def name(self) -> str:
        blocks = "".join(map(str, self.blocks))
        span = f"{self.classes[0]}-{self.classes[-1]}"
        return f"{self.family}{blocks}x{self.multiplier}@{span}/{self.seed}"

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.multiplier * channels for channels in CHANNELS)

    def build(self) -> nn.Module:
        kind = {"resnet": ResNet, "vgg": VGG}[self.family]
        return kind(self.blocks, self.widths, len(self.classes))

    def path(self, setting: str) -> Path:
        """Where the trained network is kept, in the user's cache folder."""
        file = self.name.replace("@", "-classes").replace("/", "-seed") + ".safetensors"
        return cache_folder(setting) / file


def cache_folder(setting: str) -> Path:
    """Where the networks of one setting are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hetmerge" / "vision" / setting
