"""The verbs of the report, as a user types them."""

import json
import sys
from pathlib import Path

import pytest

import recmtl.cli.reporting  # registers the verbs
from recmtl.cli import main
from recmtl.findings import schema

sys.path.insert(0, str(Path(__file__).parent / "evaluation" / "html"))  # the sample is also a script's
from sample import sample_report

assert recmtl.cli.reporting.report_app is not None


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def report_json(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    path.write_text(sample_report().model_dump_json())
    return path


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", "schema") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(schema()))


def test_html_is_made_beside_the_json_or_where_asked(report_json: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", "html", report_json) == 0
    beside = report_json.with_name("report.html")
    assert capsys.readouterr().out.strip() == str(beside)
    assert beside.read_text().startswith("<!doctype html>")
    other = report_json.with_name("other.html")
    assert call("report", "html", report_json, "--output", other) == 0
    assert other.read_text() == beside.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "about: Field required"),
        ("not json", "Invalid JSON"),
        ('{"format": 1, "more": 2}', "about: Field required"),
        (b"\xff\xfe\x00", "this is not a report.json that this recmtl reads"),
        (None, "there is no such file; `recmtl evaluate` writes it"),
    ],
)
def test_what_is_no_report_is_one_sentence(
    tmp_path: Path, text: str | bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert call("report", "html", path) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "report.json" in error
    assert len(error.strip().splitlines()) == 1
    assert not path.with_name("report.html").exists()


def test_the_json_is_never_overwritten(report_json: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = report_json.read_bytes()
    assert call("report", "html", report_json, "--output", report_json) == 2
    assert "name another file" in capsys.readouterr().err
    assert report_json.read_bytes() == before
