from experiments.command import main
from experiments.do_networks_output_distributions.experiment import study

if __name__ == "__main__":
    main(study)
