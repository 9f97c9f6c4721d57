"""A package of every format that there has been loads, and scores as the recmtl that wrote it did."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import recmtl.errors
import recmtl.package
from recmtl.package import load_package, verify_package, with_calibration

KEPT = Path(__file__).parent / "packages"
FORMATS = sorted(path.name for path in KEPT.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_a_kept_package_scores_as_it_did(name: str) -> None:
    rows = json.loads((KEPT / name / "rows.json").read_text())
    expected = pl.DataFrame(json.loads((KEPT / name / "predictions.json").read_text()))
    found = load_package(KEPT / name / "package").predict(pl.DataFrame(rows))
    assert found.columns == expected.columns
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=1e-5)


def test_a_package_that_does_not_say_how_it_reads_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recmtl.package, "_warned", set())
    with caplog.at_level(logging.WARNING, "recmtl"):
        for _ in range(2):
            load_package(KEPT / "format-1" / "package")
        load_package(KEPT / "format-2" / "package")
    assert ["does not record how raw values were read" in text for text in caplog.messages] == [True]


def test_a_package_of_format_1_stays_one_when_it_is_rewritten(tmp_path: Path) -> None:
    shutil.copytree(KEPT / "format-1" / "package", tmp_path / "package")
    before = verify_package(tmp_path / "package")
    assert with_calibration(tmp_path / "package", None).digest == before.digest
    assert json.loads((tmp_path / "package" / "hashes.json").read_text())["format"] == 1


def test_format_2_lists_its_reading(tmp_path: Path) -> None:
    shutil.copytree(KEPT / "format-2" / "package", tmp_path / "package")
    listing = json.loads((tmp_path / "package" / "hashes.json").read_text())
    assert listing["format"] == 2
    del listing["files"]["statistics/reading.json"]
    (tmp_path / "package" / "statistics" / "reading.json").unlink()
    (tmp_path / "package" / "hashes.json").write_text(json.dumps(listing))
    with pytest.raises(recmtl.errors.RunError, match=r"lists no statistics/reading\.json"):
        load_package(tmp_path / "package")
