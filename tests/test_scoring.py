"""Scoring files: parts, CSV as Parquet, the same bytes by any number of processes, resumed after a kill, the best k."""

import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from recmtl import durable
from recmtl.calibration import Calibrations, Platt, TargetCalibration
from recmtl.errors import RunError, UserError
from recmtl.failures import input_or_output
from recmtl.fusion import Fusion
from recmtl.package import Package, load_package, with_calibration, with_fusion
from recmtl.progress import Silent
from recmtl.reading import CsvFormat, NumberStyle
from recmtl.scoring import predict_files

ROWS = pl.DataFrame(
    {
        "user_id": [1, 2, 9, None, 3],
        "item_id": ["a", None, "b", "a", "never seen"],
        "tag": ["x,y", None, "", "y", "z"],
        "genre": ["p:0.5,q:0.5", "p", None, "q:2", "r:1"],
        "likes": [[7], [8, 7], None, [], [99]],
        "price": [1.0, None, 3.5, 0.0, -2.0],
        "age": [20, 30, None, 41, 5],
        "content": [[1.0, 2.0, 3.0], None, [0.0, 0.0, 1.0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]],
        "time": ["2024-01-01"] * 5,
        "unread": [1, 2, 3, 4, 5],
    }
)


@pytest.fixture(scope="module")
def package(saved: Path) -> Package:
    return load_package(saved)


def test_parquet_in_parts(package: Package, tmp_path: Path) -> None:
    rows = pl.concat([ROWS] * 3)
    rows.head(8).write_parquet(tmp_path / "a.parquet")
    rows.tail(7).write_parquet(tmp_path / "b.parquet", row_group_size=2)
    done = predict_files(
        package, str(tmp_path / "*.parquet"), tmp_path / "out", batch_rows=3, rows_per_part=6, progress=Silent()
    )
    parts = sorted(done.folder.iterdir())
    assert [path.name for path in parts] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    frame = pl.concat([pl.read_parquet(path) for path in parts])
    assert done.rows == frame.height == 15
    assert done.columns == ("user_id", "item_id", "time", *package.prediction_columns)
    assert_frame_equal(frame.select("user_id", "item_id", "time"), rows.select("user_id", "item_id", "time"))
    np.testing.assert_allclose(
        frame.select(package.prediction_columns).to_numpy(), package.predict(rows).to_numpy(), rtol=1e-6, atol=1e-6
    )


def _scored(package: Package, tmp_path: Path, pattern: str, **arguments: Any) -> pl.DataFrame:
    out = tmp_path / "scored"
    predict_files(package, str(tmp_path / pattern), out, overwrite=True, progress=Silent(), **arguments)
    return pl.concat([pl.read_parquet(part) for part in sorted(out.glob("part-*.parquet"))])


def test_json_lines_give_what_parquet_gives(package: Package, tmp_path: Path) -> None:
    lines = [
        json.dumps({key: value for key, value in row.items() if value is not None}) + "\n"
        for row in ROWS.iter_rows(named=True)
    ]
    (tmp_path / "a.jsonl").write_text("".join(lines[:3]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[3:]).encode()))
    found = _scored(package, tmp_path, "*.jsonl*", extra_keys=["unread"])
    np.testing.assert_allclose(
        found.select(package.prediction_columns).to_numpy(), package.predict(ROWS).to_numpy(), rtol=1e-6, atol=1e-6
    )
    assert found["user_id"].to_list() == ROWS["user_id"].to_list()
    assert found["unread"].to_list() == ROWS["unread"].to_list()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_the_columns_of_folders_are_scored(package: Package, tmp_path: Path, suffix: str) -> None:
    rows = ROWS.drop("likes", "content").drop_nulls(["item_id"]).with_columns(user_id=pl.lit(2), item_id=pl.lit("b"))
    folder = tmp_path / "log" / "user_id=2" / "item_id=b" / "time=2024-01-01" / "day=2024-01-01"
    folder.mkdir(parents=True)
    given = rows.drop("user_id", "item_id", "time")
    match suffix:
        case "csv":
            given.write_csv(folder / "a.csv")
        case "jsonl":
            given.write_ndjson(folder / "a.jsonl")
        case _:
            given.write_parquet(folder / "a.parquet", row_group_size=2)
    found = _scored(package, tmp_path, f"log/**/*.{suffix}", extra_keys=["day"], batch_rows=3)
    np.testing.assert_allclose(
        found.select(package.prediction_columns).to_numpy(), package.predict(rows).to_numpy(), rtol=1e-6, atol=1e-6
    )
    assert found["user_id"].to_list() == [2] * len(rows)
    assert found["item_id"].to_list() == ["b"] * len(rows)
    assert found["day"].to_list() == [date(2024, 1, 1)] * len(rows)


