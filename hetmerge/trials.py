"""Trials of match="auto" for parents on disk: each is merged in a folder of its own and judged."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hetmerge.applying import FITS, prepare
from hetmerge.batches import Call, as_given
from hetmerge.choosing import attempts, best_of, candidates, split, trial
from hetmerge.files import replace_file
from hetmerge.forecast import check_memory
from hetmerge.lazy import Checkpoint
from hetmerge.on_disk import Place
from hetmerge.options import Options
from hetmerge.partition import Partition
from hetmerge.planning import AlignmentPlan, plan_statistics
from hetmerge.progress import Progress
from hetmerge.refit import Memory
from hetmerge.setting import Setting

FOLDER, KNOWN = "trials", "explained.json"
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

    def planned(folder: Path, options: Options) -> Planned:
        folder.mkdir(parents=True)
        plan, known, partitions = plan_statistics(
            models, as_given(calls), **given, **options.to_dict()
        )
        return plan, known.setting, partitions

    with tempfile.TemporaryDirectory(prefix="hetmerge-") as folder:
        place = Place(Path(folder))
        return Trials(planned, calls, place, Progress(given["progress"])).run(options)


@dataclass(frozen=True)
class Trials:
    """Candidates of a merge that is written to a folder.

    Args:
        plan: makes the plan of a match, or reads it, in the folder that it is given.
        calls: calibration inputs.
        place: where and how the merged checkpoint will be written; what is known of finished trials
            lies there for a run that is stopped.
        progress: bars.
    """

    plan: Callable[[Path, Options], Planned]
    calls: Sequence[Call]
    place: Place
    progress: Progress

    def run(self, options: Options) -> AlignmentPlan:
        """The plan of the best candidate, which says so."""
        known, plans = self._known(), dict[str, Planned]()

        def planned(match: str) -> Planned:
            if match not in plans:
                plans[match] = self.plan(self._of(match), replace(options, match=match))
            return plans[match]

        _, setting, _ = planned("zip")
        fit, held = split(self.calls)

        def attempt(match: str) -> float:
            if match not in known:
                check_memory(setting, self.calls, replace(options, match=match))
                known[match] = self._try(match, planned(match), fit, held)
                replace_file(self._folder / KNOWN, json.dumps(known).encode())
            return known[match]

        explained, notes = attempts(candidates(setting, options), attempt, fit)
        found, _, _ = planned(best_of(explained))
        chosen = replace(found.options, match="auto")
        return replace(found, options=chosen, notes=(*found.notes, *notes), trials=explained)

    @property
    def _folder(self) -> Path:
        return self.place.folder / FOLDER

    def _of(self, match: str) -> Path:
        return self._folder / match

    def _known(self) -> dict[str, float]:
        path = self._folder / KNOWN
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def _try(
        self, match: str, planned: Planned, fit: Sequence[Call], held: Sequence[Call]
    ) -> float:
        weights = self._of(match) / "weights"
        weights.mkdir(exist_ok=True)
        place = replace(self.place, folder=weights)
        ready = prepare(*planned, fit, place)
        share = trial(
            ready.made, ready.plan.options, fit, held, self.progress, Memory(weights / FITS)
        )
        shutil.rmtree(weights)
        return share
