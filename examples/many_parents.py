"""Three parents of different depth and width, one of which counts twice.

python examples/many_parents.py
"""

from digits import BATCHES, accuracy, specialist

import hetmerge as hm

LABELS = [[str(d) for d in span] for span in ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))]


def main() -> None:
    shapes = [((3, 3), (16, 32)), ((2, 2), (12, 24)), ((1, 2), (16, 24))]
    parents = [
        specialist([int(name) for name in names], blocks, widths, seed)
        for seed, (names, (blocks, widths)) in enumerate(zip(LABELS, shapes, strict=True))
    ]
    for width in ("max", 1.5, "union"):
        result = hm.merge(
            parents, BATCHES, labels=LABELS, weights=[2, 1, 1], width=width, progress=False
        )
        print(
            f"width {width}: {result.report.merged_parameters:,} parameters, "
            f"all ten digits {accuracy(range(10))(result.model):.3f}"
        )


if __name__ == "__main__":
    main()
