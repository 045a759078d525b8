"""Parents that read one text differently are compared where they have read the same."""

import pytest
import torch
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.batches import as_call, call_for, comparable, one_by_one, rows_for
from hetmerge.errors import InputError
from hetmerge.windows import Windows

ROWS, LENGTH = 6, 9


class PerToken(nn.Module):
    """What it computes at a position depends on the token there alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.inner = nn.Linear(8, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.embed(input_ids))))


def net() -> PerToken:
    torch.manual_seed(0)
    return PerToken().double().eval()


def windows(seed: int) -> Windows:
    """The second parent has a token in front of every one that the first one reads."""
    ids = torch.randint(40, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    doubled = torch.stack([torch.full_like(ids, 39), ids], 2).flatten(1)
    at = torch.arange(LENGTH).expand(ROWS, -1).clone()
    at[0, -2:] = -1
    shared = (at, torch.where(at < 0, -1, 2 * at + 1), at)
    inputs = tuple(
        {"input_ids": x, "attention_mask": torch.ones_like(x)} for x in (ids, doubled, ids)
    )
    return Windows(inputs, shared, torch.full((ROWS,), LENGTH))


def test_a_batch_is_what_each_parent_takes() -> None:
    call = as_call(windows(0))
    first, second, merged = (call_for(call, m)[1]["input_ids"] for m in (0, 1, None))
    assert first.shape == second.shape == merged.shape == (ROWS, 2 * LENGTH)
    rows = [rows_for(call, m) for m in (0, 1, None)]
    assert len(rows[0]) == ROWS * LENGTH - 2
    assert torch.equal(first.flatten()[rows[0]], second.flatten()[rows[1]])
    assert torch.equal(rows[0], rows[2])


def test_moments_pair_positions_that_hold_the_same() -> None:
    found = hm.calibrate([net(), net()], [windows(0), windows(1)], progress=False)
    for moments in found.moments.values():
        assert moments.count % (ROWS * LENGTH - 2) == 0
        torch.testing.assert_close(
            moments.correlation_between(0, 1).diagonal(),
            torch.ones(moments.sizes[0], dtype=torch.float64),
        )


def test_refit_asks_for_the_same_positions() -> None:
    model = net()
    result = hm.merge([model, net()], [windows(0), windows(1)], match="permute", progress=False)
    assert all(fit["after"] == pytest.approx(1, abs=1e-6) for fit in result.report.fits)
    call = as_call(windows(2))
    with torch.no_grad():
        torch.testing.assert_close(result.model(**call[1]), model(**call[1]))


def test_windows_for_another_number_of_parents() -> None:
    with pytest.raises(InputError, match="windows for 3 models; allowed: 4, the parents and"):
        hm.plan([net(), net(), net()], [windows(0)], progress=False, match="zip")


def test_windows_one_by_one_hold_the_same_positions() -> None:
    call = as_call(windows(0))
    ones = list(one_by_one(call))
    assert len(ones) == ROWS
    for m in (0, 1, None):
        ids = call_for(call, m)[1]["input_ids"]
        values = torch.stack([ids, torch.arange(ids.numel()).reshape(ids.shape)], 2)
        whole = comparable(values, call, m)
        parts = [comparable(v[None], one, m) for v, one in zip(values, ones, strict=True)]
        assert torch.equal(torch.cat(parts), whole)
        assert [len(part) for part in parts] == [LENGTH - 2] + [LENGTH] * (ROWS - 1)


def test_inputs_one_by_one() -> None:
    x, scale = torch.arange(6.0).reshape(3, 2), torch.tensor(2.0)
    ones = list(one_by_one(((x,), {"flag": True})))
    assert [one[1] for one in ones] == [{"flag": True}] * 3
    assert torch.equal(torch.cat([one[0][0] for one in ones]), x)
    whole = ((x,), {"scale": scale})
    assert list(one_by_one(whole)) == [whole]  # it cannot be told what belongs to one input
