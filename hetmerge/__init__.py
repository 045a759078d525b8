"""Merge trained networks of different depth and width, without training.

Every public name except the errors is imported on first use (PEP 562), so that `import hetmerge`
and the command line start without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hetmerge.errors import AlignmentError as AlignmentError
from hetmerge.errors import BackendError as BackendError
from hetmerge.errors import CheckpointError as CheckpointError
from hetmerge.errors import ConfigError as ConfigError
from hetmerge.errors import HetmergeError as HetmergeError
from hetmerge.errors import InputError as InputError
from hetmerge.errors import PlanError as PlanError
from hetmerge.errors import TraceError as TraceError
from hetmerge.errors import VerifyError as VerifyError

if TYPE_CHECKING:
    from hetmerge import ops as ops
    from hetmerge.applying import MergeResult as MergeResult
    from hetmerge.applying import apply as apply
    from hetmerge.calibration import Statistics as Statistics
    from hetmerge.calibration import calibrate as calibrate
    from hetmerge.checkpoints import load as load
    from hetmerge.checkpoints import save as save
    from hetmerge.folder_merge import merge_to as merge_to
    from hetmerge.lazy import Checkpoint as Checkpoint
    from hetmerge.lazy import open_checkpoint as open_checkpoint
    from hetmerge.merging import merge as merge
    from hetmerge.ops import Moments as Moments
    from hetmerge.partial import PartialModel as PartialModel
    from hetmerge.planning import AlignmentPlan as AlignmentPlan
    from hetmerge.planning import plan as plan
    from hetmerge.polishing import polish as polish
    from hetmerge.tracing import SpaceGraph as SpaceGraph
    from hetmerge.tracing import trace as trace

__version__ = "0.1.0"

_HOMES = {
    "AlignmentPlan": "hetmerge.planning",
    "Checkpoint": "hetmerge.lazy",
    "MergeResult": "hetmerge.applying",
    "Moments": "hetmerge.ops",
    "PartialModel": "hetmerge.partial",
    "SpaceGraph": "hetmerge.tracing",
    "Statistics": "hetmerge.calibration",
    "apply": "hetmerge.applying",
    "calibrate": "hetmerge.calibration",
    "load": "hetmerge.checkpoints",
    "merge": "hetmerge.merging",
    "merge_to": "hetmerge.folder_merge",
    "open_checkpoint": "hetmerge.lazy",
    "plan": "hetmerge.planning",
    "polish": "hetmerge.polishing",
    "save": "hetmerge.checkpoints",
    "trace": "hetmerge.tracing",
}
_SUBPACKAGES = {"ops"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _SUBPACKAGES:
        value = import_module(f"hetmerge.{name}")
    else:
        raise AttributeError(f"module 'hetmerge' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBPACKAGES})
