"""A deep network's program from those of shallower ones is the one that all layers give."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hetmerge.network import Network
from hetmerge.tracing import exporting
from hetmerge.tracing.exporting import export
from hetmerge.tracing.repeating import LEAST, describe, equal_layers

tf = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "disk"))
import family_models as models  # noqa: E402

DEPTH = LEAST + 1
FAMILIES = {**models.GROUPED, **models.EXPERTS, **models.OTHERS}


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module, dict], tuple]:
    """both(model, inputs): the program from repetition, or None, and that of all layers."""

    def programs(model: nn.Module, inputs: dict) -> tuple:
        found = []
        repeated = exporting.export_repeated
        with monkeypatch.context() as patch:
            patch.setattr(
                exporting, "export_repeated", lambda *a: found.append(repeated(*a)) or found[-1]
            )
            export(model, (), inputs)
        with monkeypatch.context() as patch:
            patch.setattr(exporting, "export_repeated", lambda *a: None)
            return *found, export(model, (), inputs)

    return programs


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "bert", "vit", "clip"])
def test_the_same_program(both, family: str) -> None:
    with torch.device("meta"):
        model = FAMILIES[family](DEPTH, 32, 4, 4).eval()
    before = [(name, id(module)) for name, module in model.named_modules()]
    inputs = dict(models.inputs(family)[0])
    if family == "llama":
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    repeated, whole = both(model, inputs)
    assert repeated is not None
    assert describe(repeated) == describe(whole)
    assert set(repeated.state_dict) == set(whole.state_dict)
    assert [(name, id(module)) for name, module in model.named_modules()] == before


class Layer(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_idx, self.linear = number, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).relu()


class Deep(nn.Module):
    def __init__(self, kind: type[Layer] = Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind(i) for i in range(DEPTH))
        self.extra = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.extra(x)


class Experts(Layer):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(LEAST))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.stack([expert(x) for expert in self.experts]).sum(0)


class Looking(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.layer_idx == 3 else super().forward(x)


class Between(Deep):
    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == 3:
                x = self.extra(x)
        return x


class Collecting(Deep):
    def forward(self, x: Tensor) -> Tensor:
        found = [x := layer(x) for layer in self.layers]
        return torch.cat(found, -1)


class Skipping(Deep):
    def forward(self, x: Tensor) -> Tensor:
        first = x
        for layer in self.layers:
            first, x = x, layer(x) + first
        return x


class Counted(Deep):
    def forward(self, x: Tensor) -> Tensor:
        assert len(self.layers) == DEPTH
        return super().forward(x)


def loud(model: nn.Module) -> nn.Module:
    model.get_submodule("layers.3.linear").register_forward_hook(lambda _, __, x: 2 * x)
    return model


def tied(model: nn.Module) -> nn.Module:
    model.get_submodule("layers.3").linear = model.get_submodule("layers.5").linear
    return model


MADE = {
    "plain": (Deep, True),
    "lists inside the layers": (lambda: Deep(Experts), True),
    "two values from layer to layer": (Skipping, False),
    "a layer looks at its number": (lambda: Deep(Looking), False),
    "something between two layers": (Between, False),
    "all layers are collected": (Collecting, False),
    "the number of layers is known": (Counted, False),
    "a hook inside one layer": (lambda: loud(Deep()), False),
    "two layers share weights": (lambda: tied(Deep()), False),
}


@pytest.mark.parametrize("name", MADE)
def test_only_where_layers_repeat(both, name: str) -> None:
    make, repeats = MADE[name]
    with torch.device("meta"):
        model = make().eval()
    repeated, whole = both(model, {"x": torch.zeros(4, 6)})
    assert (repeated is not None) == repeats
    assert describe(repeated or whole) == describe(whole)


def test_layers_of_two_kinds_do_not_repeat() -> None:
    with torch.device("meta"):
        model = FAMILIES["gemma3"](DEPTH, 32, 4, 4)
    assert equal_layers(model) is None
    assert equal_layers(FAMILIES["llama"](LEAST - 1, 32, 4, 4)) is None


def test_a_repeated_program_runs(tmp_path: Path) -> None:
    from hetmerge.lazy import open_checkpoint

    model = FAMILIES["llama"](DEPTH, 32, 4, 2).eval()
    model.save_pretrained(tmp_path)
    batch = models.inputs("llama")[0]
    network = Network(open_checkpoint(tmp_path), ((), batch))
    walker = network.walk([((), batch)])
    with torch.no_grad():
        wanted = model(**batch).logits
        found = walker.value(network.graph.outputs[0])[0]
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
