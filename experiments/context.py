"""An experiment (a question and the function that measures) and the context it runs in."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from matplotlib.figure import Figure
from rich.console import Console

import vae_pyro
from experiments.configuration import configuration
from experiments.numbers import Number, Verdict
from experiments.vaes import Trained, VAESpec, run_jobs
from vae_pyro.config import build, parse_config
from vae_pyro.credentials import refuse_credentials
from vae_pyro.data import Dataset, ImageSource
from vae_pyro.errors import ConfigError
from vae_pyro.runs.job import Job
from vae_pyro.runs.preparation import choose_device
from vae_pyro.tracking import Tracker

OUTPUTS = Path("outputs") / "experiments"
_COMMON = ("training.snapshots=1", "resume=true")


@dataclass(frozen=True)
class Options:
    """The options that ``experiment.<key>=`` sets; each experiment adds its own.

    Args:
        workers: number of VAEs trained at once, each in its own process; 0: one per core.

    Raises:
        ValueError: if ``workers`` is negative.
    """

    workers: int = 0

    def __post_init__(self) -> None:
        self.at_least(workers=0)

    def at_least(self, **smallest: int) -> None:
        """Refuse options that are smaller than the number given here for their name.

        Raises:
            ValueError: naming the option.
        """
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Result:
    """What an experiment measured.

    Attributes:
        numbers: the measured numbers, by name.
        predictions: the verdict on each, by name.
        answer: one sentence with its number.
        figure: shows one message.
    """

    numbers: Mapping[str, Number]
    predictions: Mapping[str, Verdict]
    answer: str
    figure: Figure


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        name: the name of its folder.
        question: in the words of those who ask it.
        run: measures, and returns the result.
        options: the class of its options.
        overrides: of the configuration; those on the command line come after them.
        seeds: training seeds, unless ``seed=`` sets others.
    """

    name: str
    question: str
    run: Callable[["Context"], Result]
    options: type[Options]
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)


