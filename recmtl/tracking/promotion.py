"""Who is the champion: a ledger of moves that decides, and aliases that follow it.

In: the name of a registered model, a version, and the verdict that was stored with it. Out: @champion and @challenger
where they belong, and every move on record: who, when, from, to, why, by which verdict.

MLflow moves an alias for whoever asks last; it cannot say "if it is still where I saw it". What it does guarantee, by a
unique key of its database, is that no two versions of a registered model get the same number and that a version comes
with its tags or not at all. So the moves are the versions of a registered model of their own, NAME.promotions, each a
copy by reference of the version that it promotes. Their numbers order them totally, each says which was the champion's
last move when it was asked for, and replaying them decides: of two that saw the same one, the first counts and the
other is void. The aliases are a projection of that, repaired by the next command after a crash. Somebody who moves an
alias by hand is noticed, since the last move was marked as projected: nothing is promoted over that without a word.
"""

import difflib
import getpass
import hashlib
import json
import random
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

import recmtl
from recmtl.errors import RecmtlError, RefusedError, RunError, UserError
from recmtl.findings import Report, read_report
from recmtl.tracking.base import redact, store_uri
from recmtl.tracking.client import connect, explain, globally, is_ours, patiently, quietly

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "LEDGER",
    "Champion",
    "History",
    "Move",
    "announce",
    "champion_of",
    "has_ledger",
    "history",
    "promote",
    "rollback",
]

CHAMPION, CHALLENGER = "champion", "challenger"
LEDGER = ".promotions"
"""Ends the name of the registered model whose versions are the moves."""
REPORTS = "reports"
"""Folder of a version's model in which the reports lie that it was judged by, each named by its SHA-256."""
_MOVE, _DONE = "recmtl.move", "recmtl.move.done"
_ATTEMPTS = 40
_LATER = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "BAD_REQUEST", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
"""MLflow's words for a database that was busy, or for a number that somebody else got three times in a row."""
_SETTLE_SECONDS = (0.0, 0.5, 1.5)
"""How long an alias may lag behind the ledger, as another process is about to move it, before a hand is suspected."""

Kind = Literal["gate", "override", "rollback", "candidate"]


@dataclass(frozen=True)
class Move:
    """An entry of the ledger."""

    number: int
    """Its place in the order."""
    alias: str
    kind: Kind
    """gate, override, rollback: of the champion; candidate: a new version that the gate lets through."""
    seen: int
    """Number of the champion's last move that counted when this one was asked for; 0: there was none."""
    before: int | None
    """The version that the alias was at then; None: nowhere."""
    after: int
    who: str
    """USER@HOST."""
    when: str
    """ISO 8601, UTC, by the clock of who asked; the order hangs on the number."""
    why: str
    verdict: str | None
    """SHA-256 of the report.json that decided; None: there was none."""
    recmtl: str
    """Version of recmtl."""
    id: str
    done: bool = False
    """Whether the alias was brought to where this move says."""
    void: bool = False
    """Whether another move came first, so that it counts for nothing."""


@dataclass(frozen=True)
class Champion:
    """The version that serves."""

    version: int
    digest: str | None
    """Of its package; None: it was not registered by recmtl."""

    def uri(self, name: str) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{name}/{self.version}"


@dataclass(frozen=True)
class History:
    """All moves of a model, and where that leaves its aliases."""

    name: str
    moves: tuple[Move, ...]
    """By number."""
    positions: Mapping[str, int]
    """Alias to the version at which the moves leave it."""
    aliases: Mapping[str, int]
    """Alias to the version at which MLflow has it."""
    notes: tuple[str, ...] = ()
    """What was found and put right, or must be."""


