"""Several estimators on the same images: which is the reference, and how far apart they are."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from vae_pyro.evaluation.names import merge, metrics_of
from vae_pyro.log_marginal import Bound, Estimate, Estimator, LocalELBO, PerImage, TimedEstimate

_SMALL_ERROR = 0.1  # nats, of a numeric estimate that others are compared with
_MOST_ERRORS = 4.0  # standard errors
_ROUNDING = 1e-3  # nats


@dataclass(frozen=True)
class EstimatorComparison:
    """Estimators of log p(x), and bounds on it, on the same images.

    Attributes:
        estimators: by name.
        estimates: what each returned, by the same names.
        draws: x holds so many blocks, each a sample of x (a dequantisation) of the same images.
    """

    estimators: Mapping[str, Estimator]
    estimates: Mapping[str, TimedEstimate]
    draws: int = 1

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name].estimate

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    @property
    def num_images(self) -> int:
        """Different images; the samples of one image count once."""
        return len(self["log_px"].value) // self.draws

    @property
    def reference(self) -> str | None:
        """The estimator that the others are compared with: exact, or quadrature.

        Quadrature only where its own error estimate is small.
        """
        for bound in (Bound.EXACT, Bound.NUMERIC):
            for name in self:
                estimate = self[name]
                if estimate.bound is bound and estimate.mean_std_error() < _SMALL_ERROR:
                    return name
        return None

    @property
    def tightest(self) -> str:
        """The highest of the lower bounds that are estimates of log p(x)."""
        lower = [name for name in self.targeting if self[name].bound is Bound.LOWER]
        return max(lower, key=lambda name: self[name].mean())

    @property
    def targeting(self) -> list[str]:
        """The estimators of log p(x) itself; the ELBO and the IWAE bounds are left out."""
        return [name for name in self if self.estimators[name].targets_log_px]

    def difference(self, name: str, other: str) -> float:
        """Mean difference of two estimates of the same images, in nats."""
        return (self[name].value - self[other].value).mean().item()

    def contradicts(self, name: str, other: str) -> bool:
        """Whether an estimate lies further from another one than chance and its bound allow.

        A lower bound whose error bar cannot be trusted is one-sided: it may lie below by any
        distance.
        """
        distance = self.difference(name, other)
        if abs(distance) <= self.largest_by_chance(name, other):
            return False
        one_sided = self[name].bound is Bound.LOWER and not self[name].is_trusted
        return not (one_sided and distance < 0)

    def largest_by_chance(self, name: str, other: str) -> float:
        """How large chance lets ``difference`` be, in nats.

        4 standard errors, the expected shortfall of the logarithm (half the squared error of each
        image), and the rounding of float32.
        """
        # Not by draw: the draws of x are shared, and move both estimates alike.
        std_error = math.hypot(self[name].mean_std_error(), self[other].mean_std_error())
        shortfall = (self[name].std_error.square().mean() / 2).item()
        return _MOST_ERRORS * std_error + shortfall + _ROUNDING

    def metrics(self) -> dict[str, float]:
        """Every mean with its errors, and the parts of the gap between the ELBO and log p(x)."""
        return merge(
            {"compared/num_images": float(self.num_images)},
            *(metrics_of("compared", name, self[name], self.draws) for name in self),
            *(
                metrics_of("compared", name, part, self.draws)
                for name, part in self._gaps().items()
            ),
        )

    def _gaps(self) -> dict[str, PerImage]:
        """KL(q || p(z | x)) where log p(x) is known; its two parts where the best q was sought.

        Source: Cremer et al. (2018), section 3.
        """
        elbo, reference = self["elbo"], self.reference
        gaps: dict[str, PerImage] = {}
        if reference is not None:
            gaps["kl_to_posterior"] = subtract(self[reference], elbo)
        local = [name for name in self if isinstance(self.estimators[name], LocalELBO)]
        if local:
            best = self[max(local, key=lambda name: self[name].mean())]
            gaps["approximation_gap"] = subtract(self[reference or self.tightest], best)
            gaps["amortisation_gap"] = subtract(best, elbo)
        return gaps


def subtract(a: PerImage, b: PerImage) -> PerImage:
    """a - b of every image, for estimates from independent samples."""
    return PerImage(a.value - b.value, torch.hypot(a.std_error, b.std_error))
