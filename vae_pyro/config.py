"""The configuration's schema: unknown or wrong-typed keys are refused by name."""

import contextlib
import difflib
import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.dataclasses import dataclass

from vae_pyro.errors import ConfigError

T = TypeVar("T")
# The upper limits lie above every sensible value, and below what breaks a loop, an index or a disk.
Positive = Annotated[int, Field(ge=1, le=10**9)]
Options = Mapping[str, Any]

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """How the objective is maximised.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: of the optimiser, before the schedule.
        ema_decay: of an exponential moving average of the weights, per step; the average is then
            what is validated, kept and evaluated. None for the weights themselves.
        valid_samples: z's per validation image and epoch, for valid/elbo and its parts.
        keep: which weights are tested and saved: those of the ``last`` epoch, or of the ``best``
            by valid/elbo, once the objective no longer warms up.
        patience: with ``best``, training ends after so many epochs without a better valid/elbo.
        snapshots: how often pictures are drawn, the last epoch included; and once before.
        checkpoint_seconds: the longest time between two checkpoints, unless writing one takes
            so long that it is done less often.
        keep_checkpoints: whether those of a finished job are kept and uploaded; its weights are in
            ``model/`` in any case.
        precision: of the matrix products of a step; ``bfloat16`` rounds their factors to 8 bits
            where the processor is faster then.
        compile: whether steps are one compiled graph; ``auto`` where there are enough of them to
            repay the seconds it takes to make.
    """

    epochs: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    valid_samples: Annotated[int, Field(ge=2, le=1_000_000)]
    keep: Literal["best", "last"]
    patience: Positive
    snapshots: Annotated[int, Field(ge=1, le=10_000)]
    checkpoint_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    keep_checkpoints: bool
    precision: Literal["float32", "bfloat16"]
    compile: Literal["auto", True, False]


@dataclass(frozen=True, config=_STRICT)
class EvaluationConfig:
    """What is measured on the test set after training.

    Attributes:
        num_samples: z's of the guide per test image; at least 25, so that k-hat has a tail.
        num_evaluations: of the decoder per test image, for log p(x); None for (3 + 0.35
            latent_dim) ``num_samples``, at most 10 times as many.
        repeated_images: for the first so many test images, log p(x) is estimated a second time, to
            see whether both agree; 0 for none.
        iwae_samples: each K for which the IWAE-K bound is reported, none above ``num_samples``.
        dequantisations: x's drawn per test image where p(x | z) is a density of dequantised
            images; 2 or more, so that the spread between them is known.
        estimators: further estimators of log p(x), ``_target_`` and options, by the metric that
            they become.
        num_images: the further estimators are run on the first so many test images, and on all of
            them where that is cheap (``Estimator.budget_for_all``); None for all.
        simulated_images: how many images are simulated from the model, to try AIS on from below
            and above; 0 for none.
        latent: whether the information in the latent space is measured.
        inapplicable: whether an estimator that does not apply to the model is refused or skipped.
        compile: likewise whether evaluating is, validation on the way included.
    """

    num_samples: Annotated[int, Field(ge=25, le=10**9)]
    num_evaluations: Annotated[int, Field(ge=100, le=10**9)] | None
    repeated_images: Annotated[int, Field(ge=0, le=10**9)]
    iwae_samples: tuple[Positive, ...]
    dequantisations: Annotated[int, Field(ge=2, le=1_000)]
    estimators: Mapping[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Options]
    num_images: Annotated[int, Field(ge=2, le=10**9)] | None
    simulated_images: Annotated[int, Field(ge=0, le=1_000_000)]
    latent: bool
    inapplicable: Literal["refuse", "skip"]
    compile: Literal["auto", True, False]

    def __post_init__(self) -> None:
        if self.simulated_images == 1:
            raise ValueError("simulated_images: one image has no spread; ask for 0, or 2 or more")
        above = [k for k in self.iwae_samples if k > self.num_samples]
        if above:
            raise ValueError(
                f"iwae_samples {above} exceed num_samples={self.num_samples}: "
                "raise evaluation.num_samples or leave them out"
            )


@dataclass(frozen=True, config=_STRICT)
class RecipeConfig:
    """How much of a published schedule is trained.

    Attributes:
        fraction: the epochs, and the learning-rate schedule with them, are scaled by it.
    """

    fraction: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=_STRICT)
