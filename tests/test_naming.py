"""Names of runs: short, and with everything by which the jobs of a sweep differ."""

from hypothesis import given
from hypothesis import strategies as st

from vae_pyro.reporting.naming import in_words, job_name, sweep_name

KEYS = ("latent_dim", "seed", "likelihood", "guide", "network.hidden", "training.epochs", "+my.own")
VALUES = st.text("abc123[],.-", min_size=1, max_size=20)
SETTINGS = st.dictionaries(st.sampled_from(KEYS), VALUES)


@given(SETTINGS, SETTINGS)
def test_a_name_fits_the_table(settings: dict[str, str], of_sweep: dict[str, str]) -> None:
    assert 1 <= len(job_name(settings, of_sweep)) <= 60
    assert len(sweep_name(of_sweep)) <= 60


def test_a_longer_name_may_be_asked_for() -> None:
    settings = {f"network.k{number}": "1,2" for number in range(20)}
    for name in (job_name, sweep_name):
        assert len(name(settings)) == 60
        assert name(settings, longest=1000).endswith(in_words(settings))


@given(SETTINGS)
def test_every_value_is_in_the_words(settings: dict[str, str]) -> None:
    words = in_words(settings)
    assert all(value in words for value in settings.values())


def test_what_all_jobs_share_is_left_out() -> None:
    of_sweep = {"latent_dim": "2,10", "training.learning_rate": "1e-3", "likelihood": "beta,normal"}
    job = {"latent_dim": "10", "training.learning_rate": "0.001", "likelihood": "beta"}
    assert job_name(job, of_sweep) == "d=10 beta"
    assert sweep_name(of_sweep) == "sweep d=2,10 beta,normal"


def test_a_list_is_one_value() -> None:
    assert sweep_name({"network.hidden": "[100,100]", "seed": "range(5)"}) == "sweep seed=range(5)"
    assert sweep_name({"network.hidden": "[100],[200]", "seed": "1"}) == "sweep hidden=[100],[200]"


def test_keys_with_one_last_word_are_told_apart() -> None:
    settings = {"network.width": "3", "guide.width": "4"}
    assert in_words(settings) == "network.width=3 guide.width=4"
