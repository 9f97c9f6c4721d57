"""Who becomes the champion: by the gate, by a stated reason, one at a time, and always on record."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from recmtl.errors import RefusedError, RunError, UserError
from recmtl.findings import Report
from recmtl.tracking import promotion
from recmtl.tracking.client import globally, quietly
from recmtl.tracking.promotion import Move, announce, champion_of, history, promote, replayed, rollback

Publish = Callable[..., int]
Make = Callable[..., Report]
Aliases = Callable[..., Mapping[str, int]]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is about to move anything, so nothing needs waiting for."""
    monkeypatch.setattr(promotion, "_SETTLE_SECONDS", (0.0,))


@pytest.fixture
def put(uri: str, publisher: Publish, make_report: Make, tmp_path: Path) -> Callable[..., int]:
    """Makes a version of ``ranker`` whose package's hash is ``letter`` 64 times."""

    def put(letter: str, decision: str | None = "promote", champion: str | None = None) -> int:
        against = champion * 64 if champion else False
        report = decision and make_report(model=letter * 64, champion=against, decision=decision)
        return publisher(uri, "ranker", report or None, tmp_path)

    return put


def moves(uri: str) -> list[tuple[str, str, int | None, int, bool]]:
    return [(one.alias, one.kind, one.before, one.after, one.void) for one in history("ranker", uri=uri).moves]


# By the gate


def test_the_first_champion_and_a_better_one(put: Publish, uri: str, aliases: Aliases) -> None:
    put("1")
    first = promote("ranker", 1, uri=uri)
    assert first is not None
    assert (first.before, first.after, first.kind, first.done) == (None, 1, "gate", True)
    assert aliases() == {"champion": 1}
    put("2", champion="1")
    assert promote("ranker", "2", uri=uri) is not None
    assert aliases() == {"champion": 2}
    found = history("ranker", uri=uri)
    assert moves(uri) == [("champion", "gate", None, 1, False), ("champion", "gate", 1, 2, False)]
    assert found.notes == ()
    (_, last) = found.moves
    assert "@" in last.who
    assert last.why == "Better than the champion."
    assert last.verdict is not None
    assert len(last.verdict) == 64
    assert last.recmtl
    assert last.when.startswith("20")
    assert promote("ranker", 2, uri=uri) is None, "it is the champion already"
    assert len(history("ranker", uri=uri).moves) == 2


def test_the_champion_to_compare_with(put: Publish, uri: str) -> None:
    assert champion_of("ranker", uri=uri) is None
    put("1")
    assert champion_of("ranker", uri=uri) is None
    promote("ranker", 1, uri=uri)
    found = champion_of("ranker", uri=uri)
    assert found is not None
    assert (found.version, found.digest, found.uri("ranker")) == (1, "1" * 64, "models:/ranker/1")


def test_the_gate_refuses(put: Publish, uri: str, aliases: Aliases) -> None:
    put("1", "refuse")
    with pytest.raises(
        RefusedError, match=r"the gate refuses version 1 of ranker: Worse than the champion\."
    ) as raised:
        promote("ranker", 1, uri=uri)
    assert raised.value.exit_code == 3
    assert raised.value.reasons == ("Worse than the champion.",)
    assert aliases() == {}
    assert moves(uri) == []


def test_no_verdict_is_no_way_through(put: Publish, uri: str) -> None:
    put("1", None)
    put("2", "not judged")
    with pytest.raises(RefusedError, match="registered without a gate's verdict"):
        promote("ranker", 1, uri=uri)
    with pytest.raises(RefusedError, match=r"No gate was configured .* Evaluate it again"):
        promote("ranker", 2, uri=uri)


