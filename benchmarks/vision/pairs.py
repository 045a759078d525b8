"""Which networks the protocol merges: pairs of different depth and width, and what to hold beside
each of them: two networks of one shape, that of the merged network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from specs import Spec

SPANS = ("0-4", "5-9")  # classes of the first and of the second parent
_SHAPE = re.compile(r"(resnet|vgg)(\d)(\d)(\d)x(\d+)")


@dataclass(frozen=True)
class Pair:
    """Two shapes, such as resnet333x1; the first knows classes 0-4, the second 5-9."""

    name: str
    first: str
    second: str

    @property
    def kind(self) -> str:
        return "homogeneous" if self.first == self.second else "heterogeneous"

    @property
    def beside(self) -> Pair:
        """The homogeneous pair whose merge has the same shape as that of this one."""
        family, *sizes = _parts(self.first)
        _, *others = _parts(self.second)
        a, b, c, multiplier = (max(one, two) for one, two in zip(sizes, others, strict=True))
        shape = f"{family}{a}{b}{c}x{multiplier}"
        return Pair(f"{shape} twice", shape, shape)

    def specs(self, seed: int) -> list[Spec]:
        shapes = (self.first, self.second)
        return [
            Spec.parse(f"{shape}@{span}/{seed}") for shape, span in zip(shapes, SPANS, strict=True)
        ]


def _parts(shape: str) -> tuple[str, int, int, int, int]:
    found = _SHAPE.fullmatch(shape)
    if found is None:
        raise SystemExit(f"shape {shape!r}: allowed are such as resnet333x1 or vgg444x2")
    family, a, b, c, multiplier = found.groups()
    return family, int(a), int(b), int(c), int(multiplier)


def _full() -> list[Pair]:
    def resnet(blocks: int, multiplier: int) -> str:
        return f"resnet{3 * str(blocks)}x{multiplier}"

    def pair(kind: str, deep: tuple[int, int], other: tuple[int, int]) -> Pair:
        name = f"{kind} {deep[0]}x{deep[1]} + {other[0]}x{other[1]}"
        return Pair(name, resnet(*deep), resnet(*other))

    depth = [pair("depth", (n, m), (3, m)) for m in (1, 2, 4) for n in range(4, 9)]
    width = [pair("width", (n, m), (n, k)) for n in (3, 8) for m, k in ((2, 1), (4, 1), (8, 4))]
    both = [pair("both", (8, m), (3, k)) for m, k in ((2, 1), (4, 2), (4, 1))]
    crossed = [pair("crossed", (8, k), (3, m)) for m, k in ((2, 1), (4, 1))]
    vgg = [Pair(f"vgg x{m}", f"vgg666x{m}", f"vgg444x{m}") for m in (2, 4, 8)]
    return [*depth, *width, *both, *crossed, *vgg]


PAIRS = {
    "smoke": [Pair("depth", "resnet211x1", "resnet111x1")],
    "small": [
        Pair("depth", "resnet333x1", "resnet222x1"),
        Pair("wide depth", "resnet122x2", "resnet111x2"),
        Pair("width", "resnet122x2", "resnet122x1"),
        Pair("both", "resnet122x2", "resnet111x1"),
        Pair("crossed", "resnet333x1", "resnet111x2"),
        Pair("vgg", "vgg666x1", "vgg444x1"),
    ],
    "long": [
        Pair("depth", "resnet333x1", "resnet222x1"),
        Pair("wide depth", "resnet122x2", "resnet111x2"),
    ],
    "full": _full(),
}


def with_homogeneous(pairs: list[Pair]) -> list[Pair]:
    """The pairs, and behind the first that needs it each homogeneous one."""
    return list(dict.fromkeys(each for pair in pairs for each in (pair, pair.beside)))
