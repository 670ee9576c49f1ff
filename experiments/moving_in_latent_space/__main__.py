from experiments.command import main
from experiments.moving_in_latent_space.experiment import study

if __name__ == "__main__":
    main(study)
