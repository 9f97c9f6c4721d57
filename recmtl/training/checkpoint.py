"""Checkpoints: everything that resuming needs, on disk, whole or not at all.

In: named tensors and plain data. Out: a folder per checkpoint, written under another name, flushed to disk, renamed::

    newest                   the newest checkpoint's name, replaced in one step
    step-000000120-00/       the first one saved at step 120; a later one is -01, none is ever overwritten
        tensors.safetensors  weights, optimiser states, balancer, running sums
        state.json           position, history, early stopping, identity, the name of the best weights
        hashes.json          SHA-256 of the two
    best-000000080-1f0c…/    the best epoch's weights, the same way; kept while a kept checkpoint names it

safetensors rather than torch.distributed.checkpoint: that one keeps its metadata as a pickle and does not replace
atomically, and one process needs none of its resharding.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recmtl.errors import RunError, UserError
from recmtl.manifest import file_hash
from recmtl.progress import Progress

__all__ = ["Checkpoint", "Checkpoints"]

_FILES = ("tensors.safetensors", "state.json")
_UNFINISHED = ".unfinished-"
_FORMAT = 1


class Checkpoint(NamedTuple):
    """What was saved."""

    tensors: dict[str, Tensor]
    """On the CPU."""
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in one folder that nothing else writes to.

    Args:
        folder: made if absent; remains of a killed process are removed from it.
        keep: how many of the newest to keep.
        identity: of config and data; a checkpoint with another one is refused.
        progress: is told of damaged ones.
    """

    def __init__(self, folder: Path, *, keep: int, identity: str, progress: Progress) -> None:
        self._folder, self._keep, self._identity, self._progress = folder, keep, identity, progress
        folder.mkdir(parents=True, exist_ok=True)
        for remains in folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(remains) if remains.is_dir() else remains.unlink()

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Save a checkpoint, make it the newest, and drop those beyond ``keep``.

        Args:
            step: names it, with a number for every further one of the same step.
            tensors: name to tensor, on any device.
            state: JSON data; ``best``, if there, is a name that :meth:`save_best` gave.

        Raises:
            RunError: the disk refuses.
        """
        whole = {"format": _FORMAT, "identity": self._identity, "step": step, **state}
        try:
            same = sorted(self._folder.glob(f"step-{step:09d}-*"))
            number = int(same[-1].name.rpartition("-")[2]) + 1 if same else 0
            name = self._write(f"step-{step:09d}-{number:02d}", tensors, whole)
            pointer = self._folder / f"{_UNFINISHED}newest"
            _write_flushed(pointer, f"{name}\n".encode())
            pointer.replace(self._folder / "newest")
            _flush_folder(self._folder)
            self._drop_old()
        except OSError as error:
            raise RunError(f"{self._folder}: cannot save a checkpoint: {error}") from error

    def save_best(self, step: int, tensors: Mapping[str, Tensor]) -> str:
        """Save weights alone; they stay while a kept checkpoint's state has the returned name under ``best``."""
        try:
            return self._write(f"best-{step:09d}", tensors, {}, by_content=True)
        except OSError as error:
            raise RunError(f"{self._folder}: cannot save the best weights: {error}") from error

    def load_best(self, name: str) -> dict[str, Tensor]:
        """The weights that :meth:`save_best` saved.

        Raises:
            RunError: they are damaged or gone.
        """
        return _read(self._named(name)).tensors

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, its best weights included; None when there is none.

        Raises:
            UserError: it is of another config or other data.
        """
        for folder in self._candidates():
            try:
                found = _read(folder)
                if found.state.get("best") is not None:
                    _verify(self._named(found.state["best"]))
            except (RunError, OSError) as error:
                self._progress.warn(f"{folder.name} is damaged ({error}); going back to what was saved before it")
                continue
            if found.state.get("identity") != self._identity:
                raise UserError(
                    f"{self._folder}: these checkpoints are of another config or other data; choose another output "
                    "folder, or --overwrite"
                )
            return found
        return None

    def _candidates(self) -> Iterator[Path]:
        steps = sorted(self._folder.glob("step-*"), reverse=True)
        try:
            newest = self._folder / (self._folder / "newest").read_text().strip()
        except (OSError, UnicodeDecodeError):
            newest = None
        if newest in steps:
            yield newest
        yield from (folder for folder in steps if folder != newest)

    def _write(
        self, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, by_content: bool = False
    ) -> str:
        unfinished = self._folder / f"{_UNFINISHED}{name}"
        unfinished.mkdir()
        # Tables may be views of one storage, or columns of a wider one: safetensors wants whole ones.
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(whole, unfinished / "tensors.safetensors")
        _flush(unfinished / "tensors.safetensors")
        _write_flushed(unfinished / "state.json", json.dumps(state, indent=1).encode())
        hashes = json.dumps({file: file_hash(unfinished / file) for file in _FILES}).encode()
        _write_flushed(unfinished / "hashes.json", hashes)
        _flush_folder(unfinished)
        if by_content:
            name = f"{name}-{hashlib.sha256(hashes).hexdigest()[:12]}"
        if (self._folder / name).exists():  # the same weights, saved before a kill: perhaps they are damaged
            self._remove(self._folder / name)
        unfinished.rename(self._folder / name)
        _flush_folder(self._folder)
        return name

    def _drop_old(self) -> None:
        kept = sorted(self._folder.glob("step-*"), reverse=True)[: self._keep]
        for folder in self._folder.glob("step-*"):
            if folder not in kept:
                self._remove(folder)
        named = {_best_of(folder) for folder in kept}
        for folder in self._folder.glob("best-*"):
            if folder.name not in named:
                self._remove(folder)

    def _remove(self, folder: Path) -> None:
        aside = self._folder / f"{_UNFINISHED}old-{folder.name}"
        folder.rename(aside)  # so that half of it never looks like a checkpoint
        shutil.rmtree(aside)

    def _named(self, name: str) -> Path:
        folder = self._folder / name
        if folder.parent != self._folder or not name.startswith("best-"):
            raise RunError(f"{name!r} is no name of weights")
        return folder


def _best_of(folder: Path) -> str | None:
    try:
        best: str | None = json.loads((folder / "state.json").read_bytes()).get("best")
    except (OSError, ValueError):
        return None  # damaged: it cannot be resumed from anyway
    return best


def _verify(folder: Path) -> None:
    try:
        hashes = json.loads((folder / "hashes.json").read_bytes())
        wrong = [name for name in _FILES if hashes[name] != file_hash(folder / name)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder.name}: {error}") from error
    if wrong:
        raise RunError(f"{folder.name}: {', '.join(wrong)} does not have the hash that was noted")


def _read(folder: Path) -> Checkpoint:
    _verify(folder)
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return Checkpoint(load_file(folder / "tensors.safetensors"), state)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{folder.name}: {error}") from error


def _write_flushed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _flush(path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
