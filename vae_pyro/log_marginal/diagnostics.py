"""Can an importance-sampled number be trusted? Effective sample size and Pareto k-hat."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

HIGH_PARETO_K = 0.7  # with any number of weights
NO_TAIL = 1e-3  # largest weights that differ by less, relatively, have none but rounding
MIN_TAIL_SIZE = 5  # weights; fewer do not show the shape of a tail


def high_pareto_k(num_weights: int) -> float:
    """The k-hat above which neither an estimate nor its standard error can be trusted.

    min(1 - 1 / log10(S), 0.7) for S weights: few weights cannot show that a heavy tail is harmless.

    >>> [round(high_pareto_k(size), 2) for size in (100, 1000, 5000)]
    [0.5, 0.67, 0.7]

    Args:
        num_weights: S, at least 2.

    Source: Vehtari et al. (2024), section 3.2.4.
    """
    return min(1 - 1 / math.log10(max(num_weights, 2)), HIGH_PARETO_K)


def effective_sample_size(
    log_sum: Float[Tensor, "*shape"], log_sum_squares: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """(sum_k w_k)^2 / sum_k w_k^2, between 1 and the number of weights.

    Args:
        log_sum: log sum_k w_k, any shape.
        log_sum_squares: log sum_k w_k^2, same shape.

    Source: Kong (1992).
    """
    return torch.exp(2 * log_sum - log_sum_squares)


def log_mean_std_error(
    effective: Float[Tensor, "*shape"], num_samples: int
) -> Float[Tensor, "*shape"]:
    """Standard error of log (1/K) sum_k w_k, by the delta method: sqrt((K / ESS - 1) / (K - 1)).

    K / ESS - 1 is the squared coefficient of variation of the weights. Where their variance is
    infinite (Pareto k-hat above 0.5) this is too small, and k-hat is the number to look at.

    Args:
        effective: effective sample size, any shape.
        num_samples: K; NaN for a single weight.

    Returns:
        nats, the shape of ``effective``.
    """
    if num_samples == 1:
        return torch.full_like(effective, math.nan)
    return ((num_samples / effective - 1).clamp(min=0) / (num_samples - 1)).sqrt()


def tail_size(num_samples: int) -> int:
    """How many of the largest weights make the tail: min(K / 5, 3 sqrt(K)).

    Source: Vehtari et al. (2024), section 3.
    """
    return min(num_samples // 5, math.ceil(3 * math.sqrt(num_samples)))


def pareto_k(largest_log_weights: Float[Tensor, "weights batch"]) -> Float[Tensor, " batch"]:
    """Shape k-hat of a generalised Pareto distribution fitted to each image's largest weights.

    Below 0.5 the weights have a finite variance. Above ``high_pareto_k`` the estimate and its
    standard error are not to be trusted. All images
    are fitted at once. Where the largest weights are all equal, to 0.1%, there is no tail
    to be fitted, and k-hat is -inf.

    Args:
        largest_log_weights: the M + 1 largest log weights of every image in any order,
            ``(M + 1, batch)``: the smallest of them is the threshold. M is at least 5.

    Returns:
        k-hat, float64, ``(batch,)``.

    Raises:
        ValueError: where the tail has fewer than five weights.

    Source: Zhang and Stephens (2009) for the fit; Vehtari et al. (2024), appendix C, for the pull
    towards 0.5 with the weight of ten observations.
    """
    _, exceedances, _ = _tail(largest_log_weights)
    return _fit(exceedances)[0]


def pareto_smoothed(
    largest_log_weights: Float[Tensor, "weights batch"],
) -> Float[Tensor, "tail batch"]:
    """The log weights of each image's tail, replaced by those that the fitted Pareto expects.

    w_j = u + F^-1((j - 1/2) / M), j = 1..M, with u the threshold, and none above the largest raw
    weight. One extreme weight then no longer makes up the whole sum. The mean of smoothed weights
    has less variance than that of the raw ones, and is biased.

    Args:
        largest_log_weights: as for ``pareto_k``, ``(M + 1, batch)``.

    Returns:
        log weights, ascending, float64, ``(M, batch)``; the raw ones where there is no tail.

    Raises:
        ValueError: where the tail has fewer than five weights.

    Source: Vehtari et al. (2024), section 3.
    """
    descending, exceedances, threshold = _tail(largest_log_weights)
    k, scale = _fit(exceedances)
    size = len(exceedances)
    rank = torch.arange(1, size + 1, dtype=torch.float64, device=k.device)[:, None]
    survival = torch.log1p(-(rank - 0.5) / size)
    usable = k.isfinite() & (k.abs() > NO_TAIL)
    safe_k = torch.where(usable, k, 1.0)
    excess = scale * torch.expm1(-safe_k * survival) / safe_k
    smoothed = (threshold + excess).clamp(max=1.0).log() + descending[0]
    return torch.where(usable, smoothed, descending[:-1].flip(0))


def _tail(largest_log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Descending log weights; their ascending excesses over the threshold; the threshold.

    The last two are in units of the largest weight.
    """
    size = len(largest_log_weights) - 1
    if size < MIN_TAIL_SIZE:
        raise ValueError(f"Pareto k-hat needs a tail of {MIN_TAIL_SIZE} weights, got {size}")
    descending = largest_log_weights.double().sort(dim=0, descending=True).values
    weights = (descending - descending[0]).exp()
    return descending, (weights[:-1] - weights[-1]).flip(0), weights[-1]


def _fit(exceedances: Tensor) -> tuple[Tensor, Tensor]:
    """Shape k-hat and scale of a generalised Pareto distribution, for ascending excesses."""
    size = len(exceedances)
    largest = exceedances[-1]
    has_tail = largest > NO_TAIL
    # A quartile of 0 (ties at the threshold) would divide by zero; such ties carry no shape.
    quartile = exceedances[int(size / 4 + 0.5) - 1]
    tiny = torch.finfo(torch.float64).tiny
    safe_largest = torch.where(has_tail, largest, 1.0)
    safe_quartile = torch.where(has_tail, quartile.clamp(min=tiny), 1.0)
    safe_exceedances = torch.where(has_tail, exceedances, 1.0)

    # theta_j: candidates for -k / sigma; their profile likelihoods weigh the average.
    num_candidates = 30 + int(math.sqrt(size))
    j = torch.arange(1, num_candidates + 1, dtype=torch.float64, device=exceedances.device)[:, None]
    theta = 1 / safe_largest + (1 - (num_candidates / (j - 0.5)).sqrt()) / (3 * safe_quartile)
    shape = torch.log1p(-theta[:, None] * safe_exceedances).mean(1)  # (candidates, batch)
    profile = size * ((-theta / shape).log() - shape - 1)
    theta_hat = (theta * profile.softmax(0)).sum(0)
    k = torch.log1p(-theta_hat * safe_exceedances).mean(0)
    scale = -k / theta_hat
    prior_weight, prior_k = 10, 0.5
    k = (size * k + prior_weight * prior_k) / (size + prior_weight)
    return torch.where(has_tail, k, -math.inf), scale
