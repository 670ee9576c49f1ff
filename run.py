"""Train and evaluate variational autoencoders: ``python run.py --help``."""

import sys

try:
    from vae_pyro.cli.main import main
except ModuleNotFoundError as error:
    sys.exit(
        f"error: the package {error.name} is not installed for {sys.executable}. Run `make setup` "
        "once, then `. .venv/bin/activate`, or use `.venv/bin/python run.py`"
    )

if __name__ == "__main__":
    main()
