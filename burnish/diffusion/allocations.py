"""Memory that a computation would take on a GPU, counted without one and without any values.

Tensors on torch's "meta" device have a shape and a type, but no numbers. `Allocations` lets them
stand for those of a GPU beside ordinary tensors of the CPU, and adds up the bytes of all that live:

    to the GPU      whole numbers (tokens, timesteps, masks) stay on the CPU and keep their values
    to the CPU      zeros
    a decision      by a value that is not there: all are finite, a truth is true, a number 1

`GPUArithmetic` gives them what only CUDA's tensors have: fused attention, which keeps no matrix of
all pairs, and CUDA's lists of the functions that autocast computes in half precision or in float32.
What a library uses inside of one operation (workspaces of convolutions) is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

META = torch.device("meta")
BLOCK = 512
"""Bytes of which CUDA's allocator gives a multiple."""

aten = torch.ops.aten

HALF = frozenset(
    """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc
    matmul __matmul__ mm mv bmm addmm addmv addr addbmm baddbmm chain_matmul einsum prelu vecdot
    multi_dot scaled_dot_product_attention""".split()
)
"""Functions that autocast computes in half precision on CUDA, by name.

https://docs.pytorch.org/docs/stable/amp.html has the lists.
"""

FLOAT32 = frozenset(
    """__pow__ acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow
    softplus layer_norm rms_norm group_norm norm cosine_similarity poisson_nll_loss
    cosine_embedding_loss hinge_embedding_loss kl_div margin_ranking_loss triplet_margin_loss
    binary_cross_entropy_with_logits cumprod cumsum dist pdist cdist prod renorm sum logsumexp
    softmax log_softmax nll_loss l1_loss smooth_l1_loss mse_loss multilabel_margin_loss
    soft_margin_loss multi_margin_loss""".split()
)
"""Functions that it computes in float32."""

WIDEST = frozenset(
    """addcdiv addcmul atan2 bilinear cat cross dot grid_sample index_put scatter_add stack
    tensordot vdot""".split()
)
"""Functions that it computes in the widest type of their inputs."""


