"""One-to-one matching, positions, nested axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from hetmerge.labelling import Labelling
from hetmerge.labels import permute_labels, positional_partition, similarity_of, zip_labels
from hetmerge.nested import match_inside, outer_similarity
from hetmerge.ops import Moments
from hetmerge.options import Options
from hetmerge.partition import Partition

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


def random_similarity(seed: int, size: int) -> torch.Tensor:
    table = np.random.default_rng(seed).uniform(-1, 1, (size, size))
    return torch.from_numpy((table + table.T) / 2)


@SETTINGS
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999), st.data())
def test_two_parents_are_matched_optimally(a: int, b: int, seed: int, data: st.DataObject) -> None:
    similarity = random_similarity(seed, a + b)
    width = data.draw(st.integers(max(a, b), a + b))
    labels = permute_labels(similarity, [a, b], width)
    assert sorted(set(labels.tolist())) == list(range(width))
    cross = similarity[:a, a:].numpy()
    rows, cols = linear_sum_assignment(cross, maximize=True)
    best = sorted(cross[rows, cols], reverse=True)[: a + b - width]
    pairs = [cross[i, j] for i in range(a) for j in range(b) if labels[i] == labels[a + j]]
    assert sorted(pairs, reverse=True) == pytest.approx(best)
    assert len(set(labels[:a].tolist())) == a  # nothing within one parent is merged
    assert len(set(labels[a:].tolist())) == b


@SETTINGS
@given(st.lists(st.integers(1, 6), min_size=3, max_size=4), st.integers(0, 99), st.data())
def test_many_parents_fill_the_width(sizes: list[int], seed: int, data: st.DataObject) -> None:
    width = data.draw(st.integers(max(sizes), sum(sizes)))
    labels = permute_labels(random_similarity(seed, sum(sizes)), sizes, width)
    assert sorted(set(labels.tolist())) == list(range(width))
    for part in labels.split(sizes):
        assert len(set(part.tolist())) == len(part)


def test_positions_meet_from_the_front() -> None:
    found = positional_partition("s", {0: 4, 1: 3}, 5)
    assert found.width == 5
    assert found.labels[0].tolist() == [0, 1, 2, 3]
    assert found.labels[1].tolist() == [0, 1, 4]


def test_constant_features_count_as_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 3, generator=generator), torch.randn(50, 2, generator=generator)
    a[:, 1], b[:, 0], a[:, 2] = 5.0, 0.0, 1.0
    table = similarity_of(Moments([3, 2]).update(a, b))
    assert table[1, 3] == table[3, 1] == table[2, 3] == 1
    assert 0.99 < table[1, 2] < 1  # within one parent: after those of different parents
    assert abs(table[0, 4]) < 0.5


def test_moments_between_parents_are_enough_to_permute() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    orders = [torch.randperm(12, generator=generator)[:n] for n in (12, 10, 9)]
    features = [(common + 0.1 * torch.randn_like(common))[:, order] for order in orders]
    features[0][:, 3] = features[1][:, 2] = 7.0
    features[2][:, 5] *= 1e-6  # quiet features count in full
    sizes = [12, 10, 9]
    whole = similarity_of(Moments(sizes).update(*features))
    across = similarity_of(Moments(sizes, within=False).update(*features))
    parent = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    same = parent[:, None] == parent
    torch.testing.assert_close(across, whole.masked_fill(same, 0.0), rtol=1e-9, atol=1e-9)
    assert torch.equal(permute_labels(across, sizes, 14), permute_labels(whole, sizes, 14))


def inside(
    similarity: torch.Tensor,
    sizes: dict[int, int],
    units: Partition,
    target: int,
    weights: list[float],
    match: str = "permute",
) -> Partition:
    labelling = Labelling(Options.make({"match": match}), weights, [], overwrite=False)
    return match_inside(labelling, "s", similarity, sizes, (7, units), target, match)[0]


def test_nested_axes_are_recovered() -> None:
    """Three groups of four features, groups shuffled, and features of every group by themselves."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(400, 3, 4, generator=generator)
    groups = torch.tensor([2, 0, 1])
    orders = torch.stack([torch.randperm(4, generator=generator) for _ in groups])
    other = features[:, groups].gather(2, orders.expand(400, 3, 4))
    joint = torch.cat([features.flatten(1), other.flatten(1)], 1)
    together = torch.corrcoef(joint.T)
    labels = permute_labels(outer_similarity(together, [3, 3], [4, 4]), [3, 3], 3)
    assert torch.equal(labels[3:], groups)
    units = Partition(3, {0: labels[:3], 1: labels[3:]})
    found = inside(together, {0: 4, 1: 4}, units, 4, [0.5, 0.5])
    assert found.outer == 7
    for i in range(3):
        assert torch.equal(found.labels[0][groups[i]][orders[i]], found.labels[1][i])


def test_inside_units_of_different_sizes() -> None:
    """A unit alone, one whose parent has no weight, one that is left out."""
    sizes, counts = {0: 2, 1: 3, 2: 2}, {0: [0, 1], 1: [1], 2: [0, -1, 0]}
    units = Partition(2, {m: torch.tensor(found) for m, found in counts.items()})
    similarity = random_similarity(5, 2 * 2 + 3 + 3 * 2)
    found = inside(similarity, sizes, units, 3, [0.5, 0.5, 0.0])
    assert found.width == 3
    assert {m: tuple(x.shape) for m, x in found.labels.items()} == {0: (2, 2), 1: (1, 3), 2: (3, 2)}
    assert sorted(found.labels[1][0].tolist()) == [0, 1, 2]
    assert found.labels[0][0].tolist() == [0, 1]  # alone among those that are heard
    near = similarity[7:, :2].argmax(1).reshape(3, 2)
    assert torch.equal(found.labels[2][[0, 2]], near[[0, 2]])
    zipped = inside(similarity, sizes, units, 1, [0.5, 0.5, 0.0], "zip")
    assert zipped.width == 1
    assert not any(bool(labels.any()) for labels in zipped.labels.values())


@SETTINGS
@given(
    st.lists(st.integers(1, 5), min_size=3, max_size=4),
    st.integers(0, 99),
    st.sampled_from(["permute", "zip", "identity"]),
    st.data(),
)
def test_the_order_of_the_parents_does_not_matter(
    sizes: list[int], seed: int, match: str, data: st.DataObject
) -> None:
    """Without ties (equal widths are one for `identity`) the same features share clusters."""
    sizes = sorted(set(sizes)) if match == "identity" else sizes
    width = data.draw(st.integers(max(sizes), sum(sizes)))
    order = data.draw(st.permutations(range(len(sizes))))
    similarity = random_similarity(seed, sum(sizes))
    starts = np.cumsum([0, *sizes])
    index = np.concatenate([np.arange(starts[m], starts[m + 1]) for m in order])

    def pairs(similarity: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        if match == "identity":
            found = positional_partition("s", dict(enumerate(sizes)), width).labels
            labels = torch.cat([found[m] for m in range(len(sizes))])
        elif match == "permute":
            labels = permute_labels(similarity, sizes, width)
        else:
            labels, _ = zip_labels(similarity, sizes, width, 0.5, 1.0, "auto")
        return labels[:, None] == labels[None]

    given_first = pairs(similarity, sizes)[index][:, index]
    assert torch.equal(given_first, pairs(similarity[index][:, index], [sizes[m] for m in order]))
