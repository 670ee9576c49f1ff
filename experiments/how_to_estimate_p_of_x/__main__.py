from experiments.command import main
from experiments.how_to_estimate_p_of_x.experiment import study

if __name__ == "__main__":
    main(study)