class Allocations(TorchDispatchMode):
    """The bytes of tensors on the meta device that live in this context, by what they are for.

    Attributes:
        live: bytes by purpose.
        peak: the same when all together were most, since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._most = 0
        self._purpose = ""
        self._storages: dict[int, Any] = {}
        self._purposes: dict[int, str] = {}
        self._forms: dict[Any, Callable[[], Any]] = {}

    @contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        """Return a context in which what is allocated is for `name`."""
        before, self._purpose = self._purpose, name
        try:
            yield
        finally:
            self._purpose = before

    def restart(self) -> None:
        """Let `peak` begin anew, with what lives now."""
        self.peak = self.live.copy()
        self._most = self.live.total()

    def assign(self, tensors: Iterable[Tensor], name: str) -> None:
        """Count tensors as being for `name`, whatever they were allocated for."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._purposes:
                size = _rounded(storage.nbytes())
                self.live[self._purposes[key]] -= size
                self.live[name] += size
                self._purposes[key] = name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operation of torch, and count what it returns."""
        kwargs = kwargs or {}
        if func is aten._to_copy.default and not _is_meta(args[0]) and _stays(args[0], kwargs):
            kwargs = {**kwargs, "device": torch.device("cpu")}

        tensors = [value for value in _values(args, kwargs) if isinstance(value, Tensor)]
        if any(map(_is_meta, tensors)):
            stand_in = STAND_INS.get(func)
            result = stand_in(*args, **kwargs) if stand_in else NotImplemented
            if result is not NotImplemented:
                return result
            if not all(map(_is_meta, tensors)):
                args, kwargs = _on_meta(func, args, kwargs)
            result = self._called(func, args, kwargs)
        else:
            result = func(*args, **kwargs)

        for value in _values((result,), {}):
            if _is_meta(value):
                self._count(value)
        return result

    def _called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result, whose form is remembered: to find it takes a while."""
        key = (func, *map(_known_by, args), *kwargs, *map(_known_by, kwargs.values()))
        try:
            form = self._forms.get(key)
        except TypeError:  # an argument that is not hashable
            return func(*args, **kwargs)
        if form is not None:
            return form()

        result = func(*args, **kwargs)
        if not (func._schema.is_mutable or _share_memory(result, args, kwargs)):
            self._forms[key] = _form(result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return

        size = _rounded(storage.nbytes())

        def gone(_: object) -> None:
            del self._storages[key]
            self.live[self._purposes.pop(key)] -= size

        self._storages[key] = ref(storage, gone)
        self._purposes[key] = self._purpose
        self.live[self._purpose] += size

        if (total := self.live.total()) > self._most:
            self._most = total
            self.peak = self.live.copy()


def _values(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Yield an operation's arguments, and the items of those that are lists."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _known_by(value: Any) -> Any:
    """Return what the form of an operation's result depends on in an argument."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(map(_known_by, value))
    return type(value), value


def _share_memory(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a result, or a part of it, is a view of an argument."""

    def storages(*values: Any) -> set[int]:
        found = _values(values, {})
        return {one.untyped_storage()._cdata for one in found if isinstance(one, Tensor)}

    return not storages(result).isdisjoint(storages(*_values(args, kwargs)))


def _form(result: Any) -> Callable[[], Any]:
    """Return a function that makes a result like this one."""
    if isinstance(result, (list, tuple)):
        parts = [_form(part) for part in result]
        return lambda: [part() for part in parts]
    if not isinstance(result, Tensor):
        return lambda: result

    shape, stride, dtype, device = result.shape, result.stride(), result.dtype, result.device
    return lambda: torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device == META


def _stays(tensor: Tensor, kwargs: dict[str, Any]) -> bool:
    """Return whether a tensor of the CPU is to go to the GPU, but has whole numbers."""
    device = kwargs.get("device")
    dtype = kwargs.get("dtype") or tensor.dtype
    return device is not None and torch.device(device) == META and not dtype.is_floating_point


def _on_meta(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return an operation's arguments, all tensors but single numbers on the meta device."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor if _is_meta(tensor) or not tensor.dim() else tensor.to(META)

    if func is aten.index.Tensor:  # by a mask: its shape depends on values, which are known here
        tensor, indices = args
        args = (tensor, [place for index in indices for place in _places(index)])
    found: tuple[Any, Any] = tree_map_only(Tensor, moved, (args, kwargs))
    return found


def _places(index: Tensor | None) -> list[Tensor | None]:
    """Return an index as whole numbers, one tensor for each dimension that a mask has."""
    if index is None or index.dtype != torch.bool or _is_meta(index):
        return [index]
    return list(index.nonzero(as_tuple=True))


def _copied_to_cpu(tensor: Tensor, **kwargs: Any) -> Any:
    device = kwargs.get("device")
    if device is None or torch.device(device) == META:
        return NotImplemented
    return torch.zeros(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)


def _value(tensor: Tensor) -> bool | int | float:
    return {torch.bool: True}.get(tensor.dtype, 1.0 if tensor.is_floating_point() else 1)


def _copy_in_place(target: Tensor, source: Tensor, *_: Any, **__: Any) -> Any:
    return NotImplemented if _is_meta(target) else target.zero_()


STAND_INS: dict[Any, Callable[..., Any]] = {
    aten._to_copy.default: _copied_to_cpu,
    aten._local_scalar_dense.default: _value,
    aten.equal.default: lambda *_: True,
    aten.copy_.default: _copy_in_place,
}
"""Functions in place of operations whose result depends on the values of tensors."""


class GPUArithmetic(TorchFunctionMode):
    """Attention and automatic casts as CUDA has them, for tensors on the meta device.

    `torch.autocast("cpu", dtype)` says whether there are casts, and to what: torch has no autocast
    for the meta device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "tensor" and torch.device(kwargs.get("device") or "cpu") == META:
            return func(*args, **{**kwargs, "device": None}).to(META)

        if name == "isfinite" and _is_meta(args[0]):
            return torch.ones(args[0].shape, dtype=torch.bool)

        if torch.is_autocast_enabled("cpu"):
            args, kwargs = self._cast(name, (args, kwargs))
        else:
            self._weights.clear()

        if name == "scaled_dot_product_attention" and any(
            map(_is_meta, tree_leaves((args, kwargs)))
        ):
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def checkpoint(self, module: nn.Module, *args: Any) -> Any:
        """Return a module's output, computed again when it is differentiated, with the same casts.

        For the `enable_gradient_checkpointing` of diffusers: in a backward pass no mode is active.
        """
        return checkpoint(
            module.__call__, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self)
        )

    def _cast(self, name: str, arguments: Any) -> Any:
        """Return a function's arguments in the type that autocast chooses."""
        if name in HALF:
            return self._to(arguments, torch.get_autocast_dtype("cpu"))
        if name in FLOAT32:
            return self._to(arguments, torch.float32)
        if name in WIDEST:
            values = [v for v in tree_leaves(arguments) if _is_cast(v)]
            if any(value.dtype == torch.float32 for value in values):
                return self._to(arguments, torch.float32)
        return arguments

    def _to(self, arguments: Any, dtype: torch.dtype) -> Any:
        def cast(value: Tensor) -> Tensor:
            if not _is_cast(value) or value.dtype == dtype:
                return value
            if not (value.is_leaf and value.requires_grad and value.dtype == torch.float32):
                return value.to(dtype)
            # autocast keeps the copies of trained weights until it ends
            if id(value) not in self._weights:
                self._weights[id(value)] = (value, value.to(dtype))
            return self._weights[id(value)][1]

        return tree_map_only(Tensor, cast, arguments)


def _is_cast(value: Any) -> bool:
    return _is_meta(value) and value.is_floating_point() and value.dtype != torch.float64


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return attention (B, heads, tokens, C) by a kernel that keeps its output and one row a query.

    CUDA's kernels keep the same. A mask is as large as it is given, in the type of the queries.
    """
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(times, 1) for part in (key, value))
    if attn_mask is not None and attn_mask.dtype != query.dtype:
        attn_mask = attn_mask.to(META, query.dtype)

    result: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return result
