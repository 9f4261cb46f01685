"""Changes that `forward` makes to its own model: their detection, and the return to the state before.

Some models write in `forward`: a table of positions that grows with the longest input, a cache, a counter, running
statistics. A call then changes the model that is exported later. A copy of the model would need its memory twice, so
the attributes are copied without the tensors, and a tensor is copied at the moment when an operator writes into it.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_DICTS = (dict, OrderedDict, defaultdict, Counter)
_LISTS = (list, deque)
_PLAIN = (int, float, str, bytes, bool, type(None))
_FOREIGN = {*sys.stdlib_module_names, "torch", "numpy"}
_OBJECTS_MAX = 50_000


class ModuleState:
    """State of a model, which calls may change.

    Args:
        model: A module, a scripted module or an exported program.

    Attributes:
        written: The attributes that were written inside `restored` so far, by name, in order.
    """

    def __init__(self, model: torch.nn.Module | torch.export.ExportedProgram) -> None:
        self._model = model
        self.written: dict[str, None] = {}

    @contextmanager
    def restored(self, *, tensors: bool = True) -> Iterator[set[str]]:
        """Restore the state at the end. The set has the names of the written attributes then.

        Args:
            tensors: True to find writes into tensors as well. It needs a mode of torch's dispatcher, which must not
                be active during an export.
        """
        snapshot, written = _Snapshot(self._model), set[str]()
        try:
            if tensors:
                with snapshot.writes:
                    yield written
            else:
                yield written
        finally:
            written.update(snapshot.restore())
            self.written.update(dict.fromkeys(sorted(written)))


class _Snapshot:
    """Attributes and containers that a model reaches, and the storages of its tensors."""

    def __init__(self, model: torch.nn.Module | torch.export.ExportedProgram) -> None:
        self._containers: list[tuple[str, Any, Any]] = []
        self._scripted: list[tuple[str, torch.jit.ScriptModule, dict[str, Any]]] = []
        self._tensors: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self._seen: set[int] = set()
        if isinstance(model, torch.export.ExportedProgram):
            self._visit("", {**model.constants, **model.state_dict})
        else:
            self._visit("", model)
        self.writes = _Writes((name, tensor) for name, tensor, _ in self._tensors)

    def restore(self) -> Iterator[str]:
        """Restore everything, and yield the name of each attribute that had changed."""
        for name, container, former in self._containers:
            yield from _restored_container(name, container, former)
        for name, module, values in self._scripted:
            for attribute, value in values.items():
                if not _same(value, getattr(module, attribute)):
                    yield f"{name}{attribute}"
                    setattr(module, attribute, value)
        for name, tensor, former in self._tensors:
            if _storage(tensor) != _storage(former):
                yield name
                tensor.data = former
        yield from self.writes.restore()

    def _visit(self, name: str, value: Any) -> None:
        if id(value) in self._seen or len(self._seen) > _OBJECTS_MAX or isinstance(value, _PLAIN):
            return
        self._seen.add(id(value))
        if isinstance(value, torch.Tensor):
            with suppress(RuntimeError, NotImplementedError):  # a tensor without a storage, such as a fake one
                _storage(value)
                self._tensors.append((name, value, value.detach()))
        elif isinstance(value, torch.jit.ScriptModule):
            self._visit_scripted(name, value)
        elif type(value) in _DICTS:
            self._containers.append((name, value, dict(value)))
            for key, item in list(value.items()):
                # A module keeps its parameters, buffers and modules in dicts of these names.
                inner = key in ("_parameters", "_buffers", "_modules")
                self._visit(name if inner else f"{name}.{key}" if name else str(key), item)
        elif type(value) in _LISTS:
            self._containers.append((name, value, list(value)))
            self._visit_all(name, value)
        elif type(value) is set:
            self._containers.append((name, value, set(value)))
        elif isinstance(value, tuple):
            self._visit_all(name, value)
        elif isinstance(value, torch.nn.Module) or _is_own(value):
            self._visit(name, vars(value))

    def _visit_all(self, name: str, values: Iterable[Any]) -> None:
        for index, item in enumerate(values):
            self._visit(f"{name}.{index}", item)

    def _visit_scripted(self, name: str, model: torch.jit.ScriptModule) -> None:
        for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._visit(tensor_name, tensor)
        for prefix, module in model.named_modules():
            with suppress(RuntimeError, AttributeError):  # a module without `forward` has no graph
                nodes = module.graph.findAllNodes("prim::SetAttr")
                values = {node.s("name"): getattr(module, node.s("name")) for node in nodes}
                self._scripted.append((f"{prefix}." if prefix else name, module, values))


class _Writes(TorchDispatchMode):
    """Copies of storages, each made before the first operator that writes into it."""

    # Without it, torch refuses torch.cond and its kin.
    supports_higher_order_operators = True

    def __init__(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._named: dict[int, tuple[str, torch.UntypedStorage]] = {}
        for name, tensor in named:
            self._named.setdefault(_storage(tensor), (name, tensor.untyped_storage()))
        self._copies: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Copy the written storages and run the operator."""
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            # torch.cond and its kin have no schema, and their branches may not write.
            return func(*args, **kwargs)
        # The schemas of some batch norms do not mark the running statistics as written.
        unmarked = "batch_norm" in func._schema.name
        if func._schema.is_mutable or unmarked:
            for position, argument in enumerate(func._schema.arguments):
                if unmarked or (argument.alias_info is not None and argument.alias_info.is_write):
                    self._copy(args[position] if position < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def _copy(self, value: Any) -> None:
        for tensor in pytree.tree_leaves(value):
            if isinstance(tensor, torch.Tensor):
                with suppress(RuntimeError, NotImplementedError):
                    storage = _storage(tensor)
                    if storage in self._named and storage not in self._copies:
                        self._copies[storage] = self._named[storage][1].clone()

    def restore(self) -> Iterator[str]:
        """Restore every storage with other bytes than before, and yield the name of its tensor."""
        for key, former in self._copies.items():
            name, storage = self._named[key]
            if not torch.equal(_bytes(storage), _bytes(former)):
                yield name
                storage.copy_(former)
        self._copies.clear()


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _is_own(value: Any) -> bool:
    """Return True for an object of a class of the model's own code or of another package than torch."""
    cls = type(value)
    return hasattr(value, "__dict__") and not callable(value) and cls.__module__.partition(".")[0] not in _FOREIGN


def _restored_container(name: str, container: Any, former: Any) -> Iterator[str]:
    if isinstance(container, dict):
        names = dict.fromkeys([*former, *container])
        changed = [key for key in names if key not in former or key not in container]
        changed += [
            key for key in names if key in former and key in container and not _same(former[key], container[key])
        ]
        if changed:
            yield from (f"{name}.{key}" if name else str(key) for key in changed)
            container.clear()
            container.update(former)
    elif len(container) != len(former) or (
        container != former
        if isinstance(container, set)
        else not all(_same(*pair) for pair in zip(container, former, strict=True))
    ):
        yield name
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(former)


def _same(former: Any, value: Any) -> bool:
    return former is value or (type(former) is type(value) and isinstance(value, _PLAIN) and former == value)
