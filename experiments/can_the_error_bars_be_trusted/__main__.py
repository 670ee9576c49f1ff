from experiments.can_the_error_bars_be_trusted.experiment import study
from experiments.command import main

if __name__ == "__main__":
    main(study)
