"""What can go wrong on the user's side; each message says what, where, and what to try."""


class UserError(Exception):
    """Something the user can mend. Its message is printed whole, without a traceback."""


class ConfigError(UserError):
    """A configuration that cannot be run."""


class DataError(UserError):
    """Data that are missing, damaged, or outside the likelihood's support."""


class TrackingError(UserError):
    """A tracking store that does not answer or cannot be written."""


class DivergenceError(UserError):
    """A training whose objective is no longer a finite number."""


class CheckpointError(UserError):
    """A saved model that is missing, damaged, or does not fit."""


class EstimatorError(UserError):
    """An estimator that has no answer for this VAE."""


class StorageError(UserError, OSError):
    """A disk that is full, or a folder that cannot be written."""


class ResumeError(UserError):
    """A job that cannot go on where it stopped, as while it is still running."""