def promote(
    name: str,
    version: int | str = CHALLENGER,
    *,
    override: str | None = None,
    uri: str | None = None,
) -> Move | None:
    """Make a version the champion, by the verdict that is stored with it or by somebody's stated reason.

    Args:
        name: the registered model.
        version: its number, or an alias of it.
        override: why, whatever the gate says.
        uri: the store; None as in :func:`recmtl.tracking.base.store_uri`.

    Returns:
        The move; None where the version is the champion already.

    Raises:
        RefusedError: the gate did not let the version through; its verdict is missing, was changed, or compares with
            another champion than the present one; it was rolled back before; somebody moved @champion by hand; another
            version became the champion meanwhile.
        UserError: there is no such model or version; the override gives no reason.
        RunError: the store cannot be reached.
    """
    why = _reason(override, "--override") if override is not None else None
    with _store(uri, name) as client:
        ledger = _settled(client, name)
        target = _wanted(client, name, version, ledger)
        if ledger.aliases.get(CHAMPION) == target and ledger.positions.get(CHAMPION) == target:
            _refuse_newer(client, name, version, target)
            last = ledger.counting(CHAMPION)[-1]
            if last.kind == "override":  # a kill may have come between the move and its tag
                _tag_override(client, name, last)
            return None
        found = _version(client, name, target)
        digest: str | None
        if why is None:
            _refuse_by_hand(ledger, CHAMPION)
            back = ledger.rolled_back.get(target)
            if back is not None:
                raise RefusedError(
                    f"version {target} of {name} is not promoted",
                    (
                        f"{back.who} rolled it back on {back.when[:16]} ({back.why}); "
                        "if it shall come back, say why with --override.",
                    ),
                )
            champion = ledger.positions.get(CHAMPION)
            if champion is not None and target < champion:
                _refuse_newer(client, name, version, target)
            report, digest = _verdict(client, name, found)
            _refuse_stale(client, name, target, report, None if champion is None else _version(client, name, champion))
            why = " ".join(report.verdict.reasons) or "every check passed"
            kind: Kind = "gate"
        else:
            digest = found.tags.get("recmtl.gate.report")
            kind = "override"
        move = _move(client, ledger, kind, target, why, digest)
        if kind == "override":
            _tag_override(client, name, move)
        return move


def _tag_override(client: Any, name: str, move: Move) -> None:
    client.set_model_version_tag(name, str(move.after), "recmtl.gate.overridden", move.why[:5000])


def rollback(name: str, to: int | None = None, *, reason: str, uri: str | None = None) -> Move:
    """Put an earlier champion back.

    Args:
        name: the registered model.
        to: a version that was the champion, or to which somebody has moved @champion by hand; None: the champion
            before the present one.
        reason: why.
        uri: the store.

    Raises:
        UserError: it was never the champion, or there is none before; no reason.
        RefusedError: another version became the champion meanwhile.
        RunError: the store cannot be reached.
    """
    why = _reason(reason, "--reason")
    with _store(uri, name) as client:
        ledger = _settled(client, name)
        there = ledger.aliases.get(CHAMPION)
        if to is None:
            if ledger.by_hand(CHAMPION):
                raise UserError(f"{_by_hand_text(ledger, CHAMPION)}; say which version shall be it with --to")
            if len(ledger.champions) < 2:
                raise UserError(f"{name} has had no champion before the present one to go back to")
            to = ledger.champions[-2]
        elif to != there and not any(to == move.after for move in ledger.counting(CHAMPION)):
            raise UserError(
                f"version {to} of {name} was never the champion, so there is nothing to roll back to; "
                f"`recmtl promote {name} --version {to}` makes it that"
            )
        elif to == there == ledger.positions.get(CHAMPION):
            raise UserError(f"version {to} of {name} is the champion already")
        digest = _version(client, name, to).tags.get("recmtl.gate.report")
        return _move(client, ledger, "rollback", to, why, digest)


def history(name: str, *, uri: str | None = None) -> History:
    """All moves of a model; an alias that a killed command left behind is put right on the way.

    Raises:
        UserError: there is no such model.
        RunError: the store cannot be reached.
    """
    with _store(uri, name) as client:
        ledger = _settled(client, name)
        notes = list(ledger.notes)
        notes += [f"{_by_hand_text(ledger, alias)}." for alias in ledger.watched if ledger.by_hand(alias)]
        return History(name, ledger.moves, ledger.positions, ledger.aliases, tuple(notes))


def champion_of(name: str, *, uri: str | None = None) -> Champion | None:
    """The version to compare with; None where the model or its champion does not exist yet.

    It is what @champion says, unless a move is on record that a killed command did not bring it to.

    Raises:
        RunError: the store cannot be reached.
    """
    try:
        with _store(uri, name) as client:
            ledger = _read(client, name)
            last = next(reversed(ledger.counting(CHAMPION)), None)
            version = last.after if last and not last.done else ledger.aliases.get(CHAMPION)
            if version is None:
                return None
            return Champion(version, _version(client, name, version).tags.get("recmtl.package"))
    except _UnknownModelError:
        return None


