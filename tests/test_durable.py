"""Files and folders that a kill, a full disk or a power loss leaves whole; litter goes when its owner is dead."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recmtl import durable

KillAtEach = Callable[[Callable[[], object], Callable[[], object]], int]


class Recorded(durable.Files):
    """Notes what is done, in order."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []

    def fsync(self, path: Path) -> None:
        self.done.append(("fsync", path.name))
        super().fsync(path)

    def rename(self, source: Path, target: Path) -> None:
        self.done.append(("rename", target.name))
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.done.append(("unlink", path.name))
        super().unlink(path)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    files = Recorded()
    monkeypatch.setattr(durable, "files", files)
    return files


class Refusing(durable.Files):
    """Fails its n-th rename."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def rename(self, source: Path, target: Path) -> None:
        if self.left == 0:
            self.left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        self.left -= 1
        super().rename(source, target)


def fill(folder: Path, text: str) -> None:
    (folder / "deep").mkdir()
    (folder / "a").write_text(text)
    (folder / "deep" / "b").write_text(text)


def content(folder: Path) -> list[str]:
    return [(folder / "a").read_text(), (folder / "deep" / "b").read_text()]


def replace(place: Path, text: str) -> None:
    with durable.replacing(place) as building:
        fill(building, text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_flushed_before_its_rename_and_its_folder_after(tmp_path: Path, recorded: Recorded) -> None:
    durable.write_file(tmp_path / "state.json", "é")
    assert (tmp_path / "state.json").read_bytes() == b"\xc3\xa9"
    assert [what for what, _ in recorded.done] == ["fsync", "rename", "fsync"]
    assert recorded.done[1:] == [("rename", "state.json"), ("fsync", tmp_path.name)]
    assert names(tmp_path) == ["state.json"]


def test_a_file_is_the_old_or_the_new_one_after_any_kill(tmp_path: Path, kill_at_each: KillAtEach) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    seen = set()

    def look() -> None:
        seen.add(path.read_text())
        path.write_text("old")
        durable.remove_litter(tmp_path, held=True)
        assert names(tmp_path) == ["state.json"]

    assert kill_at_each(lambda: durable.write_file(path, b"new"), look) == 5
    assert seen == {"old", "new"}


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(durable.Files):
        def write(self, file: Any, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", file.name)

    path = tmp_path / "state.json"
    path.write_text("old")
    monkeypatch.setattr(durable, "files", Full())
    with pytest.raises(OSError, match="No space left"):
        durable.write_file(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state.json"]


def test_an_error_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"\.state\.json\..*\.tmp"):
        durable.write_file(tmp_path / "state.json", "new")


def test_a_folder_is_flushed_whole_before_it_has_its_name(tmp_path: Path, recorded: Recorded) -> None:
    replace(tmp_path / "place", "new")
    flushed = [name for what, name in recorded.done[: recorded.done.index(("rename", "place"))] if what == "fsync"]
    assert {"a", "b", "deep"} <= set(flushed)
    assert flushed.index("b") < flushed.index("deep")
    assert recorded.done[-1] == ("fsync", tmp_path.name)


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_the_old_or_the_new_one_after_any_kill(
    tmp_path: Path, kill_at_each: KillAtEach, there: bool
) -> None:
    place = tmp_path / "here" / "place"
    seen = []

    def begin() -> None:
        durable.remove(tmp_path / "here")
        if there:
            replace(place, "old")

    def do() -> None:
        files, durable.files = durable.files, durable.Files()
        begin()
        durable.files = files
        replace(place, "new")

    def look() -> None:
        durable.recover(place)
        found = content(place) if place.exists() else None
        assert found in ([["old"] * 2, ["new"] * 2] if there else [None, ["new"] * 2])
        seen.append(found)
        replace(place, "newer")  # the same command again
        durable.remove_litter(tmp_path / "here", held=True)
        assert names(tmp_path / "here") == ["place"]
        assert content(place) == ["newer"] * 2

    kill_at_each(do, look)
    assert seen[0] != seen[-1]


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_rename_that_fails_leaves_the_old_folder_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    place = tmp_path / "place"
    replace(place, "old")
    monkeypatch.setattr(durable, "files", Refusing(nth))
    with pytest.raises(OSError, match="Input/output error"):
        replace(place, "new")
    assert content(place) == ["old"] * 2
    assert names(tmp_path) == ["place"]


def test_a_reader_that_recovers_meanwhile_does_the_writers_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the writer's two renames another process finds no folder, and puts the new one there."""
    place = tmp_path / "place"
    replace(place, "old")

    class Raced(durable.Files):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if target.suffix == ".old":
                durable.files = durable.Files()
                durable.recover(place)
                assert content(place) == ["new"] * 2

    monkeypatch.setattr(durable, "files", Raced())
    replace(place, "new")
    assert content(place) == ["new"] * 2
    assert names(tmp_path) == ["place"]


def test_a_failing_fill_leaves_nothing(tmp_path: Path) -> None:
    def half() -> None:
        with durable.replacing(tmp_path / "place") as building:
            (building / "a").write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        half()
    assert names(tmp_path) == []


LITTER = """
import sys, time
from pathlib import Path
from recmtl import durable
folder = Path(sys.argv[1])
durable._named(folder / "state.json", "tmp").write_text("half")
durable._named(folder / "place", "tmp").mkdir()
durable._named(folder / "place", "old").mkdir()
durable._named(folder / "gone", "old").mkdir()
print("written", flush=True)
time.sleep(60)
"""


def test_litter_goes_once_its_owner_is_dead(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / ".mine.tmp").write_text("somebody else's")
    process = subprocess.Popen(
        [sys.executable, "-c", LITTER, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    there = names(tmp_path)
    durable.remove_litter(tmp_path)
    assert names(tmp_path) == there, "its owner is alive"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    durable.remove_litter(tmp_path, "place")  # dead, though nobody has asked for its exit code
    assert len(names(tmp_path)) == len(there) - 2, "of this name alone"
    process.wait()
    process.stdout.close()
    durable.remove_litter(tmp_path)
    left = names(tmp_path)
    assert left[1:] == [".mine.tmp", "place"]
    assert left[0].startswith(".gone."), "what stands for a folder that is not there is its only copy"


def test_litter_of_another_host_goes_when_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / f".state.json.{'0' * 6}-1-1-0.tmp"
    assert not path.name.startswith(f".state.json.{durable._host()}")
    path.write_text("half")
    durable.remove_litter(tmp_path)
    assert path.exists()
    long_ago = time.time() - 8 * 86400
    os.utime(path, (long_ago, long_ago))
    durable.remove_litter(tmp_path)
    assert not path.exists()


def test_a_process_number_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    start = durable._start_of(os.getpid())
    assert start is not None
    path = tmp_path / f".state.json.{durable._host()}-{os.getpid()}-{start - 1}-0.tmp"
    path.write_text("half")
    durable.remove_litter(tmp_path)
    assert not path.exists()


def test_scratch_goes_at_the_end_however_that_is(tmp_path: Path) -> None:
    def fail() -> None:
        with durable.scratch(tmp_path, "scored") as work:
            (work / "rows").write_text("")
            durable.remove_litter(tmp_path)
            assert (work / "rows").exists()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert names(tmp_path) == []


def test_removing_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    durable.remove(tmp_path / "gone")
    durable.remove(tmp_path / "gone")
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["file"]


def test_folders_are_made_down_to_the_last_and_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    durable.make_folder(tmp_path / "a" / "b" / "c")
    durable.make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        durable.make_folder(tmp_path / "file")
    with pytest.raises(OSError):
        durable.make_folder(tmp_path / "file" / "below")
