"""Tensors that say they are on `cuda:0`, are computed on the CPU, and raise where CUDA would.

torch allows Python to bring a device of its own (`privateuseone`). Here that device answers `cuda` to whoever asks a
tensor in Python, so that the project and DeepSpeed take the paths that they take on a GPU. `emulated()` is the context
in which such tensors can be made.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.gpu_emulated import streams
from tests.gpu_emulated.counts import counts, project_lines

backend_registration._setup_privateuseone_for_python_backend(rename="emulated")
DEVICE = torch.device("cuda", 0)
_REAL = torch.device("emulated", 0)

NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "set_",
    "resize_", "_fused_sdp_choice",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
ASKING = {
    "nonzero": 1, "masked_select": 1, "_unique2": 1, "unique_dim": 1, "unique_consecutive": 1, "equal": 1,
    "bincount": 2,
}  # fmt: skip
"""Operations whose result has a size, or is a value, that the host must ask the device for, and how often."""


class RefusedError(RuntimeError):
    """CUDA or NCCL would refuse this."""


refusals: list[str] = []
"""What was refused in this process, and the lines of the project that led there; a refusal may have been caught."""


def refused(text: str) -> RefusedError:
    """Note a refusal, say it at once, and return the error to raise."""
    refusals.append("\n    ".join([text, *project_lines()]))
    print(f"a GPU would refuse: {refusals[-1]}", file=sys.stderr, flush=True)
    return RefusedError(text)


class EmulatedTensor(torch.Tensor):
    """A tensor on the emulated device; `held` is the CPU tensor that has its values."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cuda = True

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "EmulatedTensor":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=_REAL, **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(op, args, kwargs or {})

    device = property(lambda self: DEVICE)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        if not isinstance(value, EmulatedTensor):
            raise refused(".data of a CUDA tensor set to a CPU tensor")
        torch.Tensor.data.__set__(self, value)
        self.held = value.held

    def tolist(self):
        counts.add("synchronisations")
        return self.held.tolist()

    def numpy(self, *args, **kwargs):
        raise refused("can't convert a CUDA tensor to numpy")

    def data_ptr(self):
        return self.held.data_ptr()

    def record_stream(self, stream):
        pass

    def type(self, *args, **kwargs):
        if args or kwargs:
            return super().type(*args, **kwargs)
        return self.held.type().replace("torch.", "torch.cuda.")

    def __repr__(self):
        return f"EmulatedTensor({self.held!r})"


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(op, args, kwargs or {})


class _Devices(TorchFunctionMode):
    """Gives torch its own name of the device wherever someone says `cuda`."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is not torch.device and getattr(function, "__name__", "") != "__get__":
            args = tuple(_translated(x) for x in args)
            kwargs = {name: _translated(x) for name, x in kwargs.items()}
        return function(*args, **kwargs)


def _translated(x: Any) -> Any:
    says_cuda = isinstance(x, torch.device) and x.type == "cuda" or isinstance(x, str) and x.startswith("cuda")
    return _REAL if says_cuda else x


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Let tensors be made on the device, in this thread."""
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor() then copies to the device where it can be seen
    with _Devices(), _Dispatch(), torch.autograd.set_multithreading_enabled(False):
        yield


def held(x: Any) -> Any:
    """Return the CPU tensor behind a tensor of the device, and anything else as it is."""
    return x.held if isinstance(x, EmulatedTensor) else x


def _on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "emulated")


