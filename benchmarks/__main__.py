"""``python -m benchmarks [name ...]``: runs all benchmarks of speed, or those that are named."""

import importlib
import sys

from vae_pyro.cli import startup
from vae_pyro.errors import UserError

SPEED = ("training", "digits", "importance", "scaling", "startup", "serving")
NAMES = (*SPEED, "accuracy", "calibration")


def main() -> None:
    startup.prepare()  # as every command of this program; contestants inherit it
    names = sys.argv[1:] or SPEED
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.exit(f"error: no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    for name in names:
        print(f"{name}:", flush=True)
        try:
            importlib.import_module(f"benchmarks.{name}").main()
        except UserError as error:
            sys.exit(f"error: {error}")


main()
