from experiments.command import main
from experiments.prior_or_aggregated_posterior.experiment import study

if __name__ == "__main__":
    main(study)
