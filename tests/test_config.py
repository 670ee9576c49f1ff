"""The schema accepts what is meant, and refuses the rest by name."""

import inspect
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT, composed
from vae_pyro.config import build, flatten, parse_config, resolve
from vae_pyro.data import MNIST, ImageSource
from vae_pyro.errors import ConfigError
from vae_pyro.guide import DiagNormal, Guide
from vae_pyro.likelihoods import Likelihood
from vae_pyro.log_marginal import Estimator
from vae_pyro.networks import MLP, Network
from vae_pyro.objectives import Objective
from vae_pyro.saving import Blueprint
from vae_pyro.tracking import Tracker
from vae_pyro.training import Optimizer, Schedule

GROUPS = {
    "data": ImageSource,
    "network": Network,
    "objective": Objective,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "tracking": Tracker,
}
# Every name of the contract.
OPTIONS = {
    "data": {
        "digits",
        "mnist",
        "fashion_mnist",
        "kmnist",
        "omniglot",
        "omniglot_burda",
        "cifar10",
        "images",
        "numpy",
        "huggingface",
        "linear_gaussian",
    },
    "likelihood": {
        "bernoulli",
        "continuous_bernoulli",
        "normal",
        "normal_learned_scale",
        "normal_heteroscedastic",
        "beta",
        "categorical",
        "discretized_logistic_mixture",
    },
    "network": {"mlp", "mlp_he", "conv", "linear"},
    "guide": {"diag_normal", "full_rank_normal", "flow"},
    "objective": {"elbo", "elbo_analytic_kl", "elbo_warmup", "iwae", "dreg", "beta_elbo"},
    "optimizer": {"adam", "adamw", "sgd"},
    "schedule": {"constant", "multi_step", "cosine", "burda"},
    "evaluation": {"quick", "many_images", "full"},
    "recipe": {
        "burda2016_iwae",
        "burda2016_vae",
        "davidson2018",
        "rezende2015_vae",
        "tucker2019_dreg",
    },
    "tracking": {"mlflow", "none"},
}


VARIANTS: dict[str, dict[str, Any]] = {
    "mlp_he": {"initialisation": "he"},
    "elbo_warmup": {"beta": 1.0, "warmup_epochs": 100, "analytic_kl": True},
}
BASES = {**GROUPS, "likelihood": Likelihood, "guide": Guide}


def with_value(key: str, value: Any) -> dict[str, Any]:
    tree = json.loads(json.dumps(composed()))
    *groups, last = key.split(".")
    node = tree
    for group in groups:
        node = node[group]
    node[last] = value
    return tree


def test_every_option_of_every_group_is_valid() -> None:
    for path in sorted((ROOT / "conf").glob("*/*.yaml")):
        group, option = path.parent.name, path.stem
        tree = composed(f"{group}={option}")
        assert option in OPTIONS[group]
        config = parse_config(tree)
        if group in GROUPS:
            assert isinstance(build(tree[group], GROUPS[group], group), GROUPS[group])
        Blueprint(2, (1, 8, 8), 17, config.network, config.likelihood, config.guide).build()
    assert {
        group: {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} for group in OPTIONS
    } == OPTIONS
    assert resolve(composed()["guide"], Guide, "guide") == (DiagNormal, {})


@pytest.mark.parametrize(
    "group", ["likelihood", "network", "guide", "objective", "optimizer", "schedule", "data"]
)
def test_every_options_keys_are_all_its_class_takes(group: str) -> None:
    """A YAML spells out each option with the default of its class: one place to read them.

    A variant is named by what it changes.
    """
    for option in sorted(OPTIONS[group]):
        written = composed(f"{group}={option}")[group]
        cls: type = resolve(written, BASES[group], group)[0]
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.default is not parameter.empty and name != "root"
        }
        defaults |= VARIANTS.get(option, {})
        shown = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in written.items()
            if key not in ("_target_", "root")
        }
        assert shown.items() <= defaults.items(), option
        if group != "data":
            assert shown == defaults, option


@pytest.mark.parametrize("data", ["mnist", "fashion_mnist", "kmnist"])
def test_mnist_chooses_a_network_a_schedule_and_a_budget_unless_the_user_does(data: str) -> None:
    chosen = parse_config(composed(f"data={data}"))
    assert chosen.network["initialisation"] == "he"
    assert chosen.schedule["_target_"].endswith("Cosine")
    assert chosen.evaluation.num_samples == 200
    assert chosen.evaluation.num_evaluations == 5000
    users = ("network=conv", "schedule=constant", "evaluation=full", "training.epochs=3")
    users_own = parse_config(composed(f"data={data}", *users))
    assert users_own.network["_target_"].endswith("Conv")
    assert users_own.schedule["_target_"].endswith("Constant")
    assert users_own.evaluation.num_samples == 5000
    assert users_own.training.epochs == 3


