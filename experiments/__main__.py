"""``python -m experiments [key=value ...]``: all of them, one after the other."""

import importlib
import sys

from experiments.command import main
from experiments.pages import NAMES
from vae_pyro.cli.app import fail


def run_all(arguments: list[str]) -> None:
    """Run every experiment with these overrides.

    One that fails is named at the end, and the others run; the program then ends with status 1.
    """
    if {"-h", "--help"} & set(arguments):
        print(__doc__, "\n".join(NAMES), "python -m experiments.<name> --help", sep="\n")
        return
    failed = []
    for name in NAMES:
        print(f"{name}:", flush=True)
        try:
            main(importlib.import_module(f"experiments.{name}.experiment").study, arguments)
        except SystemExit as end:
            if end.code != 1:  # interrupted
                raise
            failed.append(name)
    if failed:
        fail(f"{len(failed)} of {len(NAMES)} experiments failed: {', '.join(failed)}")
        sys.exit(1)


if __name__ == "__main__":
    run_all(sys.argv[1:])