def test_a_verdict_against_another_champion(put: Publish, uri: str) -> None:
    put("1")
    put("2")
    put("3", champion="1")
    put("4", champion="9")
    promote("ranker", 1, uri=uri)
    with pytest.raises(RefusedError, match="judged when there was no champion, but the champion is version 1 now"):
        promote("ranker", 2, uri=uri)
    with pytest.raises(
        RefusedError, match=r"judged against another model \(9{12}\), but the champion is version 1 now"
    ):
        promote("ranker", 4, uri=uri)
    promote("ranker", 2, override="for the test", uri=uri)
    with pytest.raises(RefusedError, match="judged against version 1, but the champion is version 2 now: evaluate it"):
        promote("ranker", 3, uri=uri)


def test_a_verdict_that_somebody_changed(put: Publish, uri: str, client: Any, tmp_path: Path) -> None:
    put("1", "refuse")
    with quietly():
        client.set_model_version_tag("ranker", "1", "recmtl.gate", "promote")
    with pytest.raises(RefusedError, match="the gate refuses"):
        promote("ranker", 1, uri=uri)  # the report says it, not the tag
    (stored,) = (tmp_path / "artifacts").rglob("reports/*.json")
    stored.write_text(stored.read_text().replace("refuse", "promote"))
    with pytest.raises(RefusedError, match="is gone or is not what was stored"):
        promote("ranker", 1, uri=uri)
    stored.unlink()
    with pytest.raises(RefusedError, match="is gone or is not what was stored"):
        promote("ranker", 1, uri=uri)
    put("2")
    with quietly():
        client.set_model_version_tag("ranker", "2", "recmtl.package", "3" * 64)
    with pytest.raises(RefusedError, match="about another package"):
        promote("ranker", 2, uri=uri)


def test_the_challenger(put: Publish, uri: str, client: Any, aliases: Aliases) -> None:
    put("1")
    with pytest.raises(UserError, match=r"has no @challenger \(there is no alias at all\)"):
        promote("ranker", uri=uri)
    with quietly(), globally(uri):
        announce(client, "ranker", "challenger", 1, "d" * 64)
        announce(client, "ranker", "challenger", 1, "d" * 64)
    assert promote("ranker", uri=uri) is not None
    assert promote("ranker", uri=uri) is None
    assert aliases() == {"challenger": 1, "champion": 1}
    assert moves(uri) == [("challenger", "candidate", None, 1, False), ("champion", "gate", None, 1, False)]
    # The gate refused what came since, so there is no challenger, and that is what a nightly job must hear.
    put("2", "refuse", champion="1")
    with pytest.raises(RefusedError, match=r"the gate refuses version 2 of ranker: Worse than the champion\."):
        promote("ranker", uri=uri)


def test_a_refused_first_version(put: Publish, uri: str) -> None:
    put("1", "refuse")
    with pytest.raises(RefusedError, match="the gate refuses version 1"):
        promote("ranker", uri=uri)


# By a stated reason


def test_an_override(put: Publish, uri: str, client: Any, aliases: Aliases) -> None:
    put("1", "refuse")
    for nothing in ("", "  "):
        with pytest.raises(UserError, match="--override: say why"):
            promote("ranker", 1, override=nothing, uri=uri)
    move = promote("ranker", 1, override="the old one\n is  broken", uri=uri)
    assert move is not None
    assert (move.kind, move.why) == ("override", "the old one is broken")
    assert aliases() == {"champion": 1}
    with quietly():
        tags = client.get_model_version("ranker", "1").tags
    assert tags["recmtl.gate.overridden"] == "the old one is broken"
    assert move.verdict == tags["recmtl.gate.report"]


def test_a_reason_without_its_secrets(put: Publish, uri: str) -> None:
    put("1", None)
    move = promote("ranker", 1, override="see https://ann:s3cret@host/x", uri=uri)
    assert move is not None
    assert move.why == "see https://host/x"


