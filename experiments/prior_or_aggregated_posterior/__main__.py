from experiments.prior_or_aggregated_posterior.experiment import study
from experiments.study import main

if __name__ == "__main__":
    main(study)
