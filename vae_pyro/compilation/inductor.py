"""A traced graph -> a tape and the library of its kernels, by Inductor and a C++ compiler."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vae_pyro.compilation.recorder import NotRecordableError, Recorder
from vae_pyro.compilation.tape import Tape

_OPTIONS: dict[str, Any] = {
    "fallback_random": True,
    "pattern_matcher": False,  # it would undo functions._affine
    "fx_graph_cache": False,  # tapes have a store of their own
}


def record(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> tuple[Tape, Path]:
    """Compile a graph, and record what it does.

    Args:
        graph: whose only constants are its inputs.
        inputs: examples; not changed.

    Returns:
        its tape, and the file of its kernels: a shared library.

    Raises:
        NotRecordableError: where the graph does more than kernels and operations of PyTorch.
    """
    from torch._inductor.cpu_vec_isa import VecISA, supported_vec_isa_list, valid_vec_isa_list
    from torch._inductor.exc import CppCompileError

    known = [dict(vars(isa)) for isa in supported_vec_isa_list]
    try:  # without trying the compiler on a dozen small files first, which takes as many seconds
        with (
            torch._inductor.config.patch({"cpp.vec_isa_ok": True}),
            _replaced(VecISA, "check_build", lambda *_: True),
        ):
            return _recorded(graph, inputs)
    except CppCompileError:  # it may be older than the processor
        for cached in (valid_vec_isa_list, *(type(isa).__bool__ for isa in supported_vec_isa_list)):
            getattr(cached, "cache_clear", lambda: None)()
        for isa, before in zip(supported_vec_isa_list, known, strict=True):
            vars(isa).clear()
            vars(isa).update(before)
        return _recorded(graph, inputs)


def _recorded(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> tuple[Tape, Path]:
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import PyCodeCache

    kernels = _Kernels()
    copies: list[Any] = [tensor.clone() for tensor in inputs]
    recorder = Recorder(copies)
    try:  # Inductor hands its kernels over, instead of compiling each into a library of its own
        with _replaced(
            AsyncCompile, "cpp_pybinding", lambda _self, _types, text: kernels.add(text)
        ):
            compiled = torch._inductor.compile(graph, copies, options=_OPTIONS)
            kernels.recorder = recorder
            with recorder:
                outputs = compiled(*copies)
    finally:  # it would hand these kernels to the next graph of the same text
        PyCodeCache.cache_clear()
    if not all(isinstance(output, Tensor) for output in outputs):
        raise NotRecordableError("an output is not a tensor")
    return recorder.tape(outputs), kernels.compile()


class _Kernels:
    """The C++ kernels of one graph, in the order in which Inductor makes them."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self._sources: list[str] = []

    def add(self, source: str) -> "_Kernel":
        if source not in self._sources:
            self._sources.append(source)
        return _Kernel(self, self._sources.index(source))

    def compile(self) -> Path:
        """One library of all, by the C++ compiler with Inductor's flags."""
        text = ["#include <torch/csrc/inductor/cpp_prefix.h>"]  # precompiled
        for number, source in enumerate(self._sources):
            renamed, found = re.subn(r"\bvoid\s+kernel\(", f"void kernel_{number}(", source)
            if found != 1:
                raise NotRecordableError("a kernel has another form than expected")
            text.append(renamed)
        return Path(_library_cache().load("\n".join(text))._name)


@dataclass(frozen=True)
class _Kernel:
    owner: _Kernels
    number: int

    def __call__(self, *arguments: Any) -> None:
        if self.owner.recorder is None:
            raise NotRecordableError("a kernel is called outside of the recording")
        self.owner.recorder.kernel(self.number, arguments)


@contextmanager
def _replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _library_cache() -> Any:
    from torch._inductor.codecache import CppCodeCache, _get_cpp_prefix_header

    class Libraries(CppCodeCache):
        cpp_compile_command_flags: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
            "include_pytorch": False,
            "shared": True,
        }

        @classmethod
        def _get_uncompiled_header(cls, device: str) -> str | None:
            header: str | None = _get_cpp_prefix_header(device)
            return header

    return Libraries
