"""Train and evaluate variational autoencoders: ``python run.py --help``."""

import hydra
from omegaconf import DictConfig

from vae_pyro.cli import startup


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    startup.prepare()  # a launcher may call this function in a process of its own
    from vae_pyro.cli.app import main as run  # torch is slow to import, and --help needs none of it

    return run(cfg)


if __name__ == "__main__":
    startup.prepare()
    startup.arrange_arguments()
    main()
