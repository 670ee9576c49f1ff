"""A saved model comes back bit for bit, or not at all, and cannot run code."""

import itertools
import json
import os
import time
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_config import OPTIONS, composed
from vae_pyro import saving as checkpoint
from vae_pyro.config import parse_config
from vae_pyro.errors import CheckpointError, ConfigError, UserError
from vae_pyro.files import read_tensors
from vae_pyro.networks import MLP
from vae_pyro.saving import Blueprint, available_memory, load_model, save_model
from vae_pyro.training.checkpoints import Checkpoints
from vae_pyro.vae import VAE, build_vae

BLUEPRINT = Blueprint(
    latent_dim=2,
    image_shape=(1, 3, 4),
    num_levels=17,
    network={"_target_": "vae_pyro.networks.MLP", "hidden": [5], "activation": "tanh"},
    likelihood={"_target_": "vae_pyro.likelihoods.Bernoulli"},
    guide={"_target_": "vae_pyro.guide.DiagNormal"},
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, VAE]:
    vae = BLUEPRINT.build()
    save_model(tmp_path / "model", vae, BLUEPRINT)
    return tmp_path / "model", vae


def test_round_trip_keeps_every_bit(saved: tuple[Path, VAE]) -> None:
    folder, vae = saved
    loaded = load_model(folder)
    assert loaded.state_dict().keys() == vae.state_dict().keys()
    for name, value in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    x = torch.bernoulli(torch.full((3, 1, 3, 4), 0.5))
    assert torch.equal(loaded.guide.posterior(x).mean, vae.guide.posterior(x).mean)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_error_in_words(saved: tuple[Path, VAE], data: st.DataObject) -> None:
    folder, vae = saved
    save_model(folder, vae, BLUEPRINT)
    path = folder / data.draw(st.sampled_from(["weights.safetensors", "model.json"]))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        loaded = load_model(folder)
    except UserError as error:
        assert str(error)
    else:  # only a blueprint whose change does not matter (a space, say) may still load
        assert path.name == "model.json"
        assert loaded.state_dict().keys() == vae.state_dict().keys()


def test_a_blueprint_cannot_run_code(saved: tuple[Path, VAE], tmp_path: Path) -> None:
    folder, _ = saved
    description = json.loads((folder / "model.json").read_text())
    description["network"] = {"_target_": "os.mkdir", "path": str(tmp_path / "proof")}
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"os\.mkdir' is not a Network"):
        load_model(folder)
    assert not (tmp_path / "proof").exists()