def announce(client: Any, name: str, alias: str, version: int, digest: str) -> Move:
    """Point an alias (@challenger) at a version that the gate lets through, on record.

    Args:
        client: the store's, in use (quiet, and global where it is a database).
        name: the registered model.
        alias: not @champion.
        version: which.
        digest: SHA-256 of the report that let it through.
    """
    assert alias != CHAMPION, "only promote and rollback move the champion"
    ledger = _read(client, name)
    before = ledger.aliases.get(alias)
    last = next(reversed(ledger.counting(alias)), None)
    if before == version and last is not None and last.after == version and last.verdict == digest:
        _project(client, name, alias)
        return last
    return _move(client, ledger, "candidate", version, "the gate lets it through", digest, alias=alias)


def has_ledger(client: Any, name: str) -> bool:
    """Whether any move of the model's champion is on record."""
    return bool(_read(client, name).counting(CHAMPION))


# The ledger


@dataclass
class _Ledger:
    """The moves, replayed."""

    name: str
    moves: tuple[Move, ...] = ()
    aliases: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    champions: list[int] = field(default_factory=list)
    """The present champion last, below it what a rollback goes back to."""
    rolled_back: dict[int, Move] = field(default_factory=dict)
    """Version to the move that took it back, until an override promotes it again."""
    notes: list[str] = field(default_factory=list)

    @property
    def watched(self) -> tuple[str, ...]:
        """The aliases that move on record alone."""
        return tuple(dict.fromkeys([CHAMPION, *self.positions]))

    def counting(self, alias: str) -> list[Move]:
        """The moves of an alias that are not void."""
        return [move for move in self.moves if move.alias == alias and not move.void]

    def behind(self, alias: str) -> bool:
        """Whether a move is on record that was not marked as projected: a command was killed, or is about to."""
        moves = self.counting(alias)
        return bool(moves) and not moves[-1].done

    def by_hand(self, alias: str) -> bool:
        """Whether the alias is where no move on record put it."""
        return not self.behind(alias) and self.aliases.get(alias) != self.positions.get(alias)


def replayed(name: str, moves: Iterable[Move], aliases: Mapping[str, int]) -> _Ledger:
    """Replay the moves in their order.

    A move of the champion counts if it was asked for in sight of the champion's last move. After a gap in the numbers
    (somebody has deleted moves) the next one is believed.
    """
    ledger = _Ledger(name, aliases=dict(aliases))
    decided: list[Move] = []
    seen: set[str] = set()
    number = last = 0
    known = True
    for move in sorted(moves, key=lambda one: one.number):
        if move.number != number + 1:
            missing = f"{number + 1}" if move.number == number + 2 else f"{number + 1} to {move.number - 1}"
            ledger.notes.append(f"{name}{LEDGER} lacks move {missing}: somebody deleted what was on record.")
            known = False
        number = move.number
        # A request that was sent twice by the network's layers is one move.
        repeated = move.id in seen
        seen.add(move.id)
        expected = move.alias != CHAMPION or move.seen == last or not known
        void = repeated or not expected
        decided.append(replace(move, void=void))
        if void:
            continue
        ledger.positions[move.alias] = move.after
        if move.alias == CHAMPION:
            known, last = True, move.number
            _stack(ledger, move)
    ledger.moves = tuple(decided)
    return ledger


def _stack(ledger: _Ledger, move: Move) -> None:
    if move.kind == "rollback":
        if move.before is not None and move.before != move.after:
            ledger.rolled_back[move.before] = move
        if move.after in ledger.champions:
            while ledger.champions[-1] != move.after:
                ledger.champions.pop()
            return
    else:
        ledger.rolled_back.pop(move.after, None)
    if ledger.champions[-1:] != [move.after]:
        ledger.champions.append(move.after)


