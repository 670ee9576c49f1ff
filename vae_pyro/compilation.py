"""A Pyro program -> one compiled graph.

Pyro's price is Python: handlers, traces and sites are interpreted anew at every step. Here a
program is run once under a tracer that sees through the handlers to the tensor operations below
them; the graph of those, gradients included, is compiled by Inductor and takes the program's place
for inputs of the same shapes. The program stays the readable one, and where it cannot be compiled,
it is run.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from vae_pyro.precision import fast_matmul

Outputs = tuple[Tensor, ...]
Program = Callable[..., Outputs]
"""(module, *inputs) -> outputs: a function of a module's weights and of tensors."""

Mode = Literal["auto"] | bool

# Repetitions that repay compiling; `python -m benchmarks compiling` measures both sides.
MIN_STEPS = 5_000  # of training
MIN_CALLS = 1_000  # of evaluating, one chunk each

_TOLERANCE = 1e-3  # of the largest number; what rounding makes of a graph's order is 1e-6 to 1e-5
_aten = torch.ops.aten


def log1p(x: Tensor) -> Tensor:
    """log(1 + x) to float accuracy from operations that Inductor vectorises on a CPU.

    With u = 1 + x rounded, log(u) x / (u - 1): the rounding of u cancels.

    Source: Kahan, as in Goldberg (1991), theorem 4.
    """
    u = 1 + x
    return torch.where(u == 1, x, torch.log(u) * (x / (u - 1)))


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, likewise: (u - 1) x / log(u) with u = exp(x).

    Source: Higham (2002), section 1.14.1.
    """
    u = torch.exp(x)
    away = torch.where((u == 1) | (u == 0) | u.isinf(), 0.5, u)  # keeps the unused branch finite
    middle = (away - 1) * (x / torch.log(away))
    return torch.where(u == 1, x, torch.where((u == 0) | u.isinf(), u - 1, middle))


def log1p_of_share(x: Tensor) -> Tensor:
    """log(1 + x) for x from 0 to 1, as of exp(-abs(y)), where softplus needs it.

    2 artanh(s) with s = x / (2 + x) <= 1/3, by the first seven terms of artanh's series: the next
    one is below 2e-8 of the sum. Faster than a logarithm; of wider floats, the logarithm is taken.
    """
    if x.dtype != torch.float32:
        return log1p(x)
    s = x / (2 + x)
    square = s * s
    series = torch.full_like(square, 1 / 13)
    for n in (11, 9, 7, 5, 3, 1):
        series = series * square + 1 / n
    return 2 * s * series


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:  # noqa: ARG001
    """log(1 + exp(beta x)) / beta, with no threshold to need."""
    y = beta * x if beta != 1 else x
    value = y.clamp(min=0) + log1p_of_share(torch.exp(-y.abs()))
    return value / beta if beta != 1 else value


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    share = torch.exp(-x.abs())  # the second output is what PyTorch's gradient wants to be given
    return x.clamp(max=0) - log1p_of_share(share), share


def _cross_entropy(
    logits: Tensor,
    x: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Any:
    if weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    return softplus(logits) - x * logits


def _affine(bias: Tensor, x: Tensor, weight: Tensor, beta: float = 1, alpha: float = 1) -> Any:
    """The sum falls to the kernel that takes the activation, where it costs no pass of its own."""
    return torch.mm(x, weight) + bias if beta == alpha == 1 else NotImplemented


# Inductor's C++ computes softplus and its like one number at a time, at five times the price.
_ON_CPU: dict[Any, Callable[..., Any]] = {
    _aten.log1p.default: log1p,
    _aten.expm1.default: expm1,
    _aten.softplus.default: softplus,
    _aten.log_sigmoid_forward.default: _log_sigmoid_forward,
    _aten.binary_cross_entropy_with_logits.default: _cross_entropy,
    _aten.addmm.default: _affine,
}


class CompilationError(Exception):
    """Why a program is run as it is."""


def compile_program(
    program: Program, module: nn.Module, inputs: Sequence[Tensor], *, gradients: bool = False
) -> Callable[..., Outputs]:
    """Trace a program once, compile the graph, and compare the two on equal noise.

    The graph takes the module's weights and buffers as they are at each call, draws its noise from
    the default generator as the program does, and holds for the shapes of ``inputs`` and for the
    module as it is built and configured now.

    Args:
        program: may not look at the numbers in its tensors, as an ``if`` on them would.
        module: whose weights it reads.
        inputs: examples.
        gradients: whether the program differentiates by the module's weights.

    Returns:
        inputs -> outputs, without gradients of their own.

    Raises:
        CompilationError: in one line, where there is no compiler, the program cannot be traced, or
            the compiled graph gives other numbers.
    """
    bound = _Bound(module, program)
    names = [name for name, _ in (*bound.named_parameters(), *bound.named_buffers())]
    tensors = [t for _, t in (*bound.named_parameters(), *bound.named_buffers())]
    state = [tensor.detach() for tensor in tensors]

    def flat(*arguments: Tensor) -> Outputs:
        own = dict(zip(names, arguments, strict=False))
        outputs: Outputs = torch.func.functional_call(bound, own, arguments[len(names) :])
        return outputs

    device = inputs[0].device
    try:
        with _traceable(device), torch.set_grad_enabled(gradients):
            example = [
                s.clone().requires_grad_(gradients and t.requires_grad)
                for s, t in zip(state, tensors, strict=True)
            ]
            table = _ON_CPU if device.type == "cpu" else {}
            graph = make_fx(flat, decomposition_table=table)(*example, *inputs)
            expected = _on_equal_noise(lambda: flat(*example, *inputs))
        graph.graph.eliminate_dead_code()
        graph.recompile()
        options: dict[str, Any] = {"fallback_random": True}
        if device.type == "cpu":
            options["pattern_matcher"] = False  # it would undo _affine
        else:
            options["triton.cudagraphs"] = True
        with _traceable(device), torch.no_grad():
            compiled = torch._inductor.compile(graph, [*state, *inputs], options=options)
            found = _on_equal_noise(lambda: compiled(*state, *inputs))
    except Exception as error:  # whatever tracer and compiler raise at a program they do not take
        raise CompilationError(_in_one_line(error)) from error
    _compare(found, expected)

    def run(*inputs: Tensor) -> Outputs:
        with torch.no_grad():
            return tuple(compiled(*state, *inputs))

    return run


class _Bound(nn.Module):
    """A program with its module, as one module."""

    def __init__(self, module: nn.Module, program: Program) -> None:
        super().__init__()
        self.module = module
        self._program = program

    def forward(self, *inputs: Tensor) -> Outputs:
        return self._program(self.module, *inputs)


@contextmanager
def _traceable(device: torch.device) -> Iterator[None]:
    """Without Pyro's checks, which look at numbers; leaving no trace in stores and generators."""
    devices = [device] if device.type == "cuda" else []
    with (
        pyro.validation_enabled(False),
        pyro.get_param_store().scope(),
        torch.random.fork_rng(devices),
        _quiet(),
    ):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without words on weights that need no gradient, or on a GPU that is not there."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _on_equal_noise(call: Callable[[], Any]) -> Outputs:
    torch.manual_seed(0)
    return tuple(output.detach().clone() for output in call())