def test_rollback(put: Publish, uri: str, aliases: Aliases) -> None:
    put("1")
    promote("ranker", 1, uri=uri)
    with pytest.raises(UserError, match="no champion before the present one"):
        rollback("ranker", reason="x", uri=uri)
    for letter, before in (("2", "1"), ("3", "2")):
        put(letter, champion=before)
        promote("ranker", int(letter), uri=uri)
    with pytest.raises(UserError, match="--reason: say why"):
        rollback("ranker", reason=" ", uri=uri)
    back = rollback("ranker", reason="slow", uri=uri)
    assert (back.before, back.after) == (3, 2)
    assert aliases() == {"champion": 2}
    # Once more goes further back, and not forth.
    assert rollback("ranker", reason="slow too", uri=uri).after == 1
    with pytest.raises(UserError, match="no champion before"):
        rollback("ranker", reason="x", uri=uri)
    assert rollback("ranker", 3, reason="it was the network", uri=uri).after == 3
    assert aliases() == {"champion": 3}
    with pytest.raises(UserError, match="champion already"):
        rollback("ranker", 3, reason="x", uri=uri)


def test_rollback_is_no_way_round_the_gate(put: Publish, uri: str) -> None:
    put("1")
    put("2", "refuse")
    promote("ranker", 1, uri=uri)
    with pytest.raises(UserError, match="version 2 of ranker was never the champion"):
        rollback("ranker", 2, reason="x", uri=uri)
    with pytest.raises(UserError, match="never the champion"):
        rollback("ranker", 7, reason="x", uri=uri)


def test_what_was_rolled_back_comes_back_by_a_reason_alone(put: Publish, uri: str) -> None:
    put("1")
    promote("ranker", 1, uri=uri)
    put("2", champion="1")
    promote("ranker", 2, uri=uri)
    rollback("ranker", reason="crashes on null", uri=uri)
    with pytest.raises(RefusedError, match=r"rolled it back on .* \(crashes on null\)"):
        promote("ranker", 2, uri=uri)  # its verdict, against version 1, would let it through
    assert promote("ranker", 2, override="fixed in the caller", uri=uri) is not None
    assert moves(uri)[-1] == ("champion", "override", 1, 2, False)


# Two at once, and commands that were stopped


def test_of_two_the_first_on_record_wins(put: Publish, uri: str, aliases: Aliases, monkeypatch: Any) -> None:
    """The second promotes between the first's look at the ledger and its entry."""
    put("1")
    promote("ranker", 1, uri=uri)
    put("2", champion="1")
    put("3", champion="1")
    append = promotion._append

    def late(client: Any, name: str, wish: Any) -> None:
        monkeypatch.setattr(promotion, "_append", append)
        promote("ranker", 3, uri=uri)
        append(client, name, wish)

    monkeypatch.setattr(promotion, "_append", late)
    with pytest.raises(RefusedError, match=r"version 2 of ranker is not promoted: .* made version 3 the champion"):
        promote("ranker", 2, uri=uri)
    assert aliases() == {"champion": 3}
    assert moves(uri)[-2:] == [("champion", "gate", 1, 3, False), ("champion", "gate", 1, 2, True)]


def test_stopped_between_the_record_and_the_alias(put: Publish, uri: str, aliases: Aliases, monkeypatch: Any) -> None:
    put("1")
    promote("ranker", 1, uri=uri)
    put("2", champion="1")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_project", killed)
        with pytest.raises(KeyboardInterrupt):
            promote("ranker", 2, uri=uri)
    assert aliases() == {"champion": 1}
    found = champion_of("ranker", uri=uri)
    assert found is not None
    assert found.version == 2, "the ledger decides"
    assert aliases() == {"champion": 1}, "looking changes nothing"
    first = history("ranker", uri=uri)
    assert first.notes[0].startswith("@champion was still at version 1 and is now at version 2: the command of ")
    assert aliases() == {"champion": 2}
    assert history("ranker", uri=uri).notes == ()