def _read(client: Any, name: str) -> _Ledger:
    """The ledger and the aliases as they are now."""
    moves: list[Move] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(
            f"name = '{name}{LEDGER}'", max_results=1000, order_by=["version_number ASC"], page_token=token
        )
        moves += [move for move in map(_entry, page) if move is not None]
        token = page.token
        if not token:
            break
    aliases = {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
    return replayed(name, moves, aliases)


def _entry(version: Any) -> Move | None:
    """A version of the ledger as a move; None where somebody else's hand made it."""
    try:
        said = json.loads(version.tags[_MOVE])
        return Move(
            number=int(version.version),
            alias=said["alias"],
            kind=said["kind"],
            seen=said["seen"],
            before=said["from"],
            after=said["to"],
            who=said["who"],
            when=said["when"],
            why=said["why"],
            verdict=said["verdict"],
            recmtl=said["recmtl"],
            id=said["id"],
            done=_DONE in version.tags,
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _move(
    client: Any, saw: _Ledger, kind: Kind, after: int, why: str, verdict: str | None, *, alias: str = CHAMPION
) -> Move:
    """Put a move on record, see whether it counts, and bring the alias there.

    Args:
        saw: the ledger in whose sight it was decided.

    Raises:
        RefusedError: another move came first.
    """
    name = saw.name
    before = saw.positions.get(CHAMPION) if alias == CHAMPION else saw.aliases.get(alias)
    wish = {
        "alias": alias,
        "kind": kind,
        "seen": next((move.number for move in reversed(saw.counting(CHAMPION))), 0),
        "from": before,
        "to": after,
        "who": _who(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "why": redact(why)[:4000],
        "verdict": verdict,
        "recmtl": recmtl.__version__,
        "id": uuid.uuid4().hex,
    }
    _append(client, name, wish)
    ledger = _read(client, name)
    # Sent twice by the network's layers, it stands there twice, and the first decides.
    move = next(one for one in ledger.moves if one.id == wish["id"])
    if move.void:
        # Whoever won may be gone: what is on record holds.
        _project(client, name, alias)
        winner = next((one for one in reversed(ledger.counting(alias)) if one.number < move.number), None)
        first = "another move" if winner is None else f"{winner.who}, who made version {winner.after} the champion,"
        raise RefusedError(
            f"version {after} of {name} is not promoted",
            (f"The champion was {_called(before)} a moment ago, but {first} came first: look again.",),
        )
    _project(client, name, alias)
    return replace(move, done=True)


def _append(client: Any, name: str, wish: Mapping[str, Any]) -> None:
    """Add a move under the next number that is free; what the answer got lost of is looked for before it is said
    again."""
    from mlflow.exceptions import MlflowException

    ledger = f"{name}{LEDGER}"
    try:
        client.create_registered_model(
            ledger,
            tags={"recmtl.ledger": name},
            description=f"Moves of the aliases of {name} by recmtl, in order; each version is a copy of the one that "
            f"was promoted. Delete none: they say who is the champion. `recmtl history {name}` reads them.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    said = f"@{wish['alias']}: {_called(wish['from'])} → {_called(wish['to'])} by {wish['kind']}, {wish['who']}: "
    for attempt in range(_ATTEMPTS):
        try:
            client.create_model_version(
                ledger,
                f"models:/{name}/{wish['to']}",
                tags={_MOVE: json.dumps(wish, ensure_ascii=False)},
                description=(said + wish["why"])[:1000],
                await_creation_for=0,
            )
            return
        except MlflowException as error:
            if error.error_code not in _LATER or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0.02, 0.2) * min(attempt + 1, 5))
            if any(move.id == wish["id"] for move in _read(client, name).moves):
                return


def _project(client: Any, name: str, alias: str) -> None:
    """Bring an alias to where the ledger has it, and mark the move.

    The ledger is read again after the alias was set. Whoever sets it last therefore finds no newer move, or it would
    set it again: once all commands are done, the alias is where the last move says, however they overtook each other.
    """
    for _ in range(_ATTEMPTS):
        ledger = _read(client, name)
        last = ledger.counting(alias)[-1]
        if ledger.aliases.get(alias) != last.after:
            _retrying(partial(client.set_registered_model_alias, name, alias, str(last.after)))
        again = _read(client, name)
        if again.counting(alias)[-1].number == last.number and again.aliases.get(alias) == last.after:
            if not last.done:
                done = datetime.now(UTC).isoformat(timespec="seconds")
                _retrying(partial(client.set_model_version_tag, f"{name}{LEDGER}", str(last.number), _DONE, done))
            return
    raise RunError(f"@{alias} of {name} is moved by others all the time; look at `recmtl history {name}`")


def _settled(client: Any, name: str) -> _Ledger:
    """The ledger with its aliases where they belong: what a killed command left is put right, and said."""
    for seconds in _SETTLE_SECONDS:
        time.sleep(seconds)
        ledger = _read(client, name)
        # Between a move and its alias lies a moment; only what stays so was left by a kill, or is a hand's work.
        if not any(ledger.behind(alias) or ledger.by_hand(alias) for alias in ledger.watched):
            return ledger
    repaired = []
    for alias in [alias for alias in ledger.watched if ledger.behind(alias)]:
        if ledger.aliases.get(alias) != ledger.positions[alias]:
            move = ledger.counting(alias)[-1]
            repaired.append(
                f"@{alias} was still at {_called(ledger.aliases.get(alias))} and is now at version {move.after}: "
                f"the command of {move.who} on {move.when[:16]} was stopped before it could move it."
            )
        _project(client, name, alias)
    if repaired:
        ledger = _read(client, name)
        ledger.notes += repaired
    return ledger


# What may be promoted


def _wanted(client: Any, name: str, version: int | str, ledger: _Ledger) -> int:
    """The number of the version that is meant."""
    if isinstance(version, int) or version.isdecimal():
        return int(version)
    found = ledger.aliases.get(version.removeprefix("@"))
    if found is None:
        _refuse_newer(client, name, version, 0)
        known = ", ".join(f"@{alias}" for alias in ledger.aliases) or "no alias at all"
        raise UserError(f"{name} has no @{version.removeprefix('@')} (there is {known}); name a version with --version")
    return found


def _refuse_newer(client: Any, name: str, asked: int | str, than: int) -> None:
    """Where nothing waits to be promoted because the gate refused what came since, say that.

    Raises:
        RefusedError: the newest version is newer than ``than``, and the gate refused it.
    """
    if asked != CHALLENGER:
        return
    newest = next(iter(client.search_model_versions(f"name = '{name}'", 1, order_by=["version_number DESC"])), None)
    if newest is not None and int(newest.version) > than and newest.tags.get("recmtl.gate") == "refuse":
        reasons = newest.tags.get("recmtl.gate.reasons", "").splitlines()
        raise RefusedError(f"the gate refuses version {newest.version} of {name}", tuple(reasons))


def _refuse_by_hand(ledger: _Ledger, alias: str) -> None:
    if ledger.by_hand(alias):
        there = ledger.aliases.get(alias)
        keep = "" if there is None else f"`recmtl rollback {ledger.name} --to {there} --reason …` keeps it there; "
        before = ledger.positions.get(alias)
        back = "" if before is None else f"`recmtl rollback {ledger.name} --to {before} --reason …` puts it back; "
        raise RefusedError(
            f"nothing is promoted for {ledger.name}",
            (f"{_by_hand_text(ledger, alias)}: {keep}{back}--override promotes all the same.",),
        )


def _by_hand_text(ledger: _Ledger, alias: str) -> str:
    """The sentence about an alias that somebody moved."""
    there, expected = ledger.aliases.get(alias), ledger.positions.get(alias)
    if expected is None:
        return f"@{alias} of {ledger.name} is at {_called(there)}, and no move of recmtl's brought it there"
    return (
        f"@{alias} of {ledger.name} is at {_called(there)}, but the last move on record brought it to "
        f"{_called(expected)}: somebody moved it outside of recmtl"
    )


def _verdict(client: Any, name: str, version: Any) -> tuple[Report, str]:
    """The report that a version was judged by, and its hash.

    Raises:
        RefusedError: there is none, it was changed, it is about another package, or its verdict is not to promote.
    """
    what = f"version {version.version} of {name} is not promoted"
    digest = version.tags.get("recmtl.gate.report")
    if digest is None:
        raise RefusedError(
            what, ("It was registered without a gate's verdict; evaluate it with registry.gate in its config.",)
        )
    report = _stored_report(client, name, version, digest)
    if report is None:
        raise RefusedError(
            what, ("The report that it was judged by is gone or is not what was stored; evaluate it again.",)
        )
    about, package = report.about.models.get("model"), version.tags.get("recmtl.package")
    if about != package:
        raise RefusedError(what, ("The report that is stored with it is about another package; evaluate it again.",))
    if report.verdict.decision == "refuse":
        raise RefusedError(f"the gate refuses version {version.version} of {name}", report.verdict.reasons)
    if report.verdict.decision != "promote":
        why = report.verdict.reasons or ("No gate was configured (`registry.gate`), so nothing was judged.",)
        raise RefusedError(what, (*why, "Evaluate it again, or say why with --override."))
    return report, digest


def _stored_report(client: Any, name: str, version: Any, digest: str) -> Report | None:
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    location = client.get_model_version_download_uri(name, version.version)
    with tempfile.TemporaryDirectory(prefix="recmtl-") as temporary:
        try:
            path = Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{location.rstrip('/')}/{REPORTS}/{digest}.json",
                    dst_path=temporary,
                    tracking_uri=client.tracking_uri,
                )
            )
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                return None
            return read_report(path)
        except (MlflowException, OSError, ValidationError) as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise
            return None


