"""A compiled graph as a tape: its kernels and matrix products in order, on buffers of its own.

What Inductor compiles is called once, and what it does is recorded: which kernel or operation of
PyTorch, on which part of which buffer. The tape needs neither Inductor nor a trace to be played,
so it can be kept on disk; and it allocates nothing, so playing it is faster than the code that it
was recorded from.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_ALLOCATING = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")
_KINDS: dict[type, str] = {
    torch.dtype: "dtype",
    torch.device: "device",
    torch.layout: "layout",
    torch.memory_format: "memory_format",
}


class NotRecordableError(Exception):
    """What is done cannot be put on a tape."""


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
            "steps": [_encode(asdict_shallow(step)) for step in self.steps],
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
            return empty.set_(place, view.offset, view.size, view.stride)  # type: ignore[call-overload,no-any-return]

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


class Recorder(TorchDispatchMode):
    """While it is active, kernels and operations are put on a tape.

    Args:
        inputs: of the graph, in order.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._kept: list[Tensor] = list(inputs)  # a freed one would make room for another
        self._numbers: dict[int, int] = {}
        self._num_inputs = len(inputs)
        self._sizes: list[int] = []
        self._steps: list[Step] = []
        for number, tensor in enumerate(inputs):
            if self._numbers.setdefault(_place(tensor), number) != number:
                raise NotRecordableError("two inputs share their memory")

    def kernel(self, number: int, arguments: Sequence[Any]) -> None:
        """Put a call of a kernel on the tape, instead of calling it."""
        if not all(isinstance(argument, Tensor) for argument in arguments):
            raise NotRecordableError("a kernel takes an argument that is not a tensor")
        self._steps.append(Step(f"kernel_{number}", self._encoded(tuple(arguments)), {}))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the operation, and put it on the tape unless it only looks at a tensor anew."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        results = result if isinstance(result, (list, tuple)) else (result,)
        tensors = [r for r in results if isinstance(r, Tensor)]
        self._kept += tensors
        schema = func._schema
        packet = schema.name.partition("::")[2]
        if packet in _ALLOCATING:
            return result
        before = {_place(t) for t in _tensors((args, kwargs))}
        if tensors and not schema.is_mutable and all(_place(t) in before for t in tensors):
            return result  # another view of what is there
        if func.namespace != "aten":
            raise NotRecordableError(f"{func} is not an operation of PyTorch's own")
        if not all(isinstance(r, Tensor) or r is None for r in results):
            raise NotRecordableError(f"{func} returns something that is not a tensor")
        encoded = self._encoded(args), {k: self._encoded(v) for k, v in kwargs.items()}
        new = tuple(
            None if r is None or _place(r) in before else self._encoded(r) for r in results
        )
        self._steps.append(Step(f"{packet}.{func._overloadname}", *encoded, new))
        return result

    def tape(self, outputs: Sequence[Tensor]) -> Tape:
        """What was recorded, with buffers that take turns in the same memory."""
        views = tuple(self._encoded(output) for output in outputs)
        return _sharing_memory(
            Tape(self._num_inputs, tuple(self._sizes), tuple(self._steps), views)
        )

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.device.type != "cpu" or value.layout != torch.strided:
                raise NotRecordableError(f"a tensor of {value.device}, {value.layout}")
            self._kept.append(value)
            number = self._numbers.setdefault(_place(value), self._num_inputs + len(self._sizes))
            if number == self._num_inputs + len(self._sizes):
                self._sizes.append(value.untyped_storage().nbytes())
            dtype = str(value.dtype).removeprefix("torch.")
            offset = value.storage_offset()
            return View(number, tuple(value.shape), tuple(value.stride()), offset, dtype)
        if isinstance(value, (list, tuple)):
            return tuple(self._encoded(item) for item in value)
        if value is None or isinstance(value, (bool, int, float, str, *_KINDS)):
            return value
        raise NotRecordableError(f"an argument of type {type(value).__name__}")


def _sharing_memory(tape: Tape) -> Tape:
    """A buffer takes the place of one of about its size that is not used any more."""
    first = tape.num_inputs
    last_use = {v.buffer: len(tape.steps) for v in tape.outputs}
    for number, step in reversed(list(enumerate(tape.steps))):
        for view in step.views():
            last_use.setdefault(view.buffer, number)
    places: dict[int, int] = {number: number for number in range(first)}
    sizes: list[int] = []
    free: list[int] = []
    steps = []
    for number, step in enumerate(tape.steps):
        for view in step.views():
            if view.buffer in places:
                continue
            needed = tape.sizes[view.buffer - first]
            fitting = [f for f in free if needed <= sizes[f] <= 2 * needed]
            if fitting:
                place = min(fitting, key=lambda f: sizes[f])
                free.remove(place)
            else:
                place = len(sizes)
                sizes.append(needed)
            places[view.buffer] = first + place
        steps.append(_moved(step, places))
        for buffer in {v.buffer for v in step.views()}:
            if buffer >= first and last_use[buffer] == number:
                free.append(places[buffer] - first)
    outputs = []
    for view in tape.outputs:
        if view.buffer not in places:  # of no numbers
            places[view.buffer] = first + len(sizes)
            sizes.append(tape.sizes[view.buffer - first])
        outputs.append(replace(view, buffer=places[view.buffer]))
    return Tape(tape.num_inputs, tuple(sizes), tuple(steps), tuple(outputs))


def _moved(value: Any, places: Mapping[int, int]) -> Any:
    if isinstance(value, View):
        return replace(value, buffer=places[value.buffer])
    if isinstance(value, tuple):
        return tuple(_moved(item, places) for item in value)
    if isinstance(value, Step):
        kwargs = {name: _moved(item, places) for name, item in value.kwargs.items()}
        return Step(value.name, _moved(value.args, places), kwargs, _moved(value.results, places))
    return value


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, (list, tuple)) else []


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


def asdict_shallow(step: Step) -> dict[str, Any]:
    """A step's fields, by name."""
    return {name: getattr(step, name) for name in ("name", "args", "kwargs", "results")}


def _encode(value: Any) -> Any:
    if isinstance(value, View):
        return {"view": asdict(value)}
    for kind, name in _KINDS.items():
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
    if not isinstance(found, tuple(_KINDS)):
        raise ValueError(f"{content} is no {kind}")  # noqa: TRY004  # it comes from a file
    return found
