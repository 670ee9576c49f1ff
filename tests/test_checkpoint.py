"""A saved model comes back bit for bit, or not at all, and cannot run code."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae_pyro.checkpoint import Blueprint, load_model, save_model
from vae_pyro.errors import UserError
from vae_pyro.vae import VAE

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
