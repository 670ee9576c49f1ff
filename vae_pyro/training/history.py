"""The metrics of a training, epoch by epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Epoch:
    """One finished epoch, as ``fit`` reports it.

    Attributes:
        number: 1 for the first; 0 stands for the state before training.
        metrics: ``train/elbo``, ``valid/elbo``, .. with their standard errors, nats per image; none
            for epoch 0.
        time: at which they were known, in seconds since 1970.
        is_restored: whether an earlier process trained it, and it was read from a checkpoint.
        is_last: whether the training ends with it.
    """

    number: int
    metrics: Mapping[str, float]
    time: float
    is_restored: bool = False
    is_last: bool = False


@dataclass(frozen=True)
class History:
    """The metrics of a training, epoch by epoch.

    Attributes:
        epochs: in their order, the first one is number 1.
        kept_epoch: the epoch whose weights the VAE now has.
        seconds: spent on training steps.
    """

    epochs: Sequence[Epoch]
    kept_epoch: int
    seconds: float

    def __getitem__(self, metric: str) -> list[float]:
        """One metric, epoch by epoch: ``history["valid/elbo"]``, nats per image."""
        if self.epochs and metric not in self.epochs[0].metrics:
            known = ", ".join(self.epochs[0].metrics)
            raise KeyError(f"{metric!r} is not a metric of this training; there are {known}")
        return [epoch.metrics[metric] for epoch in self.epochs]

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per epoch (the index), one column per metric."""
        import pandas

        rows = [dict(epoch.metrics) for epoch in self.epochs]
        return pandas.DataFrame(rows, index=[epoch.number for epoch in self.epochs])

    def __repr__(self) -> str:
        best = self["valid/elbo"][self.kept_epoch - 1] if self.epochs else float("nan")
        return (
            f"History({len(self.epochs)} epochs, {self.seconds:.1f} s; "
            f"kept epoch {self.kept_epoch}: valid ELBO {best:.2f} nats per image)"
        )
