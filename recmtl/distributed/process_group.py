"""The processes of one job, over torch.distributed. In: what torchrun says in the environment. Out: a Group.

A process that no torchrun started stands alone and nothing is made for it, except that TorchRec's sharded tables want a
process group even then: :func:`ensure_process_group` makes one of a single rank, which nothing outside can reach.

On a CPU the ranks speak through gloo, on GPUs through nccl, and through gloo about what lies in host memory.
"""

import atexit
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

__all__ = ["ensure_process_group"]


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
