"""What runs are called: their choices in a few words, shortest first."""

import re
from collections.abc import Mapping

_LONGEST = 60  # characters: MLflow's table of runs shows so many
_SHORT = {"latent_dim": "d", "seed": "seed", "device": "device"}
_SEVERAL = re.compile(r"(range|choice|glob|interval|shuffle|sort|tag)\(")


def job_name(
    settings: Mapping[str, str],
    of_sweep: Mapping[str, str] | None = None,
    *,
    longest: int = _LONGEST,
) -> str:
    """A job by what the user set; in a sweep by what differs from its other jobs.

    Of an option that a group offers (``likelihood=beta``), its name is enough.

    Args:
        settings: of the job, by key.
        of_sweep: as the sweep's command has them.
        longest: how many characters the name may have.

    >>> job_name({"seed": "2", "likelihood": "beta", "latent_dim": "10"})
    'd=10 beta seed=2'
    >>> job_name({"latent_dim": "10", "training.epochs": "5"}, {"training.epochs": "5"})
    'd=10'
    >>> job_name({})
    'defaults'
    """
    of_sweep = of_sweep or {}
    # Not by comparing values: Hydra hands 1e-3 and false to a job as 0.001 and False.
    own = {k: v for k, v in settings.items() if k not in of_sweep or _has_several(of_sweep[k])}
    return _cut(in_words(own or settings), longest) or "defaults"


def sweep_name(of_sweep: Mapping[str, str], *, longest: int = _LONGEST) -> str:
    """A sweep by what it varies.

    Args:
        of_sweep: as its command has them, by key.
        longest: how many characters the name may have.

    >>> sweep_name({"training.epochs": "5", "latent_dim": "2,10,20"})
    'sweep d=2,10,20'
    """
    varied = {key: value for key, value in of_sweep.items() if _has_several(value)}
    return _cut(f"sweep {in_words(varied or of_sweep)}".rstrip(), longest)


def in_words(settings: Mapping[str, str]) -> str:
    """Settings as a name has them: the latent dimension, groups, other keys, the seed.

    >>> in_words({"network.hidden": "[100]", "guide": "flow"})
    'flow hidden=[100]'
    """
    last = [_last(key) for key in settings]

    def is_group(key: str) -> bool:
        return key not in _SHORT and "." not in key and "/" not in key

    def word(key: str, value: str) -> str:
        if is_group(key):
            return value
        return f"{_SHORT.get(key, _last(key) if last.count(_last(key)) == 1 else key)}={value}"

    def place(key: str) -> tuple[bool, bool, bool]:
        return key == "seed", key != "latent_dim", not is_group(key)

    return " ".join(word(key, settings[key]) for key in sorted(settings, key=place))


def _last(key: str) -> str:
    return re.split("[./]", key)[-1]


def _has_several(value: str) -> bool:
    """Whether a value of a command line makes several jobs."""
    depth = 0
    for character in value:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and not depth:
            return True
    return _SEVERAL.match(value) is not None


def _cut(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
