"""Running sums give what the whole matrix at once gives, however it is cut."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from vae_pyro.log_marginal.diagnostics import pareto_k, pareto_smoothed, tail_size
from vae_pyro.log_marginal.running import GroupedLogMeanExp, RunningLogSumExp, RunningWeights


@st.composite
def cut_matrices(draw: st.DrawFn) -> tuple[torch.Tensor, list[int]]:
    num_samples, batch = draw(st.integers(1, 60)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    scale = draw(st.sampled_from([0.0, 1.0, 30.0]))
    log_w = scale * torch.randn(num_samples, batch, generator=generator).double() - 1000
    cuts = draw(st.lists(st.integers(0, num_samples), max_size=6))
    bounds = [0, *sorted(cuts), num_samples]
    return log_w, [b - a for a, b in pairwise(bounds)]


@given(cut_matrices(), st.integers(1, 60))
def test_groups_of_any_size_in_chunks_of_any_size(
    matrix: tuple[torch.Tensor, list[int]], group_size: int
) -> None:
    log_w, chunks = matrix
    num_samples, batch = log_w.shape
    group_size = min(group_size, num_samples)
    running = GroupedLogMeanExp(group_size, batch)
    for chunk in log_w.split(chunks):
        running.update(chunk)

    groups = num_samples // group_size
    whole = log_w[: groups * group_size].numpy().reshape(groups, group_size, batch)
    means = logsumexp(whole, axis=1) - math.log(group_size)
    assert running.num_groups == groups
    np.testing.assert_allclose(running.value, means.mean(0), rtol=1e-12)
    if groups > 1:
        expected = means.std(0, ddof=1) / math.sqrt(groups)
        np.testing.assert_allclose(running.std_error, expected, rtol=1e-6, atol=1e-9)
    elif group_size > 1:  # whatever is left over after the one group
        weights = np.exp(whole[0] - whole[0].max(0))
        spread = weights.var(0, ddof=1) / weights.mean(0) ** 2
        expected = np.sqrt(spread / group_size)
        np.testing.assert_allclose(running.std_error, expected, rtol=1e-6, atol=1e-7)


@given(cut_matrices())
def test_sums_and_effective_sample_size(matrix: tuple[torch.Tensor, list[int]]) -> None:
    log_w, chunks = matrix
    running = RunningLogSumExp(log_w.shape[1])
    for chunk in log_w.split(chunks):
        running.update(chunk)
    array = log_w.numpy()
    np.testing.assert_allclose(running.log_mean, logsumexp(array, 0) - math.log(len(array)))
    weights = np.exp(array - array.max(0))
    ess = weights.sum(0) ** 2 / (weights**2).sum(0)
    np.testing.assert_allclose(running.effective_sample_size, ess, rtol=1e-9)


def test_one_group_has_the_error_of_its_own_weights() -> None:
    log_w = torch.randn(40, 3).double()
    grouped, total = GroupedLogMeanExp(40, 3), RunningLogSumExp(3)
    for chunk in log_w.split(7):
        grouped.update(chunk)
        total.update(chunk)
    torch.testing.assert_close(grouped.value, total.log_mean)
    torch.testing.assert_close(grouped.std_error, total.std_error)


@pytest.mark.parametrize("chunk", [1, 17, 500])
def test_the_tail_survives_the_chunks(chunk: int) -> None:
    log_w = 2 * torch.randn(500, 3).double()
    running = RunningWeights(500, [1], 3)
    for part in log_w.split(chunk):
        running.update(part)
    largest = log_w.sort(0, descending=True).values[: tail_size(500) + 1]
    torch.testing.assert_close(running.pareto_k, pareto_k(largest))


def test_too_few_weights_have_no_pareto_k() -> None:
    running = RunningWeights(20, [1], 2)
    running.update(torch.randn(20, 2).double())
    assert running.pareto_k.isnan().all()


def test_the_smoothed_mean_is_that_of_all_weights_with_another_tail() -> None:
    log_w = 2 * torch.randn(1000, 3).double()
    running = RunningWeights(1000, [], 3)
    for part in log_w.split(170):
        running.update(part)
    ascending = log_w.sort(0).values
    size = tail_size(1000)
    ascending[-size:] = pareto_smoothed(ascending[-size - 1 :])
    expected = ascending.logsumexp(0) - math.log(1000)
    torch.testing.assert_close(running.smoothed_log_mean, expected)
    assert (running.smoothed_log_mean != running.total.log_mean).all()
