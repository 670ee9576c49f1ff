"""Arithmetic as fast as possible with the error of float32, or with that of bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]

_SETTINGS = ("medium", "high")  # fastest first
_GRANTED = 3.0  # times the error of the slowest setting, for another order of summation


@cache
def matmul_error(setting: str, device: torch.device) -> float:
    """||A B - C|| / ||C|| of a float32 product, C the same in float64.

    What a setting means depends on the processor: ``medium`` is float32 from another library on
    some, and bfloat16 on others. So it is measured, on a product of a decoder's size.

    Args:
        setting: of ``torch.set_float32_matmul_precision``.
        device: where the product is taken.
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 400, generator=generator)
    b = torch.randn(400, 784, generator=generator)
    exact = a.double() @ b.double()
    with _matmul_precision(setting):
        product = (a.to(device) @ b.to(device)).double().cpu()
    error: float = ((product - exact).norm() / exact.norm()).item()
    return error


@cache
def fastest_setting(device: torch.device) -> str:
    """The fastest setting whose error, measured here, is that of float32."""
    allowed = _GRANTED * matmul_error("highest", device)
    return next((s for s in _SETTINGS if matmul_error(s, device) <= allowed), "highest")


@contextmanager
def fast_arithmetic(device: torch.device, precision: Precision = "float32") -> Iterator[None]:
    """Take float32 matrix products by the fastest setting that keeps float32's error.

    With ``bfloat16``, their factors are rounded to its 8 bits where this processor is faster then;
    sums, and everything that is no matrix product, are float32.

    Numbers below 1.2e-38 count as zero: Adam's moments of a weight that is out of use shrink to
    such numbers, and processors then take three times as long for a step.
    """
    flushes = _flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        setting = fastest_setting(device) if precision == "float32" else "medium"
        with _matmul_precision(setting):
            yield
    finally:
        torch.set_flush_denormal(flushes)


def _flushes_denormals() -> bool:
    return (torch.tensor(2e-38) * 0.1).item() == 0.0


@contextmanager
def _matmul_precision(setting: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads; then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
