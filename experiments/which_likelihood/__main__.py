from experiments.command import main
from experiments.which_likelihood.experiment import study

if __name__ == "__main__":
    main(study)
