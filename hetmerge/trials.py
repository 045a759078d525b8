"""Trials of match="auto" for parents on disk: each is merged in a folder of its own and judged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hetmerge.applying import FITS, prepare
from hetmerge.batches import Call
from hetmerge.choosing import best_of, candidates, note_of, split, trial
from hetmerge.files import replace_file
from hetmerge.on_disk import Place
from hetmerge.options import Options
from hetmerge.partition import Partition
from hetmerge.planning import AlignmentPlan
from hetmerge.progress import Progress
from hetmerge.refit import Memory
from hetmerge.setting import Setting

FOLDER, KNOWN = "trials", "explained.json"
Planned = tuple[AlignmentPlan, Setting, dict[int, Partition]]


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
        for match in candidates(setting, options):
            if match not in known:
                known[match] = self._try(match, planned(match), fit, held)
                replace_file(self._folder / KNOWN, json.dumps(known).encode())
        explained = {match: known[match] for match in candidates(setting, options)}
        best = best_of(explained)
        found, _, _ = planned(best)
        notes = (*found.notes, note_of(explained, fit))
        chosen = replace(found.options, match="auto")
        return replace(found, options=chosen, notes=notes, trials=explained)

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
