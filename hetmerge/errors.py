"""The errors hetmerge raises on purpose: one base class, one subclass per stage."""


class HetmergeError(Exception):
    """Base of every error that hetmerge raises on purpose."""


class InputError(HetmergeError, ValueError):
    """An argument has the wrong type, shape or value."""


class BackendError(HetmergeError, RuntimeError):
    """The requested backend cannot run here; the message says why."""


class TraceError(HetmergeError):
    """A model could not be traced into spaces."""


class VerifyError(HetmergeError):
    """A space that was found to be free changes the model's outputs."""


class AlignmentError(HetmergeError):
    """The depths of the parents cannot be aligned."""


class PlanError(HetmergeError):
    """A plan cannot be made, or does not fit the models it is applied to."""


class CheckpointError(HetmergeError):
    """A checkpoint is missing, damaged, or in a format that is not accepted."""


class ConfigError(HetmergeError):
    """A configuration file has an unknown key, a wrong type or a wrong value."""
