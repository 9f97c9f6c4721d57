"""The store's client: a SQLite store appears whole or not at all."""

import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from recmtl.bounded import parse_json
from recmtl.errors import NotRegisteredError, RecmtlError, RunError
from recmtl.tracking import champion_of, promote, register, resolved
from recmtl.tracking.client import _database, connect, is_ours


def _make(uri: str, started: Any) -> None:
    started.set()
    connect(uri)


def test_a_store_whose_making_is_killed_is_made_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "store" / "mlflow.db"
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_make, args=(f"sqlite:///{path}", started))
    process.start()
    assert started.wait(60)
    unfinished = path.parent / ".mlflow.db.making"
    while not (unfinished.exists() and unfinished.stat().st_size) and process.is_alive():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert not path.exists(), "half a store must not look like one"
    client = connect(f"sqlite:///{path}")
    client.create_experiment("after")
    assert client.get_experiment_by_name("after") is not None
    assert sorted(p.name for p in path.parent.iterdir() if "making" in p.name) == []


def test_a_store_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    connect(f"sqlite:///{path}").create_experiment("mine")
    assert connect(f"sqlite:///{path}").get_experiment_by_name("mine") is not None
    with sqlite3.connect(path) as store:
        assert store.execute("SELECT count(*) FROM experiments WHERE name = 'mine'").fetchone() == (1,)
    store.close()


@pytest.mark.parametrize("name", ["a store.db", "[mlflow].db"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    connect(f"sqlite:///{tmp_path / name}")
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize("content", [b"no database at all" * 500, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_store_that_is_damaged_is_one_sentence(
    content: bytes, saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At every door, soon, with the path; nothing of MLflow's own, which printed tracebacks and waited for minutes."""
    (tmp_path / "mlflow.db").write_bytes(content)
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def fetch() -> None:
        with resolved("models:/ranker/1", uri):
            pass

    began = time.monotonic()
    doors: list[tuple[type[RecmtlError], Any]] = [
        (NotRegisteredError, lambda: register(saved, "ranker", None, uri=uri)),
        (RunError, lambda: promote("ranker", uri=uri)),
        (RunError, lambda: champion_of("ranker", uri=uri)),
        (RunError, fetch),
    ]
    for kind, door in doors:
        with pytest.raises(kind) as caught:
            door()
        assert str(tmp_path) in str(caught.value)
        assert "database" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_our_own_is_not_taken_for_mlflows() -> None:
    with pytest.raises(AttributeError) as ours:
        _database(None)  # type: ignore[arg-type]
    assert is_ours(ours.value)
    with pytest.raises(ValueError, match="Expecting") as theirs:
        parse_json(b"no JSON")  # raised inside json, which recmtl called
    assert not is_ours(theirs.value)
    assert not is_ours(ValueError("never raised"))
