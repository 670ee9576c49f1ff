"""q(z | x) is a distribution: its density is scipy's, and it integrates to one."""

import torch
from scipy import stats

from vae_pyro.guide import DiagNormal


def guide(latent_dim: int) -> DiagNormal:
    encoder = torch.nn.Sequential(torch.nn.Flatten(-3), torch.nn.Linear(6, 2 * latent_dim))
    return DiagNormal(latent_dim, encoder)


def test_density_is_scipys() -> None:
    q_module, x, z = guide(4), torch.randn(5, 1, 2, 3), torch.randn(5, 4)
    q = q_module.posterior(x)
    loc, scale = (part.detach().double().numpy() for part in (q.base_dist.loc, q.base_dist.scale))
    expected = stats.norm.logpdf(z.double().numpy(), loc, scale).sum(-1)
    torch.testing.assert_close(
        q.log_prob(z).detach().double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5
    )


def test_density_integrates_to_one() -> None:
    q = guide(1).double().posterior(torch.randn(3, 1, 2, 3).double())
    z = torch.linspace(-40, 40, 40_001).double()
    density = q.log_prob(z[:, None, None].expand(-1, 3, 1)).exp()
    torch.testing.assert_close(torch.trapezoid(density, z, dim=0), torch.ones(3).double())


def test_draws_have_its_moments() -> None:
    q = guide(2).posterior(torch.randn(2, 1, 2, 3))
    z = q.sample((20_000,))
    scale = q.base_dist.scale
    assert ((z.mean(0) - q.base_dist.loc).abs() < 4.5 * scale / 20_000**0.5).all()
    assert ((z.std(0) / scale - 1).abs() < 4.5 / (2 * 20_000) ** 0.5).all()


def test_extreme_encoder_outputs_stay_finite() -> None:
    q_module = guide(1)
    torch.nn.init.zeros_(q_module.encoder[1].weight)
    for raw_scale in (-1e4, -50.0, 50.0, 1e4):
        q_module.encoder[1].bias.data = torch.tensor([0.0, raw_scale])
        q = q_module.posterior(torch.zeros(1, 1, 2, 3))
        assert q.log_prob(q.rsample()).isfinite().all()
