from experiments.command import main
from experiments.what_is_p_of_an_image.experiment import study

if __name__ == "__main__":
    main(study)