class Config:
    """One job, whole. The groups name a class by ``_target_`` and give its options."""

    latent_dim: Positive
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Literal["auto", "cpu", "cuda"]
    resume: bool
    name: Annotated[str, Field(min_length=1, max_length=200)] | None
    weights: str | None
    recipe: RecipeConfig
    training: TrainingConfig
    optimizer: Options
    schedule: Options
    data: Options
    network: Options
    likelihood: Options
    guide: Options
    objective: Options
    evaluation: EvaluationConfig
    tracking: Options


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Check a plain nested mapping against the schema.

    Raises:
        ConfigError: one line for every key that is unknown, missing, or of a wrong type or range.
    """
    return _validated(TypeAdapter(Config), tree, "", known=_keys_of(Config))


def resolve(options: Options, base: type[T], where: str) -> tuple[type[T], dict[str, Any]]:
    """The class that a group's ``_target_`` names, and its options, checked but not yet called.

    Only a subclass of ``base`` is accepted, so that a configuration read from a file can name
    nothing but a part of a VAE. Options are checked against the class's own signature.

    Args:
        options: ``{"_target_": "package.module.Class", **keyword arguments}``.
        base: what the class must be a kind of.
        where: the group's name, for messages.

    Raises:
        ConfigError: naming the key and what was expected.
    """
    target = options.get("_target_")
    try:
        cls = _locate(target) if isinstance(target, str) else None
        cause = ""
    except Exception as error:  # a user's own module may raise anything when it is imported
        cls, cause = None, f" ({type(error).__name__}: {error})"
    if cls is None or not _is_concrete(cls, base):
        raise ConfigError(
            f"{where}._target_: {target!r} is not a {base.__name__} that can be imported{cause}; "
            f"expected the dotted path of a {base.__module__}.{base.__name__} subclass"
        )
    arguments: dict[str, Any] = {
        name: (
            Any if parameter.annotation is parameter.empty else parameter.annotation,
            ... if parameter.default is parameter.empty else None,
        )
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in _given_by_code(base)
    }
    schema = create_model("Options", __config__=_STRICT, **arguments)
    given = {key: value for key, value in options.items() if key != "_target_"}
    checked = _validated(TypeAdapter(schema), given, where, known=list(arguments))
    found: type[T] = cls
    return found, {key: getattr(checked, key) for key in given}


def build(options: Options, base: type[T], where: str, **given: Any) -> T:
    """Construct what ``resolve`` found.

    Args:
        options: ``{"_target_": ..., **keyword arguments}``.
        base: what the class must be a kind of.
        where: the group's name, for messages.
        **given: what the program and not the user passes to the constructor.

    Raises:
        ConfigError: as ``resolve``, and where the class itself refuses a value.
    """
    cls, keywords = resolve(options, base, where)
    try:
        return cls(**given, **keywords)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_concrete(cls: Any, base: type) -> bool:
    if not inspect.isclass(cls) or cls is base or inspect.isabstract(cls):
        return False
    return issubclass(cls, base)


def _given_by_code(base: type) -> Iterable[str]:
    """Arguments that a base class's constructor takes are passed by the program, not by a user."""
    if "__init__" not in vars(base) or hasattr(base, "__dataclass_fields__"):
        return ()
    return inspect.signature(base).parameters


def _locate(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name, None)


def _keys_of(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of a dataclass schema."""
    keys: list[str] = []
    for field in fields(schema):
        keys.append(prefix + field.name)
        if is_dataclass(field.type) and isinstance(field.type, type):
            keys += _keys_of(field.type, f"{prefix}{field.name}.")
    return keys


def _validated(adapter: TypeAdapter[T], tree: Mapping[str, Any], where: str, known: list[str]) -> T:
    # Strict JSON is the right strictness: lists become tuples and 1 a float, but "1" no number.
    try:
        return adapter.validate_json(json.dumps(tree))
    except ValidationError as error:
        lines: dict[str, list[str]] = {}
        for problem in error.errors():
            subject, message = _explain(problem, tree, where, known)
            lines.setdefault(subject, []).append(message)
        text = (f"{subject}{', or '.join(messages)}" for subject, messages in lines.items())
        raise ConfigError("\n".join(text)) from error


def _explain(
    problem: Any, tree: Mapping[str, Any], where: str, known: list[str]
) -> tuple[str, str]:
    """One pydantic problem in one line: key, and what is wrong or what to try."""
    is_missing = problem["type"] in ("missing", "missing_argument")
    steps = problem["loc"] if is_missing else _keys_in(tree, problem["loc"])
    path = ".".join(str(step) for step in steps)
    key = ".".join(part for part in (where, path) if part)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        close = difflib.get_close_matches(path, known, n=1)
        prefix = f"{where}." if where else ""
        hint = f"did you mean {prefix}{close[0]}?" if close else "--help lists them"
        return f"{key}: ", f"no such key; {hint}"
    if is_missing:
        return f"{key}: ", "missing; give it a value"
    if problem["type"] == "value_error":
        return f"{key}.{problem['ctx']['error']}", ""
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{key}={problem['input']}: ", message


def _keys_in(tree: Any, steps: Iterable[str | int]) -> Iterable[str | int]:
    """The steps that lead somewhere: pydantic also names the type that a value was tried as."""
    for step in steps:
        with contextlib.suppress(LookupError, TypeError):
            tree = tree[step]
            yield step
