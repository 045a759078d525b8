"""Which families of transformers merge: tiny random members of different depth, width and heads.

python benchmarks/llm/lm_families.py                    # every causal language model, 20 minutes
python benchmarks/llm/lm_families.py --kinds llama,mixtral
python benchmarks/llm/lm_families.py --task masked      # or image
python benchmarks/llm/lm_families.py --page docs/families.md   # what is known, as a page

Of each family two models are made, written and merged from disk: with all weight on the smaller
number of layers, which must give that parent's outputs, and with equal weights, zip and refit.
"""

from __future__ import annotations

import argparse
import logging
import re
import resource
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hetmerge as hm
from hetmerge.errors import HetmergeError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lines import FOLDER, read, write

OUT = Console()
RESULTS = FOLDER / "families.csv"
TASKS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
LONGEST, LARGEST = 240, 8 << 30  # seconds and bytes of address space for one family
VOCABULARY = 40
NEAR = 1e-4  # of the largest output: single precision, a few layers
WIDE, DEEP = (2, 64, 8, 2), (3, 32, 4, 2)  # layers, width, heads, groups
# What a field of a configuration is set to, by the names that families give it.
FIELDS = {
    "layers": "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers",
    "width": "hidden_size n_embd d_model embedding_dim dim",
    "inner": "intermediate_size n_inner ffn_dim hidden_dim encoder_ffn_dim decoder_ffn_dim "
    "ffn_hidden_size",
    "half": "moe_intermediate_size shared_expert_intermediate_size",
    "heads": "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads",
    "groups": "num_key_value_heads num_kv_heads multi_query_groups",
    "8": "head_dim rotary_dim qk_rope_head_dim qk_nope_head_dim v_head_dim",
    "16": "kv_lora_rank q_lora_rank image_size",
    "4": "num_experts num_local_experts n_routed_experts moe_num_experts patch_size",
    "2": "num_experts_per_tok moe_k moe_topk",
    "1": "bos_token_id n_group topk_group first_k_dense_replace",
    "0": "pad_token_id",
    "40": "vocab_size",
    "64": "max_position_embeddings n_positions",
    "eos": "eos_token_id",
}


@dataclass(frozen=True)
class Result:
    """What became of one family.

    Attributes:
        outcome: "merged"; "refused", with hetmerge's message; "failed", with another error; "not
            made", where no tiny member of the family could be made here.
        difference: of the outputs from those of the parent with all weight, of the largest.
        exact: the plan does not say that depth costs something.
    """

    task: str
    kind: str
    outcome: str
    difference: float
    exact: bool
    message: str

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.kind


def parsed(line: dict[str, str]) -> Result:
    return Result(
        line["task"], line["kind"], line["outcome"], float(line["difference"]),
        line["exact"] == "True", line["message"],
    )  # fmt: skip


def config_of(kind: str, layers: int, width: int, heads: int, groups: int) -> Any:
    """A tiny configuration: every field that this family has, and no per-layer list."""
    family = CONFIG_MAPPING[kind]
    sizes = {"layers": layers, "width": width, "inner": 2 * width, "half": width, "heads": heads}
    sizes |= {"groups": groups, "eos": 2}
    default = family()
    fields: dict[str, Any] = {
        name: sizes[size] if size in sizes else int(size)
        for size, names in FIELDS.items()
        for name in names.split()
        if _has(default, name)
    }
    fields |= dict.fromkeys(("layer_types", "layers_block_type"), None)
    fields = {name: value for name, value in fields.items() if _has(default, name)}
    for _ in range(8):  # properties cannot be set: those that the class complains of are left out
        try:
            return family(**fields)
        except (AttributeError, TypeError) as error:
            named = re.search(r"'(\w+)' of|'(\w+)'$|argument '(\w+)'", str(error))
            name = next((part for part in named.groups() if part), "") if named else ""
            if name not in fields:
                raise
            del fields[name]
    return family(**fields)


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # configurations that differ from layer to layer refuse to say
        return True


def member(task: str, kind: str, shape: tuple[int, int, int, int], seed: int) -> nn.Module:
    """A random model none of whose parameters is zero or one."""
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, TASKS[task][kind])(config_of(kind, *shape)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter) * (parameter.std(correction=0) + 0.5)
    return model.eval()


