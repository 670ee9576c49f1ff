"""Addresses with credentials are refused before anything is written, whatever their form."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import forkserver
from tests.conftest import ROOT
from vae_pyro.credentials import refuse_credentials
from vae_pyro.errors import ConfigError
from vae_pyro.tracking import MLflow

RunPy = Callable[..., subprocess.CompletedProcess[str]]
SECRET = "S3cr3t"
HOLDING = [
    f"postgresql://me:{SECRET}@host/db",
    f"postgresql+psycopg://me:{SECRET}@host:5432/db",
    f"postgresql://host/db?sslpassword={SECRET}",
    f"postgresql://host/db?user=me&password={SECRET}",
    f"mssql+pyodbc:///?odbc_connect=PWD%3D{SECRET}",
    f"postgresql://u:5432/{SECRET}@host/db",
    f"postgresql://u:{SECRET} n@host/db",
    f"postgresql://u:{SECRET}#x@host/db",
    f"https://{SECRET}@host:5000/mlflow",
    f"http://me:{SECRET}@127.0.0.1:5000",
    f"http://127.0.0.1:5000/?token={SECRET}",
    f"HTTPS://{SECRET}@host",
    f"sqlite://me:{SECRET}@host/x.db",
    f"sqlite+pysqlcipher://:{SECRET}@/x.db",
    f"http://me:{SECRET}://b@host",
    f"http://me:{SECRET},x://b@host",
    f"http://me:sqlite:///{SECRET}@host",
]
CLEAN = [
    "postgresql://host/db",
    "postgresql://me@host:5432/db",
    "postgresql://me@[::1]:5432/db",
    "postgresql+psycopg://me@host/db?sslmode=require&sslrootcert=/etc/ca.pem",
    "mysql://me@host/db?read_default_file=~/.my.cnf",
    "sqlite:///mlflow.db",
    "sqlite:////home/me@work/mlflow.db",
    "http://127.0.0.1:5000",
    "https://host.example/mlflow",
    "http://[::1]:5000",
    "postgresql://me@%2Fvar%2Frun/db",
    "postgresql://me@one,two/db?target_session_attrs=read-write",
]
WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


@pytest.mark.parametrize("address", HOLDING)
def test_an_address_with_credentials_is_refused(address: str) -> None:
    for text in (f"tracking.uri={address}", f"tracking.uri='{address}',sqlite:///x.db", address):
        with pytest.raises(ConfigError) as caught:
            refuse_credentials(["latent_dim=2", text])
        message = str(caught.value)
        assert SECRET not in message
        assert "tracking.uri: " in message
        for way in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "~/.pgpass"):
            assert way in message
    with pytest.raises(ConfigError):
        MLflow(address)


@pytest.mark.parametrize("address", CLEAN)
def test_one_without_is_not(address: str) -> None:
    refuse_credentials([address, f"tracking.uri={address}", f"tracking.uri={address},{CLEAN[0]}"])
    assert MLflow(address).uri == address


@pytest.mark.parametrize(
    "text",
    [
        "tracking.experiment='see https://host/abs/1?context=x'",
        "data.root=s3://bucket/a@b",
        "+note=mail me@host, http://host/#top",
        "tracking.experiment=a@b",
    ],
)
def test_other_values_may_hold_what_an_address_may_not(text: str) -> None:
    refuse_credentials([text])


def test_an_optuna_storage_is_an_address_too() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.storage\.url: the address may hold"):
        refuse_credentials([f"hydra.sweeper.storage.url=postgresql://me:{SECRET}@host/db"])


@given(
    scheme=st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "s3"]),
    user=WORDS,
    secret=st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=9),
    before=st.sampled_from(["tracking.uri=", "+a.b='", "{uri: ", ""]),
)
def test_no_password_before_a_host_passes(scheme: str, user: str, secret: str, before: str) -> None:
    with pytest.raises(ConfigError):
        refuse_credentials([f"{before}{scheme}://{user}:{secret}@host/db"])


@pytest.mark.parametrize("address", HOLDING)
@pytest.mark.parametrize("mode", [(), ("-m", "latent_dim=2,3")], ids=["job", "sweep"])
def test_nothing_is_written_of_it(
    address: str, mode: tuple[str, ...], run_py: RunPy, tmp_path: Path
) -> None:
    done = run_py(f"tracking.uri={address}", *mode, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "error: tracking.uri: the address may hold a password" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [(), ("latent_dim=2,3", "-m")], ids=["job", "sweep"])
def test_nor_where_it_is_in_the_environment(
    mode: tuple[str, ...], run_py: RunPy, tmp_path: Path
) -> None:
    done = run_py(*mode, HYDRA_FULL_ERROR="1", MLFLOW_TRACKING_URI=HOLDING[0])
    assert done.returncode == 1
    assert "error: tracking.uri: the address may hold a password" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_experiment_and_a_delivery_refuse_it_too(tmp_path: Path) -> None:
    (tmp_path / "outputs/job/record").mkdir(parents=True)
    (tmp_path / "outputs/job/record/journal.jsonl").write_text(
        '{"op": "start", "name": "n", "tags": {"record": "1"}, "parent": null, "tracker": {}}\n'
    )
    for command in (
        ["experiments", "what_is_p_of_an_image", f"tracking.uri={HOLDING[0]}"],
        ["vae_pyro.cli.deliver", "--uri", HOLDING[0]],
    ):
        done = forkserver.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=120,
        )
        assert done.returncode == 1
        assert "the address may hold a password" in done.stderr
        assert SECRET not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.db"))
