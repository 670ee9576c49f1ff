"""Between Hydra and a job: its name, its folder, and how it fails."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae_pyro.cli.console import explain, fail, make_console, print_notes
from vae_pyro.cli.slurm import is_restart, requeue_if_preempted
from vae_pyro.errors import StorageError
from vae_pyro.interruption import Interrupted, interruptible, leave_if_told
from vae_pyro.reporting.naming import job_name
from vae_pyro.reporting.tables import print_run
from vae_pyro.runs.folder import claim, remove_unused
from vae_pyro.runs.job import Job, run_job
from vae_pyro.runs.manifest import StartedJob, Sweep, relevant_overrides, task_overrides


def main(cfg: DictConfig) -> float | None:
    """Run one job of ``python run.py``, alone or in a sweep.

    A job that fails prints one message. Alone, it ends the program with status 1; in a sweep
    it leaves its message in ``job.json``, so that the other jobs run and the sweep reports it.

    Returns:
        valid/log_px, in nats per image, for a sweeper that chooses jobs by it; None where there is
        none, or the job failed.
    """
    # PyTorch's threads start later, and inherit it; see fast_arithmetic.
    torch.set_flush_denormal(True)
    hydra = HydraConfig.get()
    output = Path(hydra.runtime.output_dir)
    sweep = Sweep.read(Path(hydra.sweep.dir)) if hydra.mode == RunMode.MULTIRUN else None
    is_search = hydra.runtime.choices.get("hydra/sweeper", "basic") != "basic"
    overrides = task_overrides(hydra.overrides.task)
    chosen = relevant_overrides(overrides)
    job = Job(
        name=", ".join(chosen) if chosen else "defaults",
        settings=split_overrides(chosen),
        choices={
            group: option
            for group, option in hydra.runtime.choices.items()
            if option is not None and not group.startswith("hydra/")
        },
        output=output,
        parent=sweep.parent if sweep else None,
        sweep=sweep.token if sweep else None,
        needs_validation_log_px=is_search,
        run_name=job_name(
            split_overrides(chosen), split_overrides(relevant_overrides(sweep.overrides))
        )
        if sweep
        else cfg.name or _name(chosen),
    )
    console = make_console()
    print_notes(console)
    started = StartedJob(overrides, job.sweep)
    try:
        with interruptible(), claim(output):
            try:
                earlier = StartedJob.read(output)
                # Within one sweep a folder is used again only by a job that is started again.
                is_again = (
                    sweep is not None and earlier is not None and earlier.sweep == sweep.token
                )
                started.write(output)
                tree = OmegaConf.to_container(cfg, resolve=True)
                assert isinstance(tree, dict)
                config = {str(key): value for key, value in tree.items()}
                config["resume"] = config["resume"] or is_restart() or is_again
                result = run_job(config, job, console)
            except Exception as error:
                with suppress(StorageError):
                    replace(started, error=explain(error)).write(output)
                raise
    except Interrupted as interruption:
        if requeue_if_preempted():
            how = "SLURM starts the job again, and it continues"
        else:
            how = "run the same command with resume=true to continue"
        fail(f"{interruption}; {how} from the last checkpoint")
        if sweep is None:
            leave_if_told()
        sys.exit(interruption.status)
    except Exception as error:
        fail(explain(error))
        if sweep is None:
            remove_unused(output, Path("outputs").absolute())
            sys.exit(1)
        return None
    if sweep is None:
        print_run(result, console)
        console.print(f"pictures and weights: {output}", highlight=False, soft_wrap=True)
    return result.metrics.get("valid/log_px")


def _name(chosen: Sequence[str]) -> str:
    """Of the run of a single job."""
    settings = dict(split_overrides(chosen))
    if settings.pop("weights", None) is None:
        return job_name(settings)
    return f"{job_name(settings)} (evaluated anew)"


def split_overrides(overrides: Sequence[str]) -> Mapping[str, str]:
    """``["a=1", "+b.c=x"]`` -> ``{"a": "1", "b.c": "x"}``."""
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}
