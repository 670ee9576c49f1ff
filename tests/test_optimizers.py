"""Optimisers and schedules against PyTorch's own classes, and the average of the weights."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from vae_pyro.training import (
    SGD,
    Adam,
    AdamW,
    Burda,
    Constant,
    Cosine,
    MultiStep,
    Optimizer,
    Schedule,
)
from vae_pyro.training.updates import Updates

SHAPES = [(3, 2), (4,), (5, 1, 2)]


def new_weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (Adam(), torch.optim.Adam, {}),
        (
            Adam((0.5, 0.9), 1e-4, weight_decay=0.1),
            torch.optim.Adam,
            {"betas": (0.5, 0.9), "eps": 1e-4, "weight_decay": 0.1},
        ),
        (AdamW(), torch.optim.AdamW, {}),
        (
            AdamW((0.8, 0.95), 1e-3, weight_decay=0.3, max_grad_norm=0.7),
            torch.optim.AdamW,
            {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
        ),
        (SGD(), torch.optim.SGD, {}),
        (
            SGD(0.9, nesterov=True, weight_decay=0.2, max_grad_norm=1.3),
            torch.optim.SGD,
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2},
        ),
        (SGD(0.7), torch.optim.SGD, {"momentum": 0.7}),
    ],
    ids=str,
)
@pytest.mark.parametrize("restarts", [False, True])
def test_steps_are_those_of_pytorchs_class(
    ours: Optimizer, theirs: Callable[..., Any], options: dict[str, Any], restarts: bool
) -> None:
    """Bit for bit, with gradients in other memory layouts too, and from a restored state."""
    mine, reference = new_weights(), new_weights()
    updates = Updates(mine, ours)
    optimizer = theirs(reference, lr=1.0, fused=True, **options)
    generator = torch.Generator().manual_seed(1)
    for number in range(30):
        if restarts and number == 17:
            state = {name: tensor.clone() for name, tensor in updates.state().items()}
            updates = Updates(mine, ours)
            updates.restore(state)
        rate = 0.1 / (1 + number)
        gradients = [torch.randn(shape, generator=generator) for shape in SHAPES]
        if number % 3 == 0:
            gradients[0] = torch.randn(2, 3, generator=generator).T
        for weight, gradient in zip(reference, gradients, strict=True):
            weight.grad = gradient.clone(memory_format=torch.contiguous_format)
        if ours.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(reference, ours.max_grad_norm)
            assert norm > ours.max_grad_norm, "nothing is clipped"
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        updates.begin_step(rate, 1)
        updates.step(gradients)
    for weight, other in zip(mine, reference, strict=True):
        assert torch.equal(weight, other)


def test_pyros_sums_become_means() -> None:
    """SVI sums gradients over images; a step must not depend on how many there are."""
    alone, summed = new_weights(), new_weights()
    one, many = Updates(alone, SGD()), Updates(summed, SGD())
    gradients = [torch.randn(shape) for shape in SHAPES]
    for weight, gradient in zip(summed, gradients, strict=True):
        weight.grad = 8 * gradient
    one.begin_step(0.5, 1)
    many.begin_step(0.5, 8)
    one.step(gradients)
    many(set())
    for weight, other in zip(alone, summed, strict=True):
        assert torch.equal(weight, other)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Adam, {"betas": (0.9, 1.0)}, "betas: must be two numbers"),
        (Adam, {"eps": 0.0}, "eps: must be a positive number"),
        (Adam, {"weight_decay": -1.0}, "weight_decay: must be 0 or more"),
        (AdamW, {"max_grad_norm": 0.0}, "max_grad_norm: must be positive"),
        (SGD, {"momentum": 1.0}, "momentum: must be from 0"),
        (SGD, {"nesterov": True}, "nesterov: must be false where momentum is 0"),
        (Constant, {"warmup_epochs": -1.0}, "warmup_epochs: must be"),
        (MultiStep, {"milestones": (3.0, 2.0)}, "milestones: must be positive and increase"),
        (MultiStep, {"milestones": (0.0,)}, "milestones: must be positive"),
        (MultiStep, {"gamma": 0.0}, "gamma: must be"),
        (Cosine, {"final": 1.1}, "final: must be"),
        (Burda, {"stages": 1}, "stages: must be from 2"),
    ],
)
def test_impossible_numbers_are_named(
    kind: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def rates(schedule: Schedule, epochs: int, steps: int, fraction: float = 1.0) -> list[float]:
    """Of every step, as ``fit`` asks for them."""
    trained = max(1, round(fraction * epochs))
    return [
        schedule.learning_rate(
            0.1, epoch, step, steps=steps, epochs=epochs, length=epochs / trained
        )
        for epoch in range(trained)
        for step in range(steps)
    ]


def pytorchs(make: Callable[[Any], Any], number: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = make(optimizer)
    found = []
    for _ in range(number):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True).map(sorted),
    st.floats(0.1, 2.0),
    st.integers(1, 5),
)
@settings(max_examples=30, deadline=None)
def test_multi_step_is_pytorchs(milestones: list[int], gamma: float, steps: int) -> None:
    ours = rates(MultiStep(tuple(milestones), gamma), 32, steps)
    theirs = pytorchs(lambda o: lr_scheduler.MultiStepLR(o, milestones, gamma), 32)
    assert ours == pytest.approx([rate for rate in theirs for _ in range(steps)], rel=1e-9)


@given(st.integers(1, 40), st.integers(1, 5), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_cosine_is_pytorchs(epochs: int, steps: int, final: float) -> None:
    by_epoch = rates(Cosine(final, every="epoch"), epochs, steps)
    theirs = pytorchs(lambda o: lr_scheduler.CosineAnnealingLR(o, epochs, 0.1 * final), epochs)
    assert by_epoch == pytest.approx([r for r in theirs for _ in range(steps)], rel=1e-6, abs=1e-9)
    by_step = rates(Cosine(final), epochs, steps)
    number = epochs * steps
    theirs = pytorchs(lambda o: lr_scheduler.CosineAnnealingLR(o, number, 0.1 * final), number)
    assert by_step == pytest.approx(theirs, rel=1e-6, abs=1e-9)


@given(st.integers(1, 20), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_the_warm_up_is_pytorchs(warmup: int, steps: int) -> None:
    number = warmup * steps
    ours = rates(Constant(warmup_epochs=warmup), 25, steps)
    theirs = pytorchs(
        lambda o: lr_scheduler.LinearLR(o, 1 / number, 1.0, max(1, number - 1)), 25 * steps
    )
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_burdas_stages_are_those_of_the_paper() -> None:
    """Stage i: 3^i epochs with the rate 1e-4 round(10^(1 - i / 7), 1), 3,280 epochs in all."""
    expected = [1e-4 * round(10 ** (1 - i / 7), 1) for i in range(8) for _ in range(3**i)]
    assert len(expected) == 3280
    found = [
        Burda().learning_rate(1e-4, epoch, step, steps=2980, epochs=3280)
        for epoch in range(3280)
        for step in (0, 2979)
    ]
    assert found == pytest.approx([rate for rate in expected for _ in range(2)], rel=1e-12)


@given(
    st.sampled_from(
        [MultiStep((200.0, 350.0), 0.5), Cosine(0.1), Burda(), Constant(warmup_epochs=30.0)]
    ),
    st.floats(1e-4, 1),
)
@settings(max_examples=50, deadline=None)
def test_a_fraction_has_the_whole_schedule_at_its_pace(schedule: Schedule, fraction: float) -> None:
    """At each share of the training, the rate of the full schedule at the same share."""
    epochs, steps = 500, 7
    part = rates(schedule, epochs, steps, fraction)
    for number, rate in enumerate(part):
        share = number / len(part)
        exact = 0.1 * schedule.factor(share * epochs, epochs)
        if schedule.warmup_epochs:
            exact *= min(1.0, (number + 1) / len(part) * epochs / schedule.warmup_epochs)
        assert rate == pytest.approx(exact, rel=1e-6)


def test_a_rate_that_changes_by_epoch_is_one_rate_in_each() -> None:
    for schedule in (Cosine(every="epoch"), Constant(warmup_epochs=5, every="epoch")):
        found = rates(schedule, 6, 4)
        assert [len(set(found[4 * epoch : 4 * epoch + 4])) for epoch in range(6)] == [1] * 6
        assert len(set(found)) > 4


def test_the_average_is_pytorchs() -> None:
    module = torch.nn.Linear(4, 3)
    updates = Updates(module.parameters(), SGD(), ema_decay=0.9)

    def average(mean: Tensor, weight: Tensor, count: Tensor | int) -> Tensor:
        decay = min(0.9, (1 + int(count)) / (10 + int(count)))
        return decay * mean + (1 - decay) * weight

    reference = AveragedModel(module, avg_fn=average)
    reference.update_parameters(module)  # the first one is a copy
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        updates.begin_step(0.3, 1)
        updates.step([torch.randn(w.shape, generator=generator) for w in module.parameters()])
        reference.update_parameters(module)
    before = [weight.clone() for weight in module.parameters()]
    with updates.averaged():
        for weight, other in zip(module.parameters(), reference.module.parameters(), strict=True):
            torch.testing.assert_close(weight, other)
            assert not math.isclose(weight.norm().item(), before[0].norm().item())
    for weight, own in zip(module.parameters(), before, strict=True):
        assert torch.equal(weight, own)
