import json
from pathlib import Path
from typing import Any

import pytest

from recmtl import durable
from recmtl.errors import RunError
from recmtl.tracking.journal import Journal, Sent, is_over, is_sent


def point(step: int) -> dict[str, object]:
    return {"kind": "metrics", "step": step, "time": 1, "values": {"loss": 0.5}}


def test_records_come_back_in_order_with_the_byte_behind_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in range(3):
        journal.append(point(step))
    ends, records = zip(*journal.records(), strict=True)
    assert [record.get("step") for record in records] == [None, 0, 1, 2]
    assert ends[-1] == journal.size
    assert [record["step"] for _, record in journal.records(ends[1])] == [1, 2]
    assert list(journal.records(ends[-1])) == []
    journal.close()


def test_it_remembers_when_opened_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    run = journal.run["id"]
    journal.append(point(7))
    journal.append({"kind": "params", "values": {"a": "1"}})
    journal.append({"kind": "status", "status": "FAILED", "time": 1})
    journal.close()
    again = Journal(tmp_path)
    assert again.run["id"] == run
    assert again.last_step == {"loss": 7}
    assert again.params == {"a": "1"}
    assert again.status == "FAILED"
    again.close()


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_half_a_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    journal.append(point(0))
    journal.append(point(1))
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    again = Journal(tmp_path)
    assert again.last_step == {"loss": 0}
    again.append(point(1))
    assert [record.get("step") for _, record in again.records()] == [None, 0, 1]
    again.close()


def test_a_half_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(point(0))
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"kind": "' + b"x" * 200_000)
    again = Journal(tmp_path)
    assert [record.get("step") for _, record in again.records()] == [None, 0]
    again.close()
    journal.path.write_bytes(b"x" * 200_000)
    fresh = Journal(tmp_path)
    assert [record["kind"] for _, record in fresh.records()] == ["run"]
    fresh.close()


def test_damage_elsewhere_is_named(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b"not json\n")
    with pytest.raises(RunError, match=r"journal\.jsonl: damaged at record 1"):
        Journal(tmp_path)


def test_stores_are_followed_apart(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    assert sent.latest is None
    assert sent.get("sqlite:///a.db", "x") == {"run_id": None, "acknowledged": 0, "registered": {}}
    sent.aim(uri="sqlite:///a.db", experiment="x", name="n", secrets=False)
    sent.put("sqlite:///a.db", "x", run_id="1", acknowledged=10)
    sent.put("sqlite:///a.db", "x", acknowledged=20)
    sent.put("sqlite:///b.db", "x", run_id="2")
    again = Sent(tmp_path)
    assert again.get("sqlite:///a.db", "x") == {"run_id": "1", "acknowledged": 20, "registered": {}}
    assert again.get("sqlite:///b.db", "x")["acknowledged"] == 0
    assert again.latest is not None
    assert again.latest["uri"] == "sqlite:///a.db"
    (tmp_path / "sent.json").write_text(json.dumps([]))
    assert Sent(tmp_path).get("sqlite:///a.db", "x")["acknowledged"] == 0, "damaged: all is sent again"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\0\0", b'{"stores": {}}', b'{"latest": null, "stores": {"a": {"acknowledged": "x"}}}'],
)
def test_a_damaged_mark_sends_all_again(tmp_path: Path, content: bytes) -> None:
    sent = Sent(tmp_path)
    sent.put("sqlite:///a.db", "x", run_id="1", acknowledged=10)
    (tmp_path / "sent.json").write_bytes(content)
    again = Sent(tmp_path)
    assert again.get("sqlite:///a.db", "x") == {"run_id": None, "acknowledged": 0, "registered": {}}
    again.put("sqlite:///a.db", "x", acknowledged=3)
    assert Sent(tmp_path).get("sqlite:///a.db", "x")["acknowledged"] == 3


def test_a_record_that_the_disk_refuses_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(durable.Files):
        def write(self, file: Any, data: bytes) -> None:
            super().write(file, data[:10])
            raise OSError(28, "No space left on device", file.name)

    journal = Journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "files", Full())
        with pytest.raises(OSError, match="No space"):
            journal.append({"kind": "tags", "values": {"a": "lost"}})
    journal.append({"kind": "tags", "values": {"a": "kept"}})
    assert [record["values"] for _, record in journal.records() if record["kind"] == "tags"] == [{"a": "kept"}]
    journal.close()


def test_a_run_is_over_when_it_ended_and_a_store_has_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    sent = Sent(tmp_path)
    sent.put("sqlite:///a.db", "x", acknowledged=journal.size)
    assert not is_over(tmp_path)
    end = journal.append({"kind": "status", "status": "FINISHED", "time": 1})
    journal.close()
    assert not is_over(tmp_path)
    sent.put("sqlite:///a.db", "x", acknowledged=end)
    assert is_over(tmp_path)


def test_a_run_is_sent_when_a_store_has_all_up_to_an_open_wish(tmp_path: Path) -> None:
    journal, sent = Journal(tmp_path), Sent(tmp_path)
    assert not is_sent(tmp_path)
    sent.put("sqlite:///a.db", "x", acknowledged=journal.size)
    assert is_sent(tmp_path)
    wish = {"kind": "register", "package": "package", "model": "ranker", "alias": None}
    journal.append(wish)
    journal.append({"kind": "tags", "values": {"a": "b"}})
    assert is_sent(tmp_path), "the wish and what was told after it wait"
    journal.append(wish)
    assert not is_sent(tmp_path), "the first wish is void, so the tags wait for nothing"
    sent.put("sqlite:///b.db", "x", acknowledged=journal.size)
    assert is_sent(tmp_path), "another store has all"
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"kind": "tags", "val')
    assert not is_sent(tmp_path), "half a line"
    journal.path.write_bytes(b"")
    assert not is_sent(tmp_path), "shorter than what was acknowledged"
