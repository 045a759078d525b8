"""The options of a merge, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hetmerge.alignment import DEPTHS
from hetmerge.errors import InputError
from hetmerge.outputs import OUTPUTS
from hetmerge.repair import REPAIRS
from hetmerge.repeating import MISSING
from hetmerge.softmax_head import HEADS
from hetmerge.systems import RIDGE
from hetmerge.widths import Width, check_architecture, check_budget

MATCHES = ("auto", "zip", "permute", "select", "pca", "identity")
IMPORTANCES = ("fisher", "weights")
BACKENDS = ("auto", "reference", "native", "torch", "triton", "cuda")


@dataclass(frozen=True)
class Options:
    """How to merge; the defaults are the recipe that kept most accuracy.

    Attributes:
        depth: how the layers of a shallower parent are placed: "segment" (SMA), "layer" (LMA),
            "uniform", "head", "tail".
        missing: what it has where none of its own is placed: "zero", a residual branch of zero (an
            identity layer where there is no residual connection), or "repeat", its layer before
            once more, where that gives the features it takes. Zero is exact unless norms stand in
            the residual stream (BERT); repetition is where the deeper parent repeats layers too.
        match: how features meet: "zip" and "permute" average what is alike, "select" keeps the
            features from which the others can best be read off (heads and groups it pairs like
            "permute"), "pca" keeps the principal directions of a residual stream that has no
            preferred basis, whole heads, and of everything else what "select" keeps; "identity"
            goes by position; "auto" tries "permute", "zip" and "select" (or "pca", where a stream
            has no preferred basis) and takes the one whose merge explains most of the parents'
            outputs on inputs that the trial was not made from: of their variance, half by all
            parents and half by the one served worst; of a vocabulary, of their information. Its
            price, paid while planning, are two or three merges from up to 500 inputs.
        outputs: "average" for parents with the same labels, "concat" for different ones.
        labels: per parent, the name of each output; shared names are averaged, others kept.
        importance: what "select" and a budget count errors by: "fisher", how they move the outputs
            on the calibration inputs (gradients of unlabelled outputs), or "weights" of the next
            layers; budgets of transformers models, and parents on disk, go by weights.
        alpha, beta: zip's decay of merged similarities and share of within-model merges.
        width: "max", "union", a factor of the widest parent, or a dict of space name -> choice;
            below a parent's own with "zip", "select" and "pca".
        budget: {"parameters": most} or {"flops": most per input}: choose every width so that least
            is lost within it (of transformers models also numbers of heads); None: as `width` says.
        architecture: numbers of the merged configuration (transformers models), such as
            {"hidden_size": 2048}, which decide every width; what is not named is the base parent's.
        weights: one per parent; default equal.
        refit: solve every layer in closed form on the calibration inputs.
        ridge: of refit, relative to the mean square of a layer's inputs: "auto" (each layer's own,
            by the error on calibration batches left out) or a number, of heads a tenth of it.
        head: how refit fits the outputs: "ridge" to the mean of the parents' outputs, "kl" to the
            mean of their probabilities, "bayes" to their probabilities weighted by how well each
            parent foresaw the tokens so far (causal language models), which suits specialists.
        repair: "none", "bn" or "repair", where refit is off.
        stop_at: merge up to and including this unit only, and keep what follows as one head per
            parent: a number of merged units over all stages, or the module path of a unit in the
            deepest parent. None merges everything.
        names: one per parent, by which the heads of a partial merge are called; default "parent0",
            "parent1" and so on.
        seed: of the positions that refit samples.
        backend: of the kernels.
    """

    depth: str = "segment"
    missing: str = "zero"
    match: str = "auto"
    importance: str = "fisher"
    outputs: str = "average"
    labels: list[list[str]] | None = None
    alpha: float = 0.5
    beta: float = 1.0
    width: Width = "max"
    budget: dict[str, float] | None = None
    architecture: dict[str, int] | None = None
    weights: list[float] | None = None
    refit: bool = True
    ridge: float | str = RIDGE
    head: str = "ridge"
    repair: str = "none"
    stop_at: int | str | None = None
    names: list[str] | None = None
    seed: int = 0
    backend: str = "auto"

    def __post_init__(self) -> None:
        _one_of("depth", self.depth, DEPTHS)
        _one_of("missing", self.missing, MISSING)
        _one_of("match", self.match, MATCHES)
        _one_of("importance", self.importance, IMPORTANCES)
        _one_of("outputs", self.outputs, OUTPUTS)
        _one_of("repair", self.repair, REPAIRS)
        _one_of("backend", self.backend, BACKENDS)
        _one_of("head", self.head, HEADS)
        if self.head != "ridge" and (self.outputs != "average" or self.labels is not None):
            raise InputError(
                f"head: got {self.head!r} for outputs that stand side by side; allowed: 'ridge'"
            )
        check_budget(self.budget, self.width)
        check_architecture(self.architecture, self.width, self.budget)
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"{name}: got {value!r}; allowed: a number")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(f"alpha: got {self.alpha}; allowed: finite and above 0")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise InputError(f"beta: got {self.beta}; allowed: finite and at least 0")
        if not isinstance(self.refit, bool):
            raise InputError(f"refit: got {self.refit!r}; allowed: True or False")
        if self.ridge != "auto" and not _positive(self.ridge):
            raise InputError(f"ridge: got {self.ridge!r}; allowed: 'auto', or a number above 0")
        if self.stop_at is not None and not _is_unit(self.stop_at):
            raise InputError(
                f"stop_at: got {self.stop_at!r}; allowed: a number of units from 1, the module "
                "path of a unit in the deepest parent, or None"
            )
        if self.stop_at is not None and self.match == "pca":
            raise InputError(
                f"stop_at: got {self.stop_at!r} beside match='pca'; allowed: None, because "
                "behind a cut a parent needs its stream as loud as it was"
            )
        if self.names is not None and not _are_names(self.names):
            raise InputError(
                f"names: got {self.names!r}; allowed: different Python identifiers, one per model "
                "(and none that torch.nn.ModuleDict has for itself)"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"seed: got {self.seed!r}; allowed: an integer")

    def shares(self, parents: int) -> list[float]:
        """One weight per parent, summing to 1."""
        weights = self.weights if self.weights is not None else [1.0] * parents
        if len(weights) != parents:
            raise InputError(f"weights: got {len(weights)} values for {parents} models")
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
            raise InputError(f"weights: got {weights}; allowed: finite, at least 0, not all 0")
        return [w / sum(weights) for w in weights]

    def check_counts(self, parents: int) -> None:
        """As many weights, names and lists of labels as models."""
        self.shares(parents)
        if self.labels is not None and len(self.labels) != parents:
            raise InputError(f"labels: got {len(self.labels)} lists for {parents} models")
        if self.names is not None and len(self.names) != parents:
            raise InputError(f"names: got {len(self.names)} for {parents} models")

    def heads(self, parents: int) -> list[str]:
        """What the heads of a partial merge are called."""
        return self.names or [f"parent{m}" for m in range(parents)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def make(cls, given: Mapping[str, Any]) -> Options:
        """From keyword arguments, naming the nearest valid option for an unknown one."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InputError(f"unknown option {name!r}{hint} (options: {', '.join(known)})")
        values = dict(given)
        if values.get("labels") is not None:
            values["labels"] = _names(values["labels"])
        if values.get("weights") is not None:
            values["weights"] = _numbers(values["weights"])
        for name in ("width", "budget", "architecture"):
            if isinstance(values.get(name), Mapping):
                values[name] = dict(values[name])
        return cls(**values)


def _names(labels: Any) -> list[list[str]]:
    if _listed(labels) and all(_listed(x) for x in labels):
        return [[str(name) for name in x] for x in labels]
    raise InputError(
        f"labels: got {labels!r}; allowed: per model, a list with the name of every output"
    )


def _numbers(weights: Any) -> list[float]:
    if isinstance(weights, Tensor):
        weights = weights.tolist()
    if _listed(weights) and all(isinstance(w, (int, float)) for w in weights):
        return [float(w) for w in weights]
    raise InputError(f"weights: got {weights!r}; allowed: one number per model")


def _positive(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(float(value)) and float(value) > 0  # type: ignore[arg-type]


def _listed(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_unit(value: object) -> bool:
    counted = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return counted or (isinstance(value, str) and bool(value))


def _are_names(names: Any) -> bool:
    if not _listed(names):
        return False
    kind = torch.nn.ModuleDict
    fine = [isinstance(n, str) and n.isidentifier() and not hasattr(kind, n) for n in names]
    return all(fine) and len(set(names)) == len(names) > 0


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name}: got {value!r}; allowed: {', '.join(allowed)}")
