"""Projection against dense merge and unmerge matrices."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetmerge.errors import BackendError, InputError
from hetmerge.ops import project
from hetmerge.reference import project as reference

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=150)
# At most 9 * 515 summands per entry: sqrt(9 * 515) * eps relative to the largest result, and one
# rounding at the end.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
BACKENDS = ["native", "torch"]
EVERYWHERE = [*BACKENDS, pytest.param("cuda", marks=pytest.mark.gpu)]
Labels = list[torch.Tensor | None]


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another place in memory."""
    if layout == "transposed":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "channels last":
        return (
            tensor.movedim(min(1, tensor.ndim - 1), -1)
            .contiguous()
            .movedim(-1, min(1, tensor.ndim - 1))
        )
    if layout == "spaced":
        shape = [3 * size for size in tensor.shape]
        room = torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)
        room[(slice(1, None, 3),) * tensor.ndim] = tensor
        return room[(slice(1, None, 3),) * tensor.ndim]
    return tensor


def drawn_labels(data: st.DataObject, rng: torch.Generator, count: int, clusters: int) -> Any:
    """In runs, all over the place, or injective where that is possible."""
    kind = data.draw(st.sampled_from(["random", "runs", "injective"]))
    if kind == "runs":
        labels = (torch.arange(count) + count // 3) % clusters
    elif kind == "injective" and count <= clusters:
        labels = torch.randperm(clusters, generator=rng)[:count]
    else:
        labels = torch.randint(clusters, (count,), generator=rng)
    return labels.to(data.draw(st.sampled_from([torch.int32, torch.int64, torch.int16])))


def filled(labels: Labels, size: int) -> list[torch.Tensor]:
    return [torch.arange(size) if x is None else x.long() for x in labels]


@pytest.mark.parametrize("backend", EVERYWHERE)
@FIXED
@given(seed=st.integers(0, 2**31), data=st.data())
def test_equals_dense_matrices(backend: str, seed: int, data: st.DataObject) -> None:
    rng = torch.Generator().manual_seed(seed)
    device = "cuda" if backend == "cuda" else "cpu"
    dtypes = [x for x in TOLERANCE if backend != "cuda" or x != torch.float64]
    parents = data.draw(st.integers(1, 4))
    # Few columns are walked together with the rows, many of them row by row.
    rows = data.draw(st.integers(1, 6))
    cols = data.draw(st.one_of(st.integers(1, 6), st.integers(500, 530)))
    trailing = data.draw(st.sampled_from([(), (3,), (2, 2), (0,), None]))  # None: vectors
    shares = data.draw(st.sampled_from([[1.0] * parents, [0.0, 1.0, 0.25, 3.0][-parents:]]))
    out_dtype = data.draw(st.sampled_from([None, *TOLERANCE]))
    layout = data.draw(st.sampled_from(["plain", "transposed", "channels last", "spaced"]))
    weights: Labels = []
    row_labels: Labels = []
    col_labels: Labels = []
    for _ in range(parents):
        identity = data.draw(st.booleans())
        height = rows if identity else data.draw(st.integers(0, 9))
        width = cols if identity else data.draw(st.sampled_from([0, 1, 7, 515]))
        shape = (height,) if trailing is None else (height, width, *trailing)
        weight = torch.randn(shape, generator=rng, dtype=torch.float64)
        weight = weight.to(device, data.draw(st.sampled_from(dtypes)))
        weights.append(laid_out(weight, data.draw(st.sampled_from([layout, "plain"]))))
        row_labels.append(None if identity else drawn_labels(data, rng, height, rows))
        col_labels.append(None if identity else drawn_labels(data, rng, width, cols))
    absent = data.draw(st.integers(0, parents))
    if absent < parents and parents > 1:
        weights[absent] = None
    columns = None if trailing is None else col_labels
    threads = torch.get_num_threads()
    torch.set_num_threads(data.draw(st.integers(1, 3)))
    result = project(weights, row_labels, columns, rows, cols, shares, backend, out_dtype).cpu()
    torch.set_num_threads(threads)

    expected = reference.project(
        [None if weight is None else weight.cpu() for weight in weights],
        filled(row_labels, rows),
        None if trailing is None else filled(col_labels, cols),
        rows,
        cols,
        shares,
    )
    present = [weight for weight in weights if weight is not None]
    assert result.dtype == (out_dtype or present[0].dtype)
    assert result.shape == expected.shape
    double = any(weight.dtype == torch.float64 for weight in present)
    tolerance = max(TOLERANCE[result.dtype], TOLERANCE[torch.float64 if double else torch.float32])
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        result.double(), expected, rtol=tolerance, atol=tolerance * max(1.0, largest)
    )


def test_rows_average_and_columns_add() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    merged = project([weight], [torch.tensor([0, 0])], [torch.tensor([1, 0, 1])], 1, 2)
    assert merged.tolist() == [[2.5, 1.5 + 3.5]]
    assert project([weight[0]], [torch.tensor([1, 1, 0])], None, 3).tolist() == [2.0, 0.5, 0.0]


def test_average_is_over_members_of_all_parents() -> None:
    one, three = torch.tensor([4.0]), torch.tensor([0.0, 0.0, 8.0])
    labels = [torch.tensor([0]), torch.tensor([0, 0, 0])]
    assert project([one, three], labels, None, 1).tolist() == [3.0]
    # weights 3 and 1: (3 * 4 + 1 * 8) / (3 + 3 * 1)
    assert project([one, three], labels, None, 1, model_weights=[3, 1]).item() == pytest.approx(
        10 / 3
    )


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_shares_are_float64(backend: str) -> None:
    parents = [torch.tensor([x], dtype=torch.float64) for x in (1.0, 2.0)]
    merged = project(parents, None, None, 1, model_weights=[0.1, 0.7], backend=backend)
    assert merged.item() == pytest.approx((0.1 + 2 * 0.7) / (0.1 + 0.7), rel=1e-15)


