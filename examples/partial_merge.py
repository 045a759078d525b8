"""One trunk and one head per parent: merged up to a block, behind which every parent goes on alone.

python examples/partial_merge.py
"""

import torch
from digits import BATCHES, DATA, accuracy, specialist

import hetmerge as hm

FIRST, SECOND = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)


def main() -> None:
    parents = [
        specialist(FIRST, blocks=(3, 3), widths=(16, 32), seed=0),
        specialist(SECOND, blocks=(2, 2), widths=(12, 24), seed=1),
    ]
    plan = hm.plan(parents, BATCHES, outputs="concat", progress=False)
    whole = sum(p.numel() for parent in parents for p in parent.parameters())
    for stop_at in ("stage1.2", "stage2.1", None):
        result = hm.apply(plan, parents, BATCHES, stop_at=stop_at, progress=False)
        share = result.report.merged_parameters / whole
        print(
            f"merged up to {stop_at or 'the end'}: {share:.0%} of both parents' parameters, "
            f"all ten digits {accuracy(range(10))(result.model):.3f}"
        )
    names = ["low", "high"]
    result = hm.merge(
        parents, BATCHES, outputs="concat", stop_at="stage1.2", names=names, progress=False
    )
    print("heads:", ", ".join(result.model.heads))
    print("second head alone:", round(accuracy(SECOND)(result.model.branch("high")), 3))
    program = torch.export.export(result.model, (DATA.test_images[:4],))
    print("exported:", len(program.graph.nodes), "operations")


if __name__ == "__main__":
    main()
