from experiments.generate_and_classify.experiment import study
from experiments.study import main

if __name__ == "__main__":
    main(study)
