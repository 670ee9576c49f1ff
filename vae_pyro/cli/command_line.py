"""What is wrong with a command line, in words, before Hydra reads it."""

import difflib
import itertools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_pyro.cli.presets import conf_folder
from vae_pyro.errors import ConfigError

# Hydra's own flags.
_OTHER_CONFIG = {"--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun"}
_PRINT = {"--cfg", "-c"}
_WITH_VALUE = {*_OTHER_CONFIG, *_PRINT, "--config-dir", "-cd", "--package", "-p"}
_NO_JOB = {"--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc", "--info", "-i"}
_SWEEP = {"--multirun", "-m"}
_FLAGS = {*_WITH_VALUE, *_NO_JOB, *_SWEEP, "--resolve", "--run", "-r"}


def check(arguments: Sequence[str], program: str, command: str = "") -> list[str]:
    """Refuse a command line that Hydra would refuse, and name what was probably meant.

    A setting that only the options of a sweep have gets ``++`` before it: Hydra puts a sweep
    together once without these options, and would refuse what each job accepts.

    Args:
        arguments: of the command line, without the program's name.
        program: what the user typed to start it, for instance ``python run.py``.
        command: what stood before the arguments, if anything.

    Returns:
        The arguments for Hydra.

    Raises:
        ConfigError: a flag, a key or an option that does not exist in one of the jobs, a value that
            cannot be read, a space where none may be, several values without ``-m``, or ``--cfg``
            of a sweep.

    >>> check(["--latent-dim", "2", "seed=0,", "1"], "run.py")
    Traceback (most recent call last):
    vae_pyro.errors.ConfigError: settings have no dashes; try: run.py latent_dim=2 seed=0,1 -m
    """
    line = _Line(arguments)
    if line.flags.keys() & _NO_JOB:
        return list(arguments)
    overrides = [_parsed(word) for word in line.words]
    has_mode = any(one.key_or_group == "hydra.mode" for one in overrides)
    is_sweep = has_mode or bool(line.flags.keys() & _SWEEP)
    has_several = any(one.is_sweep_override() for one in overrides)
    if line.flags.keys() & _PRINT and (is_sweep or has_several):
        raise ConfigError("--cfg shows one job: give each setting one value, and leave out -m")
    if not is_sweep and has_several:
        line.repair("several values make a sweep, which needs -m")
        line.flags["-m"] = None
    if line.problem:
        repaired = " ".join(filter(None, (program, command, str(line))))
        raise ConfigError(f"{line.problem}; try: {repaired}")
    if line.flags.keys() & _OTHER_CONFIG:
        return list(arguments)
    folder = line.flags.get("--config-dir") or line.flags.get("-cd")
    late = _compose(overrides, folder, program)
    return [f"++{word}" if word in late else word for word in arguments]


def jobs_of(arguments: Sequence[str]) -> list[list[str]]:
    """The settings of every job that a command line starts, in their order.

    Args:
        arguments: of a command line that ``check`` accepts.

    Raises:
        ConfigError: where a search chooses the jobs as it goes.

    >>> jobs_of(["seed=0,1", "latent_dim=2", "hydra/launcher=joblib", "-m"])
    [['seed=0', 'latent_dim=2'], ['seed=1', 'latent_dim=2']]
    """
    values: dict[str, list[str]] = {}
    for one in map(_parsed, _Line(arguments).words):
        if one.key_or_group == "hydra/sweeper" and one.value() != "basic":
            raise ConfigError(
                f"hydra/sweeper={one.value()} chooses jobs by the results of earlier ones, so they "
                "are not known: leave it out, with one value for each setting"
            )
        if one.is_sweep_override() and not one.is_discrete_sweep():
            raise ConfigError(f"{one.input_line}: only a search tries an interval; give values")
        if not one.key_or_group.startswith("hydra"):
            chosen = one.sweep_string_iterator() if one.is_sweep_override() else [""]
            values[one.get_key_element()] = [_with(one, value) for value in chosen]
    return [list(job) for job in itertools.product(*values.values())]


class _Line:
    """A command line with its usual slips repaired, and the first of them in words.

    Args:
        arguments: of the command line, without the program's name.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.words: list[str] = []
        self.flags: dict[str, str | None] = {}
        self.problem = ""
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            flag = _flag(name)
            if flag or (word.startswith("-") and not self._is_continued_by(word)):
                if flag is None:
                    self.repair("settings have no dashes")
                    self.words.append(name.lstrip("-").replace("-", "_") + equals + value)
                elif flag in _WITH_VALUE and not equals and rest:
                    self.flags[flag] = rest.pop(0)
                else:
                    self.flags[flag] = value if equals else None
            else:
                self._add(word)
        for number, word in enumerate(self.words):
            if word.endswith(","):
                self.repair("a list of values ends without a comma")
                self.words[number] = word.rstrip(",")

    def __str__(self) -> str:
        flags = [
            text for flag, value in self.flags.items() for text in (flag, value) if text is not None
        ]
        return " ".join(map(shlex.quote, [*self.words, *flags]))

    def repair(self, problem: str) -> None:
        """Note what was wrong."""
        self.problem = self.problem or problem

    def _add(self, word: str) -> None:
        if self.words and self._is_continued_by(word):
            self.repair("a setting has no spaces")
            self.words[-1] += word
        elif self.words and "=" not in self.words[-1] + word:
            self.repair("a setting is written key=value")
            self.words[-1] += f"={word}"
        else:
            self.words.append(word)

    def _is_continued_by(self, word: str) -> bool:
        if not self.words or "=" in word.lstrip("="):
            return False
        return self.words[-1].endswith((",", "=")) or word.startswith((",", "="))


def _flag(name: str) -> str | None:
    """Hydra's flag of this name; a long one may be shortened."""
    if name in _FLAGS:
        return name
    found = [flag for flag in _FLAGS if name.startswith("--") and flag.startswith(name)]
    return found[0] if len(found) == 1 else None


