"""Points climb to the modes of densities whose modes are known."""

import math

import pytest
import torch
from torch import Tensor

from vae_pyro.log_marginal.climb import climb


class Counted:
    """-z' P z / 2 around a mode for each image, P with a condition of 1e4; counts its calls."""

    def __init__(self, batch: int, dims: int) -> None:
        axes = torch.linalg.qr(torch.randn(batch, dims, dims, dtype=torch.float64)).Q
        self.precision = (axes * torch.logspace(-2, 2, dims, dtype=torch.float64)) @ axes.mT
        self.mode = torch.randn(batch, 1, dims, dtype=torch.float64)
        self.calls = 0

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        gradient = -(z - self.mode) @ self.precision
        return ((z - self.mode) * gradient).sum(-1) / 2, gradient


def eye(batch: int, dims: int) -> Tensor:
    return torch.eye(dims, dtype=torch.float64).expand(batch, -1, -1)


@pytest.mark.parametrize("dims", [1, 2, 10, 50])
def test_with_the_modes_own_covariance_a_few_steps_suffice(dims: int) -> None:
    target = Counted(5, dims)
    covariance = torch.linalg.inv(target.precision)
    # So many standard deviations away that the first steps are of limited length.
    away = torch.linalg.cholesky(covariance) @ torch.randn(5, dims, 7, dtype=torch.float64)
    z, height = climb(target, target.mode + 5 * away.mT, covariance, 12)
    assert height.shape == (5, 7)
    assert height.abs().max() < 1e-6
    torch.testing.assert_close(z, target.mode.expand_as(z), atol=1e-2, rtol=0)


def test_a_wrong_covariance_is_corrected_by_the_gradients() -> None:
    """Only BFGS' memory makes this quick: steepest ascent needs thousands of steps at 1e4."""
    target = Counted(20, 4)
    _, height = climb(target, target.mode + torch.randn(20, 3, 4), eye(20, 4), 60)
    assert height.abs().max() < 1e-6


def test_the_number_of_gradients_is_the_budget() -> None:
    target = Counted(2, 3)
    start = target.mode + 1
    z, height = climb(target, start, eye(2, 3), 1)
    assert target.calls == 1
    assert torch.equal(z, start)
    torch.testing.assert_close(height, target(start)[0])
    target.calls = 0
    climb(target, start, eye(2, 3), 9)
    assert target.calls == 9


def test_every_point_reaches_its_own_mode() -> None:
    """log cosh wells at +-2, each as high as the other."""

    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        near = 2 * torch.tanh(10 * z)
        return -(z - near).square().sum(-1), -2 * (z - near) * (1 - 20 / torch.cosh(10 * z) ** 2)

    start = torch.tensor([[[1.0], [-1.0], [3.0], [-4.0]]], dtype=torch.float64)
    z, height = climb(slope, start, eye(1, 1) / 2, 12)
    torch.testing.assert_close(z, 2.0 * start.sign(), atol=1e-2, rtol=0)
    assert height.abs().max() < 1e-6


def test_a_curved_ridge_is_followed() -> None:
    """Rosenbrock's function, with its mode at (1, 1)."""

    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            a, b = z.unbind(-1)
            value = -((1 - a) ** 2) - 100 * (b - a**2) ** 2
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    start = torch.tensor([[[-1.2, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    z, _ = climb(slope, start, 0.01 * eye(1, 2), 80)
    torch.testing.assert_close(z, torch.ones_like(z), atol=1e-3, rtol=0)


def test_no_point_ever_goes_down_or_where_there_is_no_density() -> None:
    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        """A pole with kinks, nothing beyond 3, and no gradient there."""
        inside = z.norm(dim=-1) < 3
        value = torch.where(inside, -z.abs().sum(-1), -math.inf)
        return value, torch.where(inside[..., None], -z.sign(), 0.0)

    start = 2 * torch.rand(30, 5, 2, dtype=torch.float64) - 1
    start[0, 0] = 9.0  # from where nothing leads
    before, _ = slope(start)
    z, height = climb(slope, start, 100 * eye(30, 2), 15)
    assert (height >= before).all()
    assert z.isfinite().all()
    assert torch.equal(z[0, 0], start[0, 0])
    assert height[0, 0] == -math.inf
    rest = torch.ones_like(height, dtype=torch.bool)
    rest[0, 0] = False
    assert (height[rest] > before[rest]).double().mean() > 0.95
