"""The injector itself: what it counts, what it disturbs, and what a loss of power leaves."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.injector import Disturbance, State, lose_power

FLUSHED = """
def flush(path):
    handle = os.open(path, os.O_RDONLY); os.fsync(handle); os.close(handle)
"""


class Folder:
    """A folder whose changes are disturbed."""

    def __init__(self, shim: Path, place: Path) -> None:
        self.root = place / "root"
        self.root.mkdir()
        self.state = State(place / "state", self.root)
        self._shim = shim

    def run(self, code: str, how: Disturbance | None = None, *, trace: bool = False) -> int:
        self.state.arm(how or Disturbance(), trace=trace)
        done = subprocess.run(
            [sys.executable, "-S", "-c", f"import os, sys\n{FLUSHED}\n{code}"],
            cwd=self.root,
            env={**os.environ, "LD_PRELOAD": str(self._shim), "CHAOS_STATE": str(self.state.path)},
            check=False,
        )
        return done.returncode

    def there(self) -> dict[str, str]:
        return {p.relative_to(self.root).as_posix(): p.read_text() for p in self.root.rglob("*") if p.is_file()}


@pytest.fixture
def folder(shim: Path, tmp_path: Path) -> Folder:
    return Folder(shim, tmp_path.resolve())


CALLS = """
os.mkdir("a")
with open("a/x", "w") as file:
    file.write("one")
flush("a/x")
os.rename("a/x", "a/y")
os.unlink("a/y")
os.rmdir("a")
"""


def test_every_change_is_counted_in_its_class_and_nothing_outside(folder: Folder, tmp_path: Path) -> None:
    assert folder.run(CALLS + f"open({str(tmp_path / 'elsewhere')!r}, 'w').write('x')", trace=True) == 0
    calls = [(call, Path(path).name) for call, path in folder.state.calls()]
    assert calls == [
        ("mkdir", "a"), ("open", "x"), ("write", "x"), ("fsync", "x"), ("rename", "y"), ("unlink", "y"),
        ("unlink", "a"),
    ]  # fmt: skip
    assert folder.state.read().counted == len(calls)


@pytest.mark.parametrize("number", range(1, 8))
def test_the_nth_call_alone_fails(folder: Folder, number: int) -> None:
    code = f"""
try:
    exec({CALLS!r})
except OSError as error:
    sys.exit(error.errno)
"""
    assert folder.run(code, Disturbance("error", number, errno.EIO)) == errno.EIO
    assert folder.state.read().fired
    assert folder.run("os.mkdir('b')", Disturbance("error", 2, errno.EIO)) == 0


def test_a_full_disk_stays_full_and_forgets_files(folder: Folder) -> None:
    code = """
os.write(os.open("x", os.O_CREAT | os.O_WRONLY), b"first")
for doing in (lambda: os.mkdir("a"), lambda: open("y", "w")):
    try:
        doing(); sys.exit(1)
    except OSError as error:
        assert error.errno == 28
os.unlink("x")
"""
    assert folder.run(code, Disturbance("full", 3, errno.ENOSPC)) == 0
    assert folder.there() == {}


def test_a_process_is_killed_in_place_of_a_call_or_in_the_middle_of_it(folder: Folder) -> None:
    code = "os.write(os.open('x', os.O_CREAT | os.O_WRONLY), b'12345678')"
    assert folder.run(code, Disturbance("kill", 2)) == -signal.SIGKILL
    assert folder.there() == {"x": ""}
    assert folder.run(code, Disturbance("torn", 2)) == -signal.SIGKILL
    assert folder.there() == {"x": "1234"}


def test_other_processes_of_a_killed_command_die_at_their_next_call(folder: Folder) -> None:
    code = """
import subprocess, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import os, time; time.sleep(1); os.mkdir('late')"])
os.mkdir("now")
"""
    assert folder.run(code, Disturbance("kill", 1)) == -signal.SIGKILL
    subprocess.run(["sleep", "1.5"], check=True)
    assert not list(folder.root.iterdir())


WRITTEN = "open('x.tmp', 'w').write('new'); {flush} os.rename('x.tmp', 'x'); {parent}"


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize(
    ("flush", "parent", "left"),
    [
        ("flush('x.tmp');", "flush('.')", ("new", "new")),
        ("", "flush('.')", ("", "")),
        ("flush('x.tmp');", "", ("new", "old")),
        ("", "", ("", "old")),
    ],
)
def test_what_was_not_flushed_is_gone(
    folder: Folder, flush: str, parent: str, left: tuple[str, str], names: bool
) -> None:
    (folder.root / "x").write_text("old")
    assert folder.run(WRITTEN.format(flush=flush, parent=parent), trace=True) == 0
    assert folder.there() == {"x": "new"}
    lose_power(folder.state, names=names)
    assert folder.there() == {"x": left[names]}


def test_a_folder_is_whole_only_with_all_that_is_in_it_flushed(folder: Folder) -> None:
    made = """
os.makedirs("t/in")
open("t/in/x", "w").write("x")
for path in {flushed}: flush(path)
os.rename("t", "place")
flush(".")
"""
    whole = ["t/in/x", "t/in", "t"]
    for flushed in (whole, whole[:2], whole[:1], [whole[0], whole[2]]):
        assert folder.run(made.format(flushed=flushed), trace=True) == 0
        lose_power(folder.state, names=True)
        assert folder.there() == ({"place/in/x": "x"} if flushed == whole else {})
        for path in sorted(folder.root.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_a_removal_that_was_not_flushed_comes_back(folder: Folder) -> None:
    (folder.root / "x").write_text("old")
    assert folder.run("os.unlink('x')", trace=True) == 0
    lose_power(folder.state, names=True)
    assert folder.there() == {"x": "old"}
    assert folder.run("os.unlink('x'); flush('.')", trace=True) == 0
    lose_power(folder.state, names=True)
    assert folder.there() == {}


def test_a_removed_folder_comes_back_with_what_was_in_it(folder: Folder) -> None:
    (folder.root / "a" / "b").mkdir(parents=True)
    (folder.root / "a" / "b" / "x").write_text("old")
    removed = "os.unlink('a/b/x'); os.rmdir('a/b'); os.rename('a', 'c'); os.rmdir('c')"
    assert folder.run(removed, trace=True) == 0
    assert not list(folder.root.iterdir())
    lose_power(folder.state, names=True)
    assert folder.there() == {"a/b/x": "old"}


def test_what_was_appended_after_the_last_flush_is_gone(folder: Folder) -> None:
    (folder.root / "log").write_text("before\n")
    code = """
file = open("log", "a")
file.write("flushed\\n"); file.flush(); os.fsync(file.fileno())
file.write("not\\n")
"""
    assert folder.run(code, trace=True) == 0
    assert folder.there() == {"log": "before\nflushed\nnot\n"}
    lose_power(folder.state, names=True)
    assert folder.there() == {"log": "before\nflushed\n"}