def test_a_recipe_has_its_own_network_and_schedule_whatever_its_data_choose() -> None:
    for name, initialisation, schedule in (  # both of MNIST
        ("rezende2015_vae", "pytorch", "MultiStep"),
        ("davidson2018", "glorot", "Constant"),
    ):
        recipe = parse_config(composed(f"recipe={name}"))
        assert recipe.network["initialisation"] == initialisation
        assert recipe.schedule["_target_"].endswith(schedule)


def test_linear_gaussian_data_choose_what_fits_them_unless_the_user_does() -> None:
    chosen = composed("data=linear_gaussian")
    assert chosen["likelihood"]["_target_"].endswith("NormalLearnedScale")
    assert chosen["network"]["_target_"].endswith("Linear")
    users = composed("data=linear_gaussian", "likelihood=normal", "network=mlp")
    assert users["likelihood"]["_target_"].endswith("Normal")
    assert users["network"]["_target_"].endswith("MLP")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("latent_dim", 0, "latent_dim=0: input should be greater than or equal to 1"),
        ("latent_dim", "two", "latent_dim=two: input should be a valid integer"),
        ("latent_dim", 2.5, "latent_dim=2.5: input should be a valid integer"),
        ("latent_dim", True, "latent_dim=True: input should be a valid integer"),
        ("latent_dim", "", "latent_dim=: input should be a valid integer"),
        ("latent_dim", None, "latent_dim=None: input should be a valid integer"),
        ("latent_dims", 2, "latent_dims: no such key; did you mean latent_dim?"),
        ("training.epoch", 2, "training.epoch: no such key; did you mean training.epochs?"),
        ("training.learning_rate", -1, "training.learning_rate=-1: input should be greater than 0"),
        (
            "training.learning_rate",
            float("inf"),
            "training.learning_rate=inf: input should be a fin",
        ),
        ("training", 3, "training=3: input should be an object"),
        ("device", "tpu", "device=tpu: input should be 'auto', 'cpu' or 'cuda'"),
        (
            "training.compile",
            "maybe",
            "training.compile=maybe: input should be 'auto', True or False",
        ),
        ("evaluation.compile", None, "evaluation.compile=None: input should be 'auto', True or F"),
        ("latent_dim", 2**70, f"latent_dim={2**70}: input should be less than or equal to 1000000"),
        ("latent_dim", 1e9, "latent_dim=1000000000.0: input should be a valid integer"),
        ("training.epochs", 2**70, f"training.epochs={2**70}: input should be less than or"),
        ("training.batch_size", 2**70, f"training.batch_size={2**70}: input should be less than"),
        ("training.snapshots", 10**9, "training.snapshots=1000000000: input should be less than"),
        ("training.valid_samples", 10**9, "training.valid_samples=1000000000: input should be"),
        ("evaluation.num_samples", 2**70, f"evaluation.num_samples={2**70}: input should be less"),
        ("evaluation.iwae_samples", [2**70], f"evaluation.iwae_samples.0={2**70}: input should"),
        ("evaluation.dequantisations", 10**9, "evaluation.dequantisations=1000000000: input sh"),
        ("evaluation.simulated_images", 10**9, "evaluation.simulated_images=1000000000: input"),
        ("seed", -1, "seed=-1: input should be greater than or equal to 0"),
        ("evaluation.num_samples", 10, "evaluation.num_samples=10: input should be greater than"),
        ("evaluation.iwae_samples", [1, 9999], "evaluation.iwae_samples [9999] exceed num_samples"),
        ("evaluation.iwae_samples", [0], "evaluation.iwae_samples.0=0: input should be greater"),
        ("nonsense", {"a": 1}, "nonsense: no such key; --help lists them"),
    ],
)
def test_what_is_wrong_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(with_value(key, value))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("some", "data.size=some: input should be a valid integer, or input should be a valid arr"),
        ([4, 5, 6], "data.size=[4, 5, 6]: input should be a valid integer, or tuple should have"),
    ],
)
def test_a_value_of_several_types_is_one_problem(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(composed("data=images")["data"] | {"size": value}, ImageSource, "data")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    tree = with_value("latent_dim", 0) | {"seed": "x"}
    with pytest.raises(ConfigError) as caught:
        parse_config(tree)
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_key_is_named() -> None:
    tree = composed()
    del tree["seed"]
    with pytest.raises(ConfigError, match="seed: missing"):
        parse_config(tree)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_target_": "os.system", "command": "true"}, "'os.system' is not a Network"),
        ({"_target_": "vae_pyro.networks.Network"}, "is not a Network"),
        ({"_target_": "vae_pyro.guide.DiagNormal"}, "is not a Network"),
        ({"_target_": "no.such.module.Class"}, "is not a Network"),
        ({"_target_": "MLP"}, "is not a Network"),
        ({"_target_": 3}, "is not a Network"),
        ({}, "None is not a Network"),
        ({"_target_": "vae_pyro.networks.MLP", "width": 3}, "network.width: no such key"),
        ({"_target_": "vae_pyro.networks.MLP", "hiden": [3]}, "did you mean network.hidden?"),
        ({"_target_": "vae_pyro.networks.MLP", "hidden": "wide"}, "network.hidden=wide"),
        ({"_target_": "vae_pyro.networks.MLP", "hidden": [3, -1]}, "network.hidden: needs one"),
        ({"_target_": "vae_pyro.networks.MLP", "hidden": []}, "network.hidden: needs one or more"),
        ({"_target_": "vae_pyro.networks.MLP", "hidden": [2**70]}, "from 1 to 1,000,000,000, got"),
        ({"_target_": "vae_pyro.networks.MLP", "hidden": [1] * 1001}, "(at most 1,000)"),
        (
            {"_target_": "vae_pyro.networks.Conv", "channels": [2**70]},
            "network.channels: needs one",
        ),
        ({"_target_": "vae_pyro.networks.MLP", "output_bias": "mean"}, "network.output_bias=mean"),
        ({"_target_": "vae_pyro.networks.Conv", "hidden": [3]}, "network.hidden: no such key"),
        ({"_target_": "vae_pyro.networks.MLP", "activation": "step"}, "network.activation=step"),
    ],
)
def test_a_group_names_only_its_own_kind(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(options, Network, "network")
    assert message in str(caught.value)


def test_options_reach_the_class() -> None:
    options = {"_target_": "vae_pyro.networks.MLP", "hidden": [3, 4], "activation": "tanh"}
    assert build(options, Network, "network") == MLP((3, 4), "tanh")
    source = {"_target_": "vae_pyro.data.MNIST", "root": "/somewhere", "binarisation": "static"}
    assert build(source, ImageSource, "data") == MNIST("static", 0, "/somewhere")


def test_what_the_program_passes_is_not_an_option() -> None:
    options = {"_target_": "vae_pyro.guide.DiagNormal", "latent_dim": 3}
    with pytest.raises(ConfigError, match=r"guide\.latent_dim: no such key"):
        resolve(options, Guide, "guide")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [key for key in flatten(composed()) if "." not in key or key.startswith(("tr", "ev"))]


@pytest.mark.slow
@given(st.sampled_from([*KEYS, "training", "evaluation", "data", "surprise"]), json_values)
def test_any_value_anywhere_is_accepted_or_refused_in_words(key: str, value: Any) -> None:
    try:
        parse_config(with_value(key, value))
    except ConfigError as error:
        assert str(error)


@pytest.mark.slow
@given(st.sampled_from(list(GROUPS)), st.dictionaries(st.text(max_size=9), json_values, max_size=3))
def test_any_options_of_any_group_are_accepted_or_refused_in_words(
    group: str, options: dict[str, Any]
) -> None:
    target = composed()[group]["_target_"]
    try:
        build({"_target_": target, **options}, GROUPS[group], group)
    except ConfigError as error:
        assert str(error)


@given(
    st.recursive(
        st.integers(),
        lambda leaf: st.dictionaries(
            st.from_regex("[a-z]{1,3}", fullmatch=True), leaf, min_size=1, max_size=3
        ),
    ).filter(lambda tree: isinstance(tree, dict))
)
def test_flattening_keeps_every_leaf(tree: dict[str, Any]) -> None:
    def lookup(path: str) -> Any:
        node: Any = tree
        for step in path.split("."):
            node = node[step]
        return node

    def leaves(node: Any) -> int:
        return sum(map(leaves, node.values())) if isinstance(node, dict) else 1

    flat = flatten(tree)
    assert len(flat) == leaves(tree)
    assert all(lookup(path) == value for path, value in flat.items())


ESTIMATORS = {
    "guide": "log_px_guide",
    "defensive": "log_px_defensive",
    "prior": "log_px_prior",
    "ais": "log_px_ais",
    "upper": "log_px_upper",
    "quadrature": "log_px_quadrature",
    "exact": "log_px_exact",
    "local": "elbo_local",
}


def test_every_estimator_is_one_file_and_can_be_chosen_alone() -> None:
    files = {path.stem for path in (ROOT / "conf" / "evaluation" / "estimators").glob("*.yaml")}
    assert files == set(ESTIMATORS)
    for option, metric in ESTIMATORS.items():
        tree = composed(f"evaluation/estimators=[{option}]")
        (found,) = parse_config(tree).evaluation.estimators.items()
        name, options = found
        assert name == metric
        assert isinstance(build(options, Estimator, name), Estimator)
        # The YAML shows the class's own defaults, where it has them.
        cls, given = resolve(options, Estimator, name)
        assert given.keys() <= set(inspect.signature(cls).parameters)


def test_full_is_all_and_quick_none() -> None:
    full = parse_config(composed("evaluation=full")).evaluation
    assert set(full.estimators) == set(ESTIMATORS.values())
    assert parse_config(composed()).evaluation.estimators == {}
    two = parse_config(composed("evaluation=full", "evaluation/estimators=[ais,exact]")).evaluation
    assert set(two.estimators) == {"log_px_ais", "log_px_exact"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+evaluation.estimators.Mine={_target_: x}"], "Mine"),
        (["evaluation.simulated_images=1"], "simulated_images: one image has no spread"),
        (["evaluation.num_images=1"], r"evaluation\.num_images=1"),
    ],
)
def test_impossible_questions_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(composed(*overrides))
