"""Projection in native code: memory orders, conversions, threads; and its registration."""

import itertools

import pytest
import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops import project

HALVES = [torch.float16, torch.bfloat16]
# Two implementations with float32 sums of at most a dozen entries of order 1.
TOLERANCE = 1e-5


def labels_of(kind: str, count: int, clusters: int) -> Tensor:
    rng = torch.Generator().manual_seed(count + clusters)
    if kind == "random":
        return torch.randint(clusters, (count,), generator=rng)
    if kind == "few":  # most clusters have no member
        return torch.randint(clusters // 8 + 1, (count,), generator=rng)
    if kind == "runs":
        return (torch.arange(count) + clusters // 3) % clusters
    return torch.randperm(max(count, clusters), generator=rng)[:count] % clusters


def largest(rows: int, cols: int, trailing: tuple[int, ...], kind: str) -> list[list[Tensor]]:
    rng = torch.Generator().manual_seed(rows)
    weights = [
        torch.randn(rows, cols, *trailing, generator=rng),
        torch.randn(rows // 2, cols // 2, *trailing, generator=rng),
    ]
    return [
        weights,
        [torch.arange(rows), labels_of(kind, rows // 2, rows)],
        [labels_of(kind, cols, cols), labels_of(kind, cols // 2, cols)],
    ]


# Rows that are cut into pieces, rows that are not, results written past the caches, odd sizes.
SHAPES = [(70, 9001, ()), (1501, 1403, ()), (257, 130, (3, 3)), (3000, 5, (1,)), (2, 3, (9001,))]


@pytest.mark.parametrize("kind", ["random", "few", "runs", "injective"])
@pytest.mark.parametrize(("rows", "cols", "trailing"), SHAPES)
def test_large_tensors_on_any_number_of_threads(
    rows: int, cols: int, trailing: tuple[int, ...], kind: str
) -> None:
    weights, row_labels, col_labels = largest(rows, cols, trailing, kind)
    expected = project(weights, row_labels, col_labels, rows, cols, backend="torch")
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(project(weights, row_labels, col_labels, rows, cols, backend="native"))
    torch.set_num_threads(1)
    torch.testing.assert_close(results[0], expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert all(torch.equal(result, results[0]) for result in results)


def test_identities_are_cut_into_pieces() -> None:
    weight = torch.randn(3, 20001, generator=torch.Generator().manual_seed(0))
    assert torch.equal(project([weight, weight], None, None, 3, 20001), weight)
    folded = weight[None, None]
    assert torch.equal(project([folded, folded], None, None, 1, 1), folded)
    spread = weight.T.contiguous()
    assert torch.equal(project([spread.T, weight], None, None, 3, 20001), weight)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_memory_order_of_the_first_parent(order: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    sizes, merged = (30, 20, 3, 2), (24, 22, 3, 2)
    inverse = [order.index(axis) for axis in range(4)]
    weights = [
        torch.randn([sizes[axis] for axis in order], generator=rng).permute(inverse),
        torch.randn(sizes, generator=rng),
    ]
    rows = [torch.randint(24, (30,), generator=rng) for _ in weights]
    cols = [torch.randint(22, (20,), generator=rng) for _ in weights]
    results = {
        backend: project(weights, rows, cols, *merged[:2], backend=backend)
        for backend in ("native", "torch", "reference")
    }
    for result in results.values():
        assert result.permute(order).is_contiguous()
        torch.testing.assert_close(result, results["reference"], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("accumulated", [torch.float32, torch.float64])
def test_all_sixteen_bit_numbers(dtype: torch.dtype, accumulated: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    zero = torch.zeros(2**16, dtype=accumulated)  # decides in what the sums run
    labels = [torch.arange(2**16), torch.full((2**16,), 2**16)]
    wide = project([every, zero], labels, None, 2**16 + 1, backend="native", out_dtype=accumulated)
    torch.testing.assert_close(wide[:-1], every.to(accumulated), rtol=0, atol=0, equal_nan=True)
    back = project([wide[:-1]], None, None, 2**16, backend="native", out_dtype=dtype)
    torch.testing.assert_close(back, every, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_to_sixteen_bits(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1 << 18,), generator=rng)
    small = torch.finfo(dtype).tiny * torch.randn(1 << 12, generator=rng)
    near = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    ties = (near[:-1] + near[1:]) / 2
    values = torch.cat([bits.to(torch.int32).view(torch.float32), small, ties, 0 * ties + 65520.0])
    found = project([values], None, None, len(values), backend="native", out_dtype=dtype)
    torch.testing.assert_close(found, values.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 600), (600, 2), (3, 2)])
def test_offsets_beyond_32_bits(shape: tuple[int, int]) -> None:
    """Two far ends of a tensor of which nothing in between is ever touched."""
    far = 2**31 + 5
    strides = (far, 1) if shape[0] == 2 else (1, far)
    weight = torch.empty(far + 1024, dtype=torch.bfloat16).as_strided(shape, strides)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight.copy_(values)
    assert torch.equal(project([weight], None, None, *shape, backend="native"), values)
    mixed = project([values, weight], None, None, *shape, backend="native")
    assert torch.equal(mixed, values)


def test_rare_dtypes_are_converted() -> None:
    weight = torch.tensor([[0.5, -2.0], [4.0, 0.0]])
    small = weight.to(torch.float8_e4m3fn)
    assert torch.equal(project([small], None, None, 2, 2).float(), weight)
    assert project([small], None, None, 2, 2).dtype == torch.float8_e4m3fn
    assert torch.equal(project([small, weight], None, None, 2, 2, out_dtype=torch.float32), weight)


CALLS = [
    ([torch.ones(4, 3), torch.ones(2, 5).bfloat16()], 4, 5),
    ([None, torch.ones(3, 4, 2, 2).permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)], 3, 6),
    ([torch.ones(4), None], 5, 0),
]


@pytest.mark.parametrize(("weights", "rows", "cols"), CALLS)
@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
def test_registered_with_torch(
    weights: list[Tensor | None], rows: int, cols: int, backend: str
) -> None:
    row_of = [None if w is None else torch.arange(len(w), dtype=torch.int32) for w in weights]
    col_of = [None if w is None else torch.arange(w.shape[1]) for w in weights if cols]
    arguments = (weights, row_of, col_of, rows, cols, [1.0, 2.0], torch.float32, backend)
    torch.library.opcheck(torch.ops.hetmerge.project.default, arguments)


def test_compiles_without_graph_breaks() -> None:
    def merged(one: Tensor, two: Tensor, rows: Tensor) -> Tensor:
        both = project([one * 2, two.T], [None, rows], None, 4, 3, model_weights=[1, 3])
        return both + project([one[:, 0], None], [None, rows], None, 4)[:, None]

    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 3, generator=rng), torch.randn(3, 7, generator=rng)
    rows = torch.randint(4, (7,), generator=rng)
    compiled = torch.compile(merged, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs, rows), merged(*inputs, rows))
    with pytest.raises(InputError, match=r"row_labels\[1\]: labels"):
        compiled(*inputs, rows - 9)
