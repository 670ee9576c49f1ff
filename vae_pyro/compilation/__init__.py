"""A Pyro program -> one compiled graph.

Pyro's price is Python: handlers, traces and sites are interpreted anew at every step. Here a
program is run once under a tracer that sees through the handlers to the tensor operations below
them; the graph of those, gradients included, is compiled by Inductor and takes the program's place
for inputs of the same shapes. The program stays the readable one, and where it cannot be compiled,
it is run.
"""

from vae_pyro.compilation.graph import CompilationError, Outputs, compile_program, is_tracing
from vae_pyro.compilation.scope import (
    MIN_STEPS,
    Mode,
    accelerated,
    compiled,
    is_compiling,
    is_repaid,
    keep_freed_memory,
)

__all__ = [
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
