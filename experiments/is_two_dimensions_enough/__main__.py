from experiments.command import main
from experiments.is_two_dimensions_enough.experiment import study

if __name__ == "__main__":
    main(study)