def test_a_blueprint_cannot_choose_a_module_to_import(
    saved: tuple[Path, VAE], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = saved
    (tmp_path / "unheard_of.py").write_text("raise SystemExit('this was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    description = json.loads((folder / "model.json").read_text())
    description["guide"] = {"_target_": "unheard_of.Guide"}
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="import unheard_of before loading it"):
        load_model(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no trained model can be read from .*nowhere"):
        load_model(tmp_path / "nowhere")


def change(folder: Path, **values: Any) -> None:
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(description | values))


@pytest.mark.parametrize(
    "values",
    [
        {"network": {"_target_": "vae_pyro.networks.MLP", "hidden": [10**9], "activation": "tanh"}},
        {"latent_dim": 10**9},
        {"image_shape": [1, 30_000, 40_000]},
        {"guide": {"_target_": "vae_pyro.guide.Flow", "context": 10**9}},
        {"likelihood": {"_target_": "vae_pyro.likelihoods.Categorical"}, "num_levels": 10**9},
        {"latent_dim": 3},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_size_that_is_not_that_of_the_weights_is_refused_before_it_is_allocated(
    saved: tuple[Path, VAE], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = saved
    change(folder, **values)
    allocated: list[object] = []

    def watched(*arguments: Any, **options: Any) -> VAE:
        vae = build_vae(*arguments, **options)
        allocated.extend(t for t in vae.state_dict().values() if t.device.type != "meta")
        return vae

    monkeypatch.setattr(checkpoint, "build_vae", watched)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"does not fit model\.json beside it: .* in the wei"):
        load_model(folder)
    assert time.perf_counter() - start < 5  # 23 seconds and 11 GB before
    assert allocated == []


@pytest.mark.parametrize(
    "values",
    [
        {"latent_dim": 2**70},
        {"latent_dim": 10**300},
        {"latent_dim": -1},
        {"image_shape": [1, 2**40, 2**40]},
        {"image_shape": []},
        {"num_levels": 2**70, "likelihood": {"_target_": "vae_pyro.likelihoods.Categorical"}},
        {"network": {"_target_": "vae_pyro.networks.MLP", "hidden": [2**70]}},
        {"network": {"_target_": "vae_pyro.networks.MLP", "hidden": [1] * 100_000}},
        {"guide": {"_target_": "vae_pyro.guide.Flow", "num_transforms": 10**9}},
        {"guide": {"_target_": "vae_pyro.guide.Flow", "hidden": 2**70}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_size_that_nothing_has_is_an_error_in_words(
    saved: tuple[Path, VAE], values: dict[str, Any]
) -> None:
    folder, _ = saved
    change(folder, **values)
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert time.perf_counter() - start < 5
    assert len(str(caught.value)) < 1_000


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_pipe_in_place_of_a_file_is_refused(saved: tuple[Path, VAE], name: str) -> None:
    folder, _ = saved
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} is not a regular file"):
        load_model(folder)


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_a_checkpoint_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "epoch-000003.safetensors"
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_tensors(path)
    assert Checkpoints(tmp_path, 10).read() is None
    assert "is not a regular file; it is left out" in caplog.messages[0]


def test_files_of_absurd_sizes_are_not_read(saved: tuple[Path, VAE]) -> None:
    folder, _ = saved
    for name in ("model.json", "weights.safetensors"):
        content = (folder / name).read_bytes()
        os.truncate(folder / name, 2**36)  # of zeros, which take no room on the disk
        tracemalloc.start()
        with pytest.raises(CheckpointError):
            load_model(folder)
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()
        (folder / name).write_bytes(content)


def test_a_long_header_is_not_read(saved: tuple[Path, VAE]) -> None:
    """A file of the right tensors, padded by words."""
    folder, vae = saved
    words = {"about": "x" * 2_000_000}
    safetensors.torch.save_file(vae.state_dict(), folder / "weights.safetensors", words)
    with pytest.raises(CheckpointError, match=r"has more than 1,\d\d\d,\d\d\d bytes"):
        load_model(folder)


def test_json_nested_too_deeply_is_an_error_in_words(saved: tuple[Path, VAE]) -> None:
    folder, _ = saved
    (folder / "model.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(CheckpointError, match="its JSON is nested too deeply"):
        load_model(folder)


@pytest.mark.parametrize(
    ("network", "guide"),
    itertools.product(sorted(OPTIONS["network"]), sorted(OPTIONS["guide"])),
)
def test_a_sketch_is_the_vae_without_numbers(network: str, guide: str) -> None:
    for likelihood in sorted(OPTIONS["likelihood"]):
        config = parse_config(
            composed(f"network={network}", f"guide={guide}", f"likelihood={likelihood}")
        )
        for latent_dim in (1, 3):
            blueprint = Blueprint(
                latent_dim, (1, 8, 8), 17, config.network, config.likelihood, config.guide
            )
            before = torch.get_rng_state()
            sketch = blueprint.sketch().state_dict()
            assert torch.equal(torch.get_rng_state(), before)
            assert {tensor.device.type for tensor in sketch.values()} == {"meta"}
            whole = blueprint.build().state_dict()
            assert {k: (v.shape, v.dtype) for k, v in sketch.items()} == {
                k: (v.shape, v.dtype) for k, v in whole.items()
            }


@dataclass(frozen=True)
class StartsFromNumbers(MLP):
    """A user's network that looks at its weights while it is built."""

    def decoder(self, latent_dim: int, initial: torch.Tensor) -> torch.nn.Module:
        decoder = super().decoder(latent_dim, initial)
        assert next(decoder.parameters()).norm().item() > 0
        return decoder


def test_a_part_that_needs_numbers_to_be_built_gets_them(tmp_path: Path) -> None:
    target = {"_target_": f"{__name__}.StartsFromNumbers", "hidden": [5], "activation": "tanh"}
    blueprint = replace(BLUEPRINT, network=target)
    blueprint.require_memory(torch.device("cpu"))
    vae = blueprint.build()
    save_model(tmp_path / "model", vae, blueprint)
    loaded = load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in vae.state_dict().items())


def test_a_vae_larger_than_the_memory_is_refused_with_numbers() -> None:
    cpu = torch.device("cpu")
    assert 10**8 < available_memory(cpu) < 10**14
    BLUEPRINT.require_memory(cpu)
    wide = {"_target_": "vae_pyro.networks.MLP", "hidden": [10**9]}
    with pytest.raises(ConfigError) as caught:
        replace(BLUEPRINT, network=wide).require_memory(cpu)
    # 12 pixels -> 10^9 -> 4 and 2 -> 10^9 -> 12, and their biases.
    count = (12 + 1 + 4 + 2 + 1 + 12) * 10**9 + 4 + 12
    assert f"{count:,} weights" in str(caught.value)
    assert f"{5 * 4 * count / 1e9:,.1f} GB" in str(caught.value)
    assert "Reduce latent_dim" in str(caught.value)


def test_the_memory_limit_is_five_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    count = sum(weight.numel() for weight in BLUEPRINT.build().parameters())
    monkeypatch.setattr(checkpoint, "available_memory", lambda _: 20 * count)
    BLUEPRINT.require_memory(torch.device("cpu"))
    monkeypatch.setattr(checkpoint, "available_memory", lambda _: 20 * count - 1)
    with pytest.raises(ConfigError, match="of memory are available"):
        BLUEPRINT.require_memory(torch.device("cpu"))
