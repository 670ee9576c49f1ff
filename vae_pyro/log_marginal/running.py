"""Running sums over log weights that arrive in chunks: what the whole matrix at once would give."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vae_pyro.log_marginal.diagnostics import (
    MIN_TAIL_SIZE,
    effective_sample_size,
    log_mean_std_error,
    pareto_k,
    pareto_smoothed,
    tail_size,
)


class RunningLogSumExp:
    """log sum_k w_k and log sum_k w_k^2 of each image.

    Args:
        batch: the number of images.
    """

    def __init__(self, batch: int) -> None:
        self.count = 0
        self.log_sum = torch.full((batch,), -math.inf, dtype=torch.float64)
        self.log_sum_squares = self.log_sum.clone()

    def update(self, log_w: Float[Tensor, "some batch"]) -> None:
        """Take in the next log weights, float64, ``(any, batch)``."""
        self.count += len(log_w)
        self.log_sum = torch.logaddexp(self.log_sum, log_w.logsumexp(0))
        self.log_sum_squares = torch.logaddexp(self.log_sum_squares, (2 * log_w).logsumexp(0))

    @property
    def log_mean(self) -> Float[Tensor, " batch"]:
        """log (1/K) sum_k w_k, nats, ``(batch,)``."""
        return self.log_sum - math.log(self.count)

    @property
    def effective_sample_size(self) -> Float[Tensor, " batch"]:
        """Between 1 and the number of weights, ``(batch,)``."""
        return effective_sample_size(self.log_sum, self.log_sum_squares)

    @property
    def std_error(self) -> Float[Tensor, " batch"]:
        """Standard error of ``log_mean``, nats, ``(batch,)``."""
        return log_mean_std_error(self.effective_sample_size, self.count)


class GroupedLogMeanExp:
    """The mean of log (1/k) sum_{j <= k} w_j over disjoint consecutive groups of k weights.

    Its expectation is the IWAE-k bound, so that k = 1 gives the ELBO.

    Args:
        group_size: k.
        batch: the number of images.

    Source: Burda et al. (2016), equation 8; the running variance, Chan et al. (1979).
    """

    def __init__(self, group_size: int, batch: int) -> None:
        self.group_size = group_size
        self.num_groups = 0
        self._mean = torch.zeros(batch, dtype=torch.float64)
        self._squares = torch.zeros(batch, dtype=torch.float64)
        self._open = RunningLogSumExp(batch)
        self._within_group = torch.full((batch,), math.nan, dtype=torch.float64)

    def update(self, log_w: Float[Tensor, "some batch"]) -> None:
        """Take in the next log weights, float64, ``(any, batch)``."""
        k, batch = self.group_size, log_w.shape[1]
        while len(log_w):
            if self._open.count == k:
                self._open = RunningLogSumExp(batch)
            whole = len(log_w) // k if self._open.count == 0 else 0
            if whole > 1:
                groups = log_w[: whole * k].reshape(whole, k, batch)
                self._take(groups.logsumexp(1) - math.log(k))
                log_w = log_w[whole * k :]
            else:
                part = log_w[: k - self._open.count]
                self._open.update(part)
                log_w = log_w[len(part) :]
                if self._open.count == k:
                    self._within_group = self._open.std_error
                    self._take(self._open.log_mean[None])

    def _take(self, values: Tensor) -> None:
        """Merge the moments of finished groups, ``(groups, batch)``, into the running ones."""
        before, new = self.num_groups, len(values)
        self.num_groups = before + new
        mean = values.mean(0)
        shift = mean - self._mean
        self._mean = self._mean + shift * (new / self.num_groups)
        self._squares = (
            self._squares
            + (values - mean).square().sum(0)
            + shift.square() * (before * new / self.num_groups)
        )

    @property
    def value(self) -> Float[Tensor, " batch"]:
        """Nats, ``(batch,)``."""
        return self._mean

    @property
    def std_error(self) -> Float[Tensor, " batch"]:
        """Of ``value``: between groups where there are several, else within the one group."""
        if self.num_groups == 1:
            return self._within_group
        return (self._squares / (self.num_groups * (self.num_groups - 1))).sqrt()


class RunningWeights:
    """Everything that is kept of K log weights for each image of one chunk.

    Args:
        num_samples: K, known beforehand because it sets the size of the tail.
        group_sizes: the k of each bound.
        batch: the number of images.
    """

    def __init__(self, num_samples: int, group_sizes: Sequence[int], batch: int) -> None:
        self.bounds = {k: GroupedLogMeanExp(k, batch) for k in group_sizes}
        self.total = RunningLogSumExp(batch)
        self._largest = torch.empty(0, batch, dtype=torch.float64)
        self._num_largest = tail_size(num_samples) + 1

    def update(self, log_w: Float[Tensor, "some batch"]) -> None:
        """Take in the next log weights, float64, ``(any, batch)``."""
        self.total.update(log_w)
        for bound in self.bounds.values():
            bound.update(log_w)
        candidates = torch.cat([self._largest, log_w])
        self._largest = candidates.topk(min(self._num_largest, len(candidates)), dim=0).values

    @property
    def pareto_k(self) -> Float[Tensor, " batch"]:
        """k-hat per image, ``(batch,)``; NaN where there are too few weights for a tail."""
        if len(self._largest) <= MIN_TAIL_SIZE:
            return torch.full_like(self.total.log_sum, math.nan)
        return pareto_k(self._largest)

    @property
    def smoothed_log_mean(self) -> Float[Tensor, " batch"]:
        """log of the mean weight with a Pareto-smoothed tail, nats, ``(batch,)``.

        The plain log mean where there are too few weights for a tail.
        """
        if len(self._largest) <= MIN_TAIL_SIZE:
            return self.total.log_mean
        tail = self._largest.topk(len(self._largest) - 1, dim=0).values.logsumexp(0)
        smoothed = pareto_smoothed(self._largest).logsumexp(0)
        # log(sum - tail + smoothed) - log(sum)
        relative = torch.expm1(smoothed - tail) * (tail - self.total.log_sum).exp()
        return self.total.log_mean + torch.log1p(relative)
