"""Vocabularies of several parents as one partition: the merged row of every parent's row."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.network import Network
from hetmerge.partition import Partition
from hetmerge.tokens import SPECIAL, TEXT, Name, Tokens, counterparts, tokens_of
from hetmerge.tracing.expr import Leaf


@dataclass(frozen=True)
class Vocabulary:
    """Where the rows of the parents' embeddings and output heads go.

    Attributes:
        width: merged rows.
        labels: per parent int64 [rows] in [0, width), -1 for rows that the merged network lacks.
        note: how many tokens were shared, added and left out, for the report.
    """

    width: int
    labels: tuple[Tensor, ...]
    note: str

    def partition(self, sizes: Mapping[int, int]) -> Partition:
        """The partition of a space of these sizes, parent -> rows.

        Raises:
            InputError: a parent's rows are not those the vocabulary was made for.
        """
        for m, count in sizes.items():
            known = len(self.labels[m]) if m < len(self.labels) else 0
            if known != count:
                raise InputError(
                    f"vocabulary: models[{m}] has {count} rows in its embedding or output head; "
                    f"the vocabulary was made for {known}"
                )
        return Partition(self.width, {m: self.labels[m] for m in sizes})


def base_vocabulary(tokenizers: Sequence[Any], rows: Sequence[int], base: int) -> Vocabulary:
    """Rows by the tokens of parent `base`, whose tokenizer fits the merged network.

    A row belongs to the row of the same token in `base`; tokens that `base` lacks are left out.
    Rows without a token (the padding of an embedding) meet in their order.

    Args:
        tokenizers: one transformers tokenizer per parent.
        rows: of each parent's embedding.
        base: index of a parent.
    """
    found = [tokens_of(tokenizer) for tokenizer in tokenizers]
    labels = _labels(found, rows, found[base], rows[base])
    return Vocabulary(rows[base], labels, _note(found, labels, found[base]))


def united_vocabulary(
    tokenizers: Sequence[Any], rows: Sequence[int], base: int
) -> tuple[Vocabulary, Any]:
    """Rows for the tokens of every parent, and the tokenizer that has them.

    The tokenizer is that of parent `base`, which keeps its ids, with what the others have besides
    as added tokens. Those are found in a text before anything else, whole and as they are; merges
    of BPE are not united. Left out are tokens that are no text of their own (parts of a character),
    and those whose text is the spelling of another token in `base`.

    Args:
        tokenizers: one transformers tokenizer per parent; not changed.
        rows: of each parent's embedding.
        base: index of a parent.
    """
    from tokenizers import AddedToken

    found = [tokens_of(tokenizer) for tokenizer in tokenizers]
    united = copy.deepcopy(tokenizers[base])
    names: dict[Name, int] = dict(found[base].ids)
    merged = Tokens(names, dict(found[base].roles), found[base].literals)
    for tokens in found:
        known = counterparts(tokens, merged)
        fresh = {
            name: text
            for name, i in tokens.ids.items()
            if i not in known and (text := _as_text(name, merged.literals)) is not None
        }
        united.add_tokens(
            [
                AddedToken(text, normalized=False, special=name[0] == SPECIAL)
                for name, text in fresh.items()
            ]
        )
        merged = Tokens(
            {**merged.ids, **{n: united.convert_tokens_to_ids(t) for n, t in fresh.items()}},
            _joined_roles(merged, tokens, fresh, united),
            merged.literals | set(fresh.values()),
        )
    named = max(merged.ids.values()) + 1
    padding = [_unnamed(tokens, count) for tokens, count in zip(found, rows, strict=True)]
    holes = named - len(set(merged.ids.values()))
    width = named + max(0, *(len(rest) - holes for rest in padding))
    labels = _labels(found, rows, merged, width)
    return Vocabulary(width, labels, _note(found, labels, merged)), united


def vocabulary_spaces(network: Network) -> set[int]:
    """The spaces of the rows of a transformers model's input embedding and output head."""
    model: Any = network.model
    found = set()
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        module = _module(model, getter)
        weight = getattr(module, "weight", None)
        names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
        for name in names:
            exprs = network.graph.tensors.get(network.graph.aliases.get(name, name))
            if exprs and isinstance(exprs[0], Leaf):
                found.add(exprs[0].space)
    return found


def embedding_rows(model: Any) -> int:
    """Rows of a transformers model's input embedding.

    Raises:
        InputError: it has none.
    """
    weight = getattr(_module(model, "get_input_embeddings"), "weight", None)
    if not isinstance(weight, Tensor):
        raise InputError(f"{type(model).__name__}: has no embedding of tokens")
    return len(weight)


def _module(model: Any, getter: str) -> Any:
    """What the getter of a transformers model returns; models without one have none."""
    try:
        return getattr(model, getter, lambda: None)()
    except (NotImplementedError, AttributeError):
        return None


def _labels(
    parents: Iterable[Tokens], rows: Sequence[int], merged: Tokens, width: int
) -> tuple[Tensor, ...]:
    free = _unnamed(merged, width)
    found = []
    for tokens, count in zip(parents, rows, strict=True):
        labels = torch.full((count,), -1, dtype=torch.int64)
        for mine, theirs in counterparts(tokens, merged).items():
            if mine < count and theirs < width:
                labels[mine] = theirs
        for row, place in zip(_unnamed(tokens, count), free, strict=False):
            labels[row] = place
        found.append(labels)
    return tuple(found)


def _unnamed(tokens: Tokens, rows: int) -> list[int]:
    """Rows that no token has: holes, and padding behind the last token."""
    named = set(tokens.ids.values())
    return [row for row in range(rows) if row not in named]


def _as_text(name: Name, literals: frozenset[str]) -> str | None:
    """A token's text where it can be added as it is."""
    kind, content = name
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return text if kind in (TEXT, SPECIAL) and text and text not in literals else None


def _joined_roles(
    merged: Tokens, tokens: Tokens, fresh: Mapping[Name, str], united: Any
) -> dict[str, int]:
    """The merged roles, and those that so far no parent had a token for."""
    own = {i: name for name, i in tokens.ids.items()}
    new = {
        role: united.convert_tokens_to_ids(fresh[own[i]])
        for role, i in tokens.roles.items()
        if own.get(i) in fresh
    }
    return {**new, **merged.roles}


def _note(parents: Sequence[Tokens], labels: Sequence[Tensor], merged: Tokens) -> str:
    counts = [len(set(tokens.ids.values())) for tokens in parents]
    kept = [
        sum(int(mine[i]) >= 0 for i in tokens.ids.values() if i < len(mine))
        for tokens, mine in zip(parents, labels, strict=True)
    ]
    shown = " + ".join(f"{k:,} of {n:,}" for k, n in zip(kept, counts, strict=True))
    return f"vocabulary: {len(set(merged.ids.values())):,} tokens, with {shown} of the parents'"
