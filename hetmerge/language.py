"""The language side of a merge: tokenizers of the parents, and the merged network's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetmerge.errors import InputError
from hetmerge.pretrained import config_of, load_tokenizer
from hetmerge.tokens import Tokens, same_tokens, tokens_of
from hetmerge.vocabulary import Vocabulary, base_vocabulary, united_vocabulary

ROLE_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
COUNT_FROM_PADDING = ("camembert", "data2vec-text", "roberta", "xlm-roberta", "xlm-roberta-xl")
UNLIMITED = 10**9  # tokenizers without a limit state a number far above


@dataclass(frozen=True)
class Language:
    """How the parents read text.

    Attributes:
        folders: per parent, the directory of its configuration and tokenizer.
        positions: per parent, most tokens of an input; None where there is no limit.
        tokenizers: per parent; one object where they are the same.
        source: the parent whose ids the merged network keeps.
        union: it also gets the tokens that only others have.
    """

    folders: tuple[Path, ...]
    positions: tuple[int | None, ...]
    tokenizers: tuple[Any, ...]
    source: int
    union: bool

    @property
    def shared(self) -> bool:
        """All parents read text alike."""
        return all(tokenizer is self.tokenizers[0] for tokenizer in self.tokenizers)

    def vocabulary(self, rows: Sequence[int]) -> tuple[Vocabulary | None, Any]:
        """Which rows meet, None where equal positions do, and the merged network's tokenizer.

        Args:
            rows: of each parent's embedding.
        """
        tokenizers, source = self.tokenizers, self.source
        if self.shared and len(set(rows)) == 1:
            return None, tokenizers[source]
        if self.union and not self.shared:
            return united_vocabulary(tokenizers, rows, source)
        return base_vocabulary(tokenizers, rows, source), tokenizers[source]

    def adopt_ids(self, configs: Sequence[Any]) -> None:
        """Write the ids of special tokens of parent `source` into all configurations.

        The merged network's configuration is made from them, whichever parent carries it.
        """
        for config in configs:
            for name in ROLE_IDS:
                if hasattr(config, name):
                    setattr(config, name, getattr(configs[self.source], name, None))

    def check_length(self, key: str, length: int) -> None:
        """A window of so many tokens fits every parent.

        Raises:
            InputError: a parent has fewer positions.
        """
        for folder, most in zip(self.folders, self.positions, strict=True):
            if most is not None and length > most:
                raise InputError(f"{key}: got {length}; allowed: {folder} has {most} positions")


def read_language(
    folders: Sequence[Path], names: Sequence[str], source: str | None, remote_code: bool = False
) -> Language:
    """The parents' tokenizers, checked against the policy.

    Args:
        folders: per parent, a Hugging Face directory.
        names: per parent, as the configuration names it.
        source: "base" (the first parent), "union", one of `names`, or None where no policy was
            given, which is right only if all tokenizers are the same.

    Raises:
        InputError: the tokenizers differ and there is no policy.
        CheckpointError: a parent has no usable tokenizer.
    """
    found: list[Any] = []
    known: list[tuple[Tokens, Any]] = []
    for folder in folders:
        tokenizer = load_tokenizer(folder, remote_code)
        tokens = tokens_of(tokenizer)
        same = next((other for seen, other in known if same_tokens(seen, tokens)), None)
        if same is None:
            known.append((tokens, tokenizer))
        found.append(tokenizer if same is None else same)
    other = next((m for m, tokenizer in enumerate(found) if tokenizer is not found[0]), None)
    if other is not None and source is None:
        counts = [len(tokens.ids) for tokens, _ in known]
        raise InputError(
            f"tokenizer: those of {names[0]} ({counts[0]:,} tokens) and {names[other]} "
            f"({counts[1]:,}) differ; choose whose tokens the merged model has with "
            "tokenizer: {source: ...}: 'base' (the first model's), 'union' (that and the others' "
            "tokens added), or the name of a model"
        )
    index = names.index(source) if source in names else 0
    positions = tuple(
        positions_of(config_of(folder, remote_code), tokenizer)
        for folder, tokenizer in zip(folders, found, strict=True)
    )
    return Language(tuple(folders), positions, tuple(found), index, source == "union")


def positions_of(config: Any, tokenizer: Any) -> int | None:
    """Most tokens of an input, special ones included; None where the model sets no limit."""
    table = getattr(config, "max_position_embeddings", None)
    if table is not None and config.model_type in COUNT_FROM_PADDING:
        table -= config.pad_token_id + 1
    known = [int(n) for n in (table, tokenizer.model_max_length) if n and 0 < n < UNLIMITED]
    return min(known, default=None)
