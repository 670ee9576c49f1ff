"""What a notebook user calls: names, building, encoding, sampling, data, loading, in words."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vae_pyro as vp
from tests.linear_gaussian import LinearGaussian
from vae_pyro import tracking
from vae_pyro.data import Dataset
from vae_pyro.errors import CheckpointError, DataError, TrackingError
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal
from vae_pyro.likelihoods import Bernoulli, Beta, Normal
from vae_pyro.networks import MLP, Linear
from vae_pyro.randomness import RandomStream
from vae_pyro.saving import Blueprint, save_model
from vae_pyro.vae import VAE, build_vae

SHAPE = (1, 2, 3)


@pytest.fixture
def vae() -> VAE:
    return build_vae(2, SHAPE, MLP((8,)))


def test_the_names_are_lazy_and_need_neither_hydra_nor_mlflow() -> None:
    code = """
import sys
import vae_pyro as vp
heavy = {"torch", "hydra", "omegaconf", "mlflow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert {"data", "fit", "build_vae", "load", "VAE", "__version__"} <= set(dir(vp))
data = vp.data.Digits().load()
bernoulli = vp.likelihoods.Bernoulli(data.num_levels)
vae = vp.build_vae(latent_dim=2, image_shape=data.image_shape, likelihood=bernoulli)
x = data.prepared("test", vae, num_images=5)
print(vp.log_marginal.ImportanceSampling(10)(vae, x).value.shape)
for name in sorted(set(vp.__all__) - {"fit"}):
    getattr(vp, name)
vp.load
assert not (heavy - {"torch"}) & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([5])\n"


def test_an_unknown_name_is_refused_with_the_close_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'likelihood'; did you mean likelihoods"):
        vp.likelihood  # noqa: B018
    with pytest.raises(AttributeError, match=r"it has VAE, .*build_vae"):
        vp.qqq  # noqa: B018
    assert not hasattr(vp, "zzz")


def test_the_same_seed_gives_the_weights_of_the_command(digits: Dataset) -> None:
    blueprint = Blueprint(
        2,
        digits.image_shape,
        17,
        {"_target_": "vae_pyro.networks.MLP", "hidden": [9]},
        {"_target_": "vae_pyro.likelihoods.Bernoulli"},
        {"_target_": "vae_pyro.guide.FullRankNormal"},
    )
    for seed in (0, 3):
        with RandomStream("initial weights", seed).active():
            command = blueprint.build().state_dict()
        before = torch.get_rng_state()
        parts = (MLP((9,)), Bernoulli(17), FullRankNormal)
        notebook = build_vae(2, digits.image_shape, *parts, seed=seed).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        assert notebook.keys() == command.keys()
        assert all(torch.equal(notebook[name], value) for name, value in command.items())


def test_without_a_seed_the_default_generator_is_used() -> None:
    torch.manual_seed(5)
    first, second = (build_vae(2, SHAPE, MLP((8,)), seed=None).state_dict() for _ in range(2))
    assert not torch.equal(first["guide.encoder.1.weight"], second["guide.encoder.1.weight"])
    torch.manual_seed(5)
    again = build_vae(2, SHAPE, MLP((8,)), seed=None).state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_instances_and_factories_are_taken_alike() -> None:
    made = [
        build_vae(2, SHAPE, Linear(), Normal(17), DiagNormal),
        build_vae(2, SHAPE, Linear, Normal, num_levels=17),
        build_vae(2, torch.Size(SHAPE), partial(Linear), partial(Normal, scale=0.1), num_levels=17),
        build_vae(2, list(SHAPE), Linear(), Normal(17), num_levels=17),
        build_vae(2, SHAPE, Linear(), Normal(17), partial(DiagNormal)),
    ]
    weights = made[0].state_dict()
    for vae in made:
        assert vae.image_shape == SHAPE
        assert vae.likelihood.num_levels == 17
        assert all(torch.equal(weights[name], value) for name, value in vae.state_dict().items())
    guide = made[0].guide
    assert build_vae(2, SHAPE, guide=guide).guide is guide
    flow = build_vae(2, SHAPE, guide=Flow, guide_options={"num_transforms": 3}).guide
    assert len(flow.steps) == 3


def test_the_defaults_are_binary_images() -> None:
    vae = build_vae(2, SHAPE)
    assert isinstance(vae.likelihood, Bernoulli)
    assert vae.likelihood.num_levels == 2
    assert build_vae(2, SHAPE, num_levels=17).likelihood.num_levels == 17
    real_valued = build_vae(2, SHAPE, likelihood=Normal, num_levels=None)
    assert real_valued.likelihood.num_levels is None


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: build_vae(0, SHAPE), ValueError, "latent_dim: must be a whole number from 1"),
        (lambda: build_vae(2.5, SHAPE), ValueError, "latent_dim: must be .* got 2.5"),
        (lambda: build_vae(2, (8, 8)), ValueError, r"image_shape: must be three numbers"),
        (lambda: build_vae(2, (1, 8, 0)), ValueError, "image_shape: must be a whole number"),
        (lambda: build_vae(2, SHAPE, "mlp"), TypeError, "network: must be a Network .* got 'mlp'"),
        (lambda: build_vae(2, SHAPE, Normal), TypeError, "num_levels"),
        (lambda: build_vae(2, SHAPE, dict), TypeError, "network: must be a Network"),
        (lambda: build_vae(2, SHAPE, likelihood="bernoulli"), TypeError, "likelihood: must be"),
        (
            lambda: build_vae(2, SHAPE, likelihood=Normal),
            ValueError,
            r"num_levels: likelihood=Normal needs it; .*data\.num_levels",
        ),
        (
            lambda: build_vae(2, SHAPE, likelihood=Normal(17), num_levels=256),
            ValueError,
            "num_levels: is 256, but the likelihood has 17",
        ),
        (lambda: build_vae(2, SHAPE, num_levels=None), DataError, "needs images made of levels"),
        (lambda: build_vae(2, SHAPE, guide="flow"), TypeError, "guide: must be a Guide"),
        (
            lambda: build_vae(3, SHAPE, guide=build_vae(2, SHAPE).guide),
            ValueError,
            "guide: has latent_dim=2, but latent_dim=3",
        ),
        (
            lambda: build_vae(2, SHAPE, guide=build_vae(2, SHAPE).guide, guide_options={"a": 1}),
            ValueError,
            "guide_options: this guide is already built",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_words(
    make: Callable[[], VAE], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("guide", [DiagNormal, FullRankNormal, Flow])
def test_encode_and_decode_return_distributions_with_gradients(guide: type[DiagNormal]) -> None:
    vae = build_vae(3, SHAPE, MLP((8,)), Bernoulli(2), guide)
    x = vae.sample(5, seed=0)
    q = vae.encode(x)
    assert (q.batch_shape, q.event_shape) == ((5,), (3,))
    p_x = vae.decode(q.rsample((4,)))
    assert (p_x.batch_shape, p_x.event_shape) == ((4, 5), SHAPE)
    (p_x.log_prob(x) - q.log_prob(q.rsample())).mean().backward()
    assert all(weight.grad is not None for weight in vae.parameters())
    assert vae.decode(torch.zeros(3)).mean.shape == SHAPE


def test_encode_and_reconstruct_are_the_closed_form_of_a_linear_gaussian() -> None:
    truth = LinearGaussian()
    x = truth.sample(6)
    q = truth.vae.encode(x)
    torch.testing.assert_close(q.mean.detach().double(), truth.posterior_mean(x))
    expected = truth.posterior_mean(x) @ truth.weight.T.double() + truth.bias.double()
    found = truth.vae.reconstruct(x)
    assert found.shape == x.shape
    assert not found.requires_grad
    torch.testing.assert_close(found.double().flatten(1), expected)


def test_samples_are_those_of_the_model(vae: VAE) -> None:
    """Pixel by pixel, their share of ones is E_z[sigmoid(f(z))]."""
    n = 20_000
    x = vae.sample(n, seed=1)
    assert x.shape == (n, *SHAPE)
    assert not x.requires_grad
    means = vae.sample(n, seed=2, means=True)
    assert ((means > 0) & (means < 1)).all()
    error = (x.var(0) / n + means.var(0) / n).sqrt()
    assert ((x.mean(0) - means.mean(0)).abs() < 4.5 * error).all()
    assert torch.equal(vae.sample(7, seed=1), vae.sample(7, seed=1))
    before = torch.get_rng_state()
    vae.sample(7, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(vae.sample(50), vae.sample(50))


def test_samples_lie_in_the_support() -> None:
    """A Beta with extreme parameters, whose samples float32 rounds to 0 and 1."""
    vae = build_vae(2, SHAPE, MLP((8,)), Beta(17))
    with torch.no_grad():
        vae.model.decoder[-2].bias.mul_(0).add_(-40)
    vae.likelihood.check(vae.sample(100, seed=0))


def test_a_wrong_number_of_samples(vae: VAE) -> None:
    for n in (0, -1, 2.0):
        with pytest.raises(ValueError, match="n: must be a whole number from 1 up"):
            vae.sample(n)


X = torch.zeros(4, *SHAPE)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.numpy(), r"got numpy\.ndarray of the shape \(4, 1, 2, 3\).*torch\.as_tensor\(x, dtype="),
        (X.tolist(), r"got list: convert it: torch\.as_tensor\(x, dtype=torch\.float32\)"),
        (X.to(torch.uint8), r'got uint8 .* x = data\.prepared\("test", vae\)'),
        (X.long(), r'got int64 .* x = data\.prepared\("test", vae\)'),
        (X.double(), r"got float64 .* the weights are torch\.float32; convert it: x\.to\("),
        (X.to("meta"), r"on meta: the weights are on cpu; move it: x\.to\(vae\.device\)"),
        (X[0], r"shape \(N, 1, 2, 3\), got float32 of the shape \(1, 2, 3\) on cpu: .*x\[None\]"),
        (X.flatten(1), r"got .*\(4, 6\).*x\.reshape\(-1, 1, 2, 3\)"),
        (X.squeeze(1), r"x\.reshape\(-1, 1, 2, 3\)"),
        (X.mT, r"x\.reshape\(-1, 1, 2, 3\)"),
        (torch.zeros(4, 1, 8, 8), "this VAE was built for images of another shape"),
        (X[:0], "it holds no images"),
        (X + 0.5, "Binarise"),
    ],
)
def test_images_that_the_vae_cannot_take_are_refused_in_words(
    vae: VAE, x: Any, message: str
) -> None:
    for use in (vae.encode, vae.reconstruct):
        with pytest.raises(DataError, match=message):
            use(x)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.zeros((4, 2)), r"z: .*shape \(\*batch, 2\).* got numpy\.ndarray.*torch\.as_tensor\(z"),
        (torch.zeros(4, 3), r"\(4, 3\) on cpu: .* latent dimensions, of which this VAE has 2"),
        (torch.tensor(1.0), r"of the shape \(\) on cpu"),
        (torch.zeros(4, 2).double(), r"convert it: z\.to\(torch\.float32\)"),
    ],
)
def test_points_that_the_vae_cannot_take_are_refused_in_words(
    vae: VAE, z: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        vae.decode(z)


def test_the_shape_of_a_vae_from_its_parts_is_that_of_its_decoder(vae: VAE) -> None:
    assert VAE(vae.model, vae.guide).image_shape == SHAPE
    assert vae.latent_dim == 2
    assert vae.device == torch.device("cpu")
    assert len(repr(vae)) < 100
    vae.double().encode(X.double())


def test_prepared_images_are_those_of_the_command(
    digits: Dataset, binary_test_digits: Tensor
) -> None:
    vae = build_vae(2, digits.image_shape, MLP((8,)), Bernoulli(17))
    x = digits.prepared("test", vae)
    assert torch.equal(x, binary_test_digits)
    assert torch.equal(digits.prepared("test", vae.likelihood), x)
    assert torch.equal(digits.prepared("test", vae, num_images=7), x[:7])
    for split in ("train", "valid"):
        first, second = (digits.prepared(split, vae) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == (len(getattr(digits, split)), 1, 8, 8)
        vae.likelihood.check(first)
    assert digits.prepared("test", vae.to("meta"), num_images=2).device.type == "meta"


def test_data_and_vae_that_do_not_fit_are_refused(digits: Dataset) -> None:
    with pytest.raises(DataError, match="num_levels=256, but these data have num_levels=17"):
        digits.prepared("test", Bernoulli(256))
    with pytest.raises(DataError, match="num_levels=None, but these data have num_levels=17"):
        digits.prepared("test", Normal(None))
    with pytest.raises(DataError, match=r"shape \(1, 2, 3\), but these data have \(1, 8, 8\)"):
        digits.prepared("test", build_vae(2, SHAPE, num_levels=17))
    with pytest.raises(ValueError, match=r"split: must be one of .* got 'tests'"):
        digits.prepared("tests", Bernoulli(17))
    for num_images in (0, 301):
        with pytest.raises(ValueError, match="num_images: the test split has 300 images"):
            digits.prepared("test", Bernoulli(17), num_images)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    blueprint = Blueprint(
        2,
        SHAPE,
        17,
        {"_target_": "vae_pyro.networks.Linear"},
        {"_target_": "vae_pyro.likelihoods.Bernoulli"},
        {"_target_": "vae_pyro.guide.DiagNormal"},
    )
    save_model(tmp_path / "job" / "model", blueprint.build(), blueprint)
    return tmp_path / "job"


def test_a_job_is_loaded_by_its_folder_or_its_models(job: Path) -> None:
    first = vp.load(job).state_dict()
    for source in (str(job), job / "model", f"{job}/model/"):
        vae = vp.load(source)
        assert not vae.training
        assert all(torch.equal(first[name], value) for name, value in vae.state_dict().items())


def test_a_sweeps_folder_is_refused_with_its_jobs(job: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for number in range(3):
        shutil.copytree(job, sweep / str(number))
    (sweep / "3").mkdir()  # it failed before it had a model
    with pytest.raises(CheckpointError, match="holds 3 trained models: give the folder of one"):
        vp.load(sweep)
    with pytest.raises(CheckpointError, match=re.escape(f"{sweep / '0'}, {sweep / '1'}, {sweep}")):
        vp.load(sweep)
    assert vp.load(sweep / "2").latent_dim == 2


def test_a_folder_without_a_model_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither it nor .*model holds model\.json"):
        vp.load(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        vp.load(tmp_path / "nowhere")


@pytest.mark.parametrize("source", ["0123456789abcdef" * 2, "runs:/abc"])
def test_a_run_is_looked_up_in_the_tracking_store(source: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"there is no .*none\.db"):
        vp.load(source, tracking_uri=f"sqlite:///{tmp_path}/none.db")


RUN_ID = "0123456789abcdef" * 2


@pytest.mark.parametrize("source", ["{}", "{}/model", "runs:/{}", "runs:/{}/", "runs:/{}/model"])
def test_every_way_to_write_a_run_is_understood(
    source: str, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def downloaded(run_id: str, artifact: str, uri: str | None) -> Iterator[Path]:
        assert (run_id, artifact, uri) == (RUN_ID, "model", "sqlite:///mine.db")
        yield job / "model"

    monkeypatch.setattr(tracking, "downloaded", downloaded)
    vae = vp.load(source.format(RUN_ID), tracking_uri="sqlite:///mine.db")
    assert vae.image_shape == SHAPE


def test_a_folder_may_be_named_like_a_run(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(job.parent)
    job.rename(RUN_ID)
    assert vp.load(RUN_ID).image_shape == SHAPE
