"""Layer similarity: linear CKA between all layers of two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops.backend import available, choose
from hetmerge.ops.library import register
from hetmerge.ops.native import threads, view

BLOCK = 2048  # features summed at a time, in the features' own precision
PANEL = 64  # samples from which half a Gram matrix is cheaper than all of it
# Squared lengths of float32 features that neither overflow nor lose their products to zero.
SMALLEST, LARGEST = 1e-20, 1e37
EMPTY = torch.zeros(0, 0, dtype=torch.float64)
NARROW = (torch.float32, torch.float16, torch.bfloat16)  # what native code multiplies


def cka(
    features_a: Sequence[Tensor],
    features_b: Sequence[Tensor],
    backend: str = "auto",
) -> Tensor:
    """Linear CKA of every layer of one model with every layer of another, on one batch.

    Args:
        features_a, features_b: per layer [batch, ...], floating point, finite, batch >= 4.
        backend: "auto", "native" (on the CPU), "triton", "torch" or "reference" (one pair at a
            time).

    Returns:
        [La, Lb] float64 in [-1, 1], exactly 1 for equal features, 0 where a layer is constant.
        Slightly negative values are possible: the estimate is unbiased.

    Raises:
        InputError: as :meth:`CKA.update`.
        BackendError: the backend cannot run.
    """
    return CKA(backend).update(features_a, features_b).value()


class CKA:
    """Minibatch CKA: HSIC is averaged over the batches before the ratio is taken.

    arXiv 2010.15327 eq 3 with the unbiased HSIC estimator. One Gram matrix per layer; all pairs are
    one matrix product. Accumulators of disjoint batches add up by :meth:`merge`.

    Gram matrices are products of the distances to the first sample: in float64 for float64
    features, else in float32 over at most 2048 features at a time, whose sums are added up in
    float64.
    Everything after them is float64.

    Args:
        backend: as in :func:`cka`.
    """

    def __init__(self, backend: str = "auto") -> None:
        self.backend = backend
        self.batches = 0
        # Sums of HSIC: [La, Lb] of all pairs, [La] and [Lb] of each layer with itself.
        self._cross = self._self_a = self._self_b = EMPTY

    def update(self, features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> CKA:
        """Add one batch; the layer counts must be those of the first one.

        Raises:
            InputError: no layers, not floating point, not finite, fewer than 4 samples, or sample,
                layer counts or devices that differ.
            BackendError: the backend cannot run.
        """
        _check(features_a, features_b)
        detached = [[x.detach() for x in features] for features in (features_a, features_b)]
        cross, self_a, self_b = _op(*detached, self.backend)
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
        a, b = self._self_a[:, None], self._self_b
        scale = (a / b).sqrt_().mul_(b)  # exactly b where a is b
        return (self._cross / scale).clamp_(-1.0, 1.0).nan_to_num_(0.0)  # constant layers: 0 / 0

    def _add(self, cross: Tensor, self_a: Tensor, self_b: Tensor, batches: int) -> None:
        if self.batches == 0:
            # Shared, perhaps with another accumulator: sums are never formed in place.
            self._cross, self._self_a, self._self_b = cross, self_a, self_b
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


def _run(
    features_a: Sequence[Tensor], features_b: Sequence[Tensor], backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """HSIC of all pairs [La, Lb], and of each layer with itself [La], [Lb], all float64."""
    device = features_a[0].device
    found = available(device, "native", "triton", "torch", "reference")
    name = choose("cka", backend, found)
    if name == "native" and device.type != "cpu":
        parts = [[x.cpu() for x in features] for features in (features_a, features_b)]
        cross, self_a, self_b = _run(parts[0], parts[1], name)
        return cross.to(device), self_a.to(device), self_b.to(device)
    if name == "reference":
        from hetmerge.reference.similarity import hsic_tables

        _check_finite(dict(enumerate([*features_a, *features_b])), len(features_a))
        return hsic_tables(features_a, features_b)
    same = len(features_a) == len(features_b) and all(
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        for a, b in zip(features_a, features_b, strict=True)
    )
    layers = [*features_a] if same else [*features_a, *features_b]
    grams = _centred_grams(layers, len(features_a), name)
    grams_a, grams_b = grams[: len(features_a)], grams[-len(features_b) :]
    n = len(features_a[0])
    multiply = _native_products if name == "native" else _products
    return multiply(grams_a, grams_b, n * (n - 3))


def _native_products(
    grams_a: Tensor, grams_b: Tensor, divisor: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scalar products of all pairs [La, Lb], and of each with itself; equal ones come out equal."""
    from hetmerge import _native

    found = _native.scalar_products(view(grams_a), view(grams_b), divisor, threads())
    cross, self_a, self_b = (torch.from_numpy(array) for array in found)
    return cross, self_a, self_b


