"""A Pyro program -> one compiled graph.

Pyro is slow because Python interprets handlers, traces and sites anew at every step. Here a program
is run once under a tracer that records the tensor operations below the handlers. Inductor compiles
their graph, gradients included, and the graph replaces the program for inputs of the same shapes.
The program stays readable, and if it cannot be compiled, it runs as it is.
"""

from vae_pyro.compilation.graph import CompilationError, Outputs, compile_program, is_tracing
from vae_pyro.compilation.scope import (
    MIN_CALLS,
    MIN_STEPS,
    Mode,
    accelerated,
    compiled,
    is_compiling,
    is_repaid,
    keep_freed_memory,
)

__all__ = [
    "MIN_CALLS",
    "MIN_STEPS",
    "CompilationError",
    "Mode",
    "Outputs",
    "accelerated",
    "compile_program",
    "compiled",
    "is_compiling",
    "is_repaid",
    "is_tracing",
    "keep_freed_memory",
]
