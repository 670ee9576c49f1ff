"""A registered run behind an address: its answers, its refusals, and many who ask at once."""

import base64
import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from benchmarks import serving
from benchmarks.serving import ask, digits, found_here, post
from tests.test_trained import command
from vae_pyro.runs.service import MOST_BYTES, MOST_IMAGES
from vae_pyro.tracking import MLflow

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("test_serving")]  # which share a job

JOB = (
    "likelihood=categorical",
    "latent_dim=2",
    "training.epochs=3",
    "training.snapshots=1",
    "evaluation.num_samples=100",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job in ``job``, registered."""
    folder = tmp_path_factory.mktemp("served")
    serving.trained_and_registered(folder, *JOB)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving.served(folder) as (address, _):
        yield address


def rows(address: str, number: int = 3, **params: Any) -> list[dict[str, Any]]:
    status, answer = ask(address, digits(number), **params)
    assert status == 200, answer
    return answer  # type: ignore[no-any-return]


def test_it_answers_as_the_commands_do(address: str, folder: Path) -> None:
    for number, content in enumerate(digits(3)):
        (folder / f"{number}.png").write_bytes(content)
    images = [f"{number}.png" for number in range(3)]
    scored = json.loads(command(folder, "score", "job", *images, "--format", "json").stdout)
    for mine, known in zip(rows(address), scored, strict=True):
        assert mine == {name: value for name, value in known.items() if name != "file"}
    _, *coded = csv.reader(io.StringIO(command(folder, "encode", "job", *images).stdout))
    for mine, line in zip(rows(address, method="encode"), coded, strict=True):
        assert mine["z"] == pytest.approx([float(one) for one in line[1:]], rel=1e-6)
    assert rows(address, seed=1) != rows(address)


def picture(answer: list[dict[str, Any]]) -> np.ndarray:
    (row,) = answer
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(row["png"]))))


def test_pictures_are_those_of_the_commands(address: str, folder: Path) -> None:
    for name, arguments, params in (
        ("samples", ("-n", "9"), {"method": "sample", "num_images": 9}),
        ("reconstructions", ("image.png", "--out"), {"method": "reconstruct"}),
    ):
        (folder / "image.png").write_bytes(digits(1)[0])
        verb = str(params["method"])
        done = command(folder, verb, "job", *arguments, f"{name}.png")
        assert done.returncode == 0, done.stderr
        expected = np.asarray(Image.open(folder / f"{name}.png"))
        status, answer = ask(address, digits(1) if verb == "reconstruct" else [], **params)
        assert status == 200, answer
        np.testing.assert_array_equal(picture(answer), expected)


def test_resized_on_request(address: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 90, 200)).save(buffer, format="JPEG")
    status, why = ask(address, [buffer.getvalue()])
    assert status == 400
    assert "trained on images of 8x8 (height x width), but image 0 (30x40)" in why
    status, answer = ask(address, [buffer.getvalue()], resize=True)
    assert status == 200, answer
    assert math.isfinite(answer[0]["log_px"])


@pytest.mark.parametrize(
    ("contents", "params", "message"),
    [
        ([], {}, f"send 1 to {MOST_IMAGES} images"),
        ([b""], {}, "image 0 is no readable PNG or JPEG image: empty"),
        ([b"GIF89a"], {}, "neither PNG nor JPEG"),
        ([b"\x89PNG\r\n\x1a\n" + bytes(50)], {"method": "encode"}, "image 0 is no readable"),
        ([], {"method": "train"}, "methods are score, encode, reconstruct, sample"),
        ([], {"method": "sample", "num_images": 0}, f"num_images must be from 1 to {MOST_IMAGES}"),
        ([], {"method": "sample", "num_images": 10**9}, "num_images must be from 1 to"),
        ([], {"method": "sample", "seed": "x"}, "seed"),
        ([b"x"] * (MOST_IMAGES + 1), {}, f"not {MOST_IMAGES + 1}"),
        ([bytes(MOST_BYTES), b"x"], {}, "send at most 64 MB"),
    ],
)
def test_what_it_refuses(
    contents: list[bytes], params: dict[str, Any], message: str, address: str
) -> None:
    status, why = ask(address, contents, **params)
    assert (status, message in why) == (400, True), why
    assert "Traceback" not in why


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1, 2]",
        b'{"dataframe_split": {"columns": ["picture"], "data": [["eA=="]]}}',
        b'{"dataframe_split": {"columns": ["image"], "data": [[1.5]]}}',
        b'{"dataframe_split": {"columns": ["image"], "data": [["***"]]}}',
    ],
)
def test_no_request_at_all(body: bytes, address: str) -> None:
    status, _ = post(address, body)
    assert status == 400


def test_many_ask_at_once(address: str) -> None:
    """With good and bad requests of every method among each other, each gets its own answer."""
    alone = {
        (method, number): ask(address, digits(number), method=method, num_images=number)
        for method in (*serving.METHODS, "nothing")
        for number in (1, 2, 3)
    }
    with ThreadPoolExecutor(8) as pool:
        asked = {
            key: [
                pool.submit(ask, address, digits(key[1]), method=key[0], num_images=key[1])
                for _ in range(3)
            ]
            for key in alone
        }
        for key, answers in asked.items():
            assert [answer.result() for answer in answers] == [alone[key]] * 3, key


def test_the_benchmark_finds_no_error_and_flat_memory(folder: Path) -> None:
    with serving.served(folder) as (address, pid):
        for method in serving.METHODS:  # libraries are imported, and threads started
            ask(address, digits(1), method=method)
        found = serving.under_load(address, pid, clients=8, seconds=12)
    assert set(found["statuses"]) == {200}
    assert len(found["statuses"]) > 30
    _, warm, end = found["memory"]
    assert end < 1.1 * warm


def test_mlflow_predicts_without_a_server(folder: Path, address: str) -> None:
    (folder / "request.json").write_text(
        json.dumps(
            {
                "dataframe_split": {
                    "columns": ["image"],
                    "data": [[base64.b64encode(digits(1)[0]).decode()]],
                },
                "params": {"method": "encode"},
            }
        )
    )
    options = ["-m", "models:/vae-pyro/1", "--env-manager", "local"]
    options += ["-i", "request.json", "-o", "answer.json"]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "models", "predict", *options],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", "PATH": found_here()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads((folder / "answer.json").read_text())
    assert answer["predictions"] == rows(address, 1, method="encode")


def test_what_mlflow_keeps(folder: Path) -> None:
    """One model of the run, with the run's metrics and files but no pickle."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("vae-pyro").experiment_id
    (run,) = client.search_runs([experiment])
    (model,) = client.search_logged_models([experiment])
    assert model.source_run_id == run.info.run_id
    assert [one.model_id for one in run.outputs.model_outputs] == [model.model_id]
    known = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    assert {one.key: one.value for one in model.metrics} == known
    assert all(len(client.get_metric_history(run.info.run_id, name)) == 1 for name in known)
    assert model.params == run.data.params
    assert "mlflow.model.isExternal" not in model.tags
    kept = Path(model.artifact_location.removeprefix("file://"))
    assert kept.is_relative_to(folder / "mlartifacts")
    names = {path.name for path in kept.rglob("*") if path.is_file()}
    assert {"served_model.py", "weights.safetensors", "result.json"} < names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt"))]


def test_registered_again_it_is_a_second_version(folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
    done = command(folder, "register", run.info.run_id, "--name", "again")
    assert done.returncode == 0, done.stderr
    address, how = done.stdout.splitlines()
    assert address == "models:/again/1"
    assert f" MLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db mlflow models serve -m " in how
    assert done.stderr == ""
    done = command(folder, "register", "job", "--name", "again")
    assert done.stdout.startswith("models:/again/2\n"), done.stderr
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("register", "nowhere"), "there is no folder nowhere"),
        (("register", "job", "--name", "a/b"), "a/b"),
        (("register", "job", "--uri", "sqlite:///other.db"), "other.db"),
        (("register", "untracked"), "--uri"),
    ],
)
def test_what_cannot_be_registered(arguments: tuple[str, ...], message: str, folder: Path) -> None:
    if arguments[1] == "untracked" and not (folder / "untracked").exists():
        options = ("training.epochs=1", "seed=1", "tracking=none", "hydra.run.dir=untracked")
        assert command(folder, *JOB[:2], *options).returncode == 0
    done = command(folder, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_database_that_was_copied_serves_its_own_files(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "mlflow.db", tmp_path)
    shutil.copytree(folder / "mlartifacts", tmp_path / "mlartifacts")
    client = MLflow(f"sqlite:///{tmp_path}/mlflow.db").client()
    place = client.get_model_version_download_uri("vae-pyro", "1")
    assert Path(place.removeprefix("file://")).is_relative_to(tmp_path)