def test_a_slow_command_does_not_undo_a_later_one(put: Publish, uri: str, aliases: Aliases, monkeypatch: Any) -> None:
    """The first has made its entry; before it sets the alias, the second repairs that, promotes, and is done."""
    from mlflow import MlflowClient

    put("1")
    put("2", champion="1")
    set_alias = MlflowClient.set_registered_model_alias

    def slow(self: Any, name: str, alias: str, version: str) -> None:
        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_alias)
        promote("ranker", 2, uri=uri)
        set_alias(self, name, alias, version)
        assert aliases() == {"champion": 1}, "for a moment it is back"

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", slow)
    promote("ranker", 1, uri=uri)
    assert aliases() == {"champion": 2}
    assert history("ranker", uri=uri).notes == ()


def test_an_answer_that_got_lost_is_not_said_twice(put: Publish, uri: str, monkeypatch: Any) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    put("1")
    create = MlflowClient.create_model_version

    def lost(self: Any, *arguments: Any, **named: Any) -> Any:
        create(self, *arguments, **named)
        raise MlflowException("the line went dead")

    monkeypatch.setattr(MlflowClient, "create_model_version", lost)
    assert promote("ranker", 1, uri=uri) is not None
    assert moves(uri) == [("champion", "gate", None, 1, False)]


def test_a_database_that_is_busy_is_asked_again(put: Publish, uri: str, monkeypatch: Any) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE

    put("1")
    create, tries = MlflowClient.create_model_version, []

    def busy(self: Any, *arguments: Any, **named: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)
        return create(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "create_model_version", busy)
    assert promote("ranker", 1, uri=uri) is not None
    assert len(tries) == 3

    def gone(*_: Any, **__: Any) -> Any:
        raise MlflowException("no such thing", RESOURCE_DOES_NOT_EXIST)

    put("2", None)
    monkeypatch.setattr(MlflowClient, "create_model_version", gone)
    with pytest.raises(RunError, match="no such thing"):
        promote("ranker", 2, override="x", uri=uri)


# Other hands


def test_an_alias_moved_by_hand_is_noticed(put: Publish, uri: str, client: Any, aliases: Aliases) -> None:
    put("1")
    promote("ranker", 1, uri=uri)
    put("2", champion="1")
    promote("ranker", 2, uri=uri)
    put("3", champion="2")
    with quietly():
        client.set_registered_model_alias("ranker", "champion", "1")
    text = "@champion of ranker is at version 1, but the last move on record brought it to version 2: somebody moved it"
    assert history("ranker", uri=uri).notes[0].startswith(text)
    assert aliases() == {"champion": 1}, "what somebody did in an emergency is not undone"
    found = champion_of("ranker", uri=uri)
    assert found is not None
    assert found.version == 1, "what serves is what a model is compared with"
    with pytest.raises(RefusedError, match=r"--to 1 --reason …` keeps it there; .* --to 2 --reason …` puts it back"):
        promote("ranker", 3, uri=uri)
    with pytest.raises(UserError, match="say which version shall be it with --to"):
        rollback("ranker", reason="x", uri=uri)
    assert rollback("ranker", 1, reason="it was right", uri=uri).after == 1
    assert history("ranker", uri=uri).notes == ()
    assert moves(uri)[-1] == ("champion", "rollback", 2, 1, False)


def test_a_hand_is_put_right(put: Publish, uri: str, client: Any, aliases: Aliases) -> None:
    put("1")
    put("2", None)
    promote("ranker", 1, uri=uri)
    with quietly():
        client.delete_registered_model_alias("ranker", "champion")
    assert "is at no version, but" in history("ranker", uri=uri).notes[0]
    rollback("ranker", 1, reason="put it back", uri=uri)
    assert aliases() == {"champion": 1}
    with quietly():
        client.set_registered_model_alias("ranker", "champion", "2")
    promote("ranker", 1, override="put it back", uri=uri)
    assert aliases() == {"champion": 1}


def test_a_champion_from_before_the_ledger(put: Publish, uri: str, client: Any) -> None:
    put("1", None)
    put("2")
    with quietly():
        client.set_registered_model_alias("ranker", "champion", "1")
    with pytest.raises(RefusedError, match=r"no move of recmtl's brought it there: .*rollback ranker --to 1"):
        promote("ranker", 2, uri=uri)
    rollback("ranker", 1, reason="champion before recmtl kept records", uri=uri)
    assert moves(uri) == [("champion", "rollback", None, 1, False)]


