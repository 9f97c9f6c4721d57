"""Errors of the disk and of memory, as each library raises them, in one sentence with the file's path."""

import errno
import os
import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from recmtl.cli import exit_code_of
from recmtl.failures import input_or_output, out_of_memory

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
