"""The result of tracing: every tensor dimension of a model in terms of its spaces."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from hetmerge.errors import InputError, VerifyError
from hetmerge.tracing import act
from hetmerge.tracing.exporting import example
from hetmerge.tracing.expr import Expr, size
from hetmerge.tracing.spaces import Occurrence as Occurrence
from hetmerge.tracing.spaces import Space as Space
from hetmerge.tracing.table import table
from hetmerge.tracing.verify import Inputs, proof


@dataclass(frozen=True, eq=False)
class SpaceGraph:
    """Spaces of a model, and what every tensor and value is made of.

    Axes of size one vanish: a model with one key-value head has no space for it.
    """

    program: ExportedProgram  # functional; can be run if the model had real weights
    spaces: tuple[Space, ...]
    tensors: dict[str, tuple[Expr, ...]]  # parameters and running statistics: one per dimension
    aliases: dict[str, str]  # tied parameter -> the name used in `tensors`
    dead: tuple[str, ...]  # parameters that reach no output
    values: dict[str, tuple[Expr, ...]]  # graph node -> one expression per dimension
    consumed: frozenset[tuple[str, int]]  # (tensor, dim) contracted with an activation
    routed: frozenset[str]  # nodes whose rows are tokens, sorted by the expert they were sent to
    mixing: tuple[str, ...]  # nodes that combine features of a free space without weights
    outputs: tuple[str, ...]  # nodes of the declared outputs
    unknown: dict[str, int]  # operators without a rule -> count
    model: str  # class of the traced model
    inputs: Inputs  # example inputs

    def space(self, key: int | str) -> Space:
        """A space by index or by name.

        Raises:
            InputError: there is no such space.
        """
        if isinstance(key, int):
            if not 0 <= key < len(self.spaces):
                raise InputError(f"no space {key}; there are {len(self.spaces)}")
            return self.spaces[key]
        by_name = {space.name: space for space in self.spaces}
        if key not in by_name:
            near = difflib.get_close_matches(key, by_name, n=3, cutoff=0.4)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise InputError(f"no space named {key!r}{hint}")
        return by_name[key]

    def explain(self) -> str:
        """A readable table: every space, whether it is free, where it is used and why it is not."""
        return table(self.model, self.spaces, self.dead, self.unknown)

    def permute(
        self, state: dict[str, Tensor], permutations: dict[int, Tensor]
    ) -> dict[str, Tensor]:
        """A new state dict with spaces permuted: ``new = old[permutation]`` along every axis.

        Args:
            state: tensors by name; entries the graph does not know are passed through.
            permutations: space index -> [*outer sizes in the order of ``structure``, size].

        Raises:
            InputError: not a permutation, or a tensor is missing or has another shape.
        """
        act.check(self.spaces, permutations)
        new = dict(state)
        others: dict[str, list[str]] = {}
        for alias, first in self.aliases.items():
            others.setdefault(first, []).append(alias)
        for name, dims in self.tensors.items():
            if not act.touched(dims, permutations):
                continue
            present = [key for key in (name, *others.get(name, ())) if key in state]
            if not present:
                raise InputError(f"the state has no tensor {name!r}")
            old = state[present[0]]
            expected = [size(dim) for dim in dims]
            if list(old.shape) != expected:
                raise InputError(f"{name} has shape {list(old.shape)}, needs {expected}")
            permuted = act.permute_tensor(old, dims, self.spaces, permutations)
            new.update(dict.fromkeys(present, permuted))
        return new

    def verify(
        self,
        model: nn.Module,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
        *,
        tolerance: float | None = None,
        seed: int = 0,
    ) -> dict[str, float]:
        """Prove on real weights that free spaces are free.

        Every free space alone, then all at once, is permuted by n-cycles (independently per outer
        index where its structure allows) and the declared outputs are compared. The model is not
        changed; half-precision models are compared in a single-precision copy.

        Args:
            model: the traced model, or one of the same class and shapes, with real weights.
            args: inputs as for `trace`; default: the example inputs of the trace.
            kwargs: keyword inputs.
            tolerance: largest relative change; default 1e-9 where the model computes in double
                precision and 1e-5 in single, more for long programs.
            seed: of the permutations.

        Returns:
            Relative change per space name, and under ``all`` for all at once.

        Raises:
            VerifyError: a space changes the outputs, or the outputs are not finite.
        """
        given = example(args, kwargs)
        inputs = given if given[0] or given[1] else self.inputs
        if any(isinstance(x, Tensor) and x.is_meta for x in [*inputs[0], *inputs[1].values()]):
            raise VerifyError("the example inputs are on the meta device; give real ones")
        scale = math.sqrt(max(1.0, len(self.program.graph.nodes) / 500))
        return proof(
            model,
            inputs,
            self.spaces,
            self.permute,
            scale=scale,
            tolerance=tolerance,
            seed=seed,
        )