def _parsed(word: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except OverrideParseException as error:
        raise ConfigError(f"{word!r} cannot be read: {_why_unreadable(word)}") from error


def _why_unreadable(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return f"a setting is written key=value, for instance latent_dim=2 ({key} has no value)"
    if value.startswith("="):
        return f"one = is enough ({key}={value.lstrip('=')})"
    for opening, closing in ("()", "[]", "{}"):
        if value.count(opening) != value.count(closing):
            missing = closing if value.count(opening) > value.count(closing) else opening
            return f"a {missing} is missing"
    if any(value.count(quote) % 2 for quote in "'\""):
        return "a quotation mark is missing"
    text = value.replace("'", "\\'")
    return f"put its value into quotation marks, also for the shell: \"{key}='{text}'\""


def _compose(overrides: Sequence[Override], folder: str | None, program: str) -> set[str]:
    """Put the configuration together with each option, as Hydra will for the jobs.

    Returns:
        The settings that are unknown where what a sweep chooses is left out.
    """
    search = [f"hydra.searchpath=['file://{Path(folder).absolute()}']"] if folder else []
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        options = {
            one.key_or_group: loader.get_group_options(one.key_or_group) for one in overrides
        }
        groups = [one for one in overrides if options[one.key_or_group]]
        for one in groups:
            for option in _values(one):
                if option not in options[one.key_or_group]:  # maybe in the user's own folder
                    _try([*search, _with(one, option)], one.key_or_group, option, options)
        swept = [one for one in groups if one.is_sweep_override()]
        firsts = {one.key_or_group: _first(one) for one in swept}
        others = [(one, option) for one in swept for option in _values(one)[1:]]
        _accept(overrides, groups, firsts, search, program)
        for one, option in others:
            chosen = firsts | {one.key_or_group: _with(one, option)}
            _accept(overrides, groups, chosen, search, program)
        if not swept:
            return set()
        fixed = [_first(one) for one in groups if one not in swept]
        known = _keys([*search, *fixed])
    return {
        one.input_line or ""
        for one in overrides
        if one.type is OverrideType.CHANGE
        and not (one in groups or one.is_sweep_override() or one.is_hydra_override())
        and one.key_or_group not in known
    }


def _accept(
    overrides: Sequence[Override],
    groups: Sequence[Override],
    chosen: Mapping[str, str],
    search: Sequence[str],
    program: str,
) -> None:
    """Refuse a job with the options that a sweep has chosen."""

    def words(some: Iterable[Override]) -> list[str]:
        return [*search, *(chosen.get(one.key_or_group, _first(one)) for one in some)]

    try:
        compose("config", words(overrides))
    except HydraException as error:
        cause = error.__cause__
        if not (isinstance(cause, OmegaConfBaseException) and cause.full_key):
            raise ConfigError(str(error).splitlines()[0]) from error
        loader = GlobalHydra.instance().config_loader()
        keys = [key for key in _keys(words(groups)) if not key.endswith("_target_")]
        hint = did_you_mean(cause.full_key, [*keys, *loader.list_groups("")])
        beside = f" with {' '.join(chosen.values())}" if chosen else ""
        raise ConfigError(
            f"there is no setting {cause.full_key}{beside}{hint}; {program} --help lists all"
        ) from error


def _try(
    overrides: Sequence[str], group: str, option: str, options: Mapping[str, Sequence[str]]
) -> None:
    try:
        compose("config", list(overrides))
    except (HydraException, ValueError) as error:
        hint = did_you_mean(option, options[group])
        raise ConfigError(
            f"{group}={option}: there is no such option{hint}; choose from "
            f"{', '.join(options[group])}"
        ) from error


def _first(override: Override) -> str:
    """The override with its first value, of several."""
    return _with(override, next(iter(_values(override)), "null"))


def _with(override: Override, value: str) -> str:
    if override.is_sweep_override():
        return f"{override.get_key_element()}={value}"
    return override.input_line or ""


def _values(override: Override) -> list[str]:
    """All values that a sweep tries, in words; none of an interval."""
    if not override.is_sweep_override():
        value = override.value()
        return [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if not override.is_discrete_sweep():
        return []
    return list(itertools.islice(override.sweep_string_iterator(), 1000))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`` (did you mean ...?)``, or nothing where no name is close."""
    names = [one for one in names if not name.startswith(f"{one}.")]
    last = {one.rpartition(".")[2]: one for one in names}
    for close in (
        difflib.get_close_matches(name, names, 1, 0.7),
        difflib.get_close_matches(name.rpartition(".")[2], list(last), 1, 0.8),
    ):
        if close:
            return f" (did you mean {last.get(close[0], close[0])}?)"
    return ""


def _keys(overrides: Sequence[str]) -> list[str]:
    """``["training", "training.epochs", ...]``: all that the configuration has."""

    def found(tree: Mapping[str, Any], place: str) -> Iterator[str]:
        for key, node in tree.items():
            yield f"{place}{key}"
            if isinstance(node, Mapping):
                yield from found(node, f"{place}{key}.")

    tree: Any = OmegaConf.to_container(compose("config", list(overrides)))  # a value may be ???
    return list(found(tree, ""))
