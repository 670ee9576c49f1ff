from experiments.study import main
from experiments.which_likelihood.experiment import study

if __name__ == "__main__":
    main(study)
