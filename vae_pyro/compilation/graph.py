"""From a program to its graph: read from disk, or traced and compiled; then compared."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from vae_pyro.compilation import store
from vae_pyro.compilation.functions import ON_CPU
from vae_pyro.compilation.identity import UnknownPartError, graph_digest
from vae_pyro.compilation.precision import matmul_error
from vae_pyro.files import private_folder
from vae_pyro.randomness import RandomStream

Outputs = tuple[Tensor, ...]
Program = Callable[..., Outputs]
"""(module, *inputs) -> outputs: a function of a module's weights and of tensors."""

_TOLERANCE = 1e-4  # of the largest number; rounding in another order changes 1e-7 to 1e-5 of it
_tracing: ContextVar[bool] = ContextVar("vae_pyro.compilation.tracing", default=False)


class CompilationError(Exception):
    """The reason why a program cannot be compiled, in one line."""


def compile_program(
    program: Program,
    module: nn.Module,
    inputs: Sequence[Tensor],
    *,
    key: object = None,
    gradients: bool = False,
) -> Callable[..., Outputs]:
    """Trace a program once, compile the graph, and compare the two on equal noise.

    The graph takes the module's weights and real-valued buffers as they are at each call, draws its
    noise from the default generator as the program does, and holds for the shapes of ``inputs`` and
    for the module as it is built and configured now. On a CPU it is kept on disk, and read from
    there by the next process that needs the same one; it is compared then, too.

    Args:
        program: must not depend on the numbers in its tensors, as with an ``if`` on them. Checks
            that do are skipped (see ``is_tracing``), so the caller of the graph has to make them.
        module: whose weights it reads.
        inputs: examples.
        key: what the program depends on besides; without it, the graph is not kept on disk.
        gradients: whether the program differentiates by the module's weights.

    Returns:
        inputs -> outputs, without gradients of their own. The next call may overwrite them.

    Raises:
        CompilationError: in one line, where there is no compiler, the program cannot be traced, or
            the compiled graph gives other numbers.
    """
    bound = _Bound(module, program)
    # Integers (for example a flow's permutation) belong to how a module is built: constants.
    own = {
        name: tensor
        for name, tensor in (*bound.named_parameters(), *bound.named_buffers())
        if tensor.is_floating_point()
    }
    names, tensors = list(own), list(own.values())
    state = [tensor.detach() for tensor in tensors]

    def flat(*arguments: Tensor) -> Outputs:
        swapped = dict(zip(names, arguments, strict=False))
        outputs: Outputs = torch.func.functional_call(bound, swapped, arguments[len(names) :])
        return outputs

    def example(attempt: int = 0) -> list[Tensor]:
        return [
            s.requires_grad_(gradients and t.requires_grad)
            for s, t in zip(_moved(state, attempt), tensors, strict=True)
        ]

    device = inputs[0].device

    @cache
    def expected(attempt: int) -> Outputs:
        with _traceable(device), torch.set_grad_enabled(gradients):
            return _on_noise(attempt, lambda: flat(*example(attempt), *inputs), device)

    try:
        expected(0)  # what is wrong with the program itself is said first
        digest = _digest(program, module, inputs, key, gradients=gradients)
        if digest is not None and (stored := store.read(digest)) is not None:
            try:
                return _checked(stored, state, inputs, expected)
            except (CompilationError, OSError, AttributeError, TypeError, RuntimeError):
                store.forget(digest)
        with _traceable(device), torch.set_grad_enabled(gradients):
            graph = _trace(flat, (*example(), *inputs), ON_CPU if device.type == "cpu" else {})
        with _traceable(device), torch.no_grad():
            if device.type != "cpu":
                return _on_gpu(graph, state, inputs, expected)
            made = _made(graph, [*state, *inputs])
            run = _checked(made, state, inputs, expected)
        if digest is not None:
            store.write(digest, made)
    except CompilationError:
        raise
    except Exception as error:  # tracer and compiler raise many kinds of errors
        raise CompilationError(_in_one_line(error)) from error
    return run


def _digest(
    program: Program, module: nn.Module, inputs: Sequence[Tensor], key: object, *, gradients: bool
) -> str | None:
    """By which the graph is found on disk; None where it is not kept there."""
    if key is None or inputs[0].device.type != "cpu" or private_folder() is None:
        return None
    try:
        return graph_digest(program.__qualname__, module, inputs, key, gradients=gradients)
    except (UnknownPartError, ValueError, RecursionError):
        return None