def test_a_folder_may_hold_all_that_the_model_reads(package: Package, tmp_path: Path) -> None:
    folder = tmp_path / "user_id=2"
    folder.mkdir()
    pl.DataFrame({"other": [1, 2, 3]}).write_parquet(folder / "a.parquet")
    found = _scored(package, tmp_path, "user_id=2/a.parquet")
    expected = package.predict(pl.DataFrame({"user_id": [2] * 3})).to_numpy()
    np.testing.assert_allclose(found.select(package.prediction_columns).to_numpy(), expected, rtol=1e-6, atol=1e-6)
    pl.DataFrame({"user_id": [1]}).write_parquet(folder / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: it has a column 'user_id', and its folder gives one too"):
        _scored(package, tmp_path, "user_id=2/b.parquet")


def test_a_file_that_is_not_in_its_encoding_is_refused(package: Package, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("user_id,item_id\n1,a\n2,Zürich\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"a\.csv, line 3: this is not utf-8 text; try `--encoding cp1252`"):
        _scored(package, tmp_path, "a.csv")
    (tmp_path / "b.csv").write_text("user_id,item_id\n1,a\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"b\.csv is UTF-16 text and is read as utf-8; set `--encoding utf-16`"):
        _scored(package, tmp_path, "b.csv")
    wide = CsvFormat(encoding="utf-16")
    assert _scored(package, tmp_path, "b.csv", csv=wide)["item_id"].to_list() == ["a"]
    (tmp_path / "c.jsonl").write_bytes(b'{"user_id": 1, "item_id": "a"}\nno\n')
    with pytest.raises(UserError, match=r"c\.jsonl: 1 lines cannot be scored; the first is row 2 \(it is no JSON"):
        _scored(package, tmp_path, "c.jsonl")


def test_uuids_are_text(package: Package, tmp_path: Path) -> None:
    key = uuid.uuid4()
    table = pa.table({"user_id": pa.array([key.bytes, None], pa.uuid()), "age": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert _scored(package, tmp_path, "a.parquet")["user_id"].to_list() == [str(key), None]


def test_csv_gives_what_parquet_gives(package: Package, tmp_path: Path) -> None:
    rows = ROWS.drop("likes").with_columns(
        content=pl.Series(["[1.0, 2.0, 3.0]", None, "[0, 0, 1]", "[.5, .5, .5]", "[1, 1, 1]"])
    )
    rows.write_csv(tmp_path / "a.csv")
    # As pandas writes a column of whole numbers that has a gap.
    rows.with_columns(pl.col("user_id", "age").cast(pl.Float64)).write_csv(tmp_path / "b.csv")
    for name in ("a.csv", "b.csv"):
        done = predict_files(
            package, str(tmp_path / name), tmp_path / f"{name}.out", extra_keys=["unread"], progress=Silent()
        )
        frame = pl.read_parquet(done.folder / "*.parquet")
        np.testing.assert_allclose(
            frame.select(package.prediction_columns).to_numpy(),
            package.predict(ROWS.drop("likes")).to_numpy(),
            rtol=1e-6,
            atol=1e-6,
        )
        assert frame["unread"].to_list() == [1, 2, 3, 4, 5]
    assert pl.read_parquet(tmp_path / "a.csv.out" / "*.parquet")["user_id"].to_list() == [1, 2, 9, None, 3]
    assert pl.read_parquet(tmp_path / "b.csv.out" / "*.parquet")["user_id"].to_list() == [
        "1.0",
        "2.0",
        "9.0",
        None,
        "3.0",
    ]


def test_a_key_that_is_also_a_feature_reads_the_same_from_csv(package: Package, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id\n1.0,a\nfoo,b\n,\n")
    done = predict_files(package, str(tmp_path / "a.csv"), tmp_path / "out", progress=Silent())
    frame = pl.read_parquet(done.folder / "*.parquet")
    expected = package.predict(pl.DataFrame({"user_id": [1, 777, None], "item_id": ["a", "b", None]}))
    np.testing.assert_allclose(frame["click"], expected["click"], rtol=1e-6)
    assert frame["user_id"].to_list() == ["1.0", "foo", None]


def test_an_input_without_rows(package: Package, tmp_path: Path) -> None:
    ROWS.clear().write_parquet(tmp_path / "a.parquet")
    done = predict_files(package, str(tmp_path / "a.parquet"), tmp_path / "out", progress=Silent())
    assert done.rows == 0
    assert pl.read_parquet(done.folder / "*.parquet").columns == list(done.columns)
    (tmp_path / "a.csv").write_text("user_id,item_id\n")
    assert predict_files(package, str(tmp_path / "a.csv"), tmp_path / "csv", progress=Silent()).rows == 0


def test_rows_without_keys(package: Package, tmp_path: Path) -> None:
    ROWS.select("age", "price").write_csv(tmp_path / "a.csv")
    done = predict_files(package, str(tmp_path / "a.csv"), tmp_path / "out", progress=Silent())
    assert done.columns == package.prediction_columns
    assert done.rows == pl.read_parquet(done.folder / "*.parquet").height == 5


def test_mistakes_about_files(package: Package, tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    ROWS.write_parquet(source)
    out = tmp_path / "out"

    def predict(**arguments: Any) -> None:
        given = {"inputs": str(source), "output": out, "progress": Silent(), **arguments}
        predict_files(package, given.pop("inputs"), given.pop("output"), **given)

    with pytest.raises(UserError, match="there is no file"):
        predict(inputs=str(tmp_path / "*.csv"))
    with pytest.raises(UserError, match="there is no column nope to keep"):
        predict(extra_keys=["nope"])
    ROWS.with_columns(click=1).write_parquet(tmp_path / "clash.parquet")
    with pytest.raises(UserError, match="column click is called like a prediction"):
        predict(inputs=str(tmp_path / "clash.parquet"), extra_keys=["click"])
    pl.DataFrame({"other": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="none of the columns that the model reads"):
        predict(inputs=str(tmp_path / "other.parquet"))
    pl.DataFrame({"age": [[1]]}).write_parquet(tmp_path / "wrong.parquet")
    with pytest.raises(UserError, match=r"wrong\.parquet: features\.age"):
        predict(inputs=str(tmp_path / "wrong.parquet"))
    (tmp_path / "ragged.csv").write_text("user_id,age\n1,2\n1,2,3\n")
    with pytest.raises(
        UserError, match=r"1 lines cannot be scored; the first is row 2 \(wrong number of fields\): '1,2,3'"
    ):
        predict(inputs=str(tmp_path / "ragged.csv"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


def test_what_is_there_is_not_lost(package: Package, tmp_path: Path) -> None:
    source, out = tmp_path / "a.parquet", tmp_path / "out"
    ROWS.write_parquet(source)
    predict_files(package, str(source), out, progress=Silent())
    with pytest.raises(UserError, match="not empty; name another, or --overwrite"):
        predict_files(package, str(source), out, columns=["click"], progress=Silent())
    predict_files(package, str(source), out, overwrite=True, progress=Silent())
    assert [path.name for path in out.iterdir()] == ["part-00000.parquet"]
    with pytest.raises(UserError, match=r"the input .* lies in it"):
        predict_files(package, str(out / "part-00000.parquet"), out, overwrite=True, progress=Silent())
    (out / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match=r"replaces predictions alone, but thesis\.doc lies there"):
        predict_files(package, str(source), out, overwrite=True, progress=Silent())


# The same bytes, by any number of processes and after a kill


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows in two Parquet files of small row groups; many users have many rows, and some rows are equal."""
    folder = tmp_path_factory.mktemp("many")
    draws = np.random.default_rng(5)
    n = 3000
    rows = pl.DataFrame(
        {
            "user_id": [None if user == 40 else int(user) for user in draws.integers(0, 41, n)],
            "item_id": draws.choice(["a", "b", "c", "d"], n),
            "price": draws.normal(size=n).round(1),
            "age": draws.integers(18, 22, n),
            "note": np.arange(n),
        }
    )
    rows.head(1700).write_parquet(folder / "a.parquet", row_group_size=100)
    rows.tail(1300).write_parquet(folder / "b.parquet", row_group_size=130)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def score(package: Package, many: Path, out: Path, **options: Any) -> Any:
    given = {"batch_rows": 64, "rows_per_part": 500, "extra_keys": ["note"], "progress": Silent(), **options}
    return predict_files(package, str(many / "*.parquet"), out, **given)


@pytest.mark.parametrize("top", [{}, {"top_k": 3, "score": "click"}])
def test_the_bytes_depend_on_no_number_of_processes_or_threads(
    package: Package, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: dict[str, Any]
) -> None:
    one = score(package, many, tmp_path / "one", **top)
    assert one.rows == 3000
    assert score(package, many, tmp_path / "two", workers=2, **top).kept == one.kept
    monkeypatch.setattr("recmtl.scoring.files.cores", lambda: 7)
    score(package, many, tmp_path / "threads", **top)
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "threads")
    if not top:
        frame = pl.read_parquet(tmp_path / "one" / "*.parquet")
        assert frame["note"].to_list() == list(range(3000))
        raw = pl.read_parquet(many / "*.parquet")
        np.testing.assert_allclose(frame["click"], package.predict(raw)["click"], rtol=1e-6, atol=1e-7)


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from recmtl.package import load_package
from recmtl.progress import Silent
from recmtl.reading import CsvFormat, NumberStyle
from recmtl.scoring import predict_files

class Deadly(Silent):
    def say(self, text): print(text)
    @contextmanager
    def bar(self, title, total, unit="rows", done=0):
        left = int(sys.argv[4])
        class Bar:
            def advance(self, amount=1):
                nonlocal left
                left -= amount
                if left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            def note(self, text): ...
        print(f"{title} {done} of {total}")
        yield Bar()

predict_files(load_package(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), batch_rows=64, rows_per_part=500,
    extra_keys=["note"], top_k=3, score="click", workers=int(sys.argv[5]), progress=Deadly())
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_in_the_middle_the_same_call_goes_on(
    package: Package, saved: Path, many: Path, tmp_path: Path, workers: int
) -> None:
    def start(dies_after: int) -> "subprocess.CompletedProcess[str]":
        given = [str(saved), str(many / "*.parquet"), str(tmp_path / "out"), str(dies_after), str(workers)]
        return subprocess.run(
            [sys.executable, "-u", "-c", KILLED, *given], capture_output=True, text=True, timeout=100, check=False
        )

    first = start(1700)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert not (tmp_path / "out").exists()
    work = tmp_path / ".out.predicting"
    before = {path.name: path.stat().st_mtime_ns for path in (work / "scored").glob("part-*")}
    assert len(before) >= 1
    unfinished = work / "scored" / ".part-00001.parquet.1.tmp"
    unfinished.write_bytes(b"PAR1 and no more")
    second = start(10**9)
    assert second.returncode == 0, second.stderr
    found = re.search(r"going on: (\d+) of 6 parts are scored already", second.stdout)
    assert found is not None
    # A part counts once its hash is noted, which a process does after it has written it.
    assert len(before) - workers < int(found[1]) <= len(before)
    score(package, many, tmp_path / "whole", top_k=3, score="click")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert not work.exists()


def test_another_job_begins_anew(package: Package, many: Path, tmp_path: Path) -> None:
    def interrupted(out: Path, **options: Any) -> None:
        class Interrupts(Silent):
            def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> Any:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            score(package, many, out, progress=Interrupts(), **options)

    out = tmp_path / "out"
    scored = tmp_path / ".out.predicting" / "scored"
    interrupted(out)
    (scored / "part-00000.parquet").write_bytes(b"of nobody")
    interrupted(out)
    assert not (scored / "part-00000.parquet").exists()  # the state knows of no such part
    interrupted(out, columns=["click"])
    os.utime(many / "a.parquet")
    done = score(package, many, out, columns=["click"])
    assert done.columns == ("user_id", "item_id", "note", "click")
    assert pl.read_parquet(out / "*.parquet").height == 3000


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_and_nothing_is_lost(
    package: Package, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "from recmtl.scoring import pieces, workers\nimport os\nwrite = pieces.write_part\n"
    program += "def die(path, *rest, **more):\n    write(path, *rest, **more)\n    os.kill(os.getpid(), 9)\n"
    program += "pieces.write_part = die\nworkers.work()"
    with monkeypatch.context() as patch:
        patch.setattr("recmtl.scoring.workers._PROGRAM", program)
        with pytest.raises(RunError, match="a scoring process was killed by signal 9"):
            score(package, many, tmp_path / "out", workers=2)
    assert any((tmp_path / ".out.predicting" / "scored").iterdir())
    assert score(package, many, tmp_path / "out", workers=2).rows == 3000


class Told(Silent):
    """Keeps what was said and warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(text)


class Interrupting(Told):
    """Interrupts at the first bar of a title."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> Any:
        if title == self.title:
            raise KeyboardInterrupt
        return super().bar(title, total, unit, done)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("every", [5, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("top", [{}, {"top_k": 3, "score": "click"}], ids=["all", "top"])
def test_after_a_kill_at_any_operation_the_same_call_ends_with_the_same_bytes(
    package: Package, many: Path, tmp_path: Path, kill_at_each: Callable[..., int], top: dict[str, Any], every: int
) -> None:
    options = {"rows_per_part": 2000, "batch_rows": 3000, **top}
    score(package, many, tmp_path / "whole", **options)
    whole = digests(tmp_path / "whole")
    seen = set()

    def look() -> None:
        told = Told()
        seen.add((tmp_path / "out").exists())
        assert score(package, many, tmp_path / "out", progress=told, **options).rows == 3000
        assert digests(tmp_path / "out") == whole
        names = sorted(path.name for path in tmp_path.iterdir() if "out" in path.name)
        assert names == [".out.predicted.json", "out"]
        for name in names:
            durable.remove(tmp_path / name)

    kill_at_each(lambda: score(package, many, tmp_path / "out", **options), look, every)
    assert seen == {False, True}, "killed before and after the output was in its place"


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("top", [{}, {"top_k": 3, "score": "click"}], ids=["all", "top"])
def test_a_damaged_part_of_an_interrupted_job_is_made_again(
    package: Package, many: Path, tmp_path: Path, top: dict[str, Any], damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(package, many, tmp_path / "whole", **top)
    with monkeypatch.context() as patch:
        patch.setattr("recmtl.scoring.files._put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            score(package, many, tmp_path / "out", **top)
    for folder in ("scored", "ranked"):
        for path in (tmp_path / ".out.predicting" / folder).glob("part-00000.parquet"):
            damage(path)
    told = Told()
    score(package, many, tmp_path / "out", progress=told, **top)
    assert any("part-00000.parquet" in text and "made again" in text for text in told.said)
    assert "going on: 5 of 6 parts are scored already" in told.said
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_staged_csv_is_read_again(package: Package, tmp_path: Path, damage: Any) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text("user_id,item_id,age\n" + "".join(f"{n},a,{20 + n % 9}\n" for n in range(500)))
    score_csv = {"inputs": str(csv), "progress": Silent()}
    predict_files(package, output=tmp_path / "whole", **score_csv)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        predict_files(package, str(csv), tmp_path / "out", progress=Interrupting("predicting"))
    staged = list((tmp_path / ".out.predicting" / "text").glob("*/*.parquet"))
    assert len(staged) == 1
    damage(staged[0])
    told = Told()
    predict_files(package, str(csv), tmp_path / "out", progress=told)
    assert any("reading it again" in text for text in told.said)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_damaged_state_begins_anew(package: Package, many: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(package, many, tmp_path / "out", progress=Interrupting("predicting"))
    (tmp_path / ".out.predicting" / "state.json").write_bytes(b"")
    told = Told()
    assert score(package, many, tmp_path / "out", progress=told).rows == 3000
    assert any("damaged: begun anew" in text for text in told.said)


def test_done_already_is_done(package: Package, many: Path, tmp_path: Path) -> None:
    first = score(package, many, tmp_path / "out", top_k=3, score="click")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    told = Told()
    assert score(package, many, tmp_path / "out", top_k=3, score="click", progress=told) == first
    assert any("nothing to do" in text for text in told.said)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert not (tmp_path / ".out.predicting").exists()
    with pytest.raises(UserError, match="not empty; name another, or --overwrite"):
        score(package, many, tmp_path / "out", top_k=2, score="click")
    assert not (tmp_path / ".out.predicting").exists()
    os.utime(many / "b.parquet")
    with pytest.raises(UserError, match="not empty; name another, or --overwrite"):
        score(package, many, tmp_path / "out", top_k=3, score="click")


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damaged_predictions_are_made_again(package: Package, many: Path, tmp_path: Path, damage: Any) -> None:
    score(package, many, tmp_path / "out")
    before = digests(tmp_path / "out")
    damage(tmp_path / "out" / "part-00002.parquet")
    told = Told()
    score(package, many, tmp_path / "out", progress=told)
    assert any("part-00002.parquet" in text and "scoring again" in text for text in told.said)
    assert digests(tmp_path / "out") == before


def test_a_process_tells_the_users_mistake(package: Package, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pl.DataFrame({"user_id": [1], "age": [[1]]}).write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=r"[ab]\.parquet: features\.age"):
        predict_files(
            package, str(tmp_path / "*.parquet"), tmp_path / "out", workers=2, rows_per_part=1, progress=Silent()
        )
    assert not (tmp_path / ".out.predicting").exists()


def test_two_at_once_are_refused(package: Package, many: Path, tmp_path: Path) -> None:
    class Twice(Silent):
        def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> Any:
            with pytest.raises(UserError, match="another process is scoring into this folder"):
                score(package, many, tmp_path / "out")
            return super().bar(title, total, unit, done)

    assert score(package, many, tmp_path / "out", progress=Twice()).rows == 3000


# The best k


def plainly(frame: pl.DataFrame, k: int, by: str, score: str) -> list[tuple[Any, ...]]:
    """The k best by a loop: (group, note, rank)."""
    groups: dict[Any, list[Any]] = {}
    for row in frame.iter_rows(named=True):
        if row[by] is not None:
            groups.setdefault(row[by], []).append(row)
    found = []
    for group in sorted(groups):
        rows = sorted(groups[group], key=lambda row: (-row[score], row["item_id"], row["note"]))
        found += [(group, row["note"], rank) for rank, row in enumerate(rows[:k], start=1)]
    return found


@pytest.mark.parametrize(("by", "column"), [("user", "user_id"), ("item_id", "item_id"), ("age", "age")])
@pytest.mark.parametrize("rows_per_part", [100, 500, 10_000])
def test_the_best_of_each_group(
    package: Package, many: Path, tmp_path: Path, by: str, column: str, rows_per_part: int
) -> None:
    score(package, many, tmp_path / "all", extra_keys=["note", "age"])
    shown = Silent()
    options: dict[str, Any] = {"by": by, "score": "purchase", "rows_per_part": rows_per_part, "progress": shown}
    done = score(package, many, tmp_path / "out", top_k=4, **options)
    parts = [pl.read_parquet(path) for path in sorted(done.folder.iterdir())]
    frame = pl.concat(parts)
    everything = pl.read_parquet(tmp_path / "all" / "*.parquet")
    assert frame.select(column, "note", "rank").rows() == plainly(everything, 4, column, "purchase")
    assert done.kept == frame.height
    assert done.rows == 3000
    assert frame.schema["rank"] == pl.Int32
    missing = everything[column].null_count()
    assert shown.warnings == ([f"--by {column}: {missing} rows have no {column} and are left out"] if missing else [])
    assert pl.read_parquet_metadata(done.folder / "part-00000.parquet").keys() <= {"ARROW:schema"}
    if rows_per_part == 100 and by == "user":
        assert len(parts) > 1


def test_a_fused_score_is_what_a_top_k_sorts_by_and_calibration_is_applied_when_asked(
    saved: Path, many: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "package"))
    curve = Platt(slope=0.5, intercept=-0.3)
    with_calibration(folder, Calibrations(targets={"click": TargetCalibration(curve=curve)}, fitted_on="validation"))
    with_fusion(folder, Fusion(formula="stars**a / (click + 0.1)**b", weights={"a": 0.5, "b": 2.0}))
    package = load_package(folder)
    score(package, many, tmp_path / "out", top_k=1, columns=["click"], calibrated=True, workers=2)
    frame = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert frame.columns == ["user_id", "item_id", "note", "click", "score", "rank"]
    rows = pl.read_parquet(many / "*.parquet")
    scored = rows.hstack(package.predict(rows, calibrated=True)).filter(pl.col("user_id").is_not_null())
    best = scored.sort("user_id", "score", descending=[False, True]).group_by("user_id", maintain_order=True).first()
    assert frame["user_id"].to_list() == best["user_id"].to_list()
    np.testing.assert_allclose(frame["score"], best["score"], rtol=1e-5)
    np.testing.assert_allclose(
        frame["click"], scored["click"].gather(_places(frame["note"], scored["note"])), rtol=1e-5
    )
    raw = package.predict(rows)["click"].to_numpy()
    assert not np.allclose(scored["click"].to_numpy()[:100], raw[:100], rtol=1e-3)


def _places(wanted: pl.Series, among: pl.Series) -> list[int]:
    where = {value: place for place, value in enumerate(among)}
    return [where[value] for value in wanted]


def test_mistakes_about_the_best(package: Package, many: Path, tmp_path: Path) -> None:
    def wrong(match: str, **options: Any) -> None:
        with pytest.raises(UserError, match=match):
            score(package, many, tmp_path / "out", **options)

    wrong("no fused score .* name the prediction to sort by with --score: click, purchase", top_k=3)
    wrong("--score nope: the package predicts click", top_k=3, score="nope")
    wrong("--top-k 0: one row or more", top_k=0, score="click")
    wrong("--by request: the model's training data had no request key", top_k=3, score="click", by="request")
    wrong("there is no column nope to keep", top_k=3, score="click", by="nope")
    wrong("--columns nope: the package predicts click", columns=["nope"])
    wrong("--workers 0", workers=0)
    pl.DataFrame({"user_id": ["x"], "age": [2], "rank": [1]}).write_parquet(tmp_path / "c.parquet")
    files = [str(many / "a.parquet"), str(tmp_path / "c.parquet")]
    for given, match in (
        (files, "column 'item_id' is String in .*a.parquet and absent in .*c.parquet"),
        (files[::-1], "column 'item_id' is absent in .*c.parquet and String in .*a.parquet"),
    ):
        with pytest.raises(UserError, match=match):
            predict_files(package, given, tmp_path / "out", top_k=1, score="click", progress=Silent())
    with pytest.raises(UserError, match="column rank is called like a prediction"):
        predict_files(
            package, files[1], tmp_path / "out", extra_keys=["rank"], top_k=1, score="click", progress=Silent()
        )
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_read_is_missing_counted_and_told(package: Package, tmp_path: Path, workers: int) -> None:
    rows = pl.DataFrame({"user_id": [1] * 400, "price": ["1.5", "cheap", "", "2"] * 100})
    for name in ("a", "b"):
        rows.write_csv(tmp_path / f"{name}.csv")
    told = Told()
    inputs = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    predict_files(package, inputs, tmp_path / "out", workers=workers, rows_per_part=300, batch_rows=64, progress=told)
    (warning,) = [text for text in told.said if "cannot be read" in text]
    assert "column 'price': 200 values cannot be read as in training and count as missing (such as 'cheap')" in warning
    found = pl.read_parquet(tmp_path / "out" / "*.parquet").select(package.prediction_columns)
    missing = rows.with_columns(price=pl.when(pl.col("price") != "cheap").then("price"))
    expected = pl.concat([package.predict(missing)] * 2)
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=1e-6, atol=1e-6)


def test_csv_is_read_as_the_training_log_unless_it_is_said_otherwise(package: Package, tmp_path: Path) -> None:
    assert package.reading is not None
    trained = CsvFormat(separator=";", encoding="cp1252", missing=("", "none"))
    reading = package.reading.model_copy(update={"csv": trained})
    like = Package(package.contents, replace(package.statistics, reading=reading), package.model)
    text = "user_id;item_id;tag;price\n1;a;x,é;none\n2;none;y;2.5\n"
    (tmp_path / "rows.csv").write_bytes(text.encode("cp1252"))
    (tmp_path / "utf8.tsv").write_text(text.replace(";", "\t").replace("none", "NA"))
    rows = pl.DataFrame({"user_id": [1, 2], "item_id": ["a", None], "tag": ["x,é", "y"], "price": [None, 2.5]})
    expected = package.predict(rows).to_numpy()
    found = _scored(like, tmp_path, "rows.csv").select(package.prediction_columns)
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-6, atol=1e-6)
    other = CsvFormat(separator="\t", encoding="utf-8", missing=("", "NA"))
    found = _scored(like, tmp_path, "utf8.tsv", csv=other).select(package.prediction_columns)
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-6, atol=1e-6)


def test_numbers_may_be_written_in_another_style(package: Package, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("user_id;price\n1;1.234,5\n2;2\n")
    style, csv = NumberStyle(decimal=",", thousands="."), CsvFormat(separator=";")
    found = _scored(package, tmp_path, "rows.csv", csv=csv, style=style).select(package.prediction_columns)
    expected = package.predict(pl.DataFrame({"user_id": [1, 2], "price": [1234.5, 2.0]}))
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("suffix", "number", "method", "written"),
    [
        (".csv", errno.EIO, "write_batch", "text/00000.tmp/text-00000.parquet"),
        (".csv", errno.ENOSPC, "write_batch", "text/00000.tmp/text-00000.parquet"),
        (".parquet", errno.EIO, "write_table", "scored"),
        (".jsonl", errno.EIO, "write_table", "text/00000.tmp/text-00000"),
        (".parquet", errno.ENOSPC, "write_table", "scored"),
    ],
)
def test_a_disk_that_fails_names_what_is_written_and_not_the_input(
    package: Package,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    number: int,
    method: str,
    written: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, f"Error writing bytes to file. Detail: [errno {number}]")  # as Arrow says it

    rows = ROWS.select("user_id", "item_id", "price")
    path = tmp_path / f"a{suffix}"
    {".csv": rows.write_csv, ".jsonl": rows.write_ndjson, ".parquet": rows.write_parquet}[suffix](path)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, method, fail)
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            predict_files(package, str(path), tmp_path / "out", progress=Silent())
    said = input_or_output(raised.value)
    assert said is not None
    assert said.startswith(f"{tmp_path / '.out.predicting' / written}")
    assert os.strerror(number) in said
    assert predict_files(package, str(path), tmp_path / "out", progress=Silent()).rows == 5
