from experiments.autoencoder_pca_vae.experiment import study
from experiments.command import main

if __name__ == "__main__":
    main(study)
