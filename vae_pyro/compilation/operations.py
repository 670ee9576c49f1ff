"""How many floating-point operations a computation takes."""

from typing import Any

from torch.overrides import TorchFunctionMode


class Operations(TorchFunctionMode):
    """Counts the floating-point operations of matrix products and convolutions.

    ``torch.utils.flop_counter`` agrees, and knows more functions (``torch.einsum``). But every mode
    below autograd imports PyTorch's compiler, which takes one or two seconds of a process.

    Attributes:
        total: multiplications and additions since this was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and count it."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "linear":
            self.total += 2 * args[0].numel() * args[1].shape[0]
        elif name in ("matmul", "mm", "bmm", "__matmul__"):
            self.total += 2 * args[0].numel() * args[1].shape[-1]
        elif name in ("conv1d", "conv2d", "conv3d"):
            self.total += 2 * args[1].numel() * (result.numel() // result.shape[1])
        elif name.startswith("conv_transpose"):
            self.total += 2 * args[1].numel() * (args[0].numel() // args[0].shape[1])
        return result
