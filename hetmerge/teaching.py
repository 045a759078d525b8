"""What the outputs of a merged network should be, from the outputs of its parents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hetmerge.batches import Call, check_members, comparable
from hetmerge.errors import InputError
from hetmerge.joining import gives_tokens, join
from hetmerge.network import outputs_of
from hetmerge.partial import Join
from hetmerge.planning import AlignmentPlan
from hetmerge.projection import Projector
from hetmerge.softmax_head import mixture

DIVERGENCE, SQUARES = "Kullback-Leibler divergence", "squared error"


class Teacher:
    """What the merged network's outputs should be, from the parents it was made of.

    Args:
        projector: of the merge.
        calls: calibration inputs.
        plan: of the merge.
        scaled: outputs that stand side by side are standardised, as refit does it.
    """

    def __init__(
        self, projector: Projector, calls: Sequence[Call], plan: AlignmentPlan, scaled: bool
    ) -> None:
        if not calls:
            raise InputError("batches: got none; polishing needs calibration inputs")
        self.projector, self.setting, self.calls = projector, projector.setting, calls
        for call in calls:
            check_members(call, len(self.setting.parents))
        graph = self.setting.skeleton.graph
        self.heads: list[str] = []  # per output, how probabilities are mixed; empty for others
        self.joins: list[Join | None] = []
        for place in range(len(graph.outputs)):
            head = plan.options.head
            if head == "ridge":
                head = "kl" if gives_tokens(projector, place) else ""
            self.heads.append(head)
            self.joins.append(None if head else self._join(place, scaled))

    @property
    def loss_name(self) -> str:
        names = [DIVERGENCE if head else SQUARES for head in self.heads]
        return " + ".join(dict.fromkeys(names))

    def wanted(self, call: Call) -> list[Tensor]:
        """Per output, at the positions that count, the merged probabilities or values."""
        found = [next(self._outputs(m, [call])) for m in range(len(self.setting.parents))]
        targets = []
        for place, (head, joined) in enumerate(zip(self.heads, self.joins, strict=True)):
            own = {m: outputs[place] for m, outputs in enumerate(found)}
            if joined is None:
                places = self._places(place)
                targets.append(mixture(head, call, own, self.projector.weights, places))
            else:
                targets.append(joined([comparable(x, call, m) for m, x in own.items()]))
        return targets

    def loss(self, call: Call, outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """How far outputs of the merged network are from the wanted ones, one number."""
        total = torch.zeros((), device=outputs[0].device)
        for head, output, target in zip(self.heads, outputs, wanted, strict=True):
            if head:
                logs = comparable(output.log_softmax(-1), call, None)
                rows = logs.reshape(-1, logs.shape[-1])
                total = total + F.kl_div(rows, target.to(rows), reduction="batchmean")
            else:
                found = comparable(output, call, None)
                total = total + F.mse_loss(found, target.to(found))
        return total

    def _places(self, place: int) -> dict[int, tuple[Tensor, int]]:
        graph = self.setting.skeleton.graph
        expr = graph.values[graph.outputs[place]][-1]
        return {m: self.projector.labels(expr, m) for m in range(len(self.setting.parents))}

    def _outputs(self, member: int, calls: Sequence[Call]) -> Iterator[list[Tensor]]:
        """A parent's outputs on one batch after the other."""
        network = self.setting.parents[member]
        return outputs_of(network, self.setting.alignment.stages[member], calls)

    def _join(self, place: int, scaled: bool) -> Join:
        def values(member: int) -> list[Tensor]:
            found = zip(self.calls, self._outputs(member, self.calls), strict=True)
            return [comparable(outputs[place], call, member) for call, outputs in found]

        spec, tensors = join(self.projector, place, values if scaled else None)
        graph = self.setting.skeleton.graph
        behind = spec["dim"] - len(graph.values[graph.outputs[place]])
        made = Join(**{**spec, "dim": behind})  # positions that count are fewer dimensions
        made.load_state_dict({**made.state_dict(), **tensors})
        return made.to(next(iter(self.setting.parents[0].state.values())).device)
