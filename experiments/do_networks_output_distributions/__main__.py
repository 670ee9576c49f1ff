from experiments.do_networks_output_distributions.experiment import study
from experiments.study import main

if __name__ == "__main__":
    main(study)
