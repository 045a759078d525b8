"""Values of a program exist as long as something waits for them."""

import torch
from torch import nn

from hetmerge.execution import Walker
from hetmerge.tracing import export


class Unused(nn.Module):
    """What `side` computes is returned to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        y = self.stem(x)
        self.side(y)
        return self.head(y)


def test_what_nobody_reads_frees_nothing_when_it_is_asked_for() -> None:
    model, x = Unused().eval(), torch.randn(5, 3)
    program = torch.export.export(model, (x,), strict=False)
    stem, side, head = (n.name for n in program.graph.nodes if n.op == "call_function")
    walker = Walker([program], model.state_dict(), [[x]])
    with torch.no_grad():
        torch.testing.assert_close(walker.value(side)[0], model.side(model.stem(x)))
        torch.testing.assert_close(walker.value(head)[0], model(x))
    assert stem not in walker.values


def test_an_exported_program_holds_nothing_that_no_output_depends_on() -> None:
    program = export(Unused().eval(), torch.randn(5, 3))
    assert [n.name for n in program.graph.nodes if n.op == "call_function"] == [
        "linear",
        "linear_2",
    ]
