"""Tensors of all ranks in one folder: torch.distributed.checkpoint over safetensors, so no pickle is read or written.

In: names and tensors, or this rank's pieces of them. Out: one safetensors file a rank, in the layout that torch's
``HuggingFaceStorageReader`` reads (each tensor's offsets in the file's own metadata), so what many ranks saved any
number of ranks may load. torch's plans say who writes what (a tensor that every rank has is rank 0's) and who reads
which part of which file. The writer is our own: torch's makes a second copy of everything in memory, and keeps one of
two column cuts of a table that lie on one rank.

This file imports torch.distributed.checkpoint, which takes a second; import it only where something is saved.
"""

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save as save_together
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from recmtl import durable
from recmtl.errors import RunError
from recmtl.features import Pieces
from recmtl.manifest import file_hash

__all__ = ["Saved", "save"]


def save(folder: Path, tensors: Mapping[str, Tensor | Pieces], *, rank: int, ranks: int) -> dict[str, str]:
    """Write this rank's part, flushed to disk; every rank calls it, on the same empty folder.

    Args:
        folder: exists.
        tensors: name to a tensor that every rank has, or to this rank's pieces of one.
        rank: this process's number.
        ranks: how many call this.

    Returns:
        File name to SHA-256 of all ranks' files, on rank 0; elsewhere nothing.

    Raises:
        OSError: the disk refuses, here or on another rank.
    """
    writer = _Writer(folder, rank)
    try:
        with _without_its_warning():
            save_together(_dealt(tensors), storage_writer=writer, planner=_SavePlanner(), no_dist=ranks == 1)
    except CheckpointException as error:
        raise _cause(error) from error
    return writer.hashes


class Saved:
    """What is in a folder, as :class:`recmtl.features.Stored`: every rank reads what it wants, and waits for nobody.

    Args:
        folder: whose files' hashes were verified.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._prefix = folder, ""
        self._reader = HuggingFaceStorageReader(str(folder))
        try:
            found = self._reader.read_metadata().state_dict_metadata
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise RunError(f"{folder.name}: {error}") from error
        self._there = {name: entry for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)}

    def part(self, name: str) -> "Saved":
        """What was saved as ``name/…``, by the rest of its name."""
        part = copy.copy(self)
        part._prefix = f"{self._prefix}{name}/"
        part._there = {name: entry for name, entry in self._there.items() if name.startswith(part._prefix)}
        return part

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See :class:`recmtl.features.Stored`."""
        return {name.removeprefix(self._prefix): tuple(entry.size) for name, entry in self._there.items()}

    def read(self, into: Mapping[str, Tensor | Pieces]) -> None:
        """See :class:`recmtl.features.Stored`."""
        shapes = self.shapes()
        for name, target in into.items():
            if name not in shapes:
                raise RunError(f"{self._folder.name}: {name} was not saved")
            if shapes[name] != tuple(target.shape):
                raise RunError(
                    f"{self._folder.name}: {name} has shape {tuple(target.shape)} here but {shapes[name]} there"
                )
        wanted = _dealt({self._prefix + name: target for name, target in into.items()})
        try:
            with _without_its_warning():
                load(wanted, storage_reader=self._reader, planner=_LoadPlanner(), no_dist=True)
        except CheckpointException as error:
            raise RunError(f"{self._folder.name}: {_cause(error)}") from error

    def whole(self) -> dict[str, Tensor]:
        """See :class:`recmtl.features.Stored`."""
        tensors = {
            name.removeprefix(self._prefix): torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in self._there.items()
        }
        self.read(tensors)
        return tensors


class _Dealt:
    """Pieces, as torch's planners ask for them."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        properties = TensorProperties(dtype=self._pieces.dtype)
        size = torch.Size(self._pieces.shape)
        return [
            WriteItem(
                MetadataIndex(name, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, size),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(torch.Size(piece.start), piece.tensor.shape)
            for piece in self._pieces.held
            if piece.tensor.numel()
        ]

    def at(self, index: MetadataIndex) -> Tensor:
        """The piece that begins there."""
        (tensor,) = (piece.tensor for piece in self._pieces.held if torch.Size(piece.start) == index.offset)
        return tensor


def _dealt(tensors: Mapping[str, Tensor | Pieces]) -> dict[str, Any]:
    return {name: _Dealt(value) if isinstance(value, Pieces) else value.detach() for name, value in tensors.items()}


class _SavePlanner(DefaultSavePlanner):
    """Finds pieces, and lets rank 0 write what every rank has."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)

    def lookup_object(self, index: MetadataIndex) -> Any:
        found = self.state_dict[index.fqn]
        return found.at(index) if isinstance(found, _Dealt) else found


class _LoadPlanner(DefaultLoadPlanner):
    """Finds pieces."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        found = self.state_dict[index.fqn]
        tensor: Tensor = found.at(index) if isinstance(found, _Dealt) else found
        return tensor


class _Writer(StorageWriter):
    """One safetensors file a rank, and one more for every further piece of the same tensor."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self.hashes: dict[str, str] = {}

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        files: list[dict[str, WriteItem]] = []
        for item in plan.items:
            for file in files:
                if item.index.fqn not in file:
                    break
            else:
                files.append(file := {})
            file[item.index.fqn] = item
        results = []
        for number, file in enumerate(files):
            further = f"-{number}" if number else ""
            name = f"tensors-{self._rank:05d}{further}.safetensors"
            self._write(self._folder / name, file, planner)
            digest = (name, file_hash(self._folder / name))
            results += [WriteResult(item.index, _bytes(item), digest) for item in file.values()]
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def _write(self, path: Path, items: Mapping[str, WriteItem], planner: SavePlanner) -> None:
        # Tables may be views of one storage, or columns of a wider one: safetensors wants whole ones.
        tensors = {name: planner.resolve_data(item).detach().cpu().contiguous() for name, item in items.items()}  # type: ignore[union-attr]
        offsets = {name: {"saved_offsets": list(item.index.offset or ())} for name, item in items.items()}
        try:  # one entry: safetensors writes several in an order of its own, and equal weights shall hash alike
            save_file(tensors, path, metadata={"DCP_SHARDING_INFO": json.dumps(offsets)})
        except SafetensorError as error:  # the disk, said in its own words
            raise OSError(str(error)) from error
        durable.files.fsync(path)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.hashes = dict(sorted(result.storage_data for written in results for result in written))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _bytes(item: WriteItem) -> int:
    assert item.tensor_data is not None
    return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize


def _cause(error: CheckpointException) -> BaseException:
    """What went wrong on the first rank where something did; Ctrl-C on any of them comes first."""
    causes: list[BaseException] = [failure[0] for _, failure in sorted(error.failures.items())]
    return next((cause for cause in causes if not isinstance(cause, Exception)), causes[0])


class _without_its_warning(warnings.catch_warnings):  # noqa: N801
    """torch warns that a process which saves alone saves alone."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        return entered
