"""Give modules tensors of other shapes, and make their size attributes agree."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hetmerge.network import Network
from hetmerge.partition import merged_size
from hetmerge.tracing.expr import Leaf, Product

CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd


def set_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by name, whatever their shape; tied ones stay tied."""
    shared: dict[int, nn.Parameter] = {}
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if name in named:
            old = named[name]
            if id(old) not in shared:
                shared[id(old)] = nn.Parameter(_own(tensor), requires_grad=False)
            module._parameters[leaf] = shared[id(old)]
        else:
            module._buffers[leaf] = _own(tensor)


def _own(tensor: Tensor) -> Tensor:
    """A copy with the strides a file gives it, so that the same kernels run before and after."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def resize(model: nn.Module, groups: Mapping[str, int]) -> None:
    """Make the size attributes of torch's own layers agree with their tensors."""
    for path, module in model.named_modules():
        sizes = _layer_sizes(module, groups.get(path))
        for name, value in sizes.items():
            setattr(module, name, value)


def _layer_sizes(module: nn.Module, groups: int | None) -> dict[str, object]:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return _attention_sizes(module) if isinstance(module, nn.MultiheadAttention) else {}
    shape = weight.shape
    if isinstance(module, CONV):
        count = groups or module.groups
        if isinstance(module, _TRANSPOSED):
            return {"in_channels": shape[0], "out_channels": shape[1] * count, "groups": count}
        return {"in_channels": shape[1] * count, "out_channels": shape[0], "groups": count}
    if isinstance(module, nn.Linear):
        return {"in_features": shape[1], "out_features": shape[0]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": shape[0]}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0], "num_groups": groups or module.num_groups}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": tuple(shape)}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    return {}


def _attention_sizes(module: nn.MultiheadAttention) -> dict[str, object]:
    width = module.out_proj.weight.shape[0]
    return {"embed_dim": width, "kdim": width, "vdim": width}


def group_counts(skeleton: Network, widths: Mapping[int, int]) -> dict[str, int]:
    """Module path -> its number of groups after the merge (grouped convolutions, GroupNorm)."""
    counts = {}
    graph = skeleton.graph
    for path, module in skeleton.model.named_modules():
        weight = f"{path}.weight"
        if weight not in graph.tensors:
            continue
        if isinstance(module, CONV) and module.groups > 1:
            layer = skeleton.layer_of(weight)
            if layer is not None:
                read = merged_size(graph.values[layer.source][1], widths)
                counts[path] = read // merged_size(graph.tensors[weight][1], widths)
        elif isinstance(module, nn.GroupNorm):
            expr = graph.tensors[weight][0]
            first = expr.parts[0] if isinstance(expr, Product) else expr
            grouped = isinstance(first, Leaf) and module.num_groups > 1
            counts[path] = merged_size(first, widths) if grouped else 1
    return counts
