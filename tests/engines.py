"""Schedulers and databases of one's own: started for a test on loopback, and ended by it."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.test_tracking import free_port, wait_until_healthy

SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def missing(*programs: str) -> str:
    """The reason to skip: the programs that are not installed; empty where all are."""
    absent = [name for name in programs if shutil.which(name, path=_SBIN) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def wait_for(what: Callable[[], object], seconds: float, message: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(message())
        time.sleep(0.2)


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that stays in the foreground, ended on the way out."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@contextmanager
def short_folder(prefix: str) -> Iterator[Path]:
    """Sockets' names may not be longer than about 100 bytes, and pytest's folders are."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Slurm:
    """A cluster of one node with the partitions ``low`` and ``high``, which preempts ``low``.

    It has one GPU in the scheduler's books only, which is all that the scheduler needs.
    """

    folder: Path
    environment: Mapping[str, str]

    def __call__(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in paths)

    def jobs(self) -> dict[str, str]:
        """The state of each job that is waiting or running, by its id."""
        lines = self("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def job(self, job_id: str) -> dict[str, str]:
        """What ``scontrol show job`` says."""
        words = self("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def slurm_cluster(cpus: int = 2, grace_seconds: int = 0) -> Iterator[Slurm]:
    """Munge, slurmctld and slurmd with a key, sockets, ports and state of their own."""
    with short_folder("slurm-") as folder, ExitStack() as stack:
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge = folder / "munge.socket"
        config = folder / "slurm.conf"
        config.write_text(_slurm_conf(folder, munge, cpus, grace_seconds))
        (folder / "gres.conf").write_text("NodeName=node Name=gpu File=/dev/null\n")
        environment = dict(os.environ) | {"SLURM_CONF": str(config), "PATH": _SBIN}
        cluster = Slurm(folder, environment)

        def start(*command: str) -> None:
            program = shutil.which(command[0], path=_SBIN)
            assert program is not None
            log = folder / f"{command[0]}.out.log"
            stack.enter_context(running([program, *command[1:]], log, env=environment))

        start(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={munge}",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
        )
        wait_for(munge.exists, 20, cluster.logs)
        start("slurmctld", "-D", "-i")
        start("slurmd", "-D", "-N", "node")
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%N"]
        wait_for(
            lambda: (
                "node"
                in subprocess.run(idle, env=environment, capture_output=True, text=True).stdout
            ),
            60,
            cluster.logs,
        )
        try:
            yield cluster
        finally:
            for partition in ("low", "high"):
                command = ["scancel", f"--partition={partition}"]
                subprocess.run(command, env=environment, timeout=30)
            wait_for(lambda: not cluster.jobs(), 40, cluster.logs)


def _slurm_conf(folder: Path, munge: Path, cpus: int, grace_seconds: int) -> str:
    user = "root" if os.getuid() == 0 else subprocess.check_output(["id", "-un"], text=True).strip()
    return f"""
ClusterName=test
SlurmctldHost={socket.gethostname().partition(".")[0]}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
# A job that is queued again waits until the credential of its last start has expired.
AuthInfo=socket={munge},cred_expire=5
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=100000,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=20
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=node Gres=gpu:1 NodeHostname={socket.gethostname().partition(".")[0]} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=node Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_seconds}
PartitionName=high Nodes=node MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""  # noqa: E501


@dataclass(frozen=True)
class Postgres:
    """A database cluster with one role, ``vae``, and one database of that name."""

    port: int
    password: str

    @property
    def uri(self) -> str:
        """Without the password, which libpq looks up."""
        return f"postgresql://vae@127.0.0.1:{self.port}/vae"

    def pgpass(self, path: Path) -> Path:
        """The password where libpq looks for it: a file that only its owner can read."""
        path.touch(mode=0o600)
        path.write_text(f"127.0.0.1:{self.port}:*:vae:{self.password}\n")
        return path

    def query(self, sql: str) -> list[list[str]]:
        done = subprocess.run(
            ["psql", "--no-align", "--tuples-only", "--command", sql, self.uri],
            env=os.environ | {"PGPASSWORD": self.password},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [line.split("|") for line in done.stdout.splitlines()]


def postgres_programs() -> Path | None:
    """The newest that is installed; Debian keeps them out of the search path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    path = [Path(folder) for folder in _SBIN.split(os.pathsep) if folder]
    for folder in (*reversed(versions), *path):
        if all((folder / name).exists() for name in ("initdb", "postgres", "createdb")):
            return folder
    return None


@contextmanager
def postgres_cluster() -> Iterator[Postgres]:
    """PostgreSQL with a data folder, port and password of its own; it refuses to run as root."""
    programs = postgres_programs()
    assert programs is not None
    with short_folder("postgres-") as folder:
        as_user = []
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"]
            as_user += ["--clear-groups"]
        postgres = Postgres(free_port(), secrets.token_urlsafe(24))
        password = folder / "password"
        password.write_text(postgres.password)
        password.chmod(0o644)
        made = subprocess.run(
            [
                *as_user,
                str(programs / "initdb"),
                f"--pgdata={folder}/data",
                "--username=vae",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-sync",
            ],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        log = folder / "postgres.log"
        command = [*as_user, str(programs / "postgres"), "-D", f"{folder}/data"]
        command += ["-h", "127.0.0.1", "-p", str(postgres.port), "-k", str(folder)]
        with running(command, log, cwd=folder):
            environment = os.environ | {"PGPASSWORD": postgres.password}
            create = [str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(postgres.port)]
            create += ["-U", "vae", "vae"]
            wait_for(
                lambda: (
                    subprocess.run(create, env=environment, capture_output=True).returncode == 0
                ),
                30,
                log.read_text,
            )
            yield postgres


@contextmanager
def tracking_server(folder: Path, database: str, **environment: str) -> Iterator[str]:
    """``mlflow server`` as docs/scaling.md starts it, on loopback."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "2"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    log = folder / "server.log"
    environment = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that nobody here needs
        **environment,
    }
    with running(command, log, cwd=folder, env=os.environ | environment) as server:
        uri = f"http://127.0.0.1:{port}"
        wait_until_healthy(uri, server, log)
        yield uri
