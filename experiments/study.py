"""What all experiments share: their command line, trained VAEs, records, and what they leave."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from matplotlib.figure import Figure
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor

import vae_pyro
from experiments.numbers import Number
from experiments.pages import HERE, fill
from vae_pyro.app import explain, fail, make_console, tell
from vae_pyro.config import build, flatten, parse_config
from vae_pyro.data import Dataset, ImageSource
from vae_pyro.errors import ConfigError, UserError
from vae_pyro.files import make_folder, write_atomically
from vae_pyro.interruption import Interrupted, interruptible, uninterrupted
from vae_pyro.passwords import without_passwords
from vae_pyro.pipeline import Job, choose_device, run_job
from vae_pyro.provenance import git_tags
from vae_pyro.resume import claim
from vae_pyro.tracking import Run, SilentRun, Tracker, open_run
from vae_pyro.vae import VAE
from vae_pyro.visualization import png, render

CONF = HERE.parent / "conf"
OUTPUTS = Path("outputs") / "experiments"
_COMMON = ("training.snapshots=1", "resume=true")


@dataclass(frozen=True)
class Options:
    """What ``experiment.<key>=`` sets; each experiment adds its own.

    Args:
        workers: VAEs trained at once, each in a process of one thread; 0: one per core.

    Raises:
        ValueError: where it is negative.
    """

    workers: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers: must be at least 0, got {self.workers}")


@dataclass(frozen=True)
class Recipe:
    """One VAE that an experiment needs.

    Attributes:
        overrides: of the configuration, as on the command line; these win over the user's.
        groups: whole groups that take the place of the configuration's own.
    """

    overrides: Sequence[str] = ()
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A trained VAE and what it was trained on.

    Attributes:
        vae: on the experiment's device, in evaluation mode.
        metrics: of its job, by their contract names.
        dataset: its images, in memory.
        seed: of its job.
    """

    vae: VAE
    metrics: Mapping[str, float]
    dataset: Dataset
    seed: int

    def x(self, split: Literal["train", "valid", "test"], num_images: int | None = None) -> Tensor:
        """The first images of a split as the likelihood scores them, ``(N, C, H, W)``.

        The draw is the same in every job; of the test split it is that of ``test/log_px``.
        """
        images = getattr(self.dataset, split).images
        prepare = self.vae.model.likelihood.prepare
        x: Tensor = prepare(images, self.dataset.held_out_stream(split).generator)  # type: ignore[arg-type]
        return x[:num_images].to(self.vae.model.origin.device)


@dataclass(frozen=True)
class Findings:
    """What an experiment found.

    Attributes:
        numbers: by name.
        predictions: what was predicted, by name, and whether it held.
        answer: one sentence with its number.
        figure: says one thing.
    """

    numbers: Mapping[str, Number]
    predictions: Mapping[str, bool]
    answer: str
    figure: Figure


@dataclass(frozen=True)
class Study:
    """One experiment.

    Attributes:
        name: of its folder.
        question: as people ask it.
        run: measures.
        options: the class of its options, a subclass of ``Options``.
        overrides: of the configuration, before the user's.
        seeds: of the VAEs, unless ``seed=`` says otherwise.
    """

    name: str
    question: str
    run: Callable[["Lab"], Findings]
    options: type[Options]
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)


