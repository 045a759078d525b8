"""Depth alignment: which run of deep layers each shallow layer stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops.library import register


def align_depth(
    similarity: Tensor | NDArray[Any],
    objective: str = "segment",
    anchor: str = "start",
) -> list[int]:
    """Cut the deep model into one run of consecutive layers per shallow layer, optimally.

    Both objectives are solved exactly by dynamic programming in float64. Of equally good cuts the
    one whose last segment starts earliest is returned, among those the one whose segment before it
    starts earliest, and so on.

    Args:
        similarity: [deep, shallow], finite, deep >= shallow >= 1; usually CKA within one stage.
        objective: "layer": every layer of a segment is compared with the shallow layer
            (arXiv 2501.00061 eq 8). "segment": only one layer of it is (eq 7).
        anchor: which one that is for "segment". "start": the first, where the shallow layer will
            stand (the published code, after CLAFusion, arXiv 2110.15538). "end": the last (the
            paper's formula). No effect on "layer".

    Returns:
        The deep index at which each shallow layer's segment starts: the first is 0, and they
        increase strictly. A segment ends where the next one starts.

    Raises:
        InputError: the matrix is empty, not finite or has more shallow than deep layers, or an
            option is unknown.
    """
    if objective not in ("segment", "layer"):
        raise InputError(f"objective: {objective!r} is not one of segment, layer")
    if anchor not in ("end", "start"):
        raise InputError(f"anchor: {anchor!r} is not one of end, start")
    if not isinstance(similarity, Tensor):
        similarity = torch.from_numpy(np.array(similarity, np.float64))
    if similarity.ndim != 2 or similarity.numel() == 0:
        raise InputError(
            f"similarity: shape {list(similarity.shape)}, allowed is [deep, shallow], not empty"
        )
    if similarity.shape[0] < similarity.shape[1]:
        raise InputError(
            f"similarity: shape {list(similarity.shape)} has more shallow layers (columns) than "
            "deep ones (rows), allowed are as many or fewer; swap the models"
        )
    starts: list[int] = _op(similarity.detach(), objective, anchor).tolist()
    return starts


def fixed_depth(deep: int, shallow: int, kind: str) -> list[int]:
    """Starts that look at no features, as :func:`align_depth` returns them.

    Args:
        deep, shallow: layer counts, deep >= shallow >= 1.
        kind: "uniform": evenly spread. "head": shallow layer k at k. "tail": the first at 0, the
            others at the end.

    Raises:
        InputError: a count is out of range or the kind unknown.
    """
    if not 1 <= shallow <= deep:
        raise InputError(f"shallow: {shallow} layers, allowed are 1 to {deep}, the deep ones")
    if kind == "uniform":
        return [k * deep // shallow for k in range(shallow)]
    if kind == "head":
        return list(range(shallow))
    if kind == "tail":
        return [0, *range(deep - shallow + 1, deep)]
    raise InputError(f"kind: {kind!r} is not one of uniform, head, tail")


def _run(similarity: Tensor, objective: str, anchor: str) -> Tensor:
    """[shallow] int64, on the device of the similarity."""
    table: NDArray[np.float64] = similarity.cpu().to(torch.float64).numpy()
    if not np.isfinite(table).all():
        raise InputError("similarity: has NaN or infinite entries, only finite ones are allowed")
    if objective == "layer":
        starts = _every_layer(table)
    else:
        starts = _last_layer(table) if anchor == "end" else _first_layer(table)
    return torch.tensor(starts, device=similarity.device)


def _fake(similarity: Tensor, objective: str, anchor: str) -> Tensor:
    return similarity.new_empty(similarity.shape[1], dtype=torch.int64)


_op = register("align_depth(Tensor similarity, str objective, str anchor) -> Tensor", _run, _fake)


def _every_layer(table: NDArray[np.float64]) -> list[int]:
    # best[l, k]: layers 0..l cut into segments 0..k, with layer l in segment k.
    deep, shallow = table.shape
    best = np.full((deep, shallow), -np.inf)
    best[0, 0] = table[0, 0]
    for layer in range(1, deep):
        entered = np.concatenate(([-np.inf], best[layer - 1, :-1]))
        best[layer] = table[layer] + np.maximum(best[layer - 1], entered)
    starts = [0] * shallow
    k = shallow - 1
    for layer in range(deep - 1, 0, -1):
        if k > 0 and best[layer - 1, k - 1] > best[layer - 1, k]:
            starts[k] = layer
            k -= 1
    return starts


def _last_layer(table: NDArray[np.float64]) -> list[int]:
    # best[l, k]: segments 0..k end at layer l.
    deep, shallow = table.shape
    best = np.full((deep, shallow), -np.inf)
    best[:, 0] = table[:, 0]
    for k in range(1, shallow):
        before = np.maximum.accumulate(best[:-1, k - 1])
        best[1:, k] = table[1:, k] + before
    starts = [0] * shallow
    end = deep - 1
    for k in range(shallow - 1, 0, -1):
        end = int(best[:end, k - 1].argmax())
        starts[k] = end + 1
    return starts


def _first_layer(table: NDArray[np.float64]) -> list[int]:
    # best[l, k]: segment k starts at layer l.
    deep, shallow = table.shape
    best = np.full((deep, shallow), -np.inf)
    best[0, 0] = table[0, 0]
    for k in range(1, shallow):
        best[1:, k] = table[1:, k] + np.maximum.accumulate(best[:-1, k - 1])
    starts = [0] * shallow
    limit = deep
    for k in range(shallow - 1, -1, -1):
        limit = starts[k] = int(best[:limit, k].argmax())
    return starts
