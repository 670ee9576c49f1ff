"""A compiled graph as a tape: its kernels and matrix products in order, on buffers of its own.

What Inductor compiles is called once, and what it does is recorded: which kernel or operation of
PyTorch, on which part of which buffer. The tape needs neither Inductor nor a trace to be played,
so it can be kept on disk; and it allocates nothing, so playing it is faster than the code that it
was recorded from.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
KINDS: dict[type, str] = {
    torch.dtype: "dtype",
    torch.device: "device",
    torch.layout: "layout",
    torch.memory_format: "memory_format",
}
"""PyTorch's types that an operation may take as arguments, by the name on a tape."""


@dataclass(frozen=True)
class View:
    """A part of a buffer, as a tensor.

    Attributes:
        buffer: its number; the inputs of the graph come first.
        size: of the tensor.
        stride: in elements.
        offset: of the first element, in elements.
        dtype: the name of its type, as ``float32``.
    """

    buffer: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: str


@dataclass(frozen=True)
class Step:
    """One call of a kernel or of an operation of PyTorch.

    Attributes:
        name: ``kernel_3``, or an operation with its overload, ``mm.out``.
        args: in order; tensors are ``View``s.
        kwargs: by name.
        results: where new tensors that it returns are copied; None for a result that is not used.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[View | None, ...] = ()

    def views(self) -> list[View]:
        """The parts of buffers that it reads or writes."""
        found: list[View] = []

        def collect(value: Any) -> None:
            if isinstance(value, View):
                found.append(value)
            elif isinstance(value, (list, tuple)):
                for item in value:
                    collect(item)

        collect([*self.args, *self.kwargs.values(), *self.results])
        return found


@dataclass(frozen=True)
class Tape:
    """What a graph does, for inputs of the recorded shapes.

    Attributes:
        num_inputs: buffers 0 .. num_inputs - 1 are the graph's inputs, the weights among them.
        sizes: bytes of the buffers after the inputs.
        steps: in order.
        outputs: of the graph.
    """

    num_inputs: int
    sizes: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[View, ...]

    def as_json(self) -> dict[str, Any]:
        """The same, of JSON's types."""
        return {
            "num_inputs": self.num_inputs,
            "sizes": list(self.sizes),
            "steps": [_encode(_fields(step)) for step in self.steps],
            "outputs": [_encode(view) for view in self.outputs],
        }

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> "Tape":
        """What ``as_json`` returned.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: where it is something else.
        """
        steps = [_decode(step) for step in about["steps"]]
        return cls(
            int(about["num_inputs"]),
            tuple(int(size) for size in about["sizes"]),
            tuple(
                Step(s["name"], tuple(s["args"]), s["kwargs"], tuple(s["results"])) for s in steps
            ),
            tuple(_decode(view) for view in about["outputs"]),
        )

    def player(
        self, library: ctypes.CDLL, inputs: Sequence[Tensor], num_fixed: int
    ) -> Callable[..., tuple[Tensor, ...]]:
        """The tape, ready to be played.

        Args:
            library: holds the kernels.
            inputs: of the graph. The first ``num_fixed`` are read, and changed, where they are; of
                the others, each call brings its own.
            num_fixed: how many are the same at each call.

        Returns:
            inputs -> outputs, which the next call overwrites.

        Raises:
            AttributeError: where an operation or a kernel is not there.
        """
        varying = [torch.empty_like(tensor) for tensor in inputs[num_fixed:]]
        given = [*inputs[:num_fixed], *varying]
        own = [torch.empty(size, dtype=torch.uint8) for size in self.sizes]
        storages = [tensor.untyped_storage() for tensor in (*given, *own)]

        def tensor(view: View) -> Tensor:
            empty = torch.empty(0, dtype=getattr(torch, view.dtype))
            place = storages[view.buffer]
            return empty.set_(place, view.offset, view.size, view.stride)

        def value(item: Any) -> Any:
            if isinstance(item, View):
                return tensor(item)
            return [value(i) for i in item] if isinstance(item, (list, tuple)) else item

        def call(step: Step) -> Callable[[], Any]:
            if step.name.startswith("kernel_"):
                function = getattr(library, step.name)
                function.restype = None
                places = [tensor(view).data_ptr() for view in step.args]
                return partial(function, *[ctypes.c_void_p(place) for place in places])
            operation = _operation(step.name)
            kwargs = {name: value(item) for name, item in step.kwargs.items()}
            run = partial(operation, *[value(item) for item in step.args], **kwargs)
            targets = [None if view is None else tensor(view) for view in step.results]
            return partial(_copy_results, run, targets) if any(step.results) else run

        calls = [call(step) for step in self.steps]
        outputs = tuple(tensor(view) for view in self.outputs)

        def play(*inputs: Tensor) -> tuple[Tensor, ...]:
            for buffer, x in zip(varying, inputs, strict=True):
                buffer.copy_(x)
            for step in calls:
                step()
            return outputs

        play.kept = (storages, library)  # type: ignore[attr-defined]  # the kernels use addresses
        return play


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(_aten, packet), overload or "default")


def _copy_results(run: Callable[[], Any], targets: Sequence[Tensor | None]) -> None:
    results = run()
    for target, result in zip(
        targets, results if isinstance(results, (list, tuple)) else (results,), strict=True
    ):
        if target is not None:
            target.copy_(result)


def _fields(step: Step) -> dict[str, Any]:
    """A step's fields, by name."""
    return {name: getattr(step, name) for name in ("name", "args", "kwargs", "results")}


def _encode(value: Any) -> Any:
    if isinstance(value, View):
        return {"view": asdict(value)}
    for kind, name in KINDS.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"mapping": {key: _encode(item) for key, item in value.items()}}
    return [_encode(item) for item in value] if isinstance(value, (list, tuple)) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = value.items()
    if kind == "mapping":
        return {key: _decode(item) for key, item in content.items()}
    if kind == "view":
        size, stride = tuple(content["size"]), tuple(content["stride"])
        return View(content["buffer"], size, stride, content["offset"], content["dtype"])
    if kind == "device":
        return torch.device(content)
    found = getattr(torch, content)
    if not isinstance(found, tuple(KINDS)):
        raise ValueError(f"{content} is no {kind}")  # it comes from a file
    return found
