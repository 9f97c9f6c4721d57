"""Errors of the disk and of memory, as each library raises them, in one sentence with the file's path."""

import errno
import os
import resource
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from recmtl import durable
from recmtl.cli import exit_code_of
from recmtl.errors import RunError
from recmtl.failures import input_or_output, out_of_memory, writing

FULL = Path("/dev/full")
"""A file that can be opened, and takes nothing: every write says that the disk is full."""
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def caught(act: Callable[[], Any]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def write_text(path: Path) -> None:
    with path.open("w") as file:
        file.write("x" * 100_000)


def write_polars(path: Path) -> None:
    pl.DataFrame({"a": range(100_000)}).write_parquet(path)


def write_arrow(path: Path) -> None:
    pq.write_table(pl.DataFrame({"a": range(100_000)}).to_arrow(), path)


@needs_full
@pytest.mark.parametrize("write", [write_text, write_polars, write_arrow])
def test_a_full_disk_is_told_with_the_path(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "full"
    path.symlink_to(FULL)  # Arrow removes what it could not write
    said = input_or_output(caught(lambda: write(path)))
    assert said == f"{path}: No space left on device; make room on this disk, then run the same command again"


@needs_full
@pytest.mark.parametrize("write", [write_text, write_polars, write_arrow])
@pytest.mark.parametrize("reads", [False, True])
def test_what_is_written_is_named_and_not_what_is_read(
    write: Callable[[Path], None], reads: bool, tmp_path: Path
) -> None:
    path = tmp_path / "full"
    path.symlink_to(FULL)

    def act() -> None:
        source = tmp_path / "input.csv"  # what a path was guessed from
        with writing(path, reads=reads):
            write(path)
        assert source

    error = caught(act)
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENOSPC, str(path))


def test_a_block_that_reads_too_is_named_by_errors_of_writing_alone(tmp_path: Path) -> None:
    def act(number: int, reads: bool) -> BaseException:
        def fail() -> None:
            with writing(tmp_path / "out", reads=reads):
                raise pl.exceptions.ComputeError(f"underlying IO error: x (os error {number})")

        return caught(fail)

    assert getattr(act(errno.EIO, False), "filename", None) == str(tmp_path / "out")
    assert getattr(act(errno.ENOSPC, True), "filename", None) == str(tmp_path / "out")
    assert isinstance(act(errno.EIO, True), pl.exceptions.ComputeError)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "x", "/data/a"),
        FileNotFoundError("No such file or directory (os error 2): /data/a\n\nwith more below"),
        OSError(errno.EIO, "Failed to open local file '/data/a'. Detail: [errno 5] Input/output error"),
    ],
    ids=["Python", "Polars", "Arrow"],
)
def test_an_error_that_names_its_file_keeps_it(error: OSError, tmp_path: Path) -> None:
    def act() -> None:
        with writing(tmp_path / "out"):
            raise error

    assert caught(act) is error
    said = input_or_output(error)
    assert said is not None
    assert said.startswith("/data/a: ")


def test_an_error_about_no_file_stays_what_it_is(tmp_path: Path) -> None:
    def act() -> None:
        with writing(tmp_path / "out"):
            raise error

    for error in (RunError("input.csv cannot be read"), ValueError("[Errno 5]"), pl.exceptions.ComputeError("x")):
        assert caught(act) is error


@pytest.mark.parametrize(
    "make",
    [durable.replacing, durable.replacing_file, lambda path: durable.scratch(path.parent, path.name)],
    ids=["folder", "file", "scratch"],
)
def test_a_full_disk_is_about_what_takes_a_place(make: Callable[[Path], Any], tmp_path: Path) -> None:
    def act() -> None:
        source = tmp_path / "input"
        with make(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert source

    error = caught(act)
    assert isinstance(error, OSError)
    assert str(error.filename).startswith(f"{tmp_path}/.out.")
    assert list(tmp_path.iterdir()) == []


@needs_full
def test_of_a_copy_the_full_side_is_told(tmp_path: Path) -> None:
    source, target = tmp_path / "from" / "a", tmp_path / "to" / "a"
    source.parent.mkdir()
    source.write_text("x")
    target.parent.mkdir()
    target.symlink_to(FULL)
    full = f"{target}: No space left on device; make room on this disk, then run the same command again"
    assert input_or_output(caught(lambda: shutil.copyfile(source, target))) == full
    of_folder = caught(lambda: shutil.copytree(source.parent, target.parent, dirs_exist_ok=True))
    assert input_or_output(of_folder) == full


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room on this disk"),
        (errno.EIO, "run the same command again when it works"),
        (errno.EACCES, "must be permitted to read or write here"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EROFS, "choose another folder"),
    ],
)
def test_every_error_says_what_to_do(number: int, advice: str) -> None:
    said = input_or_output(OSError(number, os.strerror(number), "/data/a.parquet"))
    assert said is not None
    assert said.startswith(f"/data/a.parquet: {os.strerror(number)}; ")
    assert advice in said


