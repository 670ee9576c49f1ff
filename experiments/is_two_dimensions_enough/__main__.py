from experiments.is_two_dimensions_enough.experiment import study
from experiments.study import main

if __name__ == "__main__":
    main(study)
