"""Stopped in every way there is, and gone on with: the same bits, the same records, one run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests import forkserver
from tests.conftest import ROOT

RunPy = Callable[..., subprocess.CompletedProcess[str]]
SHORT = (
    "latent_dim=2",
    "training.epochs=12",
    "training.checkpoint_seconds=0",
    "training.keep_checkpoints=true",  # some tests stop a finished job as if it had been killed
    "training.snapshots=3",
    "evaluation.num_samples=60",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def runs_in(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])


def children(folder: Path) -> list[Run]:
    """The jobs' runs, by name."""
    jobs = (run for run in runs_in(folder) if run.data.tags.get("sweep") != "parent")
    return sorted(jobs, key=lambda run: run.info.run_name)


def recorded(folder: Path, run: Run) -> dict[str, Any]:
    """All that the tracker holds of a run but for its clocks: parameters, histories, files."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    histories = {
        name: [
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
        if not name.startswith("time/")
    }
    images = sorted(
        Path(file.path).name.split("timestamp")[0]
        for file in client.list_artifacts(run.info.run_id, "images")
        if file.path.endswith(".webp")
    )
    files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
    status = run.info.status
    return {
        "status": status,
        "params": run.data.params,
        "histories": histories,
        "images": images,
        "files": files,
    }


def outcome(job: Path) -> tuple[bytes, dict[str, float]]:
    """A job's weights, to the bit, and its metrics but for those of the clock."""
    metrics = json.loads((job / "result.json").read_text())["metrics"]
    weights = (job / "model" / "weights.safetensors").read_bytes()
    return weights, {name: v for name, v in metrics.items() if not name.startswith("time/")}