def _compare(found: Outputs, expected: Outputs) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        scale = theirs.abs().max()
        if not (mine - theirs).abs().max() <= _TOLERANCE * scale and scale.isfinite():
            raise CompilationError(
                f"the compiled program differs by {(mine - theirs).abs().max():g} in numbers of "
                f"up to {scale:g}"
            )


def _in_one_line(error: Exception) -> str:
    if "InvalidCxxCompiler" in f"{type(error).__name__} {error}":
        return "no C++ compiler was found (CXX names one)"
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first.strip()}"[:300]


@dataclass
class _Scope:
    mode: Mode
    repeats: int
    tell: Callable[[str], None]
    programs: dict[Any, Callable[..., Outputs] | None] = field(default_factory=dict)


_scope: ContextVar[_Scope | None] = ContextVar("vae_pyro.compilation.scope", default=None)


@contextmanager
def accelerated(
    device: torch.device,
    mode: Mode = "auto",
    repeats: int = 1,
    tell: Callable[[str], None] = lambda _note: None,
) -> Iterator[None]:
    """Evaluate fast within: matrix products as fast as float32 allows, programs compiled.

    What is compiled is kept until the outermost such scope is left, so no graph outlives what it
    was made of. Within, the VAE's weights may change, but not its parts.

    Args:
        device: where the work is done.
        mode: ``auto`` compiles what is repeated often enough to repay it; the outermost scope's
            holds.
        repeats: how often what is announced within will be done; those of nested scopes multiply.
        tell: called with one line, where something cannot be compiled; the outermost scope's.
    """
    keep_freed_memory()
    outer = _scope.get()
    scope = _Scope(mode, repeats, tell)
    if outer is not None:
        scope = replace(outer, repeats=repeats * outer.repeats)
    token = _scope.set(scope)
    try:
        with fast_matmul(device):
            yield
    finally:
        _scope.reset(token)


def compiled(
    program: Program, module: nn.Module, inputs: Sequence[Tensor], *, key: object, calls: int
) -> Callable[..., Outputs]:
    """The program, compiled where the scope that it is called in asks for it.

    Args:
        program: see ``compile_program``.
        module: likewise; whatever else stands in for a module is not compiled.
        inputs: likewise.
        key: what the program depends on besides the module and its inputs.
        calls: how often it will be called; with the scope's ``repeats``, decides in mode ``auto``.

    Returns:
        inputs -> outputs, for inputs of the same shapes.
    """

    def eager(*inputs: Tensor) -> Outputs:
        return program(module, *inputs)

    scope = _scope.get()
    if scope is None or not isinstance(module, nn.Module):
        return eager
    if not is_repaid(scope.mode, calls * scope.repeats, MIN_CALLS):
        return eager
    shapes = tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)
    whole_key = (id(module), key, shapes)
    if whole_key not in scope.programs:
        try:
            scope.programs[whole_key] = compile_program(program, module, inputs)
        except CompilationError as error:
            scope.tell(f"evaluated without compiling: {error}")
            scope.programs[whole_key] = None
    return scope.programs[whole_key] or eager


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MB for the next ones of their size.

    glibc gives a block back to the system where it is larger than the largest that was ever freed,
    up to 32 MB; and the system then clears its pages anew for every chunk, which was seen to cost
    half as much as the matrix products. So a block of nearly that size is freed once, untouched.
    """
    torch.empty(31 * 2**18)


def is_repaid(mode: Mode, repetitions: int, least: int) -> bool:
    """Whether to compile what will be repeated so often."""
    return repetitions >= least if mode == "auto" else mode