def _products(grams_a: Tensor, grams_b: Tensor, divisor: int) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_native_products`, where a matrix product need not round like a sum."""
    cross = grams_a @ grams_b.T
    self_a, self_b = (x.square().sum(1) for x in (grams_a, grams_b))
    near = cross >= (1 - 1e-9) * torch.maximum(self_a[:, None], self_b)
    for i, j in near.cpu().nonzero().tolist():
        if torch.equal(grams_a[i], grams_b[j]):
            cross[i, j] = self_a[i] = self_b[j]
    return cross.div_(divisor), self_a.div_(divisor), self_b.div_(divisor)


def _fake(
    features_a: Sequence[Tensor], features_b: Sequence[Tensor], backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    a, b = len(features_a), len(features_b)
    like = features_a[0]
    shapes = ((a, b), (a,), (b,))
    cross, self_a, self_b = (like.new_empty(shape, dtype=torch.float64) for shape in shapes)
    return cross, self_a, self_b


_op = register("cka(Tensor[] a, Tensor[] b, str backend) -> (Tensor, Tensor, Tensor)", _run, _fake)


def _check_finite(values: Mapping[int, Tensor], count_a: int) -> None:
    """Of layers by their number, those of the first model, ``count_a``, before the second's."""
    if not values:
        return
    fit = torch.stack([torch.isfinite(x).all() for x in values.values()]).tolist()
    for k, finite in zip(values, fit, strict=True):
        if not finite:
            name = f"features_a[{k}]" if k < count_a else f"features_b[{k - count_a}]"
            raise InputError(f"{name}: NaN or infinite entries, only finite ones are allowed")


def _centred_grams(features: Sequence[Tensor], count_a: int, backend: str) -> Tensor:
    """[layers, n * n] float64: flattened Gram matrices whose scalar products are n (n - 3) HSIC.

    ``features`` are those of both models; the first ``count_a`` layers are the first one's.
    """
    n = len(features[0])
    flat = [layer.flatten(1) for layer in features]
    grams = features[0].new_empty((len(features), n, n), dtype=torch.float64)
    held = [k for k, layer in enumerate(flat) if layer.dtype in NARROW]
    fill = {"native": _fill_native, "triton": _fill_triton, "torch": _fill_torch}[backend]
    longest = dict(zip(held, fill(grams, flat, held), strict=True)) if held else {}
    exact = [k for k in range(len(flat)) if not SMALLEST <= longest.get(k, 0.0) <= LARGEST]
    for k in exact:
        _add_gram(grams[k].zero_(), flat[k], torch.float64)
    _check_finite({k: grams[k].diagonal() for k in exact}, count_a)
    for k in exact:
        _centre(grams[k])
    return grams.flatten(1)


def _fill_native(grams: Tensor, flat: Sequence[Tensor], held: Sequence[int]) -> Sequence[float]:
    """Fill the centred Gram matrices of some layers, summed up in float32.

    Returns:
        Per layer the largest squared length of its samples, which tells whether float32 held it.
    """
    from hetmerge import _native

    layers = [flat[k] if flat[k].stride(1) == 1 else flat[k].contiguous() for k in held]
    targets = [view(grams[k]) for k in held]
    return _native.centred_grams([view(layer) for layer in layers], targets, threads())


def _fill_triton(grams: Tensor, flat: Sequence[Tensor], held: Sequence[int]) -> Sequence[float]:
    """As :func:`_fill_native`."""
    from hetmerge.kernels.similarity import launch_centre, launch_grams

    found = launch_grams([flat[k] for k in held])
    if len(held) == len(flat):
        launch_centre(found, grams)
    else:
        grams[held] = launch_centre(found)
    return _longest(found)


def _fill_torch(grams: Tensor, flat: Sequence[Tensor], held: Sequence[int]) -> Sequence[float]:
    """As :func:`_fill_native`."""
    for k in held:
        _add_gram(grams[k].zero_(), flat[k], torch.float32)
    longest = _longest(grams)
    for k in held:
        _centre(grams[k])
    return [longest[k] for k in held]


def _longest(grams: Tensor) -> list[float]:
    longest: list[float] = grams.diagonal(dim1=1, dim2=2).amax(1).tolist()
    return longest


def _add_gram(gram: Tensor, layer: Tensor, dtype: torch.dtype) -> None:
    """Add X X^T for X = layer [n, d] minus its first sample.

    HSIC does not see a shift of all samples; without it large means would swamp the products, and
    relative to the first sample constant features are exactly 0.
    """
    n = len(layer)
    half = n // 2 if n >= PANEL else 0
    for begin in range(0, layer.shape[1], BLOCK):
        part = layer[:, begin : begin + BLOCK].to(dtype)
        part = part - part[0]
        gram[half:] += part[half:] @ part.T
        if half:
            gram[:half, :half] += part[:half] @ part[:half].T
    gram[:half, half:] = gram[half:, :half].T


def _centre(gram: Tensor) -> None:
    """U-centring: zero diagonal, then row and column means removed without it.

    It turns the three terms of the unbiased estimator into one scalar product.
    """
    n = len(gram)
    gram.fill_diagonal_(0.0)
    mean = gram.sum(1) / (n - 2)
    mean -= mean.sum() / (2 * (n - 1))
    gram -= mean[:, None]
    gram -= mean
    gram.fill_diagonal_(0.0)
