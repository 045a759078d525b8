"""Numbers in the code of a model that follow from its sizes, such as a branch's share of the depth.

A merged network has those of its own sizes. Scales of attention scores are made up for elsewhere
(:mod:`hetmerge.score_scales`); all others are told.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from torch import Tensor
from torch.fx import Node

from hetmerge.correspondence import Correspondence
from hetmerge.layers import op_name
from hetmerge.network import Network
from hetmerge.setting import Setting
from hetmerge.tracing.operators import MOVES
from hetmerge.tracing.rules.elementwise import NARY

_TO_SCORES = MOVES | {"mul", "div", "add", "sub", "view", "reshape", "to", "_to_copy"}
_COMPUTED = NARY | {"topk"}
_SHAPES = MOVES | {"view", "reshape", "flatten"}
_NORMALISE = {"batch_norm", "mean", "var", "std", "var_mean", "std_mean"}
_SOFTMAX = {"softmax", "_softmax", "scaled_dot_product_attention"}


def number_notes(setting: Setting, merged: Network) -> list[str]:
    """Remarks on parents whose code computes with other numbers than the merged network's."""
    notes = []
    for m, link in enumerate(setting.links):
        found = list(_differences(link, merged))
        if found:
            name, theirs, mine = found[0]
            where = (merged.nodes.stacks[name] or [""])[-1] or "the model itself"
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            notes.append(
                f"models[{m}]: its code computes with {_shown(theirs)} where the merged network's "
                f"has {_shown(mine)}, in {where}{more}; such numbers follow from sizes, so the "
                "merge is not exact there"
            )
    return notes


def _differences(
    link: Correspondence, merged: Network
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Nodes of the merged network with a parent's numbers there and its own; not of constants."""
    for name in merged.graph.values:
        node = merged.nodes.nodes.get(name)
        other = link.parent.nodes.nodes.get(link.node(name) or "")
        if node is None or other is None or op_name(other) != op_name(node):
            continue
        mine, theirs = _numbers(node), _numbers(other)
        differ = len(mine) == len(theirs) and mine != theirs
        if differ and not _to_scores(node, merged.attentions.keys()):
            yield name, theirs, mine


def _numbers(node: Node) -> list[float]:
    """What stands in an operation's arguments; whole numbers only where they are computed with."""
    kinds = (int, float) if op_name(node) in _COMPUTED else (float,)
    given = (*node.args, *node.kwargs.values())
    found = [float(a) for a in given if isinstance(a, kinds) and not isinstance(a, bool)]
    return [*found, *_averaged(node)]


def _averaged(node: Node) -> Iterator[float]:
    """Over how many inputs the code normalises a parameter (an exported name with p_ in front):
    those that are zero count too."""
    source = node.all_input_nodes[0] if node.all_input_nodes else node
    while source.op == "call_function" and op_name(source) in _SHAPES:
        source = source.all_input_nodes[0]
    if op_name(node) in _NORMALISE and source.op == "placeholder" and source.name[:2] == "p_":
        value = node.all_input_nodes[0].meta["val"]
        groups = value.shape[1] if op_name(node) == "batch_norm" else _made(node).numel()
        yield value.numel() / groups


def _made(node: Node) -> Tensor:
    """The value of a node, the first of several."""
    value = node.meta["val"]
    made: Tensor = value[0] if isinstance(value, (tuple, list)) else value
    return made


def _to_scores(node: Node, scored: Set[str]) -> bool:
    """It scales queries or scores of attention."""
    waiting, seen = [node], {node}
    while waiting:
        here = waiting.pop()
        if here.name in scored or op_name(here) in _SOFTMAX:
            return True
        if here is node or op_name(here) in _TO_SCORES:
            users = set(here.users) - seen
            seen |= users
            waiting += users
    return False


def _shown(numbers: list[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)
