from experiments.how_to_estimate_p_of_x.experiment import study
from experiments.study import main

if __name__ == "__main__":
    main(study)