def _refuse_stale(client: Any, name: str, target: int, report: Report, champion: Any) -> None:
    """Whether a verdict compares with the present champion.

    Args:
        champion: its version as MLflow has it; None for none.
    """
    judged = report.about.models.get(CHAMPION)
    now = None if champion is None else champion.tags.get("recmtl.package")
    if champion is not None and judged is not None and judged == now:
        return
    if champion is None and judged is None:
        return
    present = "there is none now" if champion is None else f"the champion is version {champion.version} now"
    if judged is None:
        against = "when there was no champion"
    else:
        of = client.search_model_versions(f"name = '{name}'", max_results=1000)
        numbers = [int(one.version) for one in of if one.tags.get("recmtl.package") == judged]
        against = f"against version {max(numbers)}" if numbers else f"against another model ({judged[:12]})"
    raise RefusedError(
        f"version {target} of {name} is not promoted", (f"It was judged {against}, but {present}: evaluate it again.",)
    )


def _version(client: Any, name: str, version: int) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        there = sorted(int(one.version) for one in client.search_model_versions(f"name = '{name}'", max_results=1000))
        known = f"its versions are {', '.join(map(str, there[-10:]))}" if there else "it has none"
        raise UserError(f"there is no version {version} of {name}; {known}") from None
    if found.status != "READY":
        raise UserError(f"version {version} of {name} is {found.status}, not READY")
    return found


