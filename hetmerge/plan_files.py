"""A plan on disk: plan.json and plan.safetensors, recognised and checked as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hetmerge.agreement import Agreement
from hetmerge.errors import InputError, PlanError
from hetmerge.files import replace_file
from hetmerge.options import Options
from hetmerge.planning import AlignmentPlan, PlannedSpace
from hetmerge.shard_writer import header_of

FORMAT = "hetmerge plan"
VERSION = 3
JSON, TENSORS = "plan.json", "plan.safetensors"
BLOCK = 1 << 24  # bytes of a file that are read at a time


def write_plan(plan: AlignmentPlan, directory: Path) -> None:
    """Write both files; each is complete or not there.

    Raises:
        PlanError: the directory cannot be written.
    """
    tensors = _tensors(plan)
    parts: list[bytes | memoryview] = [header_of(tensors, {}), *map(_bytes, tensors.values())]
    body = {
        "options": plan.options.to_dict(),
        "parents": plan.parents,
        "inputs": plan.inputs,
        "base": plan.base,
        "stages": plan.stages,
        "slots": plan.slots,
        "spaces": [_space(s) for s in plan.spaces],
        "notes": list(plan.notes),
        "blocks": plan.blocks,
        "samples": plan.samples,
        "trials": plan.trials,
    }
    header = {"format": FORMAT, "version": VERSION, "digest": _digest(body, parts)}
    text = json.dumps({**header, **body}, indent=1)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / TENSORS, *parts)
        replace_file(directory / JSON, text.encode())
    except OSError as error:
        raise PlanError(f"{directory}: cannot be written ({error.strerror or error})") from error


def read_plan(directory: Path) -> AlignmentPlan:
    """Read and check a plan.

    Raises:
        PlanError: missing, damaged, of another version, or changed by hand.
    """
    for name in (JSON, TENSORS):
        if not (directory / name).is_file():
            raise PlanError(f"{directory}: no file {name}; a plan is {JSON} and {TENSORS}")
    try:
        body: dict[str, Any] = json.loads((directory / JSON).read_text())
        tensors = load_file(directory / TENSORS)
    except (ValueError, SafetensorError) as error:
        raise PlanError(f"{directory}: the plan is damaged ({error}); make it again") from error
    if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
        raise PlanError(f"{directory / JSON}: not a hetmerge plan")
    if (version := body.pop("version", None)) != VERSION:
        raise PlanError(f"{directory / JSON}: version {version!r}; this release reads {VERSION}")
    if body.pop("digest", None) != _digest(body, _blocks(directory / TENSORS)):
        raise PlanError(
            f"{directory}: the plan was changed after it was written (its digest does not fit); "
            "make a new plan with the options you want"
        )
    try:
        options = Options.make(body["options"])
    except InputError as error:
        raise PlanError(f"{directory / JSON}: {error}") from error
    return _restore(body, options, tensors)


def _restore(body: dict[str, Any], options: Options, tensors: dict[str, Tensor]) -> AlignmentPlan:
    count = len(body["parents"])
    similarities = {
        name: [tensors[f"similarity/{s}/{m}"] for m in range(count)]
        for s, name in enumerate(body["stages"])
        if f"similarity/{s}/0" in tensors
    }
    spaces = []
    for k, space in enumerate(body["spaces"]):
        labels = [tensors.get(f"labels/{k}/{m}") for m in range(count)]
        labels = [x.to(torch.int64) if x is not None else None for x in labels]
        readoff, writes = (
            {m: x for m in range(count) if (x := tensors.get(f"{kind}/{k}/{m}")) is not None}
            for kind in ("readoff", "writes")
        )
        found = Agreement(**space["agreement"]) if space["agreement"] else None
        spaces.append(
            PlannedSpace(
                space["name"],
                space["width"],
                labels,
                space["free"],
                readoff,
                writes,
                found,
                space["outer"],
            )
        )
    return AlignmentPlan(
        options=options,
        parents=body["parents"],
        inputs=body["inputs"],
        base=body["base"],
        stages=body["stages"],
        slots=body["slots"],
        similarities=similarities,
        spaces=spaces,
        notes=tuple(body["notes"]),
        blocks=body["blocks"],
        samples=body["samples"],
        trials=body["trials"],
    )


def _space(space: PlannedSpace) -> dict[str, Any]:
    found = space.agreement.to_dict() if space.agreement else None
    return {
        "name": space.name,
        "width": space.width,
        "free": space.free,
        "agreement": found,
        "outer": space.outer,
    }


def _tensors(plan: AlignmentPlan) -> dict[str, Tensor]:
    found = {
        f"labels/{k}/{m}": labels.to(torch.int32).contiguous()
        for k, space in enumerate(plan.spaces)
        for m, labels in enumerate(space.labels)
        if labels is not None
    }
    for k, space in enumerate(plan.spaces):
        found.update({f"readoff/{k}/{m}": x.contiguous() for m, x in space.readoff.items()})
        found.update({f"writes/{k}/{m}": x.contiguous() for m, x in space.writes.items()})
    for s, name in enumerate(plan.stages):
        for m, table in enumerate(plan.similarities.get(name, [])):
            found[f"similarity/{s}/{m}"] = table.double().contiguous()
    return found


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _digest(body: dict[str, Any], parts: Iterable[bytes | memoryview]) -> str:
    found = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for part in parts:
        found.update(part)
    return found.hexdigest()
