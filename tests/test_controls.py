import pytest
import torch
from torch import Tensor, nn

from hetmerge import InputError
from hetmerge.controls import Ensemble, head_control


class Net(nn.Module):
    def __init__(self, hidden: int, classes: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Sequential(nn.Linear(5, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(400, 5, generator=torch.Generator().manual_seed(0))


def test_ensemble_averages_or_concatenates(inputs: Tensor) -> None:
    a, b = Net(8, 3, 0), Net(6, 3, 1)
    torch.testing.assert_close(Ensemble([a, b])(inputs), (a(inputs) + b(inputs)) / 2)
    both = Ensemble([a, b], "concat")(inputs)
    torch.testing.assert_close(both, torch.cat([a(inputs), b(inputs)], dim=1))


def test_scaled_ensemble_gives_every_parent_the_same_spread(inputs: Tensor) -> None:
    a, loud = Net(8, 3, 0), Net(6, 2, 1)
    with torch.no_grad():
        loud.head.weight.mul_(50)
    scaled = Ensemble([a, loud], "concat", inputs.split(100))(inputs)
    for part in scaled.split([3, 2], dim=1):
        assert part.mean().item() == pytest.approx(0, abs=1e-5)
        assert part.std().item() == pytest.approx(1, abs=1e-5)


def test_head_of_the_same_parent_comes_back(inputs: Tensor) -> None:
    body = Net(8, 3, 0)
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    fitted = head_control(body, [body], inputs.split(100), head="head", ridge=1e-9)
    torch.testing.assert_close(fitted(inputs), body(inputs), atol=1e-5, rtol=1e-5)
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_body_that_holds_the_other_reaches_its_outputs(inputs: Tensor) -> None:
    # Every feature of `small` is a feature of `big`, so a linear head can match both exactly.
    small, big = Net(4, 2, 0), Net(7, 3, 1)
    with torch.no_grad():
        big.inner[0].weight[:4] = small.inner[0].weight
        big.inner[0].bias[:4] = small.inner[0].bias
    wanted = torch.cat(
        [(x - x.mean()) / x.std() for x in (big(inputs), small(inputs))], dim=1
    ).detach()
    batches = [(part,) for part in inputs.split(100)]
    fitted = head_control(big, [big, small], batches, head="head", outputs="concat", ridge=1e-9)
    torch.testing.assert_close(fitted(inputs), wanted, atol=1e-4, rtol=1e-4)


def test_taps_feed_the_head_with_all_named_modules(inputs: Tensor) -> None:
    body = Net(8, 3, 0)
    fitted = head_control(body, [body], [inputs], head="head", taps=["inner.0", "inner.1"])
    assert fitted.head.in_features == 16
    assert fitted(inputs).shape == (400, 3)


def test_bad_arguments() -> None:
    net = Net(8, 3, 0)
    with pytest.raises(InputError, match="expected a Linear"):
        head_control(net, [net], [], head="inner")
    with pytest.raises(InputError, match="'average' or 'concat'"):
        Ensemble([net], "sum")(torch.zeros(1, 5))