def assert_equal(folder: Path, other: Path, jobs: tuple[str, ...]) -> None:
    """Both folders hold the same jobs, to the bit, and their stores the same records."""
    for job in jobs:
        assert outcome(folder / job) == outcome(other / job)
    runs, others = children(folder), children(other)
    assert len(runs) == len(others) == len(jobs)
    for run, same in zip(runs, others, strict=True):
        assert recorded(folder, run) == recorded(other, same)
        steps = [step for step, _ in recorded(folder, run)["histories"]["train/elbo"]]
        assert steps == list(range(1, len(steps) + 1))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two jobs that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = forkserver.run(
        [sys.executable, str(ROOT / "run.py"), *SHORT, "seed=0,1", "hydra.sweep.dir=sweep", "-m"],
        cwd=folder,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_a_sweep_killed_dozens_of_times_ends_as_an_undisturbed_one(
    undisturbed: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests" / "storm.py"),
            "0",
            *SHORT,
            "seed=0,1",
            "hydra.sweep.dir=sweep",
            "resume=true",
            "-m",
        ],
        cwd=tmp_path,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    output = (tmp_path / "output.txt").read_text()
    assert told["status"] == 0, output[-3000:]
    assert told["kills"] >= 12
    assert_equal(tmp_path, undisturbed, ("sweep/0", "sweep/1"))
    assert "Traceback" not in output
    (parent,) = [run for run in runs_in(tmp_path) if run.data.tags.get("sweep") == "parent"]
    assert parent.info.status == "FINISHED"
    assert not list(tmp_path.rglob("superseded-*"))


@contextmanager
def running(
    folder: Path,
    *arguments: str,
    start: Callable[..., subprocess.Popen[str]] = forkserver.Popen,
    **environment: str,
) -> Iterator[subprocess.Popen[str]]:
    """``run.py`` in the background, ended with the test."""
    process = start(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=folder,
        env=os.environ | ONE_THREAD | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(
    condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_leaves_a_checkpoint_and_a_killed_run(
    name: str, run_py: RunPy, tmp_path: Path, undisturbed: Path
) -> None:
    """No checkpoint was due; the signal writes one, and the command goes on in the same run."""
    command = [*SHORT, "seed=0", "training.checkpoint_seconds=1000", "hydra.run.dir=sweep/0"]
    with running(tmp_path, *command) as process:
        journal = tmp_path / "sweep/0/record/journal.jsonl"
        wait_for(lambda: journal.exists() and '"step": 7' in journal.read_text(), process)
        start = time.monotonic()
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 20  # of which Python's own farewell is most
    assert process.returncode == 128 + getattr(signal, name)
    assert f"interrupted by {name}" in errors
    assert "resume=true" in errors
    assert "Traceback" not in errors
    (killed,) = children(tmp_path)
    assert killed.info.status == "KILLED"
    assert len(list(tmp_path.glob("sweep/0/checkpoint/*"))) >= 1

    done = run_py(*command, "resume=true", **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "note: training continues after epoch" in done.stdout
    (finished,) = children(tmp_path)
    assert finished.info.run_id == killed.info.run_id
    assert finished.info.status == "FINISHED"
    assert outcome(tmp_path / "sweep/0") == outcome(undisturbed / "sweep/0")
    mine, theirs = recorded(tmp_path, finished), recorded(undisturbed, children(undisturbed)[0])
    assert mine["histories"] == theirs["histories"]
    assert mine["images"] == theirs["images"]


def test_a_finished_sweep_is_read_back_and_the_rest_is_run(
    run_py: RunPy, tmp_path: Path, undisturbed: Path
) -> None:
    """Folders are found by the command, wherever Hydra put them the first time."""
    folder = tmp_path / "multirun/2026-01-01/00-00-00"
    shutil.copytree(undisturbed / "sweep", folder)
    shutil.copy(undisturbed / "mlflow.db", tmp_path)
    before = (folder / "0" / "result.json").stat().st_mtime_ns
    os.remove(folder / "1" / "result.json")
    command = [*SHORT, "seed=0,1", "resume=true", "-m"]
    done = run_py(*command, **ONE_THREAD, MLFLOW_TRACKING_URI=f"sqlite:///{undisturbed}/mlflow.db")
    assert done.returncode == 0, done.stderr
    assert f"resumed in {folder.relative_to(tmp_path)}" in done.stdout
    assert "finished before, and read back" in done.stdout
    assert (folder / "0" / "result.json").stat().st_mtime_ns == before
    assert outcome(folder / "1") == outcome(undisturbed / "sweep" / "1")
    assert (folder / "runs.csv").read_text().count("\n") == 3
    assert (folder / "summary.csv").read_text().count("\n") == 2  # two seeds of one configuration
    assert len(children(undisturbed)) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("training.learning_rate=0.002", "training.learning_rate=0.002 (was 0.001)"),
        ("data.preparation_seed=1", "data.preparation_seed=1 (was 0)"),
    ],
)
def test_a_changed_job_is_a_new_run_that_says_what_changed(
    change: str, told: str, run_py: RunPy, tmp_path: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed / "sweep" / "0", tmp_path / "job")
    done = run_py(
        *SHORT,
        "seed=0",
        change,
        "training.epochs=2",
        "resume=true",
        "hydra.run.dir=job",
        "tracking=none",
        **ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    assert "note: a new run; what was there before is in " in done.stdout
    assert told in done.stdout
    assert "training.epochs=2 (was 12)" in done.stdout
    assert outcome(tmp_path / "job/superseded-1") == outcome(undisturbed / "sweep/0")
    assert outcome(tmp_path / "job") != outcome(undisturbed / "sweep/0")


def test_a_job_that_its_launcher_starts_again_goes_on_unasked(
    run_py: RunPy, tmp_path: Path, undisturbed: Path
) -> None:
    """As Ray and SLURM do: the same sweep's job, in the same folder, without its callback."""
    shutil.copytree(undisturbed / "sweep", tmp_path / "sweep")
    os.remove(tmp_path / "sweep/1/result.json")
    done = run_py(
        *SHORT,
        "seed=0,1",
        "hydra.sweep.dir=sweep",
        "~hydra.callbacks.sweep",
        "tracking=none",
        "-m",
        **ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    assert "finished before, and read back" in done.stdout
    assert "training continues after epoch 12" in done.stdout
    assert outcome(tmp_path / "sweep/1") == outcome(undisturbed / "sweep/1")
    assert not list(tmp_path.rglob("superseded-*"))


@pytest.mark.parametrize("arguments", [("resume=true",), ()])
def test_what_cannot_be_recognised_is_not_gone_on_with(
    arguments: tuple[str, ...], run_py: RunPy, tmp_path: Path, undisturbed: Path
) -> None:
    """Whatever the fingerprint was, its checkpoint is of another job; what is not a job's stays."""
    shutil.copytree(undisturbed / "sweep" / "0", tmp_path / "job")
    (tmp_path / "job" / "fingerprint.json").write_text("{")
    (tmp_path / "job" / "notes.txt").write_text("mine")
    (tmp_path / "job" / "superseded-2").mkdir()
    done = run_py(*SHORT, "seed=1", "hydra.run.dir=job", "tracking=none", *arguments, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert re.search("a new run; what was there before is in .*job/superseded-3", done.stdout)
    assert "continues after" not in done.stdout
    assert outcome(tmp_path / "job") == outcome(undisturbed / "sweep/1")
    assert outcome(tmp_path / "job/superseded-3") == outcome(undisturbed / "sweep/0")
    assert (tmp_path / "job/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("refused", ["data.root=1", "likelihood.scale=1", "device=cude"])
def test_a_refused_command_leaves_a_finished_job_as_it_is(
    refused: str, run_py: RunPy, tmp_path: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed / "sweep" / "0", tmp_path / "job")
    done = run_py(
        *SHORT,
        "seed=0",
        f"+{refused}" if "." in refused else refused,
        "hydra.run.dir=job",
        "tracking=none",
        "resume=true",
    )
    assert done.returncode == 1
    assert outcome(tmp_path / "job") == outcome(undisturbed / "sweep/0")


def test_nothing_to_resume_is_told(run_py: RunPy) -> None:
    done = run_py(*SHORT, "training.epochs=1", "resume=true", "tracking=none", **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "note: nothing to resume" in done.stdout


def test_two_processes_do_not_share_a_folder(run_py: RunPy, tmp_path: Path) -> None:
    command = [*SHORT, "training.epochs=1000", "tracking=none", "hydra.run.dir=job"]
    with running(tmp_path, *command) as process:
        wait_for(lambda: list(tmp_path.glob("job/checkpoint/*")), process)
        second = run_py(*command, "resume=true")
        assert second.returncode == 1
        assert "another process is at work in" in second.stderr
        assert json.loads((tmp_path / "job/job.json").read_text())["error"] is None
        assert process.poll() is None
    assert not (tmp_path / "job/result.json").exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    run_py: RunPy, tmp_path: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed / "sweep/0", tmp_path / "job")
    os.remove(tmp_path / "job/result.json")
    before, last = sorted((tmp_path / "job/checkpoint").glob("*"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    done = run_py(
        *SHORT, "seed=0", "resume=true", "hydra.run.dir=job", "tracking=none", **ONE_THREAD
    )
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stdout.replace("\n", " ")
    assert f"training continues after epoch {int(before.stem.split('-')[1])}" in done.stdout
    assert outcome(tmp_path / "job") == outcome(undisturbed / "sweep/0")


LEFTOVERS = (
    ".job.json.41",
    "checkpoint/.epoch-000003.safetensors.41",
    "record/.samples-000001.png.41",
    "model/.model.json.41",
    "evaluation/.ab.safetensors.41",
)


def test_what_a_killed_process_had_not_finished_writing_is_removed(
    run_py: RunPy, tmp_path: Path, undisturbed: Path
) -> None:
    """And not uploaded; what is not the job's own stays."""
    shutil.copytree(undisturbed / "sweep/0", tmp_path / "job")
    os.remove(tmp_path / "job/result.json")
    for name in LEFTOVERS:
        (tmp_path / "job" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "job" / name).write_text("torn")
    for name in (".notes.41", "checkpoint/.mine.41", "checkpoint/notes.txt"):
        (tmp_path / "job" / name).write_text("mine")
    done = run_py(*SHORT, "seed=0", "resume=true", "hydra.run.dir=job", **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert not [name for name in LEFTOVERS if (tmp_path / "job" / name).exists()]
    assert (tmp_path / "job/.notes.41").read_text() == "mine"
    assert (tmp_path / "job/checkpoint/notes.txt").read_text() == "mine"
    (run,) = runs_in(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    kept = [file.path for file in client.list_artifacts(run.info.run_id, "checkpoint")]
    assert sorted(kept) == sorted(
        f"checkpoint/{path.name}" for path in (tmp_path / "job/checkpoint").glob("epoch-*")
    )
    assert len(kept) == 2
    model = {file.path for file in client.list_artifacts(run.info.run_id, "model")}
    assert model == {"model/model.json", "model/weights.safetensors"}


ODD = {
    "overrides": '{"overrides": [1], "sweep": null}',
    "sweep": '{"overrides": [], "sweep": 5}',
    "deep": "[" * 100_000,
    "number": "5",
    "more": '{"overrides": [], "sweep": null, "more": 1}',
    "bytes": "\udcff",
}


def test_odd_files_beside_do_not_stop_a_resume(run_py: RunPy, tmp_path: Path) -> None:
    """Each in a folder of its own, all of which are looked into."""
    for folder, name in (("multirun", "sweep.json"), ("outputs", "job.json")):
        for second, kind in enumerate((*ODD, "pipe")):
            path = tmp_path / folder / f"2026-01-01/00-00-0{second}" / name
            path.parent.mkdir(parents=True)
            if kind == "pipe":
                os.mkfifo(path)
            else:
                path.write_bytes(ODD[kind].encode(errors="surrogateescape"))
    short = [*SHORT[:1], "training.epochs=1", "training.snapshots=1", "evaluation.num_samples=50"]
    for mode in ((), ("-m",)):
        done = run_py(*short, "resume=true", "tracking=none", *mode, **ONE_THREAD)
        assert done.returncode == 0, done.stderr
        assert "nothing to resume" in done.stdout
        assert "Traceback" not in done.stderr


def test_an_odd_result_does_not_stop_a_sweep(
    run_py: RunPy, tmp_path: Path, undisturbed: Path
) -> None:
    """It is no result, and its job is done again."""
    shutil.copytree(undisturbed / "sweep", tmp_path / "sweep")
    result = json.loads((tmp_path / "sweep/0/result.json").read_text())
    for job, metrics in (("0", {"test/elbo": "a"}), ("1", {})):
        odd = json.dumps(result | {"metrics": metrics})
        (tmp_path / "sweep" / job / "result.json").write_text(odd)
    done = run_py(
        *SHORT,
        "seed=0,1",
        "hydra.sweep.dir=sweep",
        "resume=true",
        "tracking=none",
        "-m",
        **ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "sweep/0") == outcome(undisturbed / "sweep/0")
    assert outcome(tmp_path / "sweep/1") == outcome(undisturbed / "sweep/1")


@pytest.mark.slow
def test_better_words_do_not_orphan_a_stopped_sweep(tmp_path: Path) -> None:
    """A sweep that was interrupted before a change of the reports continues after it."""
    for name in ("run.py", "conf", "vae_pyro"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    short = [*SHORT, "training.epochs=2", "seed=0,1", "hydra.sweep.dir=sweep", "tracking=none"]

    def sweep(*more: str) -> str:
        done = forkserver.run(
            [sys.executable, "run.py", *short, *more, "-m"],
            cwd=tmp_path,
            env=os.environ | ONE_THREAD,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    sweep()
    before = outcome(tmp_path / "sweep/1")
    os.remove(tmp_path / "sweep/1/result.json")  # as where it was killed in its evaluation
    tables = tmp_path / "vae_pyro/reporting/sweeps.py"
    tables.write_text(tables.read_text().replace("higher is better", "the higher the better"))
    divergence = tmp_path / "vae_pyro/training/divergence.py"
    divergence.write_text(divergence.read_text().replace("try a smaller", "choose a smaller"))
    trainer = tmp_path / "vae_pyro/training/fit.py"
    trainer.write_text(trainer.read_text().replace("training continues", "training goes on"))
    resumed = sweep("resume=true")
    assert "the higher the better" in resumed
    assert "training goes on after epoch 2" in resumed
    assert "a new run" not in resumed
    assert outcome(tmp_path / "sweep/1") == before
    formula = tmp_path / "vae_pyro/log_marginal/weights.py"
    formula.write_text(formula.read_text() + "\n_ANOTHER = 1\n")
    assert "changed was code of vae_pyro" in sweep("resume=true")
