"""The public names of the room: complete, and their shapes annotated and checked."""

import enum
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch

from vae_pyro import log_marginal
from vae_pyro.log_marginal import Bound, ELBOBound, Estimate, IWAEBound

PACKAGE = "vae_pyro.log_marginal"


def mentioned(hint: Any) -> Iterator[type]:
    """The classes of the room that an annotation mentions."""
    if isinstance(hint, type) and hint.__module__.startswith(PACKAGE):
        yield hint
    for part in typing.get_args(hint):
        yield from mentioned(part) if not isinstance(part, list) else ()


def signatures(member: Any) -> Iterator[Callable[..., Any]]:
    if inspect.isfunction(member):
        yield member
    if not inspect.isclass(member):
        return
    for name, attribute in vars(member).items():
        if not name.startswith("_") or name in ("__init__", "__call__"):
            function = attribute.fget if isinstance(attribute, property) else attribute
            if isinstance(function, types.FunctionType):
                yield function


def test_what_public_signatures_mention_is_public() -> None:
    public = {name: getattr(log_marginal, name) for name in log_marginal.__all__}
    for name, member in public.items():
        if isinstance(member, type) and issubclass(member, enum.Enum):
            continue
        for function in signatures(member):
            for hint in typing.get_type_hints(function, vars(log_marginal) | NAMES).values():
                for kind in mentioned(hint):
                    assert kind.__name__ in public, f"{name} mentions {kind.__name__}"


NAMES = {"DataFrame": Any}


def test_two_classes_keep_their_earlier_names() -> None:
    """Existing scripts and configurations name them."""
    assert log_marginal.ELBO is ELBOBound
    assert log_marginal.IWAE is IWAEBound
    assert not {"ELBO", "IWAE"} & set(log_marginal.__all__)


def test_bounds_of_the_guide_are_told_from_log_px() -> None:
    estimators = [
        member
        for name in log_marginal.__all__
        if inspect.isclass(member := getattr(log_marginal, name))
        and issubclass(member, log_marginal.Estimator)
    ]
    assert len(estimators) > 8
    bounds = {estimator.__name__ for estimator in estimators if not estimator.targets_log_px}
    assert bounds == {"ELBOBound", "IWAEBound", "LocalELBO"}


def test_default_budgets() -> None:
    assert ELBOBound() == ELBOBound(num_samples=5000)
    assert IWAEBound() == IWAEBound(num_samples=5000, k=50)
    assert log_marginal.ImportanceSampling() == log_marginal.ImportanceSampling(5000)
    assert log_marginal.PriorSampling() == log_marginal.PriorSampling(5000)


def test_shapes_are_checked_while_the_tests_run() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        Estimate(torch.zeros(3), torch.zeros(2), Bound.LOWER)
    with pytest.raises(jaxtyping.TypeCheckError):
        log_marginal.log_weights(None, torch.zeros(3), 2)
