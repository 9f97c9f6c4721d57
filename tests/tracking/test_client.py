"""The store's client: a SQLite store appears whole or not at all."""

import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from recmtl.tracking.client import connect


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