# The store


class _UnknownModelError(UserError):
    """There is no registered model of this name."""


@contextmanager
def _store(uri: str | None, name: str) -> Iterator[Any]:
    """The store's client, for a model that is there.

    Raises:
        UserError: no such model.
        RunError: whatever goes wrong with the store inside.
    """
    address = store_uri(uri)
    if address.startswith("sqlite:") and not Path(address.removeprefix("sqlite:///").partition("?")[0]).is_file():
        raise _UnknownModelError(
            f"{name}: there is no tracking store at {address}; name it with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    try:
        client = connect(address)
        with quietly(), patiently(), globally(address):
            _known(client, name, address)
            yield client
    except RecmtlError:
        raise
    except Exception as error:
        if is_ours(error):
            raise
        raise RunError(f"{name} on {redact(address)}: {explain(error)}") from error


def _known(client: Any, name: str, address: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        names = [one.name for one in client.search_registered_models(max_results=1000) if not one.name.endswith(LEDGER)]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names[:10]) or 'none'}"
        raise _UnknownModelError(f"{redact(address)} has no registered model {name!r}; {hint}") from None


def _retrying(act: Callable[[], None]) -> None:
    """Do what may be done twice, again while the database is busy."""
    from mlflow.exceptions import MlflowException

    for attempt in range(_ATTEMPTS):
        try:
            act()
        except MlflowException as error:
            if error.error_code not in _LATER or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0.02, 0.2) * min(attempt + 1, 5))
        else:
            return


def _reason(text: str, option: str) -> str:
    if not text.strip():
        raise UserError(f"{option}: say why; it stays on record")
    return " ".join(text.split())


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name in a container for this number
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _called(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"
