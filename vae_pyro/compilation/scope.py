"""When a program is compiled, and how long its graph is kept."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vae_pyro.compilation.graph import CompilationError, Outputs, Program, compile_program
from vae_pyro.compilation.precision import fast_arithmetic

Mode = Literal["auto"] | bool

logger = logging.getLogger(__name__)

# Repetitions that repay the seconds that compiling takes.
MIN_STEPS = 1_000  # of training
MIN_CALLS = 200  # of evaluating, one chunk each; and of training on a short last batch


@dataclass
class _Scope:
    mode: Mode
    repeats: int
    programs: dict[Any, Callable[..., Outputs] | None] = field(default_factory=dict)
    noted: set[str] = field(default_factory=set)


_scope: ContextVar[_Scope | None] = ContextVar("vae_pyro.compilation.scope", default=None)


@contextmanager
def accelerated(
    device: torch.device,
    mode: Mode = "auto",
    repeats: int = 1,
) -> Iterator[None]:
    """Evaluate faster within: matrix products as fast as float32 allows, programs compiled.

    Compiled graphs are kept until the outermost such scope is left, so a graph is released together
    with its VAE. Within, the VAE's weights may change, but not its parts.

    Args:
        device: where the work is done.
        mode: ``auto`` compiles what is repeated often enough to repay it; the mode of the outermost
            scope counts.
        repeats: how often the work within is repeated; those of nested scopes multiply.
    """
    keep_freed_memory()
    outer = _scope.get()
    scope = _Scope(mode, repeats)
    if outer is not None:
        scope = replace(outer, repeats=repeats * outer.repeats)
    token = _scope.set(scope)
    try:
        with fast_arithmetic(device):
            yield
    finally:
        _scope.reset(token)


def compiled(
    program: Program, module: nn.Module, inputs: Sequence[Tensor], *, key: object, calls: int
) -> Callable[..., Outputs]:
    """The program, compiled if the scope that it is called in compiles.

    Args:
        program: see ``compile_program``.
        module: likewise; anything that is not a module runs uncompiled.
        inputs: likewise.
        key: what the program depends on besides the module and its inputs.
        calls: how often it will be called; with the scope's ``repeats``, decides in mode ``auto``.

    Returns:
        inputs -> outputs, for inputs of the same shapes.
    """

    def eager(*inputs: Tensor) -> Outputs:
        return program(module, *inputs)

    scope = _scope.get()
    if scope is None or not isinstance(module, nn.Module) or not is_compiling(calls):
        return eager
    shapes = tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)
    whole_key = (module, key, shapes)  # of modules by identity, and kept as long as the graph
    if whole_key not in scope.programs:
        try:
            run = compile_program(program, module, inputs, key=key)
            scope.programs[whole_key] = _keeping(run)
        except CompilationError as error:
            scope.programs[whole_key] = None
            note = f"evaluated without compiling: {error}"
            if note not in scope.noted:
                scope.noted.add(note)
                logger.warning(note)
    return scope.programs[whole_key] or eager


def _keeping(run: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """With outputs of their own at each call."""
    return lambda *inputs: tuple(output.clone() for output in run(*inputs))


def is_compiling(calls: int) -> bool:
    """Whether ``compiled`` compiles a program in this scope that is called so often."""
    scope = _scope.get()
    return scope is not None and is_repaid(scope.mode, calls * scope.repeats, MIN_CALLS)


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MB for the next ones of their size.

    glibc gives a block back to the system if it is larger than the largest that was ever freed (up
    to 32 MB). The system then clears its pages anew for every chunk, which took half as long as the
    matrix products. So a block of nearly that size is freed once, untouched.
    """
    torch.empty(31 * 2**18)


def is_repaid(mode: Mode, repetitions: int, least: int) -> bool:
    """Whether so many repetitions repay the seconds of compiling."""
    return repetitions >= least if mode == "auto" else mode