def test_deleted_moves_are_noticed(put: Publish, uri: str, client: Any) -> None:
    for letter, before in (("1", None), ("2", "1"), ("3", "2")):
        put(letter, champion=before)
        promote("ranker", int(letter), uri=uri)
    with quietly():
        client.delete_model_version("ranker.promotions", "2")
    found = history("ranker", uri=uri)
    assert found.notes == ("ranker.promotions lacks move 2: somebody deleted what was on record.",)
    assert found.positions == {"champion": 3}


def test_the_ledger_can_be_read_in_mlflow(put: Publish, uri: str, client: Any) -> None:
    put("1")
    promote("ranker", 1, uri=uri)
    with quietly():
        version = client.get_model_version("ranker.promotions", "1")
    assert version.source == "models:/ranker/1"
    assert "@champion: no version → version 1 by gate, " in version.description
    assert json.loads(version.tags["recmtl.move"])["to"] == 1


# What is not there


def test_names_that_are_not_there(put: Publish, uri: str, tmp_path: Path) -> None:
    put("1")
    with pytest.raises(UserError, match="no registered model 'rankr'; did you mean 'ranker'"):
        promote("rankr", uri=uri)
    with pytest.raises(UserError, match="there is no version 9 of ranker; its versions are 1"):
        promote("ranker", 9, uri=uri)
    with pytest.raises(UserError, match="no tracking store"):
        history("ranker", uri=f"sqlite:///{tmp_path}/nowhere.db")
    assert champion_of("ranker", uri=f"sqlite:///{tmp_path}/nowhere.db") is None


# The order decides, whatever the clocks say


def entry(number: int, seen: int, before: int | None, after: int, **fields: Any) -> Move:
    given = {"alias": "champion", "kind": "gate", "id": str(number), **fields}
    return Move(
        number=number,
        seen=seen,
        before=before,
        after=after,
        who="ann@host",
        when="2026-01-01T00:00:00+00:00",
        why="x",
        verdict=None,
        recmtl="0.1.0",
        **given,
    )


def voids(*moves: Move) -> list[bool]:
    return [move.void for move in replayed("ranker", moves, {}).moves]


def test_replaying() -> None:
    first, second, third = entry(1, 0, None, 1), entry(2, 1, 1, 2), entry(3, 2, 2, 3)
    assert voids(first, second, third) == [False] * 3
    assert replayed("ranker", [third, first, second], {}).positions == {"champion": 3}
    assert voids(first, second, entry(3, 1, 1, 4), entry(4, 2, 2, 5)) == [False, False, True, False]
    # Back and forth in between is a change too.
    back = entry(3, 2, 2, 1, kind="rollback")
    assert voids(first, second, back, entry(4, 1, 1, 2)) == [False, False, False, True]
    # The same entry twice, by the network's layers.
    assert voids(first, second, entry(3, 1, 1, 2, id="2"), entry(4, 2, 2, 3)) == [False, False, True, False]
    # Candidates are in the order, and need not see anything.
    candidate = entry(2, 0, None, 7, alias="challenger", kind="candidate")
    assert voids(first, candidate, entry(3, 1, 1, 2)) == [False] * 3
    assert replayed("ranker", [], {"champion": 4}).by_hand("champion")


def test_replaying_with_gaps() -> None:
    ledger = replayed("ranker", [entry(2, 1, 1, 2), entry(5, 4, 4, 5), entry(6, 2, 2, 6)], {})
    assert [move.void for move in ledger.moves] == [False, False, True]
    assert [note[:30] for note in ledger.notes] == ["ranker.promotions lacks move 1", "ranker.promotions lacks move 3"]
    assert ledger.positions == {"champion": 5}
