"""A plan on disk: plan.json and plan.safetensors, recognised and checked as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetmerge.agreement import Agreement
from hetmerge.errors import CheckpointError, InputError, PlanError
from hetmerge.files import replace_file
from hetmerge.maps import StoredMaps
from hetmerge.options import Options
from hetmerge.planning import AlignmentPlan, PlannedSpace
from hetmerge.shard_writer import bytes_of, header_of
from hetmerge.shards import Stored, read_header

FORMAT = "hetmerge plan"
VERSION = 4
JSON, TENSORS = "plan.json", "plan.safetensors"
BLOCK = 1 << 24  # bytes of a file that are read at a time


def write_plan(plan: AlignmentPlan, directory: Path) -> None:
    """Write both files; each is complete or not there.

    Raises:
        PlanError: the directory cannot be written.
    """
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
        "norm_scales": plan.norm_scales,
        "trials": plan.trials,
    }
    digest = _digest_of(body)

    def digested() -> Iterator[bytes | memoryview]:
        tensors = _tensors(plan)
        header = header_of(tensors, {})
        digest.update(header)
        yield header
        for part in map(_bytes, tensors.values()):
            digest.update(part)
            yield part

    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / TENSORS, digested())
        header = {"format": FORMAT, "version": VERSION, "digest": digest.hexdigest()}
        replace_file(directory / JSON, [json.dumps({**header, **body}, indent=1).encode()])
    except OSError as error:
        raise PlanError(f"{directory}: cannot be written ({error.strerror or error})") from error


def read_plan(directory: Path) -> AlignmentPlan:
    """Read and check a plan, whose dense maps stay in its file until they are used.

    Raises:
        PlanError: missing, damaged, of another version, or changed by hand.
    """
    for name in (JSON, TENSORS):
        if not (directory / name).is_file():
            raise PlanError(f"{directory}: no file {name}; a plan is {JSON} and {TENSORS}")
    try:
        body: dict[str, Any] = json.loads((directory / JSON).read_text())
        places = read_header(directory / TENSORS)
    except (ValueError, CheckpointError) as error:
        raise PlanError(f"{directory}: the plan is damaged ({error}); make it again") from error
    if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
        raise PlanError(f"{directory / JSON}: not a hetmerge plan")
    if (version := body.pop("version", None)) != VERSION:
        raise PlanError(f"{directory / JSON}: version {version!r}; this release reads {VERSION}")
    written, digest = body.pop("digest", None), _digest_of(body)
    for block in _blocks(directory / TENSORS):
        digest.update(block)
    if written != digest.hexdigest():
        raise PlanError(
            f"{directory}: the plan was changed after it was written (its digest does not fit); "
            "make a new plan with the options you want"
        )
    try:
        options = Options.make(body["options"])
    except InputError as error:
        raise PlanError(f"{directory / JSON}: {error}") from error
    return _restore(body, options, places)


def in_memory(plan: AlignmentPlan) -> AlignmentPlan:
    """The same with all dense maps in memory, so that its file may go."""
    spaces = [replace(s, readoff=dict(s.readoff), writes=dict(s.writes)) for s in plan.spaces]
    return replace(plan, spaces=spaces)


def reading_from(directory: Path, plan: AlignmentPlan) -> AlignmentPlan:
    """The same plan, which was written to this directory, with dense maps that stay there."""
    places, count = read_header(directory / TENSORS), len(plan.parents)
    spaces = [
        replace(space, readoff=_maps("readoff", k, count, places))
        for k, space in enumerate(plan.spaces)
    ]
    return replace(plan, spaces=spaces)


def _maps(kind: str, space: int, parents: int, places: dict[str, Stored]) -> StoredMaps:
    names = {m: f"{kind}/{space}/{m}" for m in range(parents)}
    return StoredMaps({m: places[name] for m, name in names.items() if name in places})


def _restore(body: dict[str, Any], options: Options, places: dict[str, Stored]) -> AlignmentPlan:
    count = len(body["parents"])
    tensors = {
        name: place.read()
        for name, place in places.items()
        if not name.startswith(("readoff/", "writes/"))
    }
    similarities = {
        name: [tensors[f"similarity/{s}/{m}"] for m in range(count)]
        for s, name in enumerate(body["stages"])
        if f"similarity/{s}/0" in tensors
    }
    spaces = []
    for k, space in enumerate(body["spaces"]):
        labels = [tensors.get(f"labels/{k}/{m}") for m in range(count)]
        labels = [x.to(torch.int64) if x is not None else None for x in labels]
        found = Agreement(**space["agreement"]) if space["agreement"] else None
        spaces.append(
            PlannedSpace(
                space["name"],
                space["width"],
                labels,
                space["free"],
                _maps("readoff", k, count, places),
                dict(_maps("writes", k, count, places)),
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
        norm_scales=body["norm_scales"],
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


def _tensors(plan: AlignmentPlan) -> dict[str, Tensor | Stored]:
    found: dict[str, Tensor | Stored] = {
        f"labels/{k}/{m}": labels.to(torch.int32).contiguous()
        for k, space in enumerate(plan.spaces)
        for m, labels in enumerate(space.labels)
        if labels is not None
    }
    for k, space in enumerate(plan.spaces):
        for kind, maps in (("readoff", space.readoff), ("writes", space.writes)):
            if isinstance(maps, StoredMaps):
                found.update({f"{kind}/{k}/{m}": place for m, place in maps.places.items()})
            else:
                found.update({f"{kind}/{k}/{m}": x.contiguous() for m, x in maps.items()})
    for s, name in enumerate(plan.stages):
        for m, table in enumerate(plan.similarities.get(name, [])):
            found[f"similarity/{s}/{m}"] = table.double().contiguous()
    return found


def _bytes(found: Tensor | Stored) -> memoryview:
    return bytes_of(found.read() if isinstance(found, Stored) else found)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _digest_of(body: dict[str, Any]) -> hashlib._Hash:
    """Of the JSON alone; the bytes of the tensors follow."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode())
