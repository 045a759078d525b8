"""Second moments of two parents' features against the usual ways to get them on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from hetmerge.ops import Moments
from hetmerge.ops.operand import patches
from hetmerge.ops.products import gram

TOKENS, WIDTH = 8192, 4096
# (dtype, shape of each parent's features, which have their channels in dimension 1)
CASES = {
    "tokens float32": (torch.float32, (TOKENS, WIDTH // 2)),
    "tokens bfloat16": (torch.bfloat16, (TOKENS, WIDTH // 2)),
    "images float32": (torch.float32, (32, 512, 16, 16)),
}


def published(features):
    """One update of the published method: joined, permuted, standardised, multiplied."""
    joint = torch.cat([x.float() for x in features], 1).movedim(1, 0).flatten(1)
    joint = torch.nan_to_num(joint)
    mean, std = joint.mean(1, keepdim=True), joint.std(1, keepdim=True)
    joint = (joint - mean) / std.clamp_min(1e-7)
    return (joint @ joint.T).div_(joint.shape[1])


def product(features):
    """Only the product of the joined features, a full one."""
    joint = torch.cat([x.float() for x in features], 1).movedim(1, 0).flatten(1)
    return joint @ joint.T


def symmetric(features):
    """The same by numpy, which computes one triangle (ssyrk) and mirrors it."""
    joint = torch.cat([x.float() for x in features], 1).movedim(1, 0).flatten(1).numpy()
    return joint @ joint.T


def sample(case):
    dtype, shape = CASES[case]
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng).to(dtype) for _ in range(2)]


def exact_covariance(features, rows=256):
    """[rows, O] float64, the first rows of the covariance."""
    joint = torch.cat([x.double() for x in features], 1).movedim(1, 0).flatten(1)
    joint -= joint.mean(1, keepdim=True)
    return joint[:rows] @ joint.T / joint.shape[1]


def difference(found, exact):
    return float((found - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("implementation", ["hetmerge", "published", "torch matmul", "numpy"])
@pytest.mark.parametrize("case", list(CASES))
def test_update(measure, case, implementation):
    features = sample(case)
    sizes = [x.shape[1] for x in features]
    width, samples = sum(sizes), features[0].numel() // sizes[0]

    def ours():
        return Moments(sizes).update(*features)

    exact = exact_covariance(features)
    error = difference(ours().covariance()[: len(exact)], exact)
    # Sums of float32 products over runs of 512 samples: 512 * 2^-24 at worst.
    assert error < 3.1e-5
    run = {
        "hetmerge": ours,
        "published": lambda: published(features),
        "torch matmul": lambda: product(features),
        "numpy": lambda: symmetric(features),
    }
    measure(
        run[implementation],
        f"moments {case} {samples} x {width}",
        implementation,
        flops=samples * width * (width + 1),
        bytes=features[0].element_size() * samples * width + 4 * width * width,
        dtype=str(features[0].dtype).removeprefix("torch."),
        error=error,
        rounds=5,
    )


@pytest.mark.parametrize("implementation", ["hetmerge", "symmetric", "torch matmul"])
@pytest.mark.parametrize("case", ["tokens float32", "tokens bfloat16"])
def test_between_parents_only(measure, case, implementation):
    """What matching by permutation needs: the block between two parents and the variances."""
    features = sample(case)
    sizes = [x.shape[1] for x in features]

    def ours(within=False):
        return Moments(sizes, within=within).update(*features)

    exact = exact_covariance(features)[:, sizes[0] :]
    found = ours().covariance_between(0, 1)[: len(exact)]
    error = difference(found, exact)
    assert float((found - exact).abs().max()) < 3.1e-5  # variances are 1
    run = {
        "hetmerge": ours,
        "symmetric": lambda: ours(within=True),
        "torch matmul": lambda: features[0].float().T @ features[1].float(),
    }
    measure(
        run[implementation],
        f"moments between parents {case} {TOKENS} x {WIDTH}",
        implementation,
        flops=2 * TOKENS * sizes[0] * sizes[1],
        bytes=features[0].element_size() * TOKENS * WIDTH + 8 * sizes[0] * sizes[1],
        dtype=str(features[0].dtype).removeprefix("torch."),
        error=error,
        rounds=5,
    )


@pytest.mark.parametrize("implementation", ["hetmerge", "unfold and matmul"])
@pytest.mark.parametrize("shape", [(64, 64, 32, 32), (64, 256, 8, 8)], ids=str)
def test_patches(measure, shape, implementation):
    """X^T X of what a 3 x 3 convolution reads at every position."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(shape[2] * shape[3])
    width, samples = shape[1] * 9, shape[0] * shape[2] * shape[3]

    def ours():
        padded = F.pad(x, (1, 1, 1, 1))
        return gram(patches(padded, (3, 3), (1, 1), (1, 1), positions, shape[2:]))

    def unfolded(values):
        rows = F.unfold(values, 3, padding=1).movedim(1, 0).flatten(1)
        return rows @ rows.T

    exact = unfolded(x.double())
    error = difference(ours(), exact)
    assert error < 3.1e-5
    measure(
        {"hetmerge": ours, "unfold and matmul": lambda: unfolded(x)}[implementation],
        f"moments of patches {list(shape)}",
        implementation,
        flops=samples * width * (width + 1),
        bytes=4 * x.numel() + 8 * width * width,
        error=error,
        rounds=5,
    )
