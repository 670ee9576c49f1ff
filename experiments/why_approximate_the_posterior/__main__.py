from experiments.command import main
from experiments.why_approximate_the_posterior.experiment import study

if __name__ == "__main__":
    main(study)
