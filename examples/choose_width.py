"""How wide? The width dial from the larger parent to the union, and a budget in parameters.

python examples/choose_width.py
"""

from digits import BATCHES, accuracy, specialist

import hetmerge as hm


def main() -> None:
    parents = [
        specialist((0, 1, 2, 3, 4), blocks=(3, 3), widths=(16, 32), seed=0),
        specialist((5, 6, 7, 8, 9), blocks=(2, 2), widths=(12, 24), seed=1),
    ]
    score = accuracy(range(10))
    for width in ("max", 1.25, 1.5, "union"):
        result = hm.merge(parents, BATCHES, outputs="concat", width=width, progress=False)
        count = result.report.merged_parameters
        print(f"width {width}: {count:,} parameters, accuracy {score(result.model):.3f}")
        if width == 1.25:
            same = count
    result = hm.merge(
        parents, BATCHES, outputs="concat", budget={"parameters": same}, progress=False
    )
    print(f"budget of {same:,} parameters: accuracy {score(result.model):.3f}")
    print("\n".join(line for line in result.plan.summary().splitlines() if "budget" in line))


if __name__ == "__main__":
    main()