class Context:
    """What an experiment's ``run`` works with: seeds, options, data and trained VAEs.

    Args:
        experiment: the experiment.
        typed: overrides: keys of ``conf/``, ``experiment.<option>=`` and ``seed=0,1,2``.
        console: where progress is shown.

    Attributes:
        seeds: training seeds; each VAE is trained once per seed.
        options: an instance of the experiment's class of options.
        chosen: the resolved configuration as nested dictionaries.
        device: where everything is computed.
        tracker: where the run is recorded.

    Raises:
        ConfigError: if an override is malformed, unknown or not meant for experiments.
    """

    def __init__(self, experiment: Experiment, typed: Sequence[str], console: Console) -> None:
        self._start = time.time()
        self._trained_before: list[bool] = []
        self._console = console
        self._experiment = experiment
        self._typed: list[str] = []
        self.seeds = list(experiment.seeds)
        options: dict[str, Any] = {}
        refuse_credentials(typed)
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
                if len(set(self.seeds)) < len(self.seeds):
                    raise ConfigError(f"{line}: give each seed once; ± is computed between seeds")
            elif override.is_sweep_override():
                raise ConfigError(f"{line}: one value at a time; only seed= takes several")
            elif key.startswith("experiment."):
                options[key.removeprefix("experiment.")] = override.value()
            elif key == "resume" or key.startswith("hydra"):
                raise ConfigError(f"{line}: leave it out; an experiment always continues")
            else:
                self._typed.append(line)
        target = f"{experiment.options.__module__}.{experiment.options.__qualname__}"
        self.options: Any = build({"_target_": target, **options}, Options, "experiment")
        self.chosen, _ = self._tree([f"seed={self.seeds[0]}"])
        config = parse_config(self.chosen)
        self.device = choose_device(config.device)
        self.tracker: Tracker = build(config.tracking, Tracker, "tracking")

    @property
    def command(self) -> str:
        """The command that gives the same result, without options that do not change it."""
        default = self._experiment.options()
        changed = [
            f"experiment.{option.name}={as_typed(getattr(self.options, option.name))}"
            for option in dataclasses.fields(self.options)
            if option.name != "workers"
            and getattr(self.options, option.name) != getattr(default, option.name)
        ]
        seeds = ",".join(str(seed) for seed in self.seeds)
        changed += [f"seed={seeds}"] if self.seeds != list(self._experiment.seeds) else []
        changed += [o for o in self._typed if not _key(o).startswith("tracking")]
        return " ".join([f"python -m experiments {self._experiment.name}", *changed])

    @property
    def is_default(self) -> bool:
        """Whether the command has no override; the experiment's folder is then rewritten."""
        return self.command == f"python -m experiments {self._experiment.name}"

    @cached_property
    def dataset(self) -> Dataset:
        """The images of ``data=``, on the CPU."""
        return build(self.chosen["data"], ImageSource, "data").load()

    def cost(self) -> str:
        """The seconds so far and how many VAEs were trained before, in words."""
        words = f"{time.time() - self._start:.0f} s on {os.cpu_count()} cores"
        before, total = sum(self._trained_before), len(self._trained_before)
        return f"{words}, {before} of {total} VAEs trained before" if total else words

    def tell(self, note: str) -> None:
        """Show one line."""
        self._console.print(note, highlight=False, markup=False, soft_wrap=True)

    def train(self, specs: Sequence[VAESpec]) -> list[list[Trained]]:
        """Train every VAE with every seed, or load those that were trained before.

        Each is a job as ``run.py`` runs it, with its own folder, checkpoints and MLflow run.

        Args:
            specs: the VAEs.

        Returns:
            for each spec, the trained VAEs by seed.

        Raises:
            ConfigError: if an override sets a key that the experiment chooses itself.
        """
        jobs = [self._job(spec, seed) for spec in specs for seed in self.seeds]
        workers = self.options.workers or (os.cpu_count() or 1)
        if self.device.type != "cpu":
            workers = 1
        once = {job.output: (tree, job) for tree, job in jobs}  # two specs may be one VAE
        done = run_jobs(list(once.values()), min(workers, len(once)), self.tell)
        by_folder = dict(zip(once, done, strict=True))
        trained = []
        sources: dict[str, Dataset] = {}
        for tree, job in jobs:
            source = json.dumps(tree["data"], sort_keys=True)
            if source not in sources:
                sources[source] = build(tree["data"], ImageSource, "data").load()
            self._trained_before.append((job.output / "model").stat().st_mtime < self._start)
            vae = vae_pyro.load(job.output).to(self.device).eval()
            dataset = sources[source].for_likelihood(vae.likelihood)
            trained.append(Trained(vae, by_folder[job.output], dataset, tree["seed"]))
        return [trained[i : i + len(self.seeds)] for i in range(0, len(trained), len(self.seeds))]

    def _job(self, spec: VAESpec, seed: int) -> tuple[dict[str, Any], Job]:
        for override in spec.overrides:
            key = _key(override)
            for typed in self._typed:
                if _key(typed) == key:
                    raise ConfigError(
                        f"{typed}: this experiment chooses {key} itself; leave it out"
                    )
        tree, choices = self._tree([*spec.overrides, f"seed={seed}"])
        tree |= spec.groups
        # Experiments that need the same VAE share its folder.
        decisive = {k: v for k, v in tree.items() if k not in ("tracking", "device")}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        name = ", ".join([*self._typed, *spec.overrides, f"seed={seed}"])
        folder = OUTPUTS / "vaes" / digest[:16]
        return tree, Job(name, {}, choices, folder, parent=None)

    def _tree(self, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The configuration with the experiment's overrides, the user's, and then these."""
        return configuration([*_COMMON, *self._experiment.overrides, *self._typed, *overrides])


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def as_typed(value: Any) -> str:
    """An option's value as written on the command line: ``[1,10]``."""
    return json.dumps(value, separators=(",", ":")).replace('"', "")


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"seed={value}: expected whole numbers from 0 up, as seed=0,1,2")
    return value
