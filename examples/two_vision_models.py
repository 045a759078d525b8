"""Two specialists of different depth and width become one network; it is saved and loaded again.

python examples/two_vision_models.py
"""

import sys
import tempfile
from pathlib import Path

from digits import BATCHES, accuracy, specialist

import hetmerge as hm


def main(folder: Path) -> None:
    deep = specialist((0, 1, 2, 3, 4), blocks=(4, 4), widths=(16, 32), seed=0)
    slim = specialist((5, 6, 7, 8, 9), blocks=(2, 2), widths=(12, 24), seed=1)

    # Which axes of which tensors belong together was found by tracing; this is the check of it.
    graph = hm.trace(deep, (BATCHES[0],))
    graph.verify(deep)
    print(graph.explain().splitlines()[0])

    result = hm.merge([deep, slim], BATCHES, outputs="concat", progress=False)
    print(result.plan.summary())

    score = accuracy(range(10))
    print("merged, all ten digits:", round(score(result.model), 3))
    result.save(folder / "merged")  # safetensors, the plan, report.json and report.html
    again = hm.load(folder / "merged", template=deep)
    print("loaded again:          ", round(score(again), 3))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
