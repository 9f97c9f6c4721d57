"""Checkpoints: everything that resuming needs, on disk, whole or not at all.

In: named tensors, or every rank's pieces of them, and plain data. Out: a folder per checkpoint, written under another
name by all ranks, flushed to disk, renamed by rank 0 once all have written::

    newest                      the newest checkpoint's name, replaced in one step
    step-000000120-00/          the first one saved at step 120; a later one is -01, none is ever overwritten
        tensors-00000.safetensors   rank 0's part: weights, optimiser states, balancer, running sums; one a rank
        state.json              position, history, early stopping, identity, the name of the best weights
        hashes.json             SHA-256 of all the others
    best-000000080-1f0c…/       the best epoch's weights, the same way; kept while a kept checkpoint names it

What some number of ranks saved any other number loads (:mod:`recmtl.training.storage`). Ranks on several hosts need
this folder on a disk that they share.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from recmtl import durable
from recmtl.bounded import parse_json, read_bytes
from recmtl.errors import RunError, UserError
from recmtl.features import Pieces
from recmtl.group import ONE, Group
from recmtl.manifest import file_hash
from recmtl.progress import Progress

if TYPE_CHECKING:
    from recmtl.training.storage import Saved

__all__ = ["Checkpoint", "Checkpoints"]

Result = TypeVar("Result")

_UNFINISHED = ".unfinished-"
_FORMAT = 2


class Checkpoint(NamedTuple):
    """What was saved."""

    tensors: "Saved"
    """On disk, verified."""
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in one folder that nothing else writes to.

    Every method is called by all ranks together, with the same arguments but for the tensors' pieces.

    Args:
        folder: made if absent; remains of a killed process are removed from it.
        keep: how many of the newest to keep.
        identity: of config and data; a checkpoint with another one is refused.
        progress: is told of damaged ones.
        group: the ranks that save and load.
    """

    def __init__(self, folder: Path, *, keep: int, identity: str, progress: Progress, group: Group = ONE) -> None:
        self._folder, self._keep, self._identity, self._progress = folder, keep, identity, progress
        self._group = group
        self._on_rank_0(self._open)

    def save(self, step: int, tensors: Mapping[str, Tensor | Pieces], state: Mapping[str, Any]) -> None:
        """Save a checkpoint, make it the newest, and drop those beyond ``keep``.

        Args:
            step: names it, with a number for every further one of the same step.
            tensors: name to tensor, on any device, or to this rank's pieces of one; a tensor that every rank has is
                saved once, as rank 0 has it.
            state: JSON data, rank 0's; ``best``, if there, is a name that :meth:`save_best` gave.

        Raises:
            RunError: the disk refuses, on any rank.
        """
        whole = {"format": _FORMAT, "identity": self._identity, "step": step, **state}

        def name() -> str:
            same = sorted(self._folder.glob(f"step-{step:09d}-*"))
            number = int(same[-1].name.rpartition("-")[2]) + 1 if same else 0
            return f"step-{step:09d}-{number:02d}"

        self._write("cannot save a checkpoint", name, tensors, whole, self._make_newest)

    def save_best(self, step: int, tensors: Mapping[str, Tensor | Pieces]) -> str:
        """Save weights alone; they stay while a kept checkpoint's state has the returned name under ``best``."""

        def by_content(name: str) -> str:
            hashes = (self._folder / f"{_UNFINISHED}{name}" / "hashes.json").read_bytes()
            return f"{name}-{hashlib.sha256(hashes).hexdigest()[:12]}"

        return self._write("cannot save the best weights", lambda: f"best-{step:09d}", tensors, {}, None, by_content)

    def load_best(self, name: str) -> "Saved":
        """The weights that :meth:`save_best` saved.

        Raises:
            RunError: they are damaged or gone.
        """
        from recmtl.training.storage import Saved

        folder = self._named(name)
        self._verify(folder)
        return Saved(folder)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, its best weights included; None when there is none.

        Raises:
            UserError: it is of another config or other data.
        """
        from recmtl.training.storage import Saved

        for name in self._group.broadcast([folder.name for folder in self._candidates()]):
            folder = self._folder / name
            try:
                self._verify(folder)
                state = self._on_rank_0(partial(_state, folder))
                if state.get("best") is not None:
                    self._verify(self._named(state["best"]))
                saved = self._by_all(partial(Saved, folder))
            except RunError as error:
                self._progress.warn(f"{folder.name} is damaged ({error}); going back to what was saved before it")
                continue
            if state.get("identity") != self._identity:
                raise UserError(
                    f"{self._folder}: these checkpoints are of another config or other data; choose another output "
                    "folder, or --overwrite"
                )
            return Checkpoint(saved, state)
        return None

    # One of them

    def _write(
        self,
        failure: str,
        name_it: Callable[[], str],
        tensors: Mapping[str, Tensor | Pieces],
        state: Mapping[str, Any],
        then: Callable[[str], None] | None,
        rename: Callable[[str], str] = str,
    ) -> str:
        """Write all ranks' parts under another name; rank 0 adds hashes and renames. The name it has in the end."""
        from recmtl.training.storage import save

        try:
            name: str = self._on_rank_0(lambda: self._begin(name_it()))
            unfinished = self._folder / f"{_UNFINISHED}{name}"
            hashes = save(unfinished, tensors, rank=self._group.rank, ranks=self._group.size)
            final: str = self._on_rank_0(lambda: self._finish(name, state, hashes, rename, then))
        except OSError as error:
            raise RunError(f"{self._folder}: {failure}: {error}") from error
        return final

    def _begin(self, name: str) -> str:
        durable.files.mkdir(self._folder / f"{_UNFINISHED}{name}")
        return name

    def _finish(
        self,
        name: str,
        state: Mapping[str, Any],
        hashes: Mapping[str, str],
        rename: Callable[[str], str],
        then: Callable[[str], None] | None,
    ) -> str:
        unfinished = self._folder / f"{_UNFINISHED}{name}"
        durable.write_file(unfinished / "state.json", json.dumps(state, indent=1))
        hashes = {**hashes, "state.json": file_hash(unfinished / "state.json")}
        durable.write_file(unfinished / "hashes.json", json.dumps(hashes))
        durable.files.fsync(unfinished)
        name = rename(name)
        if (self._folder / name).exists():  # the same weights, saved before a kill: perhaps they are damaged
            self._remove(self._folder / name)
        durable.files.rename(unfinished, self._folder / name)
        durable.files.fsync(self._folder)
        if then is not None:
            then(name)
        return name

    def _verify(self, folder: Path) -> None:
        """Check every file, each rank some of them.

        Raises:
            RunError: on every rank, if any of them found one that is damaged, missing or too many.
        """
        hashes: dict[str, str] = self._on_rank_0(lambda: _hashes(folder))
        wrong = [
            number
            for number, (file, digest) in enumerate(sorted(hashes.items()))
            if number % self._group.size == self._group.rank and _hash(folder / file) != digest
        ]
        bad = self._group.gather(np.array(wrong, dtype=np.int64))
        if len(bad):
            names = ", ".join(sorted(hashes)[number] for number in sorted(bad.tolist()))
            raise RunError(f"{folder.name}: {names} does not have the hash that was noted")

    # All of them, by rank 0

    def _on_rank_0(self, do: Callable[[], Any]) -> Any:
        """What rank 0 gets by doing this, on every rank; what it fails with too."""
        said: dict[str, Any] = {}
        if self._group.rank == 0:
            try:
                said = {"result": do()}
            except RunError as error:
                said = {"run": str(error)}
            except OSError as error:
                said = {"disk": str(error)}
        said = self._group.broadcast(said)
        if "run" in said:
            raise RunError(said["run"])
        if "disk" in said:
            raise OSError(said["disk"])
        return said["result"]

    def _by_all(self, do: Callable[[], Result]) -> Result:
        """What every rank gets by doing this itself.

        Raises:
            RunError: on every rank, if one of them does.
        """
        result, problem = None, ""
        try:
            result = do()
        except RunError as error:
            problem = str(error)
        failed = self._group.gather(np.array([self._group.rank] if problem else [], dtype=np.int64))
        if len(failed) or result is None:
            raise RunError(problem or f"it is not readable by rank {', '.join(map(str, failed))}")
        return result

    def _open(self) -> None:
        durable.make_folder(self._folder)
        durable.remove_litter(self._folder, held=True)
        for remains in self._folder.glob(f"{_UNFINISHED}*"):
            durable.remove(remains)

    def _make_newest(self, name: str) -> None:
        durable.write_file(self._folder / "newest", f"{name}\n")
        self._drop_old()

    def _candidates(self) -> Iterator[Path]:
        steps = sorted(self._folder.glob("step-*"), reverse=True)
        try:
            newest = self._folder / (self._folder / "newest").read_text().strip()
        except (OSError, UnicodeDecodeError):
            newest = None
        if newest in steps:
            yield newest
        yield from (folder for folder in steps if folder != newest)

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
        durable.files.rename(folder, aside)  # so that half of it never looks like a checkpoint
        durable.remove(aside)

    def _named(self, name: str) -> Path:
        folder = self._folder / name
        if folder.parent != self._folder or not name.startswith("best-"):
            raise RunError(f"{name!r} is no name of weights")
        return folder


def _best_of(folder: Path) -> str | None:
    try:
        best: str | None = parse_json(read_bytes(folder / "state.json"), finite=False).get("best")
    except (OSError, ValueError, AttributeError):
        return None  # damaged: it cannot be resumed from anyway
    return best


def _hashes(folder: Path) -> dict[str, str]:
    """Name of every file beside it to the hash that was noted; by rank 0.

    Raises:
        RunError: it is not readable, or does not name exactly the files that are there.
    """
    try:
        hashes: dict[str, str] = dict(parse_json(read_bytes(folder / "hashes.json")))
        there = {path.name for path in folder.iterdir()} - {"hashes.json"}
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder.name}: {error}") from error
    if hashes.keys() != there:
        odd = ", ".join(sorted(map(str, hashes.keys() ^ there)))
        raise RunError(f"{folder.name}: {odd} is missing, or was not noted")
    return hashes


def _hash(path: Path) -> str | None:
    try:
        return file_hash(path)
    except OSError:
        return None


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = parse_json(read_bytes(folder / "state.json"), finite=False)
        if not isinstance(state, dict):
            raise ValueError("state.json holds no object")
    except (OSError, ValueError) as error:
        raise RunError(f"{folder.name}: {error}") from error
    return state
