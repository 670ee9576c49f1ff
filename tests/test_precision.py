"""Which matrix products are allowed: measured, not assumed."""

import pytest
import torch

from vae_pyro.compilation import precision

CPU = torch.device("cpu")


def test_the_chosen_setting_is_float32() -> None:
    error = precision.matmul_error(precision.fastest_setting(CPU), CPU)
    assert 0 < error < 1e-6  # float32's unit roundoff is 6e-8; bfloat16's, 4e-3


def test_a_setting_that_rounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``medium`` does on processors with bfloat16 units, and ``high`` on GPUs."""
    errors = {"highest": 2.5e-7, "high": 3e-4, "medium": 2e-3}
    monkeypatch.setattr(precision, "matmul_error", lambda setting, _device: errors[setting])
    assert precision.fastest_setting.__wrapped__(CPU) == "highest"
    errors["high"] = 3e-7
    assert precision.fastest_setting.__wrapped__(CPU) == "high"


def test_the_measure_sees_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same measure of products whose factors are bfloat16."""
    product = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        narrow = a.dtype == torch.float32
        return product(a.bfloat16().float(), b.bfloat16().float()) if narrow else product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert precision.matmul_error.__wrapped__("highest", CPU) > 1e-3


def test_bfloat16_is_taken_where_it_is_asked_for() -> None:
    with precision.fast_arithmetic(CPU, "bfloat16"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() != "medium"


def test_the_users_setting_comes_back() -> None:
    before = torch.get_float32_matmul_precision()
    seen = []

    def fail() -> None:
        with precision.fast_arithmetic(CPU):
            seen.append(torch.get_float32_matmul_precision())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [precision.fastest_setting(CPU)]
    assert torch.get_float32_matmul_precision() == before


def test_tiny_numbers_are_zero_within_and_come_back() -> None:
    """Sums of them are what makes a step slow."""
    tiny = torch.tensor([2e-38])
    with precision.fast_arithmetic(CPU):
        assert (tiny * 0.1).item() == 0
        with precision.fast_arithmetic(CPU):
            pass
        assert (tiny * 0.1).item() == 0
    assert (tiny * 0.1).item() == pytest.approx(2e-39, rel=1e-5)
