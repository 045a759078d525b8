"""Training after all, where a few gradient steps are affordable: a merge before and after polish.

python examples/polish.py
"""

from digits import BATCHES, accuracy, specialist

import hetmerge as hm


def main() -> None:
    parents = [
        specialist((0, 1, 2, 3, 4), blocks=(3, 3), widths=(16, 32), seed=0),
        specialist((5, 6, 7, 8, 9), blocks=(2, 2), widths=(12, 24), seed=1),
    ]
    score = accuracy(range(10))
    for match in ("zip", "permute"):
        merged = hm.merge(parents, BATCHES, outputs="concat", match=match, progress=False)
        print(f"{match}, merged without training:")
        print(f"  accuracy {score(merged.model):.3f}")
        for rate in (1e-4, 1e-3):
            better = merged.polish(parents, BATCHES, steps=64, learning_rate=rate, progress=False)
            loss = better.report.polish
            print(f"{match}, trained for {loss['steps']} steps at {rate:g}:")
            print(f"  {loss['loss']} {loss['before']:.4f} -> {loss['after']:.4f}")
            print(f"  accuracy {score(better.model):.3f}")


if __name__ == "__main__":
    main()
