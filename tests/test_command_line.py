"""Wrong command lines are refused in words, with the command that was meant; good ones pass."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vae_pyro.cli.command_line import check
from vae_pyro.cli.presets import Presets
from vae_pyro.errors import ConfigError


@pytest.fixture(autouse=True, scope="module")
def _presets() -> None:
    Plugins.instance().register(Presets)  # as the program does


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(arguments, "run.py")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--latent_dim 2", "latent_dim=2"),
        ("--latent-dim=2 seed=1", "latent_dim=2 seed=1"),
        ("latent_dim 2", "latent_dim=2"),
        ("latent_dim = 2", "latent_dim=2"),
        ("latent_dim= 2 -m", "latent_dim=2 -m"),
        ("latent_dim=2,10", "latent_dim=2,10 -m"),
        ("latent_dim=2, 10", "latent_dim=2,10 -m"),
        ("latent_dim=2, 10 , 20 seed=1 -m", "latent_dim=2,10,20 seed=1 -m"),
        ("latent_dim=2, -1", "latent_dim=2,-1 -m"),
        ("latent_dim=2, seed=1", "latent_dim=2 seed=1"),
        ("latent_dim=range(2,9)", "'latent_dim=range(2,9)' -m"),
        ("network.hidden=[500, 400]", "'network.hidden=[500,400]'"),
        ("--config-dir mine --epochs 3", "epochs=3 --config-dir mine"),
    ],
)
def test_slips_are_answered_with_the_command_that_was_meant(typed: str, meant: str) -> None:
    assert refusal(*typed.split()).endswith(f"; try: run.py {meant}")


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("latentdim=2", "there is no setting latentdim (did you mean latent_dim?)"),
        ("epochs=3", "there is no setting epochs (did you mean training.epochs?)"),
        ("training.epoch=3", "there is no setting training.epoch (did you mean training.epochs?)"),
        ("likelihod=beta", "there is no setting likelihod (did you mean likelihood?)"),
        ("data=mnist data.rot=a", "there is no setting data.rot (did you mean data.root?)"),
        ("zzzz=1", "there is no setting zzzz; run.py --help lists all"),
        ("likelihood=betta", "likelihood=betta: there is no such option (did you mean beta?)"),
        ("likelihood=beta,betta -m", "likelihood=betta: there is no such option"),
        (
            "guide=diag_normal,flow likelihood=normal,bernoulli likelihood.scale=1 -m",
            "there is no setting likelihood.scale with guide=diag_normal likelihood=bernoulli; run",
        ),
        ("evaluation/estimators=[ais,uper]", "evaluation/estimators=uper: there is no such option"),
        ("seed=1,2 --cfg job", "--cfg shows one job: give each setting one value"),
        ("seed=1 -c job --multirun", "--cfg shows one job: give each setting one value"),
        ("guide=null", "guide=None: there is no such option"),
        ("latent_dim", "a setting is written key=value"),
        ("latent_dim==2", "one = is enough (latent_dim=2)"),
        ("network.hidden=[500", "a ] is missing"),
        ("network.hidden=500]", "a [ is missing"),
        ("data.root='a", "a quotation mark is missing"),
        ("data.root=a:b{}c", "quotation marks"),
    ],
)
def test_what_is_wrong_is_named(typed: str, why: str) -> None:
    message = refusal(*typed.split())
    assert why in message
    assert "+" not in message  # Hydra's advice would add a setting that nothing reads


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "latent_dim=2,10,20 -m",
        "--multirun latent_dim=2,10 resume=true",
        "latent_dim=2,10 hydra.mode=MULTIRUN",
        "network.hidden=[500,400] +data.root=x",
        "likelihood=beta,categorical data=mnist -m",
        "evaluation/estimators=[ais,upper] evaluation.estimators.log_px_ais.num_chains=32",
        "evaluation/estimators=[]",
        "device= latent_dim= -m",
        "hydra/sweeper=optuna latent_dim=interval(2,20) -m",
        "hydra.run.dir=a/b hydra/launcher=joblib hydra.launcher.n_jobs=2",
        "--cfg job --resolve",
        "--help what ever",
        "--info",
        "--config-dir here likelihood=mine",
        "--config-dir here likelihood=mine likelihood.scale=1 guide=diag_normal,flow -m",
    ],
)
def test_good_command_lines_pass(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/likelihood").mkdir(parents=True)
    (tmp_path / "here/likelihood/mine.yaml").write_text("_target_: mine.Mine\nscale: ???\n")
    assert check(typed.split(), "run.py") == typed.split()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)))
def test_any_text_passes_or_is_refused_in_words(words: list[str]) -> None:
    try:
        check(words, "run.py")
    except ConfigError as error:
        assert str(error).strip()


@given(
    st.lists(
        st.sampled_from(
            ["latent_dim", "seed", "2", "10", "=", ",", "-m", "--", "[", "]", "'", " "]
        ),
        max_size=6,
    ).map(lambda parts: "".join(parts).split())
)
def test_pieces_of_commands_pass_or_are_refused(words: list[str]) -> None:
    try:
        check(words, "run.py")
    except ConfigError as error:
        assert str(error).strip()


def test_what_only_a_sweep_s_options_have_is_left_to_its_jobs() -> None:
    typed = "seed=1 recipe=burda2016_vae,rezende2015_vae data.split=9/1 hydra.sweep.dir=x -m"
    assert " ".join(check(typed.split(), "run.py")) == typed.replace("data.split", "++data.split")
    alone = typed.replace(",rezende2015_vae", "")
    assert " ".join(check(alone.split(), "run.py")) == alone


@pytest.mark.slow
def test_a_setting_that_only_a_sweep_s_options_have_reaches_its_jobs(
    run_py: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_py(
        "likelihood=normal_learned_scale,normal_heteroscedastic",
        "likelihood.min_scale=0.25",
        "training.epochs=1",
        "tracking=none",
        "evaluation.num_samples=30",
        "evaluation.num_evaluations=100",
        "evaluation.iwae_samples=[1]",
        "hydra.sweep.dir=sweep",
        "-m",
    )
    assert done.returncode == 0, done.stderr
    for job in ("0", "1"):
        config = OmegaConf.load(tmp_path / "sweep" / job / "config.yaml")
        assert config.likelihood.min_scale == 0.25


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        ["latentdim=2"],
        ["latent_dim=2, ", "10"],
        ["latent_dim=0"],
        ["+a.b=1"],
        ["data=digits,linear_gaussian", "data.classes=[0]", "-m"],
    ],
)
def test_a_command_that_is_refused_leaves_nothing(
    typed: list[str], run_py: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_py(*typed)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert not {path.name for path in tmp_path.iterdir()} - {".mlflow.db.lock"}