def test_absent_parent_counts_in_the_average_only() -> None:
    labels = [torch.tensor([0, 1]), torch.tensor([1, 0, 1])]
    for backend in (*BACKENDS, "reference"):
        merged = project([torch.tensor([6.0, 6.0]), None], labels, None, 2, backend=backend)
        assert merged.tolist() == pytest.approx([3.0, 2.0])
        square = project([torch.ones(2, 2), None], labels, None, 2, 2, backend=backend)
        assert square[0].tolist() == pytest.approx([0.5, 0.5])
        pair = [torch.tensor([0, 1]), torch.tensor([1, 0, 1])]
        same = project([torch.ones(2, 2), None], labels, pair, 2, 2, backend=backend)
        assert torch.equal(same, square)


def test_one_parent_with_all_the_weight_comes_back() -> None:
    weight = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    rows, cols = torch.tensor([3, 1, 0, 2, 4]), torch.tensor([2, 0, 3, 1])
    other = torch.full((5, 4, 3), torch.inf)
    merged = project([weight, other], [rows, rows], [cols, cols], 5, 4, [1.0, 0.0])
    assert torch.equal(merged[rows][:, cols], weight)
    assert torch.equal(project([weight], None, None, 5, 4), weight)


def test_chunks_strides_and_narrow_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(7, 50, generator=rng).T
    rows = torch.randint(20, (50,), generator=rng)
    cols = torch.randint(4, (7,), generator=rng)
    whole = project([weight], [rows], [cols], 20, 4, backend="torch")
    monkeypatch.setitem(project.__globals__, "CHUNK", 16)
    chunked = project([weight], [rows.int()], [cols.to(torch.uint8)], 20, 4, backend="torch")
    assert torch.equal(chunked, whole)


def test_half_precision_is_summed_in_float32() -> None:
    # 2048 + 7 * 1 after averaging; adding 1 to 2048 changes nothing in float16.
    parents = [torch.tensor([k], dtype=torch.float16) for k in (16384, *[8] * 7)]
    assert project(parents, None, None, 1).item() == 2056


def test_runs_without_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert not project([weight], None, None, 2, 2).requires_grad


SQUARE = torch.ones(2, 2)
PAIR = torch.tensor([0, 1])


@pytest.mark.parametrize("backend", [*EVERYWHERE, "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [None, None]}, "weights: none of 2"),
        ({"weights": [SQUARE, PAIR]}, r"weights\[1\]: dtype"),
        ({"weights": [SQUARE, torch.ones(2)]}, r"weights\[1\]: shape"),
        ({"weights": [SQUARE, torch.ones(2, 2, 3)]}, r"weights\[1\]: shape"),
        ({"row_labels": [PAIR]}, "row_labels: 1 entries for 2"),
        ({"row_labels": [PAIR, PAIR[:1]]}, r"row_labels\[1\]: 1 labels for 2"),
        ({"row_labels": [PAIR, PAIR + 1]}, r"row_labels\[1\]: labels 1..2"),
        ({"row_labels": [PAIR - 1, PAIR]}, r"row_labels\[0\]: labels -1..0"),
        ({"row_labels": [PAIR.double(), PAIR]}, r"row_labels\[0\]: torch.float64"),
        ({"row_labels": None, "rows": 3}, r"row_labels\[0\]: None"),
        ({"col_labels": [PAIR]}, "col_labels: 1 entries for 2"),
        ({"col_labels": [PAIR, PAIR * 5]}, r"col_labels\[1\]: labels 0..5"),
        ({"col_labels": None, "cols": 3}, r"col_labels\[0\]: None"),
        ({"weights": [torch.ones(2)] * 2}, "col_labels: given for vectors"),
        ({"rows": 0}, "rows: 0"),
        ({"cols": None}, "cols: None"),
        ({"cols": 2**31}, "cols: 2147483648"),
        ({"rows": 2**31}, "rows: 2147483648"),
        ({"row_labels": [PAIR + 2**32, PAIR]}, r"row_labels\[0\]: labels 4294967296..4294967297"),
        ({"weights": [SQUARE.to_sparse(), SQUARE]}, r"weights\[0\]: dtype torch.float32, torch.sp"),
        ({"out_dtype": torch.int32}, "out_dtype: torch.int32"),
        ({"model_weights": [1.0]}, "model_weights: 1 values for 2"),
        ({"model_weights": [0.0, 0.0]}, "not all 0"),
        ({"model_weights": [1.0, -1.0]}, "model_weights"),
        ({"model_weights": [1.0, np.nan]}, "model_weights"),
    ],
)
def test_rejects(change: dict[str, Any], message: str, backend: str) -> None:
    arguments = {
        "weights": [SQUARE, SQUARE],
        "row_labels": [PAIR, PAIR],
        "col_labels": [PAIR, PAIR],
        "rows": 2,
        "cols": 2,
        **change,
    }
    if backend == "cuda":
        arguments["weights"] = [None if x is None else x.cuda() for x in arguments["weights"]]
    with pytest.raises(InputError, match=message):
        project(**arguments, backend=backend)


def test_backend() -> None:
    with pytest.raises(BackendError, match="project cannot run on 'cuda'"):
        project([SQUARE], None, None, 2, 2, backend="cuda")
