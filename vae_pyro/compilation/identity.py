"""What a compiled graph depends on, as one digest: module, inputs, code, machine."""

import hashlib
import json
import os
import platform
import site
import sys
import sysconfig
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_pyro.files import code_digest

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_OWN = __name__.partition(".")[0]
# Of a module, what does not change what it computes.
_BOOKKEEPING = ("_parameters", "_buffers", "_modules", "training", "_non_persistent_buffers_set")


class UnknownPartError(Exception):
    """Something whose effect on a graph cannot be told from its parts."""


def graph_digest(
    name: str, module: nn.Module, inputs: Sequence[Tensor], key: object, *, gradients: bool
) -> str:
    """SHA-256 of everything that the graph of a program depends on, in hexadecimal.

    Of weights only shapes and types count: a graph reads their numbers at each call.

    Args:
        name: of the program.
        module: whose weights it reads.
        inputs: examples, of which the shapes count.
        key: what it depends on besides.
        gradients: whether it differentiates.

    Raises:
        UnknownPartError: where a part has no description, as an object of a notebook's own class.
    """
    describe = _Description()
    parts = {
        "program": name,
        "module": describe(module),
        "inputs": [_layout(torch.empty_like(x)) for x in inputs],  # each call copies its own there
        "key": describe(key),
        "gradients": gradients,
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "default": str(torch.get_default_dtype()),
        "code": describe.code(),
        "machine": _machine(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class _Description:
    """Describes objects by their classes and parts, in JSON's types."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # a freed object's number would be given to another
        self._modules: set[str] = set()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if id(value) in self._numbers:
            return {"seen": self._numbers[id(value)]}
        self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)
        return self._composed(value)

    def code(self) -> Mapping[str, str]:
        """Digests of the modules that the described classes and functions come from."""
        found: dict[str, str] = {}
        waiting = sorted(self._modules)
        while waiting:
            name = waiting.pop()
            module = sys.modules.get(name)
            if name in found or module is None or name.partition(".")[0] == _OWN:
                continue
            file = getattr(module, "__file__", None)
            if file is None:
                if name in self._modules and name not in sys.builtin_module_names:
                    raise UnknownPartError(f"{name} has no file")
                continue
            if _is_installed(file):
                continue
            found[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
            for value in list(vars(module).values()):  # what it imports may compute, too
                imported = value.__name__ if isinstance(value, types.ModuleType) else None
                waiting.append(imported or str(getattr(value, "__module__", None)))
        return {_OWN: code_digest(), **found}

    def _composed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return [_layout(value), _digest(value)]
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, (list, tuple, Mapping, set, frozenset)):
            return self._collection(value)
        if callable(value) and not hasattr(type(value), "__dataclass_fields__"):
            return self._function(value)
        return self._object(value)

    def _collection(self, value: Any) -> Any:
        kind = type(value).__name__
        if isinstance(value, Mapping):
            return [kind, *([self(key), self(item)] for key, item in value.items())]
        if isinstance(value, (list, tuple)):
            return [kind, *(self(item) for item in value)]
        return [kind, *sorted(json.dumps(self(item)) for item in value)]

    def _function(self, value: Any) -> Any:
        if isinstance(value, partial):
            return ["partial", self(value.func), self(value.args), self(value.keywords)]
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return [self._of_code(value), self(cells), self(value.__defaults__ or ())]
        if isinstance(value, types.MethodType):
            return [self._of_code(value), self(value.__self__)]
        if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType)):
            return value.__qualname__
        return self._of_code(value) if isinstance(value, type) else self._object(value)

    def _object(self, value: Any) -> Any:
        cls: Any = type(value)
        kind = self._of_code(cls)
        if isinstance(value, Enum):
            return [kind, value.name]
        if is_dataclass(value):
            return [kind, self({f.name: getattr(value, f.name) for f in fields(value)})]
        if cls.__reduce__ is object.__reduce__ and hasattr(value, "__dict__"):
            return [kind, self(vars(value))]
        raise UnknownPartError(f"an object of class {kind}")

    def _module(self, module: nn.Module) -> Any:
        own = {name: v for name, v in vars(module).items() if name not in _BOOKKEEPING}
        tensors = {
            name: _layout(t) if t.is_floating_point() else [_layout(t), _digest(t)]
            for group in (module._parameters, module._buffers)
            for name, t in group.items()
            if t is not None
        }
        children = [[name, self(child)] for name, child in module._modules.items()]
        return [self._of_code(type(module)), module.training, tensors, children, self(own)]

    def _of_code(self, value: Any) -> str:
        self._modules.add(value.__module__)
        return f"{value.__module__}.{value.__qualname__}"


def _layout(tensor: Tensor) -> list[Any]:
    wants_gradient = tensor.requires_grad
    place = tensor.storage_offset()
    return [list(tensor.shape), list(tensor.stride()), place, str(tensor.dtype), wants_gradient]


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(content.numpy().data).hexdigest()


@cache
def _machine() -> Mapping[str, str]:
    """The processor and the libraries that the kernels were made for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return {
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags}",
        "torch": str(torch.__version__),
        "pyro": metadata.version("pyro-ppl"),
        "python": sys.version,
        "compiler": os.environ.get("CXX", ""),
    }


@cache
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"]}
    return tuple(sorted({*folders, *site.getsitepackages(), site.getusersitepackages()}))


def _is_installed(file: str) -> bool:
    """Whether a module is the standard library's, or an installed package's, of fixed version."""
    return file.startswith(_installed_folders())
