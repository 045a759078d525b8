"""Layer similarity: linear CKA between all layers of two models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops.backend import choose

CHUNK = 1 << 22  # feature entries converted to float64 at a time


def cka(
    features_a: Sequence[Tensor],
    features_b: Sequence[Tensor],
    backend: str = "auto",
) -> Tensor:
    """Linear CKA of every layer of one model with every layer of another, on one batch.

    Args:
        features_a, features_b: per layer [batch, ...], floating point, finite, batch >= 4.
        backend: "auto", "torch" or "reference" (one pair at a time).

    Returns:
        [La, Lb] float64 in [-1, 1], exactly 1 for equal features, 0 where a layer is constant.
        Slightly negative values are possible: the estimate is unbiased.

    Raises:
        InputError: as :meth:`CKA.update`.
        BackendError: the backend cannot run.
    """
    name = choose("cka", backend, {"torch": None, "reference": None})
    _check(features_a, features_b)
    if name == "reference":
        from hetmerge.reference.similarity import cka as reference

        for side, features in (("features_a", features_a), ("features_b", features_b)):
            for k, layer in enumerate(features):
                _check_finite(layer, side, k)
        return reference([features_a], [features_b])
    return CKA().update(features_a, features_b).value()


class CKA:
    """Minibatch CKA: HSIC is averaged over the batches before the ratio is taken.

    arXiv 2010.15327 eq 3 with the unbiased HSIC estimator, in float64. One Gram matrix per layer;
    all pairs are one matrix product. Accumulators of disjoint batches add up by :meth:`merge`.
    """

    def __init__(self) -> None:
        self.batches = 0
        self._cross = torch.zeros(0, 0, dtype=torch.float64)  # [La, Lb] sums of HSIC
        self._self_a = torch.zeros(0, dtype=torch.float64)  # [La]
        self._self_b = torch.zeros(0, dtype=torch.float64)  # [Lb]

    def update(self, features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> CKA:
        """Add one batch; the layer counts must be those of the first one.

        Raises:
            InputError: no layers, not floating point, not finite, fewer than 4 samples, or sample,
                layer counts or devices that differ.
        """
        _check(features_a, features_b)
        grams_a = _centred_grams(features_a, "features_a")
        same = len(features_a) == len(features_b) and all(
            a is b for a, b in zip(features_a, features_b, strict=True)
        )
        grams_b = grams_a if same else _centred_grams(features_b, "features_b")
        n = len(features_a[0])
        cross = grams_a @ grams_b.T / (n * (n - 3))
        self_a = (grams_a * grams_a).sum(1) / (n * (n - 3))
        self_b = (grams_b * grams_b).sum(1) / (n * (n - 3))
        # A product need not round like the sums above; equal layers must come out as exactly 1.
        near = cross >= (1 - 1e-9) * torch.maximum(self_a[:, None], self_b)
        for i, j in near.nonzero().tolist():
            if torch.equal(grams_a[i], grams_b[j]):
                cross[i, j] = self_a[i] = self_b[j]
        self._add(cross, self_a, self_b, 1)
        return self

    def merge(self, other: CKA) -> CKA:
        """Add another accumulator's batches to this one."""
        if other.batches:
            self._add(other._cross, other._self_a, other._self_b, other.batches)
        return self

    def value(self) -> Tensor:
        """[La, Lb] float64, see :func:`cka`.

        Raises:
            InputError: no batch was added yet.
        """
        if self.batches == 0:
            raise InputError("CKA: no batch was added, one or more are needed")
        a, b = self._self_a[:, None], self._self_b[None, :]
        scale = torch.where(a == b, a, a.sqrt() * b.sqrt())
        ratio = self._cross / torch.where(scale > 0, scale, 1.0)
        return torch.where(scale > 0, ratio.clamp(-1.0, 1.0), 0.0)

    def _add(self, cross: Tensor, self_a: Tensor, self_b: Tensor, batches: int) -> None:
        if self.batches == 0:
            self._cross, self._self_a, self._self_b = cross.clone(), self_a.clone(), self_b.clone()
        elif cross.shape != self._cross.shape:
            raise InputError(
                f"features: {list(cross.shape)} layers, but {list(self._cross.shape)} before"
            )
        else:
            device = self._cross.device
            self._cross = self._cross + cross.to(device)
            self._self_a = self._self_a + self_a.to(device)
            self._self_b = self._self_b + self_b.to(device)
        self.batches += batches


def _check(features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> None:
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        if len(features) == 0:
            raise InputError(f"{name}: no layers, one or more are needed")
        for k, layer in enumerate(features):
            if layer.ndim == 0 or not layer.dtype.is_floating_point:
                raise InputError(
                    f"{name}[{k}]: {layer.dtype} {list(layer.shape)} is not a floating-point "
                    "[batch, ...]"
                )
            if len(layer) != len(features_a[0]) or layer.device != features_a[0].device:
                raise InputError(
                    f"{name}[{k}]: {len(layer)} samples on {layer.device}, but features_a[0] has "
                    f"{len(features_a[0])} on {features_a[0].device}"
                )
            if len(layer) < 4:
                raise InputError(
                    f"{name}[{k}]: {len(layer)} samples, unbiased HSIC needs 4 or more"
                )


def _check_finite(values: Tensor, name: str, layer: int) -> None:
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{name}[{layer}]: NaN or infinite entries, only finite ones are allowed")


def _centred_grams(features: Sequence[Tensor], name: str) -> Tensor:
    """[layers, n * n] float64: flattened Gram matrices whose scalar products are n (n - 3) HSIC.

    U-centring (zero diagonal, then row and column means removed without it) turns the three terms
    of the estimator into one scalar product.
    """
    n = len(features[0])
    grams = features[0].new_zeros((len(features), n, n), dtype=torch.float64)
    for k, layer in enumerate(features):
        flat = layer.detach().flatten(1)
        step = max(1, CHUNK // n)
        for begin in range(0, flat.shape[1], step):
            part = flat[:, begin : begin + step].to(torch.float64)
            # HSIC does not see a shift of all samples; without it large means would swamp the
            # products, and relative to the first sample constant features are exactly 0.
            part = part - part[0]
            grams[k].addmm_(part, part.T)
        _check_finite(grams[k], name, k)
    grams.diagonal(dim1=1, dim2=2).zero_()
    mean = grams.sum(2) / (n - 2)
    grand = mean.sum(1) / (n - 1)
    grams -= mean[:, :, None] + mean[:, None, :] - grand[:, None, None]
    grams.diagonal(dim1=1, dim2=2).zero_()
    return grams.flatten(1)
