"""Train and evaluate variational autoencoders: ``python run.py --help``."""

from vae_pyro.cli.main import main

if __name__ == "__main__":
    main()