class Lab:
    """What a study's ``run`` is given: seeds, options, trained VAEs.

    Args:
        study: the experiment.
        typed: overrides as typed: those of ``conf/``, ``experiment.<option>=`` and ``seed=0,1,2``.
        console: where progress is shown.

    Attributes:
        seeds: one VAE of each kind per seed.
        options: of the study's own class.
        device: where everything is computed.

    Raises:
        ConfigError: where an override cannot be used.
    """

    def __init__(self, study: Study, typed: Sequence[str], console: Console) -> None:
        self._start = time.time()
        self._trained_before: list[bool] = []
        self._console = console
        self._study = study
        self._typed: list[str] = []
        self.seeds = list(study.seeds)
        options: dict[str, Any] = {}
        try:
            parsed = OverridesParser.create().parse_overrides(list(typed))
        except HydraException as error:
            raise ConfigError(f"{error}; overrides are key=value") from error
        for override in parsed:
            key, line = override.key_or_group, str(override.input_line)
            if key == "seed":
                several = override.is_sweep_override()
                chosen = list(override.sweep_iterator()) if several else [override.value()]
                self.seeds = [_seed(value) for value in chosen]
            elif override.is_sweep_override():
                raise ConfigError(f"{line}: one value at a time; only seed= takes several")
            elif key.startswith("experiment."):
                options[key.removeprefix("experiment.")] = override.value()
            elif key == "resume" or key.startswith("hydra"):
                raise ConfigError(f"{line}: not of an experiment, which always goes on as it can")
            else:
                self._typed.append(line)
        target = f"{study.options.__module__}.{study.options.__qualname__}"
        self.options: Any = build({"_target_": target, **options}, Options, "experiment")
        self.chosen, _ = self._tree([f"seed={self.seeds[0]}"])
        config = parse_config(self.chosen)
        self.device = choose_device(config.device)
        self.tracker: Tracker = build(config.tracking, Tracker, "tracking")

    @property
    def command(self) -> str:
        """What was typed, in words, without what says nothing about the result."""
        default = self._study.options()
        changed = [
            f"experiment.{option.name}={getattr(self.options, option.name)}"
            for option in dataclasses.fields(self.options)
            if option.name != "workers"
            and getattr(self.options, option.name) != getattr(default, option.name)
        ]
        seeds = ",".join(str(seed) for seed in self.seeds)
        changed += [f"seed={seeds}"] if self.seeds != list(self._study.seeds) else []
        changed += [o for o in self._typed if not _key(o).startswith("tracking")]
        return without_passwords(" ".join([f"python -m experiments.{self._study.name}", *changed]))

    @property
    def is_default(self) -> bool:
        """Whether the command has no override, and so the experiment's folder is rewritten."""
        return self.command == f"python -m experiments.{self._study.name}"

    @cached_property
    def dataset(self) -> Dataset:
        """The images of ``data=``, on the CPU."""
        return build(self.chosen["data"], ImageSource, "data").load()

    def cost(self) -> str:
        """Seconds so far, and whether VAEs were there already, in words."""
        words = f"{time.time() - self._start:.0f} s on {os.cpu_count()} cores"
        before, total = sum(self._trained_before), len(self._trained_before)
        return f"{words}, {before} of {total} VAEs trained before" if total else words

    def tell(self, note: str) -> None:
        """Show one line."""
        self._console.print(note, highlight=False, markup=False, soft_wrap=True)

    def train(self, recipes: Sequence[Recipe]) -> list[list[Trained]]:
        """Train every recipe with every seed, or read back what was trained before.

        Each is a job as of ``run.py``, with a folder, checkpoints and a run in MLflow of its own.

        Returns:
            by recipe and seed.

        Raises:
            ConfigError: where the user set what the experiment itself has to choose.
        """
        jobs = [self._job(recipe, seed) for recipe in recipes for seed in self.seeds]
        workers = self.options.workers or (os.cpu_count() or 1)
        if self.device.type != "cpu":
            workers = 1
        metrics = self._run_jobs(jobs, min(workers, len(jobs)))
        trained = []
        sources: dict[str, Dataset] = {}
        for (tree, job), numbers in zip(jobs, metrics, strict=True):
            source = json.dumps(tree["data"], sort_keys=True)
            if source not in sources:
                sources[source] = build(tree["data"], ImageSource, "data").load()
            self._trained_before.append((job.output / "model").stat().st_mtime < self._start)
            vae = vae_pyro.load(job.output).to(self.device).eval()
            trained.append(Trained(vae, numbers, sources[source], tree["seed"]))
        return [trained[i : i + len(self.seeds)] for i in range(0, len(trained), len(self.seeds))]

    def _run_jobs(
        self, jobs: Sequence[tuple[dict[str, Any], Job]], workers: int
    ) -> list[dict[str, float]]:
        numbers = []
        if workers == 1:
            for done, (tree, job) in enumerate(jobs):
                self.tell(f"VAE {done + 1} of {len(jobs)}: {job.name}")
                numbers.append(_train(tree, job))
            return numbers
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["experiments.study"])
        with ProcessPoolExecutor(workers, context) as pool:
            try:
                futures = [pool.submit(_train_alone, tree, job) for tree, job in jobs]
                for done, ((_, job), future) in enumerate(zip(jobs, futures, strict=True)):
                    numbers.append(future.result())
                    self.tell(f"VAE {done + 1} of {len(jobs)}: {job.name}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()  # which leaves a checkpoint
                raise
        return numbers

    def _job(self, recipe: Recipe, seed: int) -> tuple[dict[str, Any], Job]:
        for override in recipe.overrides:
            key = _key(override)
            for typed in self._typed:
                if _key(typed) == key:
                    raise ConfigError(
                        f"{typed}: this experiment chooses {key} itself; leave it out"
                    )
        tree, choices = self._tree([*recipe.overrides, f"seed={seed}"])
        tree |= recipe.groups
        # Kept in one place for all experiments that ask for the same.
        decisive = {k: v for k, v in tree.items() if k not in ("tracking", "device")}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        name = ", ".join([*self._typed, *recipe.overrides, f"seed={seed}"])
        folder = OUTPUTS / "vaes" / digest[:16]
        return tree, Job(without_passwords(name), {}, choices, folder, parent=None)

    def _tree(self, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The resolved configuration as plain nested dictionaries, and each group's choice."""
        every = [*_COMMON, *self._study.overrides, *self._typed, *overrides]
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("config", every, return_hydra_config=True)
            choices = cfg.hydra.runtime.choices
            with open_dict(cfg):
                del cfg["hydra"]
            tree = OmegaConf.to_container(cfg, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            first_lines = " ".join(str(error).split("\n")[:2])
            raise ConfigError(f"{first_lines} (python run.py --help lists the keys)") from error
        assert isinstance(tree, dict)
        return (
            {str(key): value for key, value in tree.items()},
            {k: v for k, v in choices.items() if not k.startswith("hydra/")},
        )


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """Run one experiment from the command line; ends with status 1 where it fails."""
    typed = sys.argv[1:] if arguments is None else list(arguments)
    if {"-h", "--help"} & set(typed):
        make_console().print(_help(study), highlight=False, markup=False)
        return
    try:
        with interruptible():
            _run(study, typed)
    except Interrupted as interruption:
        fail(f"{interruption}; the same command goes on from the last checkpoint")
        sys.exit(interruption.status)
    except Exception as error:
        fail(explain(error))
        sys.exit(1)


def _run(study: Study, typed: Sequence[str]) -> None:
    console = make_console()
    lab = Lab(study, typed, console)
    work = OUTPUTS / study.name
    folder = HERE / study.name if lab.is_default else work
    run: Run = SilentRun()
    with claim(work):
        record = work / f"record-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        tags = {"experiment": study.name, **git_tags()}
        run = open_run(lab.tracker, record, study.name, tags, must_answer=True, tell=tell)
        try:
            run.log_params({
                **flatten(_without_passwords(lab.chosen)),
                **{f"experiment.{k}": v for k, v in dataclasses.asdict(lab.options).items()},
                "seed": ",".join(str(seed) for seed in lab.seeds),
            })  # fmt: skip
            findings = study.run(lab)
            results = {
                "question": study.question,
                "command": lab.command,
                "answer": findings.answer,
                "predictions": dict(findings.predictions),
                "numbers": {k: dataclasses.asdict(n) for k, n in findings.numbers.items()},
                "cost": lab.cost(),
            }
            _record(run, findings)
            _leave(folder, findings, results)
            for name in ("results.json", "figure.png"):
                run.log_file(folder / name)
            with uninterrupted():
                run.end("FINISHED")
        except BaseException as error:
            with uninterrupted(), suppress(Exception):
                run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    for name, number in findings.numbers.items():
        console.print(f"  {name}: {number} {number.unit}".rstrip(), highlight=False, markup=False)
    for name, held in findings.predictions.items():
        console.print(f"  {name}: {'held' if held else 'did not hold'}", highlight=False)
    lab.tell(f"{study.question}\n{findings.answer}\nresults.json and figure.png: {folder}")


def _record(run: Run, findings: Findings) -> None:
    metrics = {}
    for name, number in findings.numbers.items():
        metrics[name] = number.value
        if number.std_error is not None:
            metrics[f"{name}_std_error"] = number.std_error
    run.log_metrics(metrics, step=0)
    rows = [f"| {name} | {number} | {number.unit} |" for name, number in findings.numbers.items()]
    run.describe("\n".join([findings.answer, "", "| | | |", "|---|---|---|", *rows]))


def _leave(folder: Path, findings: Findings, results: Mapping[str, Any]) -> None:
    """The figure, the numbers, and the README that quotes them, where the folder has one."""
    make_folder(folder)
    findings.figure.set_dpi(110)
    write_atomically(folder / "figure.png", png(render(findings.figure)))
    write_atomically(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    page = folder / "README.md"
    if page.is_file():
        try:
            text = fill(page.read_text(), results)
        except KeyError as error:
            raise ConfigError(
                f"{page}: the mark {error} names nothing in results.json; correct it and run again"
            ) from error
        write_atomically(page, text.encode())


def _train_alone(tree: dict[str, Any], job: Job) -> dict[str, float]:
    """In a process of its own, which a signal ends, and whose errors can be sent on."""
    torch.set_num_threads(1)
    try:
        with interruptible():
            return _train(tree, job)
    except Interrupted as interruption:
        os._exit(interruption.status)
    except Exception as error:
        raise UserError(f"{job.name}: {explain(error)}") from None


def _train(tree: dict[str, Any], job: Job) -> dict[str, float]:
    with open(os.devnull, "w") as nowhere, claim(job.output):
        return run_job(tree, job, Console(file=nowhere)).metrics


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"seed={value}: expected whole numbers from 0 up, as seed=0,1,2")
    return value


def _without_passwords(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _without_passwords(value) for key, value in tree.items()}
    return without_passwords(tree) if isinstance(tree, str) else tree


def _help(study: Study) -> str:
    options = study.options()
    lines = [
        study.question,
        "",
        f"python -m experiments.{study.name} [key=value ...]",
        f"  seed={','.join(map(str, study.seeds))}",
        *(f"  experiment.{o.name}={getattr(options, o.name)}" for o in dataclasses.fields(options)),
        "  and every key of python run.py --help",
    ]
    return "\n".join(lines)
