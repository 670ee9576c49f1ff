"""The weights against closed forms: values, gradients, and independence of chunks and order."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from tests.linear_gaussian import LATENT_DIM, LinearGaussian
from vae_pyro.compilation import accelerated
from vae_pyro.log_marginal import log_weights
from vae_pyro.log_marginal import summary as summary_module
from vae_pyro.log_marginal.summary import summarise_log_weights
from vae_pyro.vae import VAE


def test_perfect_guide_weighs_every_draw_by_the_exact_marginal() -> None:
    truth = LinearGaussian()
    x = truth.sample(20)
    log_w = log_weights(truth.vae, x, 30).total
    assert log_w.shape == (30, 20)
    torch.testing.assert_close(log_w, truth.log_marginal(x).expand(30, -1))


def test_parts_are_the_densities_of_their_names() -> None:
    truth = LinearGaussian(shift=0.3)
    x = truth.sample(3)
    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(truth.vae.guide).get_trace(x)
    z = trace.nodes["z"]["value"]
    replayed = VAE(truth.vae.model, poutine.replay(truth.vae.guide, trace))
    parts = log_weights(replayed, x, 4)
    q = truth.vae.guide.posterior(x).base_dist
    log_q = torch.distributions.Normal(q.loc, q.scale).log_prob(z).sum(-1)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    mean = z @ truth.weight.T + truth.bias
    log_x = torch.distributions.Normal(mean, 0.7).log_prob(x.flatten(1)).sum(-1)
    torch.testing.assert_close(parts.log_proposal, log_q)
    torch.testing.assert_close(parts.log_prior, log_prior)
    torch.testing.assert_close(parts.log_likelihood, log_x)


def test_mean_weight_is_the_closed_form_elbo() -> None:
    truth = LinearGaussian(shift=0.2, stretch=1.4)
    x = truth.sample(200)
    draws = log_weights(truth.vae, x, 2000).total.detach()
    std_error = draws.std(0) / 2000**0.5
    z_scores = (draws.mean(0) - truth.elbo(x).detach()) / std_error
    assert z_scores.abs().max() < 4.5  # 200 images
    assert 0.85 < z_scores.std() < 1.15  # 1 +- 3 / sqrt(2 * 200)


@pytest.mark.parametrize(
    "name", ["decoder.weight", "decoder.bias", "encoder.weight", "encoder.bias"]
)
def test_gradient_of_the_mean_weight_is_the_closed_form_gradient(name: str) -> None:
    truth = LinearGaussian(shift=0.2, stretch=1.4)
    module, _, parameter = name.partition(".")
    theta = getattr(getattr(truth, module), parameter)
    x = truth.sample(50)
    (exact,) = torch.autograd.grad(truth.elbo(x).sum(), theta)
    draws = torch.stack(
        [
            torch.autograd.grad(log_weights(truth.vae, x, 80).total.mean(0).sum(), theta)[0]
            for _ in range(100)
        ]
    )
    std_error = draws.std(0) / 100**0.5
    assert ((draws.mean(0) - exact).abs() <= 4.5 * std_error + 1e-9).all()


def test_no_scale_enters() -> None:
    truth = LinearGaussian()
    x = truth.sample(5)
    scaled = VAE(poutine.scale(truth.vae.model, 0.25), poutine.scale(truth.vae.guide, 7.0))
    torch.testing.assert_close(log_weights(scaled, x, 3).total, truth.log_marginal(x).expand(3, -1))


class TabledGuide:
    """Draws that are looked up by the image, so that order and chunks cannot change them."""

    def __init__(self, truth: LinearGaussian, x: Tensor, num_samples: int) -> None:
        self.posterior = truth.vae.guide.posterior
        generator = torch.Generator().manual_seed(3)
        table = torch.randn(len(x), num_samples, LATENT_DIM, generator=generator).double()
        self.noise = {float(image.flatten()[0]): row for image, row in zip(x, table, strict=True)}
        self.used = dict.fromkeys(self.noise, 0)

    def next_noise(self, x: Tensor, particles: int) -> Tensor:
        columns = []
        for key in x.flatten(1)[:, 0].tolist():
            start = self.used[key]
            self.used[key] = start + particles
            columns.append(self.noise[key][start : start + particles])
        return torch.stack(columns, 1)

    def __call__(self, x: Tensor) -> Tensor:
        q = self.posterior(x).base_dist
        with pyro.plate("images", len(x), dim=-1):
            return pyro.sample("z", Tabled(q.loc, q.scale, self, x).to_event(1))


class Tabled(dist.Normal):
    """A normal distribution whose draws are looked up."""

    def __init__(self, loc: Tensor, scale: Tensor, guide: TabledGuide, x: Tensor) -> None:
        super().__init__(loc, scale, validate_args=False)
        self.guide, self.x = guide, x

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Tabled":
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return Tabled(loc, scale, self.guide, self.x)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        assert not sample_shape
        return self.loc + self.scale * self.guide.next_noise(self.x, self.batch_shape[0])


NUM_IMAGES = 9


def summarise(order: Tensor, chunk_size: int) -> dict[str, Tensor]:
    truth = LinearGaussian(shift=0.5, stretch=1.3)
    x = truth.sample(NUM_IMAGES)
    vae = VAE(truth.vae.model, TabledGuide(truth, x, 70))
    with accelerated(x.device, mode=False):  # a table cannot be compiled
        summary = summarise_log_weights(vae, x[order], 61, [1, 7, 61], chunk_size=chunk_size)
    values = {f"bound {k}": value for k, (value, _) in summary.bounds.items()}
    errors = {f"error {k}": error for k, (_, error) in summary.bounds.items()}
    return {
        **values,
        **errors,
        "ess": summary.effective_sample_size,
        "pareto_k": summary.pareto_k,
    }


@pytest.mark.parametrize("block", [1, 500, 50_000])
@pytest.mark.parametrize(
    "chunk_size", [pytest.param(1, marks=pytest.mark.slow), 256 * 13, 256 * 300]
)
def test_chunked_is_unchunked(chunk_size: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is decoded at once, and is handed on together; 13 at once draw 65 of the 61."""
    order = torch.arange(NUM_IMAGES)
    whole = summarise(order, chunk_size=256 * 100 * 61)
    monkeypatch.setattr(summary_module, "_BLOCK", block)
    chunked = summarise(order, chunk_size)
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, msg=name)


def test_permuted_images_give_permuted_answers() -> None:
    order = torch.randperm(NUM_IMAGES)
    straight = summarise(torch.arange(NUM_IMAGES), 2**21)
    permuted = summarise(order, 2**21)
    for name, value in straight.items():
        torch.testing.assert_close(permuted[name], value[order], msg=name)


def test_group_sizes_outside_the_samples_are_refused() -> None:
    truth = LinearGaussian()
    with pytest.raises(ValueError, match=r"1\.\.10"):
        summarise_log_weights(truth.vae, truth.sample(2), 10, [1, 11])
