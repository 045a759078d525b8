"""What the examples share: small networks trained here on scikit-learn's handwritten digits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hetmerge.demo_models import DigitNet, Digits, digits, train

DATA: Digits = digits(seed=0)
BATCHES = list(DATA.train_images[:1000].split(250))  # unlabelled inputs for calibration


def specialist(
    classes: Sequence[int], blocks: Sequence[int], widths: Sequence[int], seed: int
) -> DigitNet:
    """A network that was trained on some of the digits only."""
    torch.manual_seed(seed)
    net = DigitNet(blocks, widths, len(classes))
    train(net, DATA.train_images, DATA.train_labels, classes, epochs=10, seed=seed)
    return net


def accuracy(classes: Sequence[int]) -> Callable[[nn.Module], float]:
    """Scores a network whose outputs stand for `classes`, in this order, on held-out digits."""
    labels = torch.tensor(classes)

    @torch.no_grad()
    def score(net: nn.Module) -> float:
        mine = torch.isin(DATA.test_labels, labels)
        outputs: Tensor = net(DATA.test_images[mine])
        return float((labels[outputs.argmax(1)] == DATA.test_labels[mine]).float().mean())

    return score
