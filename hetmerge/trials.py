"""Trials of match="auto" for parents on disk: each is merged in a folder of its own and judged."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hetmerge.applying import FITS, prepare
from hetmerge.batches import Call, as_given
from hetmerge.choosing import Choice, attempts, candidates, split, trial
from hetmerge.files import replace_file
from hetmerge.forecast import check_memory
from hetmerge.lazy import Checkpoint
from hetmerge.on_disk import Place
from hetmerge.options import Options
from hetmerge.partition import Partition
from hetmerge.planning import AlignmentPlan, plan_statistics
from hetmerge.progress import Progress
from hetmerge.realising import Realised
from hetmerge.refit import Memory
from hetmerge.setting import Setting

FOLDER, KNOWN, WEIGHTS = "trials", "explained.json", "weights"
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

    def planned(folder: Path, options: Options, calls: Sequence[Call]) -> Planned:
        folder.mkdir(parents=True)
        plan, known, partitions = plan_statistics(
            models, as_given(calls), **given, **options.to_dict()
        )
        return plan, known.setting, partitions

    with tempfile.TemporaryDirectory(prefix="hetmerge-") as folder:
        place, bars = Place(Path(folder)), Progress(given["progress"])
        choice = Trials(planned, calls, place, bars).run(options)
        options = replace(options, match=choice.match)
        return choice.told(planned(Path(folder) / "plan", options, calls)[0])


@dataclass(frozen=True)
class Trials:
    """Candidates of a merge that is written to a folder.

    Args:
        plan: makes the plan of a match from some inputs, or reads it, in a folder.
        calls: calibration inputs.
        place: where and how the merged checkpoint will be written; what is known of finished trials
            lies there for a run that is stopped.
        progress: bars.
    """

    plan: Callable[[Path, Options, Sequence[Call]], Planned]
    calls: Sequence[Call]
    place: Place
    progress: Progress

    def run(self, options: Options) -> Choice:
        """The best candidate."""
        known, plans = self._known(), dict[str, Planned]()
        fit, held = split(self.calls)

        def planned(match: str) -> Planned:
            if match not in plans:
                plans[match] = self.plan(self._of(match), replace(options, match=match), fit)
            return plans[match]

        def attempt(match: str) -> float:
            if match not in known:
                check_memory(setting, fit, replace(options, match=match))
                with self._projected(match, planned(match), fit) as made:
                    memory = Memory(self._of(match) / WEIGHTS / FITS)
                    options_then = planned(match)[0].options
                    known[match] = trial(made, options_then, fit, held, self.progress, memory)
                replace_file(self._folder / KNOWN, json.dumps(known).encode())
            best = max(known, key=lambda name: known[name])
            for other in (plans.keys() & known.keys()) - {best}:
                del plans[other]  # its maps may be large
            return known[match]

        _, setting, _ = planned("zip")
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
