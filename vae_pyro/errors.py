"""Errors that a user can fix; each message names what is wrong, where, and what to try."""


class UserError(Exception):
    """The base of all these errors. The command prints the message, without a traceback."""


class ConfigError(UserError):
    """A configuration that cannot be run, or an option that does not exist."""


class DataError(UserError):
    """Data that are missing, damaged, of a wrong shape, or outside the likelihood's support."""


class TrackingError(UserError):
    """A tracking store that does not respond or cannot be written."""


class DivergenceError(UserError):
    """A training whose objective is no longer finite."""


class CheckpointError(UserError):
    """A saved model that is missing, damaged, or does not fit."""


class EstimatorError(UserError):
    """An estimator that does not apply to this VAE."""


class WorkerError(UserError):
    """A process that shares the work of this one, and ended before its part was done."""


class ReportError(UserError):
    """Runs that cannot be compared, or whose files are missing or damaged."""


class StorageError(UserError, OSError):
    """A disk that is full, or a folder that cannot be written."""


class ResumeError(UserError):
    """A job that cannot be resumed, for example because it is still running."""
