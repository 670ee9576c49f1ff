"""Training: the gradient SVI follows, reproducibility, and what must not leak."""

import math
from collections.abc import Iterator

import pyro
import pytest
import torch
from sklearn.decomposition import PCA

from tests.linear_gaussian import IMAGE_SHAPE, LinearGaussian
from vae_pyro import log_marginal
from vae_pyro.data import Dataset, batches
from vae_pyro.data import LinearGaussian as LinearGaussianImages
from vae_pyro.errors import DivergenceError
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal, Guide
from vae_pyro.likelihoods import Bernoulli, NormalLearnedScale
from vae_pyro.networks import MLP, Conv, Linear
from vae_pyro.objectives import ELBO, IWAE, BetaELBO, DReG, ELBOAnalyticKL, Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.training.divergence import broken_weight
from vae_pyro.training.svi import EpochRecord, train
from vae_pyro.vae import VAE, build_vae


def start(digits: Dataset, seed: int = 0, epochs: int = 3) -> tuple[VAE, Iterator[EpochRecord]]:
    vae = build_vae(2, digits.image_shape, MLP((30,)), Bernoulli(17), seed=seed)
    order = RandomStream("batches", seed).generator
    likelihood = vae.model.likelihood
    records = train(
        vae,
        ELBO(),
        lambda: batches(
            digits.train.images, lambda images: likelihood.prepare(images, order), 100, order
        ),
        epochs=epochs,
        learning_rate=1e-3,
        noise=RandomStream("training", seed),
    )
    return vae, records


def weights(vae: VAE) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def test_one_seed_gives_the_same_bits(digits: Dataset) -> None:
    (vae_a, records_a), (vae_b, records_b) = start(digits), start(digits)
    assert [r.elbo for r in records_a] == [r.elbo for r in records_b]
    assert torch.equal(weights(vae_a), weights(vae_b))
    vae_c, records_c = start(digits, seed=1)
    list(records_c)
    assert not torch.equal(weights(vae_a), weights(vae_c))


def test_evaluating_on_the_way_does_not_change_the_training(
    digits: Dataset, binary_test_digits: torch.Tensor
) -> None:
    quiet, records = start(digits)
    list(records)
    watched, records = start(digits)
    for _ in records:
        with RandomStream("validation", 0).active():
            log_marginal.ELBOBound(7)(watched, binary_test_digits[:20])
    assert torch.equal(weights(quiet), weights(watched))


def test_two_trainings_in_turns_do_not_touch_each_other(digits: Dataset) -> None:
    alone, records = start(digits)
    list(records)
    (first, records_a), (second, records_b) = start(digits), start(digits, seed=1)
    for _ in zip(records_a, records_b, strict=True):
        pass
    assert torch.equal(weights(first), weights(alone))
    assert not torch.equal(weights(second), weights(alone))


def test_nothing_is_left_in_the_global_store(digits: Dataset) -> None:
    pyro.clear_param_store()
    vae, records = start(digits)
    list(records)
    log_marginal.ELBOBound(3)(vae, torch.zeros(2, 1, 8, 8))
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), DReG(3), BetaELBO(warmup_epochs=3)])
@pytest.mark.parametrize("guide", [DiagNormal, FullRankNormal, Flow])
def test_every_parameter_is_trained(guide: type[Guide], objective: Objective) -> None:
    """Also a flow's own networks, and a likelihood's own scale."""
    network, likelihood = Conv((3, 4)), NormalLearnedScale(17)
    vae = build_vae(2, (1, 4, 4), network, likelihood, guide)
    before = {name: value.clone() for name, value in vae.named_parameters()}
    x = torch.rand(6, 1, 4, 4)
    for _ in train(
        vae, objective, lambda: [x], epochs=4, learning_rate=1e-2, noise=RandomStream("training", 0)
    ):
        pass
    for name, value in vae.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_the_elbo_rises(digits: Dataset) -> None:
    _, records = start(digits, epochs=15)
    elbos = [record.elbo for record in records]
    assert elbos[-1] > elbos[0] + 5
    assert all(math.isfinite(elbo) for elbo in elbos)


def test_a_linear_vae_learns_the_truth() -> None:
    """Started off the optimum, SVI reaches the closed-form ELBO of the true parameters."""
    truth, learner = LinearGaussian(), LinearGaussian(shift=0.8, stretch=2.0)
    x = truth.sample(2000)
    start_elbo = learner.elbo(x).mean().item()
    for _ in train(
        learner.vae,
        ELBO(),
        lambda: x.split(200),
        epochs=150,
        learning_rate=5e-3,
        noise=RandomStream("training", 0),
    ):
        pass
    reached, exact = learner.elbo(x).mean().item(), truth.log_marginal(x).mean().item()
    assert start_elbo < exact - 0.3
    # Fitted on these 2000 images, 18 decoder parameters may exceed the truth by chi^2_18 / 4000.
    excess, spread = 18 / 4000, (2 * 18) ** 0.5 / 4000
    assert exact - excess < reached < exact + excess + 4.5 * spread


def test_epoch_mean_counts_images_not_batches() -> None:
    """A last batch of one image weighs as one image."""
    truth = LinearGaussian()
    x = truth.sample(5)
    (record,) = train(
        truth.vae,
        ELBO(),
        lambda: [x[:4], x[4:]],
        epochs=1,
        learning_rate=1e-12,
        noise=RandomStream("training", 0),
    )
    assert record.elbo == pytest.approx(truth.log_marginal(x).mean().item())


