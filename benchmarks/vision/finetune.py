"""Specialists that share an origin: the last stage of a CIFAR-10 ResNet, tuned on five classes.

python benchmarks/vision/finetune.py resnet56@0-4 resnet20@5-9
python benchmarks/vision/cifar_pair.py --models FILE FILE      # the files it names
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F
from cifar_models import ResNet, load
from data import cifar10, data_folder
from measure import logits
from rich.console import Console
from safetensors.torch import save_file
from specs import cache_folder
from torch import Tensor, nn
from train import BATCH, own

OUT = Console()
IMAGES, EPOCHS, RATE = 20000, 2, 0.02  # images of all ten classes


class Front(nn.Module):
    """A network up to its last stage."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:  # [N, 32, 16, 16]
        net = self.net
        return net.layer2(net.layer1(torch.relu(net.bn1(net.conv1(x)))))


def tune(net: ResNet, classes: tuple[int, ...]) -> None:
    """Train the last stage and the head, cut down to these classes, in place."""
    torch.manual_seed(classes[0])
    images, labels = own(*cifar10("train", IMAGES), classes)
    head = nn.Linear(net.linear.in_features, len(classes))
    head.load_state_dict({k: v[list(classes)] for k, v in net.linear.state_dict().items()})
    net.linear = head
    features = logits(Front(net), images)  # nothing in front of the last stage is trained
    parameters = [*net.layer3.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=5e-4)
    net.layer3.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for index in torch.randperm(len(labels)).split(BATCH):
            outputs = head(net.layer3(features[index]).mean(dim=(2, 3)))
            loss = F.cross_entropy(outputs, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
        OUT.print(f"classes {classes}: epoch {epoch + 1}, loss {total / len(labels):.3f}")
    net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", help="such as resnet56@0-4")
    for name in parser.parse_args().networks:
        source, _, span = name.partition("@")
        first, last = map(int, span.split("-"))
        classes = tuple(range(first, last + 1))
        net = load(data_folder() / "resnet_cifar10" / f"{source}.safetensors").net
        tune(net, classes)
        images, labels = own(*cifar10("test", 10000), classes)
        accuracy = float((logits(net, images).argmax(1) == labels).float().mean())
        path = cache_folder("finetuned") / f"{source}-classes{span}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"classes": json.dumps(classes), "accuracy": f"{accuracy:.4f}"}
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path, metadata)
        OUT.print(f"{path}: accuracy on its own classes {accuracy:.4f}", soft_wrap=True)


if __name__ == "__main__":
    main()
