"""Operators that multiply and sum: linear layers, matrix products, einsum, attention."""

from __future__ import annotations

from typing import Any

from hetmerge.tracing.axes import Axis, Dim, Mismatch, extent, unite
from hetmerge.tracing.call import Call
from hetmerge.tracing.rules.elementwise import broadcast
from hetmerge.tracing.rules.table import rule
from hetmerge.tracing.values import Origin, Val, is_weight

EXPERTS = "experts are chosen by index"  # why an axis of experts is pinned


@rule("linear")
def linear(call: Call) -> Val:
    x, weight, bias = call.val("input"), call.val("weight"), call.get("bias")
    call.consume(call.args["weight"], -1)
    unite(x.dims[-1], weight.dims[-1])
    out = weight.dims[:-1]
    if bias is not None:
        unite(call.as_val(bias).dims[0], out[0])
    call.joint(*x.dims, *out)
    return Val((*x.dims[:-1], *out))


def product(call: Call, left: Any, right: Any) -> Val:
    """Matrix product with broadcast batch dimensions; vectors as in `torch.matmul`."""
    if is_weight(right) and not is_weight(left):
        call.consume(right, -2 if right.rank > 1 else 0)
    elif is_weight(left) and not is_weight(right):
        call.consume(left, -1)
    a, b = call.as_val(left), call.as_val(right)
    rows, inner = a.dims[-2:-1], a.dims[-1]
    other, columns = (b.dims[-2], b.dims[-1:]) if b.rank > 1 else (b.dims[0], ())
    unite(inner, other)
    batch = broadcast([Val(a.dims[:-2]), Val(b.dims[:-2])]).dims if max(a.rank, b.rank) > 2 else ()
    call.joint(*batch, *rows, *columns, inner)
    return Val((*batch, *rows, *columns), _product_origin(a, b, len(batch)))


def _product_origin(a: Val, b: Val, batch: int) -> Origin | None:
    if a.origin is None or b.origin is None:
        return None
    return (frozenset(),) * batch + a.origin[-2:-1] + (b.origin[-1:] if b.rank > 1 else ())


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(call: Call) -> Val:
    left, right = list(call.args.values())[:2]
    return product(call, left, right)


@rule("addmm", "baddbmm", "addmv")
def addmm(call: Call) -> Val:
    bias, left, right = list(call.args.values())[:3]
    return broadcast([product(call, left, right), call.as_val(bias)])


@rule("outer", "ger")
def outer(call: Call) -> Val:
    left, right = call.tensors()
    return Val((left.dims[0], right.dims[0]))


@rule("einsum")
def einsum(call: Call) -> Val:
    operands = list(call.args["tensors"])
    values = [call.as_val(x) for x in operands]
    inputs, output = _labels(call.args["equation"], [value.rank for value in values])
    axes: dict[str, Dim] = {}
    for labels, value in zip(inputs, values, strict=True):
        for label, dim in zip(labels, value.dims, strict=True):
            known = axes.setdefault(label, dim)
            if extent(known) == 1:
                axes[label] = dim
            elif extent(dim) > 1:
                unite(known, dim)
    _consume_einsum(call, operands, inputs, output)
    call.joint(*axes.values())
    return Val(tuple(axes[label] for label in output))


def _labels(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """Labels of every operand and of the result; an ellipsis becomes numbered labels."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = "..." * ("..." in left) + "".join(
            sorted(c for c in set(letters) if letters.count(c) == 1)
        )
    hidden = [n - len(t.replace("...", "")) for t, n in zip(terms, ranks, strict=True)]
    width = max((h for t, h in zip(terms, hidden, strict=True) if "..." in t), default=0)

    def spell(term: str, count: int) -> list[str]:
        if "..." not in term:
            return list(term)
        before, after = term.split("...")
        return [*before, *(f"...{i}" for i in range(width - count, width)), *after]

    return [spell(t, h) for t, h in zip(terms, hidden, strict=True)], spell(right, width)


def _consume_einsum(
    call: Call, operands: list[Any], inputs: list[list[str]], output: list[str]
) -> None:
    data = {c for x, labels in zip(operands, inputs, strict=True) if not is_weight(x)
            for c in labels}  # fmt: skip
    for x, labels in zip(operands, inputs, strict=True):
        if is_weight(x):
            for dim, label in enumerate(labels):
                if label in data and label not in output:
                    call.consume(x, dim)


@rule("bilinear")
def bilinear(call: Call) -> Val:
    left, right, weight = call.val("input1"), call.val("input2"), call.val("weight")
    unite(left.dims[-1], weight.dims[1])
    unite(right.dims[-1], weight.dims[2])
    if call.get("bias") is not None:
        unite(call.val("bias").dims[0], weight.dims[0])
    call.consume(call.args["weight"], 1)
    batch = broadcast([Val(left.dims[:-1]), Val(right.dims[:-1])]).dims
    call.joint(*batch, *weight.dims)
    return Val((*batch, weight.dims[0]))


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(call: Call) -> Val:
    a, b = call.val("x1").dims, call.val("x2").dims
    unite(a[-1], b[-1])
    batch = broadcast([Val(a[:-2]), Val(b[:-2])]).dims
    call.joint(*batch, a[-2], b[-2], a[-1])
    call.mix((*batch, a[-1]), [-1])
    return Val((*batch, a[-2], b[-2]))


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Val:
    q, k, v = (call.val(name).dims for name in ("query", "key", "value"))
    if call.get("enable_gqa") and extent(q[-3]) != extent(k[-3]):
        shared = Axis(extent(q[-3]) // extent(k[-3]))
        k = (*k[:-3], (*k[-3], shared), *k[-2:])
        v = (*v[:-3], (*v[-3], shared), *v[-2:])
    unite(q[-1], k[-1])
    unite(k[-2], v[-2])
    batch = broadcast([Val(q[:-2]), Val(k[:-2]), Val(v[:-2])]).dims
    scores = (*batch, q[-2], k[-2])
    if call.get("attn_mask") is not None:
        broadcast([Val(scores), call.val("attn_mask")])
    if call.get("is_causal"):
        call.fix(scores, [-1, -2], "causal attention")
    call.joint(*scores, q[-1])
    call.joint(*scores, v[-1])
    call.mix(scores, [-1])
    return Val((*batch, q[-2], v[-1]))


@rule("_scaled_dot_product_flash_attention_for_cpu")
def flash_attention(call: Call) -> tuple[Val, Val]:
    out = attention(call)
    return out, Val(out.dims[:-1])


@rule("_grouped_mm", "transformers::grouped_mm_fallback", "grouped_mm")
def grouped_mm(call: Call) -> Val:
    """Rows of the input [tokens, in], sorted by expert, times one matrix [in, out] per expert."""
    x, weight = list(call.args.values())[:2]
    grouping = call.nodes.get("offs")
    rows, table = call.as_val(x).dims, call.as_val(weight).dims
    if grouping is None or len(rows) != 2 or len(table) != 3:
        raise Mismatch("only [tokens, in] x [experts, in, out] with offsets")
    call.pin(table[0], EXPERTS)
    unite(rows[1], table[1])
    call.consume(weight, 1)
    unite(call.facts.routings.setdefault(grouping, table[0]), table[0])
    tokens = Axis(extent(rows[0]), f"tokens are sorted by expert ({call.here})")
    serial = list(call.facts.routings).index(grouping)
    tokens.groups = {(expert, serial) for expert in table[0]}
    call.joint((tokens,), table[1], table[2])
    return Val(((tokens,), table[2]))
