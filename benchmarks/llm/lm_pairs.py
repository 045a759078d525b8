"""The pairs of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from lm_data import DOMAINS
from lm_models import Spec

ENGLISH, CODE = ((domain,) for domain in DOMAINS)


@dataclass(frozen=True)
class Pair:
    """Two networks of different depth and width, and what they have in common.

    Attributes:
        head: what the heads of merges and controls are fitted to; see `hetmerge.softmax_head`.
    """

    name: str
    title: str
    head: str

    def specs(self, seed: int) -> tuple[Spec, Spec]:
        """The deeper parent A and the shallower parent B."""
        if self.name == "specialists":
            return Spec("A", ENGLISH, seed), Spec("B", CODE, seed)
        root = Spec("A", DOMAINS, seed)
        if self.name == "same":
            return root, Spec("B", DOMAINS, seed)
        sibling = Spec("B", DOMAINS, seed, root)
        return Spec("A", ENGLISH, seed, root), Spec("B", CODE, seed, sibling)


PAIRS = (
    Pair("specialists", "A on English, B on code, trained apart", "bayes"),
    Pair("same", "A and B on both, trained apart", "kl"),
    Pair("lineage", "B cut from A and trained on; then A on English, B on code", "bayes"),
)