def test_both_names_of_a_rename_are_told() -> None:
    said = input_or_output(caught(lambda: Path("/nowhere/a").rename("/nowhere/b")))
    assert said is not None
    assert said.startswith("/nowhere/a → /nowhere/b: No such file")


@pytest.mark.parametrize(
    "read",
    [pl.read_parquet, lambda path: pl.scan_parquet(path).collect(), pq.read_table, lambda path: load_file(str(path))],
    ids=["Polars", "lazy Polars", "Arrow", "safetensors"],
)
def test_a_damaged_file_is_told_with_its_path(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "damaged.bin"
    path.write_bytes(b"PAR1 no file of this kind PAR1")
    said = input_or_output(caught(lambda: read(path)))
    assert said is not None
    assert said.startswith(f"{path}: ")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("No space left on device (os error 28)", "No space left on device; make room"),
        ("Error while serializing: I/O error: Input/output error (os error 5)", "Input/output error; the disk"),
        ("parquet: File out of specification: the page is cut off", "parquet: File out of specification"),
    ],
)
def test_what_rust_wraps_is_unwrapped(text: str, start: str, tmp_path: Path) -> None:
    def act() -> None:
        path = tmp_path / "part.parquet"
        assert path
        raise pl.exceptions.ComputeError(text)

    said = input_or_output(caught(act))
    assert said is not None
    assert said.startswith(f"{tmp_path / 'part.parquet'}: {start}")


def test_sqlite() -> None:
    def act() -> None:
        path = Path("/nowhere/store.db")
        sqlite3.connect(path)

    said = input_or_output(caught(act))
    assert said is not None
    assert said.startswith("/nowhere/store.db: unable to open database file; the folder must be there")
    full = input_or_output(sqlite3.OperationalError("database or disk is full"))
    assert full == "input or output: No space left on device; make room on this disk, then run the same command again"


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError("os error 28"), pl.exceptions.ColumnNotFoundError("a"), RuntimeError("shape mismatch")],
)
def test_a_fault_of_our_own_is_none_of_these(error: Exception) -> None:
    assert input_or_output(error) is None
    assert out_of_memory(error) is None


def allocate_in_torch() -> None:
    torch.empty(2**50)


def allocate_in_python() -> None:
    bytearray(2**50)


def allocate_in_numpy() -> None:
    import numpy as np

    np.ones(2**50)


@pytest.mark.parametrize("act", [allocate_in_torch, allocate_in_python, allocate_in_numpy])
def test_want_of_memory(act: Callable[[], None]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, hard))  # a machine that overcommits would grant a petabyte
    try:
        assert out_of_memory(caught(act)) == "memory"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_memory_of_a_gpu() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) == "memory of the GPU"
    assert out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory")) == "memory"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "error: out of memory (MemoryError): lower "),
        (OSError(errno.ENOSPC, "x", "/data/a"), "error: /data/a: No space left on device; make room"),
        (pl.exceptions.ComputeError("x (os error 5)"), "Input/output error; the disk"),
        (sqlite3.OperationalError("disk I/O error"), "Input/output error; the disk"),
        (RuntimeError("broken"), "error: unexpected RuntimeError: broken (a fault of recmtl's; --debug shows where)"),
    ],
)
def test_the_command_line_ends_with_1(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_code_of():
        raise error
    assert ended.value.code == 1
    assert said in capsys.readouterr().err


def test_an_address_is_shown_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), exit_code_of(debug=True):
        raise RuntimeError("cannot reach postgresql://ann:it's#0pen-sesame@db/mlflow?sslkey=hush")
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "sesame" not in shown
    assert "hush" not in shown
