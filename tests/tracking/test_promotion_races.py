"""Several processes promote at the same moment: exactly one wins, whatever database MLflow writes to."""

import multiprocessing
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from recmtl.errors import RefusedError
from recmtl.findings import Report
from recmtl.tracking import promotion
from recmtl.tracking.client import connect, quietly

PROCESSES = 3


def _promote(uri: str, inbox: Any, outbox: Any, together: Any) -> None:
    """Promote what comes in; the ledger is written by all processes at once."""
    append = promotion._append

    def at_once(*arguments: Any) -> None:
        together.wait(60)
        append(*arguments)

    promotion._append = at_once
    promotion._SETTLE_SECONDS = (0.0, 0.2)
    for version in iter(inbox.get, None):
        try:
            move = promotion.promote("ranker", version, uri=uri)
            outbox.put((version, "won" if move is not None else "nothing to do"))
        except RefusedError as error:
            outbox.put((version, str(error)))
        except BaseException as error:
            together.abort()
            outbox.put((version, f"{type(error).__name__}: {error}"))


@pytest.fixture
def race(
    publisher: Callable[..., int], make_report: Callable[..., Report], tmp_path: Path
) -> Callable[[str, int], list[str]]:
    """Runs rounds in each of which as many versions, all judged against the present champion, are promoted at once."""

    def race(uri: str, rounds: int) -> list[str]:
        context = multiprocessing.get_context("spawn")
        together = context.Barrier(PROCESSES)
        inboxes = [context.Queue() for _ in range(PROCESSES)]
        outbox = context.Queue()
        workers = [
            context.Process(target=_promote, args=(uri, inbox, outbox, together), daemon=True) for inbox in inboxes
        ]
        for worker in workers:
            worker.start()
        refusals: list[str] = []
        champion: str | None = None
        versions: dict[int, str] = {}
        try:
            for number in range(rounds):
                entered = []
                for process in range(PROCESSES):
                    digest = f"{number:032x}{process:032x}"
                    report = make_report(model=digest, champion=champion or False, decision="promote")
                    entered.append(publisher(uri, "ranker", report, tmp_path))
                    versions[entered[-1]] = digest
                for inbox, version in zip(inboxes, entered, strict=True):
                    inbox.put(version)
                said = dict(outbox.get(timeout=120) for _ in range(PROCESSES))
                (winner,) = [version for version, text in said.items() if text == "won"]
                refusals += [text for text in said.values() if text != "won"]
                with quietly():
                    aliases = connect(uri).get_registered_model("ranker").aliases
                assert {alias: int(at) for alias, at in aliases.items()} == {"champion": winner}
                champion = versions[winner]
        finally:
            for inbox in inboxes:
                inbox.put(None)
            for worker in workers:
                worker.join(30)
        found = promotion.history("ranker", uri=uri)
        assert found.notes == ()
        assert [move.number for move in found.moves] == list(range(1, rounds * PROCESSES + 1)), (
            "none is lost or doubled"
        )
        counting = [move for move in found.moves if not move.void]
        assert len(counting) == rounds
        assert [move.before for move in counting[1:]] == [move.after for move in counting[:-1]]
        return refusals

    return race


@pytest.mark.slow
def test_on_sqlite(race: Callable[[str, int], list[str]], uri: str) -> None:
    refusals = race(uri, 12)
    assert len(refusals) == 12 * (PROCESSES - 1)
    assert all("came first: look again" in text for text in refusals), refusals


@pytest.mark.slow
def test_on_a_server_with_postgresql(
    race: Callable[[str, int], list[str]],
    serving: Callable[..., AbstractContextManager[str]],
    postgresql: str,
    tmp_path: Path,
) -> None:
    with serving(tmp_path / "server", store=postgresql, workers=2) as uri:
        refusals = race(uri, 5)
    assert len(refusals) == 5 * (PROCESSES - 1)
    assert all("came first: look again" in text for text in refusals), refusals


@pytest.fixture
def postgresql() -> Iterator[str]:
    """An empty database of a PostgreSQL that runs for the test alone, on a Unix socket in a folder of its own."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    bin_ = programs[-1].parent
    user: str | None = None
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        names = {one.pw_name for one in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
    folder = Path(tempfile.mkdtemp(prefix="recmtl-pg-"))  # short and open to the other user: pytest's own is neither
    if user is not None:
        shutil.chown(folder, user)

    def run(*command: str | Path) -> None:
        given = [str(part) for part in command]
        done = subprocess.run(given, capture_output=True, text=True, cwd=folder, user=user, check=False)
        assert done.returncode == 0, f"{given}: {done.stdout}{done.stderr}"

    data = folder / "data"
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    try:
        run(bin_ / "initdb", "--auth=trust", "--username=mlflow", "--no-sync", "--encoding=UTF8", "-D", data)
        run(bin_ / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start")
        try:
            run(bin_ / "createdb", "-h", folder, "-U", "mlflow", "mlflow")
            yield f"postgresql+psycopg2://mlflow@/mlflow?host={folder}"
        finally:
            run(bin_ / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
