"""``python -m experiments [name ...] [key=value ...]``: runs the named experiments, or all."""

import difflib
import sys
from collections.abc import Sequence

from experiments.pages import NAMES

HELP = """\
python -m experiments <name> [key=value ...]    runs one experiment
python -m experiments [key=value ...]           runs all of them, one after the other
python -m experiments <name> --help             lists the options of one

The experiments:
"""


def main(arguments: list[str]) -> None:
    """Run the experiments that the arguments name, or all of them, with the given overrides.

    A wrong name or option ends the program with a message before anything runs.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    names = [a for a in arguments if "=" not in a and not a.startswith(("-", "~"))]
    for flag in flags:
        if flag not in ("-h", "--help"):
            sys.exit(f"error: no option {flag!r}; python -m experiments --help shows what there is")
    for name in names:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            sys.exit(f"error: no experiment {name!r}; {hint}There are: {', '.join(NAMES)}")
    if flags:
        show_help(names)
    else:
        run_all(names or NAMES, [a for a in arguments if a not in names])


def show_help(names: list[str]) -> None:
    """Print the options of these experiments; of none: how to run any."""
    if not names:
        print(HELP + "\n".join(f"  {name}" for name in NAMES))
    for name in names:
        from experiments.command import describe, load  # torch is slow to import

        print(describe(load(name)))


def run_all(names: Sequence[str], overrides: list[str]) -> None:
    """Run these experiments, one after the other.

    Where one of them fails, the others still run, and the program ends with status 1.
    """
    from experiments.command import load, run_experiment  # torch is slow to import
    from vae_pyro.cli.console import fail

    failed = []
    for name in names:
        if len(names) > 1:
            print(f"{name}:", flush=True)
        try:
            run_experiment(load(name), overrides)
        except SystemExit as end:
            if end.code != 1:  # interrupted
                raise
            failed.append(name)
    if failed and len(names) > 1:
        fail(f"{len(failed)} of {len(names)} experiments failed: {', '.join(failed)}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
