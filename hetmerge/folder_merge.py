"""Merge checkpoints into a folder, going on where an earlier run stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetmerge.applying import FITS, MergeResult, Prepared, prepare
from hetmerge.batches import Call, Joint, as_given
from hetmerge.calibration import Statistics, as_calls
from hetmerge.choosing import Choice
from hetmerge.devices import known_device
from hetmerge.draft import Draft
from hetmerge.errors import CheckpointError, HetmergeError
from hetmerge.files import check_new, new_directory, replace_file
from hetmerge.halfway import HALFWAY, Halfway, remove_halfway
from hetmerge.lazy import Checkpoint, open_checkpoint
from hetmerge.massive import without_massive
from hetmerge.on_disk import SHARD, Place
from hetmerge.options import Options
from hetmerge.page import render
from hetmerge.plan_files import read_plan, reading_from
from hetmerge.planning import AlignmentPlan, plan_statistics, setting_of
from hetmerge.polishing import Polish, train
from hetmerge.pretrained import CONFIG
from hetmerge.progress import Progress
from hetmerge.shard_writer import JOURNAL, bytes_of
from hetmerge.sources import load_model
from hetmerge.teaching import Teacher
from hetmerge.trials import FOLDER, Planned, Trials
from hetmerge.vocabulary import Vocabulary

RUN, PLAN, POLISHED, MASSIVE = "run.json", "plan", "polished", "massive.safetensors"
BEGUN = (PLAN, HALFWAY, FOLDER, MASSIVE)  # what a stopped merge can go on from


def merge_to(
    out: str | Path,
    parents: Sequence[str | Path | Checkpoint],
    batches: Iterable[Any],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    out_dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD,
    vocabulary: Vocabulary | None = None,
    exclude_massive: bool = False,
    polish: Polish | None = None,
    prepared: Callable[[AlignmentPlan, Prepared], None] | None = None,
    finished: Callable[[Path, MergeResult], None] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> MergeResult:
    """Merge Hugging Face checkpoints of any size into a new folder, in bounded memory.

    Weights are read one by one and written as they become final, into a folder beside `out` that
    takes its name at the end. After a stop, the same call goes on from the finished layers, and the
    bytes are those of a call that was not stopped; of planning, at most the last minutes are lost
    (:data:`hetmerge.halfway.EVERY`).

    Args:
        out: folder to write; must not exist.
        parents: directories, or what :func:`hetmerge.open_checkpoint` returns.
        batches: calibration inputs, dicts of keyword arguments such as input_ids [batch, tokens].
        dtype: what is computed in.
        device: where it is computed, such as "cuda".
        out_dtype: what is written; None: the type that the base parent is stored in.
        shard_bytes: of a file, at most.
        vocabulary: of parents with different tokenizers, which rows of their embeddings and heads
            meet.
        exclude_massive: positions of massive activations do not count (see
            :func:`hetmerge.massive.without_massive`).
        polish: train the finished merge for some steps, which needs it in memory; see
            :func:`hetmerge.polish`. None: no training. After a stop the training starts anew, from
            the finished merge.
        prepared: called with the plan, and what applying it costs, before it is applied.
        finished: called with the folder, still under its other name, to add files.
        progress: show bars on standard error; None: only on a terminal.
        **options: see :class:`hetmerge.options.Options`; `stop_at` needs modules.

    Returns:
        The result; its model has its parameters on the meta device, load it from `out`.

    Raises:
        CheckpointError: `out` exists, a checkpoint is damaged, the disk is too small or fills up.
        InputError: an option, the device or a batch does not fit.
    """
    out = Path(out)
    check_new(out)
    where = known_device(device)
    models = [p if isinstance(p, Checkpoint) else open_checkpoint(p, dtype, where) for p in parents]
    chosen = Options.make(options)
    calls = as_calls(models, batches, chosen.depth)
    kinds = (dtype, out_dtype, shard_bytes, exclude_massive)
    identity = _identity(models, calls, chosen, kinds, vocabulary)
    with _unfinished(out, identity) as work:
        if exclude_massive:
            given = as_given(calls)
            calls = list(without_massive(models, given, known=work / MASSIVE, progress=progress))
        place = Place(work, out_dtype, shard_bytes)
        planned = _chosen(place, models, calls, chosen, vocabulary, progress)
        ready = prepare(*planned, calls, place)
        if prepared:
            prepared(ready.plan, ready)
        result = ready.run(Progress(progress))
        model: Any = result.model
        model.config.save_pretrained(work)
        result.report.date = json.loads((work / RUN).read_text())["date"]
        folder = work
        if polish:
            folder = _polished(work, ready, result, polish, Progress(progress))
        generation = models[ready.plan.base].folder / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
        if finished:
            finished(folder, result)
        text = json.dumps(result.report.to_dict(), indent=1)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        (folder / "report.html").write_text(render(result.report, ready.plan), encoding="utf-8")
        for name in (RUN, FITS, JOURNAL, MASSIVE):
            (folder / name).unlink(missing_ok=True)
        check_new(out)
        folder.rename(out)
        if folder != work:
            shutil.rmtree(work)
    return replace(result, plan=reading_from(out / PLAN, result.plan))


def _polished(
    work: Path, ready: Prepared, result: MergeResult, settings: Polish, progress: Progress
) -> Path:
    """Train the finished merge; a folder inside `work` with the trained weights.

    What lies in `work` stays as it is, so that a stop costs the training and nothing else.
    """
    began = time.perf_counter()
    draft = ready.made.network.state
    assert isinstance(draft, Draft)
    model = load_model(str(work), draft.dtype).to(draft.device)
    teacher = Teacher(ready.made.projector, ready.calls, ready.plan, ready.refit)
    result.report.polish = asdict(train(model, teacher, settings, progress))
    folder = work / POLISHED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    writer, tensors = draft.writer.again(folder), model.state_dict()
    for name in writer.like:
        writer.write(name, tensors[name])
    writer.finish(writer.like)
    writer.close()
    shutil.copyfile(work / CONFIG, folder / CONFIG)
    shutil.copytree(work / PLAN, folder / PLAN)
    result.report.seconds["polish"] = time.perf_counter() - began
    return folder


def unfinished(out: Path) -> Path:
    """The folder that a merge to `out` fills."""
    return out.absolute().parent / f".{out.name}.unfinished"


@contextmanager
def _unfinished(out: Path, identity: str) -> Iterator[Path]:
    """The folder; it stays after a stop, but not when there is nothing yet to go on from."""
    work = unfinished(out)
    try:
        if work.is_dir() and all(file.name.startswith(".") for file in work.iterdir()):
            shutil.rmtree(work)  # a stop before anything was known of it
        if work.exists():
            found = work / RUN
            if not found.is_file() or json.loads(found.read_text())["identity"] != identity:
                raise CheckpointError(
                    f"{work}: belongs to a merge with other parents, inputs or options; remove it "
                    "to start anew"
                )
        else:
            work.mkdir(parents=True)
            today = datetime.now(timezone.utc).date().isoformat()
            known = {"identity": identity, "date": today}
            replace_file(work / RUN, [json.dumps(known).encode()])
        with _alone(work / RUN):
            try:
                yield work
            except HetmergeError as error:
                if not isinstance(error, CheckpointError):  # other inputs or options start anew
                    remove_halfway(work / HALFWAY)
                    (work / MASSIVE).unlink(missing_ok=True)
                    shutil.rmtree(work / FOLDER, ignore_errors=True)
                raise
            finally:
                begun = any((work / name).exists() for name in BEGUN)
                if (work / RUN).is_file() and not begun:
                    shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{work}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process fills the folder meanwhile; it may where the system cannot tell."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"{path.parent}: another process is filling it") from error
        yield


def _chosen(
    place: Place,
    models: Sequence[Checkpoint],
    calls: Sequence[Call],
    options: Options,
    vocabulary: Vocabulary | None,
    progress: bool | None,
) -> Planned:
    """The plan, kept in the folder that is filled, and what it was made from."""
    work, given = place.folder, dict[str, Any](vocabulary=vocabulary, progress=progress)

    def planned(folder: Path, options: Options, aligned: Statistics) -> Planned:
        folder.mkdir(parents=True, exist_ok=True)
        return _plan(folder, models, aligned.calls, options, aligned=aligned, **given)

    choice = None
    if options.match == "auto" and not (work / PLAN).is_dir():
        choice = Trials(models, planned, calls, place, Progress(progress)).run(options)
        options = replace(options, match=choice.match)
    found = _plan(work, models, calls, options, choice=choice, **given)
    shutil.rmtree(work / FOLDER, ignore_errors=True)
    return found


def _plan(
    work: Path,
    models: Sequence[Checkpoint],
    calls: Sequence[Call],
    options: Options,
    *,
    choice: Choice | None = None,
    aligned: Statistics | None = None,
    **given: Any,
) -> Planned:
    """The plan in this folder, which is made where it is not there yet.

    Args:
        given, aligned: see :func:`hetmerge.planning.plan_statistics`.
    """
    if (work / PLAN).is_dir():
        remove_halfway(work / HALFWAY)
        plan = read_plan(work / PLAN)
        if aligned:
            return plan, aligned.setting, plan.partitions(aligned.setting)
        return (plan, *setting_of(plan, models))
    halfway = Halfway(work / HALFWAY)
    known = {"halfway": halfway, "aligned": aligned, **given, **options.to_dict()}
    plan, statistics, _ = plan_statistics(models, as_given(calls), **known)
    plan = choice.told(plan) if choice else plan
    with new_directory(work / PLAN) as draft:
        plan.save(draft)
    plan = reading_from(work / PLAN, plan)
    remove_halfway(work / HALFWAY)
    return plan, statistics.setting, plan.partitions(statistics.setting)


def _identity(
    models: Sequence[Checkpoint],
    calls: Sequence[Call],
    options: Options,
    kinds: tuple[Any, ...],
    vocabulary: Vocabulary | None,
) -> str:
    """A digest of everything that decides what is written."""
    digest = hashlib.sha256(repr(kinds).encode())
    digest.update(json.dumps(options.to_dict(), sort_keys=True).encode())
    for labels in vocabulary.labels if vocabulary else ():
        digest.update(_bytes(labels))
    for model in models:
        digest.update((model.folder / "config.json").read_bytes())
        for name, stored in sorted(model.state.stored.items()):
            for place in stored.pieces():
                file = place.path.stat()
                parts = (place.shape, place.dtype, place.start, file.st_size, file.st_mtime_ns)
                digest.update(repr((name, *parts)).encode())
    for call in calls:
        own = (*call.parents, call) if isinstance(call, Joint) else (call,)
        for args, kwargs in own:
            for key, value in (*enumerate(args), *sorted(kwargs.items())):
                digest.update(f"{key}:".encode())
                digest.update(_bytes(value))
        for rows in call.rows if isinstance(call, Joint) else ():
            digest.update(_bytes(rows))
    return digest.hexdigest()


def _bytes(value: Any) -> bytes | memoryview:
    tensor = isinstance(value, Tensor)
    return bytes_of(value.cpu().contiguous()) if tensor else repr(value).encode()
