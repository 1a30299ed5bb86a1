"""The CPU as a stand-in for a GPU whose stream can be captured: a graph that records and defers.

As in a CUDA graph, what is asked of the device in a capture is written down and not done, and only
`replay` does it; what is asked of the host is done at once. The graph owns the memory that was made
in its capture. Of all other memory it knows the addresses only: a replay that reads what was freed
fails here, where on a GPU it would read whatever has taken its place.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from adaptiverl import devices
from adaptiverl.step import workspace

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}
"""What the host wants to know of a tensor; it would have to wait, which no capture can."""


class Freed(AssertionError):
    """A replay reads memory that nobody owns any more."""


class Reference:
    """A tensor by its address: nothing is kept alive."""

    def __init__(self, tensor: Tensor) -> None:
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.dtype = tensor.dtype
        self.place = tensor.storage_offset(), tensor.size(), tensor.stride()

    def follow(self, reader: str) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise Freed(f"{reader} reads a freed tensor, {self.dtype} of size {self.place[1]}")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.place)


class RecordedGraph:
    """What a capture recorded."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, list[Any], Any, Any]] = []
        self.pool: list[Tensor] = []

    def replay(self) -> None:
        """Do all of it, in order.

        Raises:
            Freed: Something that it reads is gone.
        """
        for call, leaves, shape, result in self.calls:
            name = str(call)
            found = [x.follow(name) if isinstance(x, Reference) else x for x in leaves]
            args, kwargs = tree_unflatten(found, shape)
            done = call(*args, **kwargs)
            if result is not None:
                result.copy_(done)


class _Capture(TorchDispatchMode):
    """Records into a graph what touches the device's memory."""

    def __init__(self, graph: RecordedGraph, device_memory: Iterable[Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.outside = {_storage(t) for t in device_memory}
        self.inside: set[int] = set()

    def __torch_dispatch__(
        self, call: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        here = [t for t in tensors if _storage(t) in self.outside | self.inside]
        if not here:
            done = call(*args, **kwargs)
            # A factory that is told the device makes the device's memory.
            return self._own(done) if "device" in kwargs else done
        if call in READS:
            raise RuntimeError(f"{call}: the host waits for the device, in a capture")
        if _is_view(call):
            return call(*args, **kwargs)
        if call._schema.is_mutable:
            self._record(call, args, kwargs, None)
            return args[0] if call._schema.returns else None
        # Done once for its shape; the numbers are nobody's before a replay.
        done = self._own(call(*args, **kwargs))
        self._record(call, args, kwargs, done)
        return _spoil(done)

    def _own(self, made: Tensor) -> Tensor:
        self.graph.pool.append(made)
        self.inside.add(_storage(made))
        return made

    def _record(self, call: Any, args: Any, kwargs: Any, result: Any) -> None:
        leaves, shape = tree_flatten((args, kwargs))
        refer = tree_map_only(Tensor, self._refer, leaves)
        self.graph.calls.append((call, refer, shape, result))

    def _refer(self, tensor: Tensor) -> Any:
        return tensor if _storage(tensor) in self.inside else Reference(tensor)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_view(call: Any) -> bool:
    aliases = [a.alias_info for a in call._schema.arguments if a.alias_info is not None]
    return bool(aliases) and not any(a.is_write for a in aliases)


def _spoil(tensor: Tensor) -> Tensor:
    return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)


class _Stream:
    """The one stream of the stand-in: which graph is being captured on it."""

    capturing: RecordedGraph | None = None

    def is_capturing(self, device: torch.device) -> bool:
        return self.capturing is not None

    def watch_capture(self, device: torch.device) -> Callable[[], bool]:
        graph = weakref.ref(self.capturing)  # type: ignore[arg-type]
        return lambda: graph() is None


STREAM = _Stream()


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """The CPU can be captured; from before the first step of what is going to be."""
    with contextlib.ExitStack() as stack:
        patch = mock.patch.object
        stack.enter_context(patch(workspace, "watch_capture", STREAM.watch_capture))
        for name, substitute in {
            "is_capturing": STREAM.is_capturing,
            "has_streams": lambda device: True,
            "outlive_stream": lambda tensor: None,
            "pinned": lambda host, device: host.clone(),
        }.items():
            stack.enter_context(patch(devices, name, substitute))
        yield


def device_memory(optimizer: Any, *more: Tensor) -> list[Tensor]:
    """What of an optimizer and its parameters would lie on a GPU."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = [value for p in params for value in optimizer.state[p].values()]
    controllers = optimizer._controllers
    own = [
        t
        for one in controllers
        for t in (one.state, one.numbers, one.inbox, one.ring.on(one.device))
    ]
    held = [t for piece in optimizer._round.workspace._pieces.values() for t in piece.tensors]
    grads = [p.grad for p in params if p.grad is not None]
    return [*params, *grads, *state, *own, *held, *more]


def capture(work: Callable[[], Any], optimizer: Any, *more: Tensor) -> RecordedGraph:
    """A graph of this work, not yet run.

    Args:
        work: Steps of the optimizer.
        optimizer: With a step behind it.
        more: Whatever else of the device's memory the work touches.
    """
    graph = RecordedGraph()
    gc.collect()
    memory = device_memory(optimizer, *more)
    with mock.patch.object(STREAM, "capturing", graph), _Capture(graph, memory):
        work()
    return graph
