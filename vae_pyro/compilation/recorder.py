"""What a compiled graph does while it is called -> its tape."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from vae_pyro.compilation.tape import KINDS, Step, Tape, View

_ALLOCATING = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")


class NotRecordableError(Exception):
    """What is done cannot be put on a tape."""


class Recorder(TorchDispatchMode):
    """While it is active, kernels and operations are put on a tape.

    Args:
        inputs: of the graph, in order.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept: list[Tensor] = list(inputs)  # a freed one would make room for another
        self._numbers: dict[int, int] = {}
        self._num_inputs = len(inputs)
        self._sizes: list[int] = []
        self._steps: list[Step] = []
        for number, tensor in enumerate(inputs):
            if self._numbers.setdefault(_place(tensor), number) != number:
                raise NotRecordableError("two inputs share their memory")

    def kernel(self, number: int, arguments: Sequence[Any]) -> None:
        """Put a call of a kernel on the tape, instead of calling it.

        Its tensors other than inputs become zeros. They would keep the numbers of whatever used
        their memory before, of which operations refuse some: a normal's std below 0, for instance.
        """
        if not all(isinstance(argument, Tensor) for argument in arguments):
            raise NotRecordableError("a kernel takes an argument that is not a tensor")
        with _disable_current_modes():
            for tensor in arguments:
                if self._numbers.get(_place(tensor), self._num_inputs) >= self._num_inputs:
                    tensor.zero_()
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
        new = tuple(None if r is None or _place(r) in before else self._encoded(r) for r in results)
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
            offset = int(value.storage_offset())
            return View(number, tuple(value.shape), tuple(value.stride()), offset, dtype)
        if isinstance(value, (list, tuple)):
            return tuple(self._encoded(item) for item in value)
        if value is None or isinstance(value, (bool, int, float, str, *KINDS)):
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
    place: int = tensor.untyped_storage()._cdata
    return place


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, (list, tuple)) else []