def pair(
    task: str, kind: str, batch: dict[str, torch.Tensor]
) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Two members and the outputs of the first; with a group for each head where others fail."""
    for groups in (None, "each head"):
        shapes = [(*s[:3], s[2]) if groups else s for s in (WIDE, DEEP)]
        try:
            wide, deep = (member(task, kind, s, i) for i, s in enumerate(shapes))
            with torch.no_grad():
                return wide, deep, wide(**batch)[0]
        except Exception:  # whatever a family says to sizes that it does not allow
            if groups:
                raise
    raise AssertionError


def inputs(task: str) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    if task == "image":
        return [{"pixel_values": torch.randn(8, 3, 16, 16, generator=random)} for _ in "ab"]
    return [{"input_ids": torch.randint(3, VOCABULARY, (8, 12), generator=random)} for _ in "ab"]


def merge(task: str, kind: str) -> Result:
    """Make two members of a family, prove the spaces of one, and merge them twice."""

    def outcome(what: str, difference: float = 0.0, exact: bool = True, said: Any = "") -> Result:
        return Result(task, kind, what, difference, exact, " ".join(str(said).split())[:300])

    batches = inputs(task)
    try:
        wide, deep, wanted = pair(task, kind, batches[0])
    except Exception as error:
        return outcome("not made", said=f"{type(error).__name__}: {error}")
    try:
        hm.trace(wide, (), batches[0]).verify(wide, tolerance=NEAR)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            wide.save_pretrained(folder / "wide")
            deep.save_pretrained(folder / "deep")
            parents = [folder / "wide", folder / "deep"]
            known: dict[str, Any] = {"weights": [1, 0], "refit": False, "match": "permute"}
            wide = (
                type(wide).from_pretrained(parents[0]).eval()
            )  # some tie what they did not before
            with torch.no_grad():
                wanted = wide(**batches[0])[0]
            one = hm.merge_to(folder / "one", parents, batches, progress=False, **known)
            hm.merge_to(folder / "both", parents, batches, progress=False, match="zip")
            with torch.no_grad():
                found, both = (
                    type(wide).from_pretrained(folder / n).eval()(**batches[0])[0]
                    for n in ("one", "both")
                )
        difference = float((found - wanted).abs().max() / wanted.abs().max())
        exact = one.plan.base == 1 and not any("not exact" in note for note in one.report.notes)
        if exact and not difference < NEAR:
            return outcome("failed", difference, said="its outputs are not those of the parent")
        if not bool(both.isfinite().all()):
            return outcome("failed", said="the merge with equal weights is not finite")
        return outcome("merged", difference, exact)
    except HetmergeError as error:
        return outcome("refused", said=re.sub(r"/\S*/tmp\w+", "", str(error)))
    except Exception as error:
        what = "not made" if "allocate memory" in str(error) else "failed"  # more than LARGEST
        return outcome(what, said=f"{type(error).__name__}: {error}")


def apart(task: str, kind: str) -> Result:
    """The same in a process of its own, which may run out of time or memory."""
    command = [sys.executable, __file__, "--task", task, "--one", kind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return Result(task, kind, "not made", 0.0, True, f"more than {LONGEST} s")
    found = read(RESULTS, parsed).get((task, kind))
    if done.returncode or found is None:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Result(task, kind, "failed", 0.0, True, last[:300])
    return found


def keep(result: Result) -> None:
    known = read(RESULTS, parsed)
    known[result.key] = result
    write(RESULTS, known, lambda r: r.key)


INTRODUCTION = """# Families

What became of every family of transformers {version} that has a class for a task: two tiny random
members, one of {wide[0]} layers, width {wide[1]} and {wide[2]} heads, one of {deep[0]} layers,
width {deep[1]} and {deep[2]} heads, written and merged from disk. A family counts as merged if the
spaces of a member are proven by permuting them, the merge with all weight on the wider parent gives
its outputs ({near:g} of the largest, single precision) unless it is told that it is not exact, and
a merge with equal weights, zip and refit is loaded and finite. That says nothing about how good
merges of trained members are.

`python benchmarks/llm/lm_families.py --task TASK`, then `--page docs/families.md`; lines in
`benchmarks/results/families.csv`. Machine: 2 cores of an AMD EPYC, {date}.
"""
TITLES = {
    "causal": "Causal language models",
    "masked": "Masked language models",
    "image": "Image classification",
}


def page(path: Path) -> None:
    """Write what is known as Markdown."""
    today = datetime.now(timezone.utc).date().isoformat()
    known = {"version": transformers.__version__, "wide": WIDE, "deep": DEEP, "near": NEAR}
    parts = [INTRODUCTION.format(**known, date=today)]
    results = list(read(RESULTS, parsed).values())
    for task, title in TITLES.items():
        mine = [r for r in results if r.task == task]
        if not mine:
            continue
        merged = [r for r in mine if r.outcome == "merged"]
        made = sum(r.outcome != "not made" for r in mine)
        parts.append(f"## {title}\n\n{len(merged)} of {made} merge:")
        parts.append(", ".join(r.kind for r in merged if r.exact) + ".\n")
        if loose := [r.kind for r in merged if not r.exact]:
            said = "Merged too, where a parent does not pass a missing layer exactly, as it is told"
            parts.append(f"{said}: {', '.join(loose)}.\n")
        if others := [r for r in mine if r.outcome in ("refused", "failed")]:
            parts.append("| family | what stops it |\n|---|---|")
            parts += [f"| {r.kind} | {_cell(r)} |" for r in others]
        if unmade := [r.kind for r in mine if r.outcome == "not made"]:
            parts.append(f"\nNo tiny member could be made here: {', '.join(unmade)}.\n")
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _cell(result: Result) -> str:
    said = result.message.replace("|", "/")
    return said if result.outcome == "refused" else f"**{said}**"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="causal")
    parser.add_argument("--kinds", default="", help="families, separated by commas; default: all")
    parser.add_argument("--page", type=Path, help="write what is known to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        resource.setrlimit(resource.RLIMIT_AS, (LARGEST, LARGEST))
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
        keep(merge(chosen.task, chosen.one))
        return
    if chosen.page:
        page(chosen.page)
        return
    kinds = chosen.kinds.split(",") if chosen.kinds else list(TASKS[chosen.task])
    counts = Counter[str]()
    for kind in kinds:
        result = apart(chosen.task, kind)
        keep(result)
        counts[result.outcome] += 1
        OUT.print(f"{kind}: {result.outcome} {result.message}", highlight=False, markup=False)
    OUT.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


if __name__ == "__main__":
    main()
