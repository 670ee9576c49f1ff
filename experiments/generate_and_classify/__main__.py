from experiments.command import main
from experiments.generate_and_classify.experiment import study

if __name__ == "__main__":
    main(study)
