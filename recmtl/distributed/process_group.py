"""The processes of one job, over torch.distributed. In: what torchrun says in the environment. Out: a Group.

A process that no torchrun started stands alone, and nothing is made for it, except that TorchRec's sharded tables want
a process group even then: :func:`ensure_process_group` makes one of a single rank, which nothing outside can reach.

On a CPU the ranks speak through gloo; on GPUs through nccl, and through gloo about what lies in host memory.

When a rank fails it says so in the job's store before it ends; the others, who find their connections closed, look
there. So one rank alone tells the user why, and all end with its exit code.
"""

import atexit
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from recmtl.errors import OtherRankError, RankLostError, RecmtlError, RunError, UserError
from recmtl.group import ONE, Group

__all__ = ["Ranks", "check_device", "ensure_process_group", "joined"]

Data = TypeVar("Data")

_TIMEOUT = timedelta(hours=1)  # of one exchange: a rank may have to wait for another to evaluate, or to save
_WAIT = 0.1  # seconds between two looks at the store
_SMALL = 1024  # bytes of JSON that travel with their length
_LOST = re.compile(r"gloo|NCCL|TCPStore|[Cc]onnection (was )?(closed|reset|refused)|[Bb]roken pipe")


class Ranks:
    """A Group over torch's default process group. Made by :func:`joined`.

    Args:
        store: the job's key-value store, for what may take longer than an exchange.
    """

    def __init__(self, store: Any) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._store = store
        self._turns = 0

    def sum(self, tensor: Tensor) -> Tensor:
        """See :class:`recmtl.group.Group`."""
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def sums(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`recmtl.group.Group`."""
        found: list[Tensor] = list(tensors)
        for positions in _alike(tensors):
            flat = torch.cat([tensors[position].detach().reshape(-1) for position in positions])
            dist.all_reduce(flat)
            parts = torch.split(flat, [tensors[position].numel() for position in positions])
            for position, part in zip(positions, parts, strict=True):
                found[position] = part.view(tensors[position].shape)
        return found

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """See :class:`recmtl.group.Group`."""
        for tensor, total in zip(tensors, self.sums(tensors), strict=True):
            tensor.copy_(total)

    def sum_with_gradient(self, tensor: Tensor) -> Tensor:
        """See :class:`recmtl.group.Group`."""
        total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
        return total

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """See :class:`recmtl.group.Group`."""
        sizes = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(rows)]))
        counts = [int(size) for size in sizes]
        each = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
        longest = torch.zeros(max(counts) * each, dtype=torch.uint8)  # every rank sends as much as the longest
        mine = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        longest[: mine.size] = torch.from_numpy(mine.copy())
        parts = [torch.empty_like(longest) for _ in counts]
        if longest.numel():
            dist.all_gather(parts, longest)
        whole = np.concatenate([part.numpy()[: count * each] for part, count in zip(parts, counts, strict=True)])
        return whole.view(rows.dtype).reshape(sum(counts), *rows.shape[1:])

    def broadcast(self, data: Data) -> Data:
        """See :class:`recmtl.group.Group`."""
        text = json.dumps(data).encode() if self.rank == 0 else b""
        first = torch.zeros(8 + _SMALL, dtype=torch.uint8)
        first[: 8 + min(len(text), _SMALL)] = _bytes(len(text).to_bytes(8, "little") + text[:_SMALL])
        dist.broadcast(first, 0)
        content = first.numpy().tobytes()
        length, content = int.from_bytes(content[:8], "little"), content[8:]
        if length > _SMALL:
            rest = torch.zeros(length - _SMALL, dtype=torch.uint8)
            if self.rank == 0:
                rest.copy_(_bytes(text[_SMALL:]))
            dist.broadcast(rest, 0)
            content += rest.numpy().tobytes()
        received: Data = json.loads(content[:length])
        return received

    def barrier(self) -> None:
        """See :class:`recmtl.group.Group`."""
        dist.all_reduce(torch.zeros(1))

    @contextmanager
    def rank_0_first(self) -> Iterator[None]:
        """See :class:`recmtl.group.Group`."""
        self._turns += 1
        turn = f"recmtl/turn-{self._turns}"
        while self.rank and not self._store.check([turn]):
            if self._store.check([_FAILED]):
                raise OtherRankError
            time.sleep(_WAIT)
        yield
        if self.rank == 0:
            self._store.set(turn, "over")

    def leave(self) -> None:
        """End the group once all are done, rank 0 last: the store may be its own."""
        self.barrier()
        dist.destroy_process_group()
        self._store.add(_LEFT, 1)
        until = time.monotonic() + 10
        while self.rank == 0 and self._store.add(_LEFT, 0) < self.size and time.monotonic() < until:
            time.sleep(0.005)

    def fail(self, error: BaseException) -> BaseException:
        """Note in the job's store why this rank ends, unless another one has done so.

        Returns:
            The error that this rank shall end with: an :class:`OtherRankError` where another was the first to fail.
        """
        error = _understood(error)
        code = _exit_code(error)
        try:
            if not isinstance(error, OtherRankError) and self._store.add(_COUNT, 1) == 1:
                self._store.set(_FAILED, str(code))
                return error
            self._store.wait([_FAILED], timedelta(seconds=10))
            return OtherRankError(int(self._store.get(_FAILED)))
        except (RuntimeError, ValueError):  # the store is gone, and with it whoever held it
            return error


_COUNT, _FAILED, _LEFT = "recmtl/failures", "recmtl/failed", "recmtl/left"


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


@contextmanager
def joined() -> Iterator[Group]:
    """The ranks that torchrun started, this one among them; a single process where it did not.

    Within another ``joined()`` it is the same group, which the outer one ends.

    Raises:
        UserError: more ranks on this machine than it has GPUs.
        RankLostError: a rank ended without a word.
        OtherRankError: a rank failed, and has told the user why.
    """
    if not {"RANK", "WORLD_SIZE"} <= set(os.environ) or int(os.environ["WORLD_SIZE"]) == 1:
        yield ONE
        return
    if _joined:
        yield _joined[-1]
        return
    ranks = _join()
    _joined.append(ranks)
    try:
        yield ranks
    except BaseException as error:
        ended = ranks.fail(error)
        if ended is error:
            raise
        raise ended from error
    else:
        ranks.leave()
    finally:
        _joined.pop()


_joined: list[Ranks] = []


def _join() -> Ranks:
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        store, rank, size = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
        dist.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise RunError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot reach the others: {first}"
        ) from error
    return Ranks(store)


def check_device(device: torch.device) -> None:
    """Refuse two ranks on one GPU, which nccl cannot serve.

    Raises:
        UserError: this machine has fewer GPUs than ranks.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise UserError(
            f"{here} ranks on this machine, which has {torch.cuda.device_count()} GPUs: start as many ranks as there "
            "are, or set training.device to cpu"
        )


def ensure_process_group() -> dist.ProcessGroup:
    """torch's default process group: the one that is there, or else one of this process alone.

    The latter keeps its rendezvous in memory and listens on the loopback device at most. Calling again changes nothing.
    """
    if not dist.is_initialized():
        with _loopback():
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(_backend(), store=store, rank=0, world_size=1)
        atexit.register(_leave)
    group = dist.group.WORLD
    assert group is not None
    return group


def _understood(error: BaseException) -> BaseException:
    """The error, or a :class:`RankLostError` where it is what an exchange makes of a rank that is gone."""
    if isinstance(error, RecmtlError):
        return error
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _LOST.search(str(error))):
        lost = RankLostError(
            "another rank of this job was lost (killed, or its machine is away); the same command goes on from the "
            "last checkpoint"
        )
        lost.__cause__ = error
        return lost
    return error


def _exit_code(error: BaseException) -> int:
    if isinstance(error, RecmtlError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Positions of tensors of one dtype, in the order in which the dtypes first come."""
    found: dict[torch.dtype, list[int]] = {}
    for position, tensor in enumerate(tensors):
        found.setdefault(tensor.dtype, []).append(position)
    return list(found.values())


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _loopback() -> Iterator[None]:
    """Keep gloo on the loopback device: it would resolve the machine's host name, which may not work."""
    name = "GLOO_SOCKET_IFNAME"
    if name in os.environ or platform.system() != "Linux":
        yield
        return
    os.environ[name] = "lo"
    try:
        yield
    finally:
        del os.environ[name]