def _run(op: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do one operation as the device would: refuse, count, compute."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, EmulatedTensor)]
    if not tensors and not _on_device(kwargs.get("device")):
        if kwargs.get("pin_memory"):
            return lock_pages(op(*args, **kwargs | {"pin_memory": False}))
        return op(*args, **kwargs)
    name = op._schema.name.split("::")[-1]
    if name == "_to_copy" and (not tensors or kwargs.get("device", _REAL).type == "cpu"):
        return _between(op, args[0], kwargs)
    if name == "copy_" and isinstance(args[0], EmulatedTensor) != isinstance(args[1], EmulatedTensor):
        loose = (len(args) > 2 and args[2]) or kwargs.get("non_blocking", False)
        loose = _count_copy(loose and is_page_locked(args[isinstance(args[0], EmulatedTensor)]))
        copy = functools.partial(op, held(args[0]), held(args[1]))
        if loose and isinstance(args[1], EmulatedTensor):
            streams.copy_to_host(copy)
        else:
            copy()
        return args[0]
    if name == "_local_scalar_dense":  # .item(), int(), float(), bool(), if
        counts.add("synchronisations")
        return op(held(args[0]))
    _refuse_mixtures(op, name, args, kwargs)
    counts.add("synchronisations", _questions(op, name, args, kwargs))
    result = _compute(op, name, args, kwargs)
    outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
    if not op.is_view and name not in NO_KERNEL and (not outputs or any(x.numel() for x in outputs)):
        counts.add("launches")
    known = {id(x.held): x for x in tensors} if op._schema.is_mutable else {}  # in place: the argument comes back

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else EmulatedTensor(x)

    return tree_map(wrapped, result)


def _compute(op: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    if name == "_fused_sdp_choice":
        return 0  # attention written out: CUDA's fused kernels have other operations than the CPU's
    plain = {key: torch.device("cpu") if key == "device" else held(x) for key, x in kwargs.items()}
    plain.pop("pin_memory", None)
    result = op(*tree_map(held, args), **tree_map(held, plain))
    if name == "_grouped_mm" and args[1].ndim == 3:
        # Rows behind the last expert's are not written on a GPU.
        ends = plain.get("offs", held(args[2]) if len(args) > 2 else None)
        result[int(ends[-1]) :] = float("nan")
    return result


def lock_pages(tensor: torch.Tensor) -> torch.Tensor:
    """Let a CPU tensor's memory count as page-locked: copies between it and the device need not wait."""
    tensor.untyped_storage().page_locked = True  # type: ignore[attr-defined]
    return tensor


def is_page_locked(tensor: torch.Tensor) -> bool:
    """Return whether `lock_pages` was called for a tensor's memory."""
    return not isinstance(tensor, EmulatedTensor) and getattr(tensor.untyped_storage(), "page_locked", False)


def _between(op: Any, source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """Copy between host and device, to new memory, which is page-locked where the host does not wait for it."""
    to_host = isinstance(source, EmulatedTensor)
    loose = kwargs.get("non_blocking", False) and (to_host or is_page_locked(source))
    copy = op(held(source), **{k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "pin_memory")})
    _count_copy(loose)
    return copy if to_host else EmulatedTensor(copy)


def _count_copy(loose: bool) -> bool:
    """Count a copy between host and device. loose: whether the host goes on at once; returned again."""
    counts.add("copies" if loose else "synchronisations")
    return loose


def _questions(op: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> int:
    """Return how often the host waits in an operation."""
    if name in INDEXING:
        masks = sum(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        filled = name.startswith("index_put") and len(args[1]) == 1 and args[2].numel() == 1  # that is masked_fill
        return 0 if filled else masks
    if op is torch.ops.aten.repeat_interleave.Tensor:
        return int(kwargs.get("output_size") is None)
    return ASKING.get(name, 0)


def _refuse_mixtures(op: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise where CUDA raises for a tensor or a generator of the CPU."""
    leaves = tree_leaves((args, kwargs))
    if any(isinstance(x, torch.Generator) for x in leaves):
        raise refused(f"{op}: expected a 'cuda' generator, found one of the CPU")
    indices = {id(x) for x in args[1]} if name in INDEXING else set()
    # A CPU tensor without dimensions may stand among them as a number, but cannot take the result.
    numbers = torch.Tag.pointwise in op.tags or name in INDEXING or name.startswith(("_foreach", "_fused", "fill"))
    written = args[0] if op._schema.is_mutable else None
    for x in leaves:
        if not isinstance(x, torch.Tensor) or isinstance(x, EmulatedTensor):
            continue
        if id(x) in indices:
            counts.add("synchronisations")  # torch copies it to the device, in silence
        elif x.ndim or not numbers or x is written:
            raise refused(f"{op}: tensors on cuda:0 and on the cpu, the latter of shape {tuple(x.shape)}")
