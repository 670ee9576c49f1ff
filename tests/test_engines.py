"""Sweeps beyond one process: SLURM, Ray, joblib, Optuna and a shared server, the real ones."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests import forkserver
from tests.conftest import QUICK, ROOT
from tests.engines import (
    SLURM,
    Postgres,
    Slurm,
    missing,
    postgres_cluster,
    postgres_programs,
    slurm_cluster,
    tracking_server,
    wait_for,
)
from tests.test_sweep import CONTRACT, IN_TRAINING, Command

ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def needs(*packages: str) -> pytest.MarkDecorator:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")


needs_slurm = pytest.mark.skipif(bool(missing(*SLURM)), reason=missing(*SLURM))
# Of those that take the cluster, for as long as it is up, only one process of tests has it.
ON_SLURM = [needs_slurm, needs("submitit"), pytest.mark.xdist_group("test_engines server")]
needs_postgres = pytest.mark.skipif(
    postgres_programs() is None or bool(missing("psql")), reason="needs postgres, initdb and psql"
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with slurm_cluster(grace_seconds=20) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with tracking_server(folder, f"sqlite:///{folder}/server.db") as uri:
        yield uri


def family(uri: str, experiment: str) -> tuple[Run, list[Run]]:
    """The one parent and its children; there is nothing else."""
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    return parent, children


def assert_complete(uri: str, experiment: str, jobs: int, epochs: int = 2) -> list[Run]:
    """Every job has ended well, with each metric of the contract at each of its steps."""
    parent, children = family(uri, experiment)
    assert len(children) == jobs
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    client = MlflowClient(uri)
    for run in children:
        assert set(run.data.metrics) == CONTRACT
        for name in CONTRACT:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            in_training = name.removesuffix("_std_error") in IN_TRAINING
            assert len(steps) == (epochs if in_training else 1), name
            if in_training:
                assert steps == list(range(1, epochs + 1)), name
    return children


def on_slurm(slurm: Slurm, cpus: int = 1) -> tuple[list[str], dict[str, str]]:
    arguments = ["hydra/launcher=slurm_cpu", f"hydra.launcher.cpus_per_task={cpus}"]
    arguments += ["hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=10", "-m"]
    return arguments, dict(slurm.environment) | {"PYTHONPATH": str(ROOT)}


@needs_slurm
@needs("submitit")
def test_slurm(run_py: Command, slurm: Slurm, server: str) -> None:
    arguments, environment = on_slurm(slurm)
    environment["MLFLOW_TRACKING_URI"] = server
    done = run_py(
        "latent_dim=2,3,4", *QUICK, "tracking.experiment=slurm", *arguments, **environment
    )
    assert done.returncode == 0, done.stdout + done.stderr + slurm.logs()
    assert_complete(server, "slurm", jobs=3)
    assert "IWAE-50" in done.stdout


@needs_slurm
@needs("submitit")
def test_slurm_preemption(run_py: Command, tmp_path: Path, slurm: Slurm, server: str) -> None:
    """A job that has to make way is queued again and goes on: nothing lost, nothing twice."""
    epochs = 250
    arguments, environment = on_slurm(slurm)
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        "latent_dim=2",
        f"training.epochs={epochs}",
        "training.keep=last",
        "training.compile=false",
        "training.snapshots=1",
        "evaluation.num_samples=50",
        f"tracking.uri={server}",
        "tracking.experiment=preemption",
        "hydra.launcher.partition=low",
        *arguments,
    ]
    client = MlflowClient(server)

    def steps() -> list[int]:
        experiment = client.get_experiment_by_name("preemption")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        return [
            point.step
            for run in children
            for point in client.get_metric_history(run.info.run_id, "train/elbo")
        ]

    with (tmp_path / "sweep.log").open("w") as log:
        sweep = forkserver.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)

    def tell() -> str:
        return (tmp_path / "sweep.log").read_text() + slurm.logs()

    try:
        wait_for(lambda: len(steps()) > 30, 90, tell)
        (job_id,) = slurm.jobs()
        slurm(
            "sbatch",
            "--partition=high",
            "--cpus-per-task=2",
            "--output=/dev/null",
            "--wrap=sleep 3",
        )
        wait_for(lambda: slurm.job(job_id)["Restarts"] == "1", 60, tell)
        assert sweep.wait(180) == 0, tell()
    finally:
        sweep.kill()
        sweep.wait()
    # The sweep ends when the job's result is there, a moment before the job itself.
    wait_for(lambda: slurm.job(job_id)["JobState"] == "COMPLETED", 60, tell)
    (result,) = tmp_path.glob("multirun/*/*/*/result.json")
    assert json.loads(result.read_text())["error"] is None
    assert_complete(server, "preemption", jobs=1, epochs=epochs)


@needs("ray", "hydra_plugins.hydra_ray_launcher")
def test_ray(run_py: Command, server: str) -> None:
    done = run_py(
        "latent_dim=2,3,4",
        "hydra/launcher=ray",
        *QUICK,
        "tracking.experiment=ray",
        "-m",
        **ONE_THREAD,
        MLFLOW_TRACKING_URI=server,
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # which keeps it on loopback
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_complete(server, "ray", jobs=3)


PROBE = f"""
import hydra, os
from hydra.core.plugins import Plugins
from vae_pyro.cli.presets import Presets
Plugins.instance().register(Presets)
@hydra.main(version_base="1.3", config_path="{ROOT}/conf", config_name="config")
def main(cfg):
    import torch
    with open(os.environ["PROBE"], "a") as file:
        print(torch.get_num_threads(), "GPU" * ("CUDA_VISIBLE_DEVICES" in os.environ), file=file)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        pytest.param(["joblib"], 1, marks=needs("joblib")),
        pytest.param(["joblib", "n_jobs=1"], len(os.sched_getaffinity(0)), marks=needs("joblib")),
        pytest.param(["slurm_cpu", "cpus_per_task=1"], 1, marks=ON_SLURM),
        pytest.param(["slurm_gpu", "cpus_per_task=2"], 2, marks=ON_SLURM),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_job_uses_its_share_of_the_cores(
    launcher: list[str], threads: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    unwanted = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted}
    name, *settings = launcher
    options = [f"hydra/launcher={name}", *(f"hydra.launcher.{setting}" for setting in settings)]
    if name.startswith("slurm"):
        cluster = request.getfixturevalue("slurm").environment
        environment |= {key: cluster[key] for key in ("SLURM_CONF", "PATH")}
        options += ["hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=10"]
    environment |= {"PYTHONPATH": str(ROOT), "PROBE": str(tmp_path / "threads")}
    (tmp_path / "probe.py").write_text(PROBE)
    done = forkserver.run(
        [sys.executable, "probe.py", "seed=1,2", *options, "~hydra.callbacks.sweep", "-m"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    gpu = ["GPU"] * (name == "slurm_gpu")
    assert (tmp_path / "threads").read_text().split() == [str(threads), *gpu] * 2


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with postgres_cluster() as cluster:
        yield cluster


@needs_postgres
@needs("psycopg", "joblib")
def test_a_shared_server_on_postgresql(
    run_py: Command, postgres: Postgres, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Six jobs, two at a time: every metric is there, and no password anywhere."""
    folder = tmp_path_factory.mktemp("postgresql")
    pgpass = postgres.pgpass(tmp_path_factory.mktemp("home") / ".pgpass")
    with tracking_server(folder, postgres.uri, PGPASSFILE=str(pgpass)) as uri:
        done = run_py(
            "latent_dim=2,3,4,5,6,7",
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2",
            *QUICK,
            "-m",
            **ONE_THREAD,
            MLFLOW_TRACKING_URI=uri,
            MLFLOW_TRACKING_USERNAME="vae",
            MLFLOW_TRACKING_PASSWORD=postgres.password,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        children = assert_complete(uri, "vae-pyro", jobs=6)
        artifacts = list((folder / "artifacts").rglob("weights.safetensors"))
        assert len(artifacts) == 6
        counted = postgres.query("SELECT run_uuid, count(*) FROM metrics GROUP BY run_uuid")
        expected = len(CONTRACT) + 2 * len(IN_TRAINING)  # the second epoch, with standard errors
        numbers = {run_id: int(n) for run_id, n in counted}
        assert {numbers.pop(run.info.run_id) for run in children} == {expected}
        assert list(numbers.values()) == [4 * 6]  # the parent: the bounds of each job
        for table in ("params", "tags", "experiments", "runs"):
            assert postgres.password not in str(postgres.query(f"SELECT * FROM {table}"))
    for path in [*tmp_path.rglob("*"), *folder.rglob("*")]:
        assert not path.is_file() or postgres.password.encode() not in path.read_bytes(), path
    assert postgres.password not in done.stdout + done.stderr


@needs("optuna", "hydra_plugins.hydra_optuna_sweeper")
def test_an_optuna_study_is_continued(run_py: Command, tmp_path: Path) -> None:
    """Four trials and then three suggest what seven would have, and share one study."""
    import optuna

    def search(trials: int, *more: str) -> None:
        done = run_py(
            "hydra/sweeper=optuna",
            "latent_dim=range(2,20)",
            f"hydra.sweeper.n_trials={trials}",
            "hydra.sweep.dir=search",
            *QUICK,
            *more,
            "-m",
            **ONE_THREAD,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    search(4)
    search(3)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/optuna.db")
    study = optuna.load_study(study_name="vae-pyro", storage=storage)
    assert study.direction.name == "MAXIMIZE"
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 7
    tried = [trial.params["latent_dim"] for trial in study.trials]
    assert len(list(tmp_path.glob("search/*/result.json"))) == 7

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
    parents = {r.info.run_id for r in runs if "mlflow.parentRunId" not in r.data.tags}
    children = sorted((r for r in runs if r.info.run_id not in parents), key=_started)
    assert len(parents) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == parents
    assert [int(run.data.params["latent_dim"]) for run in children] == tried
    for run, trial in zip(children, study.trials, strict=True):
        assert trial.value == run.data.metrics["valid/log_px"]

    sampler = _sampler()
    again = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in study.trials:
        asked = again.ask()
        assert asked.suggest_int("latent_dim", 2, 20) == trial.params["latent_dim"]
        again.tell(asked, trial.value)


@needs("optuna", "hydra_plugins.hydra_optuna_sweeper")
def test_a_search_survives_a_failed_trial(run_py: Command, tmp_path: Path) -> None:
    import optuna

    done = run_py(
        "hydra/sweeper=optuna",
        "latent_dim=choice(0,3)",
        "hydra.sweeper.n_trials=3",
        *QUICK,
        "tracking=none",
        "-m",
        **ONE_THREAD,
    )
    assert done.returncode == 1
    assert "error: 1 of 3 jobs failed" in done.stderr
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/optuna.db")
    study = optuna.load_study(study_name="vae-pyro", storage=storage)
    states = {trial.params["latent_dim"]: trial.state.name for trial in study.trials}
    assert states == {0: "FAIL", 3: "COMPLETE"}


def _started(run: Run) -> int:
    return run.info.start_time


def _sampler() -> object:
    from vae_pyro.cli.search import ResumableTPESampler

    return ResumableTPESampler(seed=0)