def _made(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> store.StoredGraph:
    from vae_pyro.compilation.inductor import record

    constants = _constants_to_inputs(graph)
    tape, library = record(graph, [*inputs, *constants])
    return store.StoredGraph(tape, library.read_bytes(), constants)


def _constants_to_inputs(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Tensors that the graph holds become inputs, after the others; returns them."""
    constants: list[Tensor] = []
    last = next(node for node in reversed(graph.graph.nodes) if node.op == "placeholder")
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"constant_{len(constants)}")
            constants.append(getattr(graph, node.target).detach())
            last.meta = dict(node.meta)
            node.replace_all_uses_with(last)
            graph.graph.erase_node(node)
    graph.recompile()
    return constants


def _checked(
    stored: store.StoredGraph,
    state: Sequence[Tensor],
    inputs: Sequence[Tensor],
    expected: Callable[[int], Outputs],
) -> Callable[..., Outputs]:
    """The graph for these weights, compared with the program on copies of them.

    Raises:
        CompilationError: where it gives other numbers.
    """
    library = stored.load()
    constants = list(stored.constants)
    arguments = [*inputs, *constants]

    def found(attempt: int) -> Outputs:
        # Copies of the weights, because the program may change buffers.
        trial = stored.tape.player(library, [*_moved(state, attempt), *arguments], len(state))
        return _on_noise(attempt, lambda: trial(*arguments), inputs[0].device)

    with torch.no_grad():
        _require_equal(found, expected, inputs[0].device)
        play = stored.tape.player(library, [*state, *arguments], len(state))

    def run(*inputs: Tensor) -> Outputs:
        with torch.no_grad():
            return play(*inputs, *constants)

    return run


def _on_gpu(
    graph: torch.fx.GraphModule,
    state: Sequence[Tensor],
    inputs: Sequence[Tensor],
    expected: Callable[[int], Outputs],
) -> Callable[..., Outputs]:
    device = inputs[0].device
    options = {"fallback_random": True, "triton.cudagraphs": True}
    compiled = torch._inductor.compile(graph, [*state, *inputs], options=options)

    def found(attempt: int) -> Outputs:
        copies = _moved(state, attempt)
        return _on_noise(attempt, lambda: compiled(*copies, *inputs), device)

    _require_equal(found, expected, device)

    def run(*inputs: Tensor) -> Outputs:
        with torch.no_grad():
            torch.compiler.cudagraph_mark_step_begin()  # and the next call overwrites the outputs
            return tuple(output.clone() for output in compiled(*state, *inputs))

    return run


def _trace(
    program: Callable[..., Outputs], inputs: Sequence[Tensor], table: dict[Any, Any]
) -> torch.fx.GraphModule:
    """Trace by shapes alone, because a trace with numbers keeps every intermediate one in memory.

    If that fails, as when a program reads a tensor that is a constant, trace with numbers.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

    try:
        tracer = make_fx(program, table, tracing_mode="fake", _allow_non_fake_inputs=True)
        graph: torch.fx.GraphModule = tracer(*inputs)
    except Exception:  # it is reported if the other way fails too
        graph = make_fx(program, table)(*inputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


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
    """Without checks, which read numbers; parameter store and generators stay unchanged."""
    token = _tracing.set(True)
    try:
        with (
            pyro.validation_enabled(False),
            pyro.get_param_store().scope(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            _quiet(),
        ):
            yield
    finally:
        _tracing.reset(token)


def is_tracing() -> bool:
    """Whether a program is run for its graph, and must not look at the numbers in its tensors."""
    return _tracing.get()


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


def _moved(state: Sequence[Tensor], attempt: int) -> list[Tensor]:
    """Copies of the weights; a little larger from attempt to attempt."""
    return [tensor * (1 + attempt / 1000) if attempt else tensor.clone() for tensor in state]


def _on_noise(seed: int, call: Callable[[], Any], device: torch.device) -> Outputs:
    with RandomStream("comparison", seed, device).active():
        return tuple(output.detach().clone() for output in call())


def _require_equal(
    found: Callable[[int], Outputs], expected: Callable[[int], Outputs], device: torch.device
) -> None:
    """Compare the two at one or three places, given by a number.

    Where a ReLU's input is zero but for rounding, the two may lie on either side of its kink, and
    then have different gradients though both are right. That does not happen again at the next
    places; what is wrong with a graph does.

    Raises:
        CompilationError: where they differ.
    """
    rounding = matmul_error(torch.get_float32_matmul_precision(), device)
    tolerance = max(_TOLERANCE, 2 * rounding)  # for bfloat16, a number rounds up or down
    try:
        _compare(found(0), expected(0), tolerance)
    except CompilationError:
        for attempt in (1, 2):
            _compare(found(attempt), expected(attempt), tolerance)


def _compare(found: Outputs, expected: Outputs, tolerance: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        scale = theirs.abs().max() if theirs.numel() else theirs.sum()
        if not scale.isfinite() or not theirs.numel():
            continue  # nothing to compare with
        if not (mine - theirs).abs().max() <= tolerance * scale:
            raise CompilationError(
                f"the compiled program differs by {(mine - theirs).abs().max():g} in numbers of "
                f"up to {scale:g}"
            )


def _in_one_line(error: Exception) -> str:
    if "InvalidCxxCompiler" in f"{type(error).__name__} {error}":
        return "no C++ compiler was found (CXX names one)"
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first.strip()}"[:300]
