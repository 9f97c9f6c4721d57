"""promote, rollback and history as a scheduler and a person see them: words and exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recmtl.cli import (
    main,
    promoting,  # noqa: F401 - registers its verbs
)
from recmtl.findings import Report
from recmtl.tracking import promotion


@pytest.fixture
def recmtl(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line on the test's store: exit code, standard output, standard error."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(promotion, "_SETTLE_SECONDS", (0.0,))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        said = capsys.readouterr()
        assert isinstance(raised.value.code, int)
        return raised.value.code, said.out, said.err

    return run


def test_a_models_life(
    recmtl: Callable[..., tuple[int, str, str]],
    uri: str,
    client: Any,
    publisher: Callable[..., int],
    make_report: Callable[..., Report],
    tmp_path: Path,
) -> None:
    def put(letter: str, decision: str, champion: str | None) -> None:
        report = make_report(model=letter * 64, champion=champion * 64 if champion else False, decision=decision)
        publisher(uri, "ranker", report, tmp_path)

    put("1", "promote", None)
    code, out, _ = recmtl("history", "ranker")
    assert (code, out) == (0, "ranker: no move is on record\nnow: no alias\n")
    code, out, _ = recmtl("promote", "ranker", "--version", "1")
    assert (code, out) == (0, "ranker: version 1 is the champion now, the first one. Better than the champion.\n")
    code, out, _ = recmtl("promote", "ranker", "--version", "1")
    assert (code, out) == (0, "ranker: nothing to do, version 1 is the champion already\n")

    put("2", "refuse", "1")
    code, out, error = recmtl("promote", "ranker", "--version", "2")
    assert (code, out) == (3, "")
    assert error == "error: the gate refuses version 2 of ranker: Worse than the champion.\n"
    code, _, error = recmtl("promote", "ranker", "--version", "2", "--override", " ")
    assert (code, error) == (2, "error: --override: say why; it stays on record\n")
    code, out, _ = recmtl("promote", "ranker", "--version", "2", "--override", "the law [wants] it")
    assert code == 0
    assert out.endswith("version 2 is the champion now, before it was version 1. by override: the law [wants] it\n")

    code, _, error = recmtl("rollback", "ranker")
    assert code == 2
    assert "--reason" in error
    code, out, _ = recmtl("rollback", "ranker", "--reason", "clicks fell")
    assert (code, out) == (0, "ranker: version 1 is the champion again in place of version 2\n")

    code, out, _ = recmtl("history", "ranker")
    lines = out.splitlines()
    assert lines[0].split() == ["move", "when", "(UTC)", "alias", "from", "to", "by", "who", "why"]
    assert [line.split()[3:7] for line in lines[2:4]] == [
        ["@champion", "1", "2", "override"],
        ["@champion", "2", "1", "rollback"],
    ]
    assert lines[-1] == "now: @champion version 1"
    client.set_registered_model_alias("ranker", "champion", "2")
    code, out, _ = recmtl("history", "ranker")
    assert code == 0
    assert "somebody moved it outside of recmtl" in out.splitlines()[-1]
    code, out, _ = recmtl("history", "ranker", "--json")
    told = json.loads(out)
    assert (told["positions"], told["aliases"]) == ({"champion": 1}, {"champion": 2})
    assert [move["kind"] for move in told["moves"]] == ["gate", "override", "rollback"]

    code, _, error = recmtl("promote", "rankr")
    assert code == 2
    assert "did you mean 'ranker'" in error
    code, _, error = recmtl("history", "ranker", "--tracking-uri", "http://127.0.0.1:1")
    assert code == 1
    assert error.startswith("error: ranker on http://127.0.0.1:1: ")
