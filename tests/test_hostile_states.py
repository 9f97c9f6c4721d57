"""State files that were damaged or planted: every reader ends in one sentence that names the file, or begins anew."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from recmtl.errors import RecmtlError
from recmtl.findings import read_report
from recmtl.manifest import Manifest
from recmtl.runs import _difference
from recmtl.tracking.journal import Journal, Sent, last_status
from recmtl.tracking.promotion import _entry
from recmtl.training.checkpoint import _best_of, _hashes, _state

HOSTILE = {
    "lists": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "no UTF-8": b"\xff\xfe\x00",
    "digits": b'{"format": ' + b"9" * 100_000 + b"}",
    "a list": b"[]",
    "null": b"null",
    "empty": b"",
    "cut": b'{"format": 1, "stores": {',
}

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "manifest": ("manifest.json", Manifest.read_from),
    "checkpoint": ("state.json", _state),
    "checkpoint's hashes": ("hashes.json", _hashes),
    "best weights": ("state.json", _best_of),
    "sent": ("sent.json", Sent),
    "run's config": ("config.resolved.yaml", lambda folder: _difference(folder, {"name": "x"})),
}


def sentence(act: Callable[[], Any]) -> str:
    """What recmtl says of it; empty where it begins anew. Any other error is a fault."""
    try:
        act()
    except RecmtlError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("reader", READERS)
def test_a_state_that_is_none(reader: str, content: bytes, tmp_path: Path) -> None:
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(content)
    said = sentence(lambda: read(tmp_path))
    assert "\n" not in said
    assert len(said) < 600


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_journal_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(content + b"\n")
    last_status(tmp_path / "journal.jsonl")
    said = sentence(lambda: Journal(tmp_path).close())
    assert not said or "journal.jsonl: damaged at record 0" in said


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_report_and_a_list_of_source_that_are_none(content: bytes, tmp_path: Path) -> None:
    with warnings.catch_warnings():  # of MLflow about itself
        warnings.simplefilter("ignore")
        from recmtl.tracking.serving import check_source
    path = tmp_path / "it.json"
    path.write_bytes(content)
    with pytest.raises(ValidationError):
        read_report(path)
    if content == b"[]":  # an empty list, as an empty object, lists no source
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "a.py").write_text("")
    with pytest.raises(RuntimeError, match="recmtl's source"):
        check_source(path, tmp_path / "code")


def test_a_move_that_is_none() -> None:
    class Version:
        tags = {"recmtl.move": "[" * 5000}
        version = "1"

    assert _entry(Version()) is None
