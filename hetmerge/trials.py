"""Trials of match="auto" for parents on disk: each is merged in a folder of its own and judged."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hetmerge.applying import FITS, prepare
from hetmerge.batches import Call, as_given
from hetmerge.calibration import Statistics, align_parents
from hetmerge.choosing import Choice, attempts, candidates, split, trial
from hetmerge.files import replace_file
from hetmerge.forecast import check_memory
from hetmerge.halfway import HALFWAY, Halfway, remove_halfway
from hetmerge.lazy import Checkpoint
from hetmerge.on_disk import Place
from hetmerge.options import Options
from hetmerge.partition import Partition
from hetmerge.plan_files import in_memory
from hetmerge.planning import AlignmentPlan, plan_statistics
from hetmerge.progress import Progress
from hetmerge.realising import Realised
from hetmerge.refit import Memory
from hetmerge.setting import Setting

FOLDER, KNOWN, CHOICE, WEIGHTS = "trials", "explained.json", "choice.json", "weights"
Planned = tuple[AlignmentPlan, Setting, dict[int, Partition]]


def trials_beside(
    models: Sequence[nn.Module | Checkpoint],
    calls: Sequence[Call],
    options: Options,
    given: Mapping[str, Any],
) -> AlignmentPlan:
    """A plan alone, whose trials lie in a temporary folder.

    Args:
        given: keyword arguments of :func:`hetmerge.planning.plan_statistics`.
    """

    def planned(folder: Path, options: Options, aligned: Statistics | None) -> Planned:
        folder.mkdir(parents=True)
        batches = as_given(aligned.calls if aligned else calls)
        known = {"halfway": Halfway(folder / HALFWAY), "aligned": aligned, **given}
        plan, found, partitions = plan_statistics(models, batches, **known, **options.to_dict())
        return plan, found.setting, partitions

    with tempfile.TemporaryDirectory(prefix="hetmerge-") as folder:
        place, bars = Place(Path(folder)), Progress(given["progress"])
        choice = Trials(models, planned, calls, place, bars, given["blocks"]).run(options)
        options = replace(options, match=choice.match)
        return in_memory(choice.told(planned(Path(folder) / "plan", options, None)[0]))


@dataclass(frozen=True)
class Trials:
    """Candidates of a merge that is written to a folder.

    Args:
        models: the parents.
        plan: makes the plan of a match, or reads it, in a folder, of parents that are aligned.
        calls: calibration inputs.
        place: where and how the merged checkpoint will be written; what is known of finished trials
            lies there for a run that is stopped.
        progress: bars.
        blocks: stages named by hand.
    """

    models: Sequence[nn.Module | Checkpoint]
    plan: Callable[[Path, Options, Statistics], Planned]
    calls: Sequence[Call]
    place: Place
    progress: Progress
    blocks: Sequence[Any] | None = None

    def run(self, options: Options) -> Choice:
        """The best candidate; of the trials nothing else stays."""
        if (self._folder / CHOICE).is_file():
            found = json.loads((self._folder / CHOICE).read_text())
            return Choice(found["match"], found["explained"], tuple(found["notes"]))
        self._folder.mkdir(exist_ok=True)
        choice = self._tried(options)
        replace_file(self._folder / CHOICE, [json.dumps(asdict(choice)).encode()])
        remove_halfway(self._folder / HALFWAY)
        for folder in self._folder.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder)
        return choice

    def _tried(self, options: Options) -> Choice:
        known, plans = self._known(), dict[str, Planned]()
        fit, held = split(self.calls)
        halfway = Halfway(self._folder / HALFWAY)
        how = (options.depth, options.missing, self.blocks)
        aligned = align_parents(self.models, fit, *how, self.progress, halfway)
        setting = aligned.setting

        def planned(match: str) -> Planned:
            if match not in plans:
                plans[match] = self.plan(self._of(match), replace(options, match=match), aligned)
            return plans[match]

        def attempt(match: str) -> float:
            if match not in known:
                check_memory(setting, fit, replace(options, match=match))
                with self._projected(match, planned(match), fit) as made:
                    memory = Memory(self._of(match) / WEIGHTS / FITS)
                    options_then = planned(match)[0].options
                    known[match] = trial(made, options_then, fit, held, self.progress, memory)
                replace_file(self._folder / KNOWN, [json.dumps(known).encode()])
            return known[match]

        found = attempts(candidates(setting, options), attempt, fit)
        if not options.refit:
            return found
        best = planned(found.match)
        with self._projected(found.match, best, fit) as made:
            return found.warned(made, best[0].options, held)

    @property
    def _folder(self) -> Path:
        return self.place.folder / FOLDER

    def _of(self, match: str) -> Path:
        return self._folder / match

    def _known(self) -> dict[str, float]:
        path = self._folder / KNOWN
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    @contextmanager
    def _projected(self, match: str, planned: Planned, fit: Sequence[Call]) -> Iterator[Realised]:
        """A candidate over a folder that goes once it is judged, and stays after a stop."""
        weights = self._of(match) / WEIGHTS
        weights.mkdir(exist_ok=True)
        yield prepare(*planned, fit, replace(self.place, folder=weights)).made
        shutil.rmtree(weights)