def test_draws_come_from_the_stream_and_go_on_between_epochs() -> None:
    def elbos(seed: int) -> list[float]:
        truth = LinearGaussian(stretch=1.4)
        x = truth.sample(5)
        noise = RandomStream("training", seed)
        records = train(truth.vae, ELBO(), lambda: [x], epochs=2, learning_rate=1e-12, noise=noise)
        return [record.elbo for record in records]

    first, second = elbos(0)
    assert abs(first - second) > 1e-6
    assert elbos(0) == [first, second]
    assert abs(elbos(1)[0] - first) > 1e-6


def test_weights_lost_in_the_last_step_are_noticed() -> None:
    vae = build_vae(2, IMAGE_SHAPE, MLP((4,)), Bernoulli(17), DiagNormal)
    vae.model.decoder[0].weight.data[0, 0] = math.nan
    vae.model.decoder[0].weight.requires_grad_(False)
    with pytest.raises(DivergenceError, match="epoch 1, step 0"):
        next(
            train(vae, ELBO(), list, epochs=1, learning_rate=1.0, noise=RandomStream("training", 0))
        )


def test_networks_train_in_training_mode_and_are_left_in_evaluation_mode() -> None:
    truth = LinearGaussian()
    x, modes = truth.sample(4), []
    truth.vae.model.decoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    for _ in train(
        truth.vae,
        ELBO(),
        lambda: [x],
        epochs=2,
        learning_rate=1e-3,
        noise=RandomStream("training", 0),
    ):
        log_marginal.ELBOBound(3)(truth.vae, x)
    assert modes == [True, False, True, False]


def test_weights_are_finite_although_their_sum_is_not() -> None:
    vae = build_vae(2, (1, 2, 2), MLP((3,)))
    name, weight = next(iter(vae.named_parameters()))
    with torch.no_grad():
        weight.fill_(3e38)
        assert broken_weight(vae) is None
        weight[0, 0] = math.inf
    assert broken_weight(vae) == name


def test_divergence_stops_with_the_place_and_the_way_out() -> None:
    vae = build_vae(2, IMAGE_SHAPE, MLP((4,)), Bernoulli(17), DiagNormal)
    x = torch.ones(3, *IMAGE_SHAPE)
    with pytest.raises(
        DivergenceError,
        match=r"epoch \d+, step 1 \(site 'z' of the guide: its value is nan\): try a smaller",
    ):
        for _ in train(
            vae,
            ELBO(),
            lambda: [x],
            epochs=5,
            learning_rate=1e30,
            noise=RandomStream("training", 0),
        ):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("layer", "site"),
    [
        ("guide.encoder", "site 'z' of the guide: its value is nan"),
        ("model.decoder", "site 'x' of the model: its log-probability is nan"),
    ],
)
def test_divergence_names_the_site_and_moves_no_weight(
    layer: str, site: str, compiled: bool
) -> None:
    vae = build_vae(2, IMAGE_SHAPE, MLP((4,)), Bernoulli(17), DiagNormal)
    x = torch.ones(3, *IMAGE_SHAPE)
    records = train(
        vae,
        ELBO(),
        lambda: [x, x],
        epochs=5,
        learning_rate=1e-3,
        noise=RandomStream("training", 0),
        compiled=compiled,
    )
    next(records)
    name, weight = next((n, w) for n, w in vae.named_parameters() if n.startswith(layer))
    weight.data.view(-1)[0] = math.nan
    before = weights(vae)
    with pytest.raises(DivergenceError) as caught:
        next(records)
    assert "in epoch 2, step 1" in str(caught.value)
    assert f"({site}, and so is weight {name})" in str(caught.value)
    assert torch.allclose(weights(vae), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_a_linear_vae_is_probabilistic_pca() -> None:
    """Trained to the end, it reaches the maximum-likelihood solution, which PCA has exactly."""
    x = LinearGaussianImages(num_train=1000).load().train.images
    with RandomStream("initial weights", 0).active():
        vae = build_vae(
            3,
            (1, 4, 4),
            Linear(output_bias="data"),
            NormalLearnedScale(None),
            FullRankNormal,
            train_x=x,
        )
    noise = RandomStream("training", 0)
    for learning_rate, steps in ((2e-2, 600), (5e-3, 800), (1e-3, 800), (2e-4, 400)):
        for _ in train(
            vae,
            ELBOAnalyticKL(),
            lambda: [x],
            epochs=steps,
            learning_rate=learning_rate,
            noise=noise,
        ):
            pass
    flat = x.flatten(1).double().numpy()
    pca = PCA(3).fit(flat)
    estimate = log_marginal.ImportanceSampling(100)(vae, x)
    exact = torch.from_numpy(pca.score_samples(flat))
    assert abs(estimate.mean() - exact.mean().item()) < 2 * estimate.mean_std_error()
    assert vae.model.likelihood.scale.item() == pytest.approx(pca.noise_variance_**0.5, rel=0.005)
    basis = torch.linalg.qr(vae.model.decoder[0].weight.detach().double()).Q
    cosines = torch.linalg.svdvals(basis.T @ torch.from_numpy(pca.components_.T))
    assert cosines.min() > 0.9999  # of the angles between the two subspaces
