"""Labels that differ inside heads, and the dimension that says which head an element stands in."""

import torch

from hetmerge.partition import Partition, Spread, dim_labels, owner, through, unit_numbers
from hetmerge.tracing.expr import Concat, Leaf, Product

HEADS, INSIDE, OTHER = range(3)
ROWS = torch.tensor([[2, 0], [1, 2], [0, 1]])  # of three heads with two features each
TABLE = {
    HEADS: Spread(torch.tensor([1, 0, 2]), 4),
    INSIDE: Spread(ROWS, 3, HEADS),
    OTHER: Spread(torch.tensor([1, 0]), 2),
}
HEAD, FEATURE, PART = Leaf(HEADS, 3), Leaf(INSIDE, 2), Leaf(OTHER, 2)


def test_each_head_has_labels_of_its_own() -> None:
    labels, width = dim_labels(Product((HEAD, FEATURE)), TABLE)
    assert width == 12
    assert labels.tolist() == [3 + 2, 3 + 0, 0 + 1, 0 + 2, 6 + 0, 6 + 1]


def test_parts_between_and_beside() -> None:
    """Product(heads, other, features) and Product(heads, features | other)."""
    labels, width = dim_labels(Product((HEAD, PART, FEATURE)), TABLE)
    wanted = [
        (TABLE[HEADS].labels[h] * 2 + TABLE[OTHER].labels[i]) * 3 + ROWS[h, j]
        for h in range(3)
        for i in range(2)
        for j in range(2)
    ]
    assert (labels.tolist(), width) == ([int(x) for x in wanted], 24)
    labels, width = dim_labels(Product((HEAD, Concat((FEATURE, PART)))), TABLE)
    assert labels[:4].tolist() == [5 + 2, 5 + 0, 5 + 3 + 1, 5 + 3 + 0]
    assert width == 20


def test_another_dimension_may_say_which_head() -> None:
    exprs = (Product((HEAD, PART)), FEATURE)
    assert owner(exprs, 1, (), HEADS) == 0
    assert owner((Product((HEAD, FEATURE)), HEAD), 0, (1,), HEADS) == 0
    assert owner((FEATURE, PART), 0, (), HEADS) is None
    assert owner((FEATURE, HEAD, HEAD), 0, (), HEADS) is None
    assert unit_numbers(exprs[0], HEADS, TABLE).tolist() == [0, 0, 1, 1, 2, 2]
    for head in range(3):
        assert dim_labels(FEATURE, TABLE, {HEADS: head})[0].tolist() == ROWS[head].tolist()


def test_not_kept_heads_take_their_features_along() -> None:
    table = {**TABLE, HEADS: Spread(torch.tensor([0, -1, 1]), 2)}
    labels, _ = dim_labels(Product((HEAD, FEATURE)), table)
    assert labels.tolist() == [2, 0, -1, -1, 3, 4]


def test_dense_maps_pass_by() -> None:
    tensor = torch.randn(2, 6)
    read = through(tensor, 1, Product((HEAD, FEATURE)), TABLE, {OTHER: torch.eye(2)})
    assert torch.equal(read, tensor)


def test_merged_counts_as_if_one_order_were_shared() -> None:
    shared = Partition(2, {0: torch.tensor([0, 1]), 1: torch.tensor([1, 0])})
    rows = {0: torch.tensor([[0, 1], [1, 0]]), 1: torch.tensor([[1, 0], [0, 1], [1, 0]])}
    assert Partition(2, rows, outer=HEADS).merged == shared.merged == 4
    assert not Partition(2, rows, outer=HEADS).union
