"""Locks: one process at a time, waiting or refusing."""

import threading
from pathlib import Path

import pytest

from recmtl.errors import UserError
from recmtl.locks import held


def test_a_free_lock_is_held_without_a_word(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):  # let go at the end, so that it can be held again
        with held(tmp_path / "lock", lambda: said.append("busy")):
            pass
    assert said == []


def test_a_held_lock_is_refused_or_waited_for(tmp_path: Path) -> None:
    def refuse() -> None:
        raise UserError("somebody is here")

    inside, leave, order = threading.Event(), threading.Event(), []

    def work() -> None:
        with held(tmp_path / "lock", refuse):
            inside.set()
            leave.wait(10)
            order.append("first")

    first = threading.Thread(target=work)
    first.start()
    assert inside.wait(10)
    with pytest.raises(UserError, match="somebody is here"), held(tmp_path / "lock", refuse):
        pass
    with held(tmp_path / "lock", leave.set):  # told that it is busy, the other one leaves
        order.append("second")
    first.join()
    assert order == ["first", "second"]


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path / "lock", lambda: None):
        raise ZeroDivisionError
    with held(tmp_path / "lock", lambda: pytest.fail("it is free")):
        pass
