"""Files found and read: kinds, compression, encodings, columns of folders, origins of rows, and what cannot be read."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import uuid
from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recmtl.errors import UserError
from recmtl.etl import files as raw_files
from recmtl.etl.files import FILE, FILE_ROW, find, header, scan
from recmtl.etl.ingest import ROW, ingest
from recmtl.etl.partition import partition
from recmtl.etl.shards import stage_parts, write_shard
from recmtl.etl.split import SPLIT_TYPE
from recmtl.etl.validate import Rules
from recmtl.failures import input_or_output


def _zstd(data: bytes) -> bytes:
    out = io.BytesIO()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
        stream.flush()
        return out.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: bytes(pa.compress(data, "zstd", asbytes=True)),
}


def _write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _read(tmp_path: Path, *paths: Path | str, **options: object) -> pl.DataFrame:
    found = find([str(path) for path in paths], "data.source.path")
    return scan(found, "data.source", tmp_path / "work", **options).frame.collect()  # type: ignore[arg-type]


# What a file is


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.zst", ""])
def test_compression_is_seen_by_the_bytes(tmp_path: Path, compression: str, suffix: str) -> None:
    path = _write(tmp_path / f"a{suffix}", PACK[compression]("a,b\n1,zü\n".encode()))
    assert header(path, "x") == ["a", "b"]
    assert _read(tmp_path, path).rows() == [("1", "zü")]
    plain = _write(tmp_path / "plain.csv.gz", "a,b\n1,2\n")
    assert _read(tmp_path, plain).rows() == [("1", "2")]


def test_members_of_a_gzip_are_read_one_after_the_other(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv.gz", gzip.compress(b"a\n1\n") + gzip.compress(b"2\n"))
    assert _read(tmp_path, path)["a"].to_list() == ["1", "2"]


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("name", ["cut.csv", "cut.jsonl"])
def test_a_cut_off_file_is_named(tmp_path: Path, compression: str, name: str) -> None:
    text = "".join(f'{{"a": {n * 7919 % 104729}}}\n' for n in range(50_000))
    text = text if name.endswith("jsonl") else "a\n" + text.replace('{"a": ', "").replace("}", "")
    packed = PACK[compression](text.encode())
    path = _write(tmp_path / name, packed[: len(packed) // 2])
    with pytest.raises(UserError, match=rf"x: \S*{name} is cut off or damaged: its {compression} data"):
        scan({str(path): path}, "x", tmp_path / "work")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"PK\x03\x04....", "a.csv is a zip archive or an Excel workbook; recmtl reads CSV, JSON lines and Parquet"),
        (b"ARROW1\0\0....", "a.csv is an Arrow IPC"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0c\x0e", "a.csv is a binary file or damaged"),
        (b"", "a.csv cannot be read as CSV: Empty"),
        (b"PAR1 and no more of it", "a.csv is a damaged Parquet file"),
        (b"a,a\n1,2\n", r"a.csv names the column\(s\) a twice"),
        (b'a,b\n1,2\n"3,4\n5,6\n', "a.csv, row 2: a quote is opened and never closed"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "a.csv, row 2: a quote is opened and never closed"),
        (b'a,b\n1,"2' + b"\n5,6" * 5_000_000, r"a\.csv.* a quote (is opened and|that is) never closed"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, match: str) -> None:
    path = _write(tmp_path / "a.csv", content)
    with pytest.raises(UserError, match=match):
        scan({str(path): path}, "x", tmp_path / "work")


def test_a_parquet_file_in_gzip_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "a.parquet")
    path = _write(tmp_path / "a.parquet.gz", gzip.compress((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(UserError, match=r"a\.parquet\.gz is a Parquet file inside of a compressed file; unpack it"):
        header(path, "x")


def test_kinds_are_not_mixed(tmp_path: Path) -> None:
    a, b = _write(tmp_path / "a.csv", "a\n1\n"), _write(tmp_path / "b.jsonl", '{"a": 1}\n')
    with pytest.raises(UserError, match=r"mixed: \S*a.csv is CSV and \S*b.jsonl is JSON lines; name files of one kind"):
        _read(tmp_path, a, b)


def test_a_damaged_page_of_parquet_names_its_file(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    for path in (good, bad):
        pl.DataFrame({"a": [f"text number {n}" for n in range(20_000)]}).write_parquet(path, compression="zstd")
    data = bytearray(bad.read_bytes())
    data[200:2000] = bytes(1800)
    bad.write_bytes(data)

    @raw_files.naming_damage
    def read(name: str, files: dict[str, Path], where: str, work: Path) -> pl.DataFrame:
        return scan(files, where, work).frame.collect()

    with pytest.raises(UserError, match=r"x: \S*bad.parquet is a damaged Parquet file"):
        read("log", {str(good): good, str(bad): bad}, "x", tmp_path / "work")
    assert len(read("log", {str(good): good}, "x", tmp_path / "work")) == 20_000


def test_a_text_of_several_lines_may_end_a_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", 'a,b\n1,"2\n3"\r\n\n')
    assert _read(tmp_path, path).rows() == [("1", "2\n3")]


# Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_wide_text_is_read_where_it_is_declared(tmp_path: Path, encoding: str, kind: str) -> None:
    text = "city,n\nZürich,1\nПермь,2\n" if kind == "csv" else '{"city": "Zürich"}\n{"city": "Пермь"}\n'
    path = _write(tmp_path / f"a.{kind}", text.encode(encoding))
    assert _read(tmp_path, path, encoding=encoding)["city"].to_list() == ["Zürich", "Пермь"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("where", ["data.source", "--input"])
def test_undeclared_wide_text_is_one_sentence(tmp_path: Path, encoding: str, where: str) -> None:
    path = _write(tmp_path / "a.csv", ("city,number\n" + "Ulm,1\n" * 10).encode(encoding))
    setting = f"--encoding {encoding}" if where == "--input" else f"encoding: {encoding}"
    for reading in (lambda: header(path, where), lambda: scan({"a.csv": path}, where, tmp_path / "work")):
        with pytest.raises(UserError, match=rf"a.csv is {encoding.upper()} text and is read as utf-8; set `{setting}`"):
            reading()


def test_text_that_is_not_wide_is_not_read_as_such(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "city,n\nUlm,1\n")
    with pytest.raises(UserError, match=r"a\.csv is no utf-16 text; set `encoding: utf-8`"):
        scan({"a.csv": path}, "x", tmp_path / "work", encoding="utf-16")


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", b"\xef\xbb\xbfcity\nUlm\n")
    assert header(path, "x") == ["city"]
    assert _read(tmp_path, path).rows() == [("Ulm",)]


def test_bytes_that_are_no_text_are_told_and_never_lost(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "city,n\nUlm,1\nZürich,2\nKöln,3\n".encode("cp1252"))
    raw = scan({"a.csv": path}, "x", tmp_path / "work")
    assert raw.frame.collect()["city"].to_list() == ["Ulm", "Z\ufffdrich", "K\ufffdln"]
    assert raw.malformed == ()
    [found] = raw.undecodable
    assert (found.file, found.line, found.places, found.encoding, found.advice) == ("a.csv", 3, 2, "utf-8", "cp1252")
    error = raw_files.undecodable_error(found, "--input")
    assert "a.csv, line 3" in str(error)
    assert "`--encoding cp1252`" in str(error)


@pytest.mark.parametrize(
    ("encoding", "good", "bad", "advice"),
    [("cp1252", b"Z\xfcrich", b"Z\x81rich", "latin-1"), ("shift_jis", b"\x93\x8c", b"\xff\xff", "cp1252")],
)
def test_a_declared_encoding_is_held_to(tmp_path: Path, encoding: str, good: bytes, bad: bytes, advice: str) -> None:
    path = _write(tmp_path / "a.csv", b"city,n\n" + good + b",1\n" + bad + b",2\nUlm,3\n")
    raw = scan({"a.csv": path}, "x", tmp_path / "work", encoding=encoding)
    cities = raw.frame.collect()["city"].to_list()
    assert cities[0] == good.decode(encoding)
    assert "\ufffd" in cities[1]
    assert cities[2] == "Ulm"
    assert (raw.undecodable[0].line, raw.undecodable[0].advice) == (3, advice)


def test_a_header_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "größe,n\n1,1\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"the header of \S*a.csv is not utf-8 text; try `encoding: cp1252`"):
        header(path, "x")
    assert header(path, "x", encoding="cp1252") == ["größe", "n"]


def test_characters_cut_by_a_block_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recmtl.etl.streams._CHUNK", 3)
    monkeypatch.setattr("recmtl.etl.streams._HEAD", 5)
    cities = ["Zürich", "Пермь", "東京", "😀", "a"] * 20
    path = _write(tmp_path / "a.csv", "city,n\n" + "".join(f"{city},1\n" for city in cities))
    assert _read(tmp_path, path)["city"].to_list() == cities


def test_one_line_of_another_encoding_costs_that_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", b"a,b,c\n1,2,3\nZ\xfcrich,1\n4,5,6\n")
    raw = scan({"a.csv": path}, "x", tmp_path / "work", provenance=True)
    assert raw.frame.collect().rows() == [("1", "2", "3", 1, "a.csv"), ("4", "5", "6", 3, "a.csv")]
    assert raw.malformed == (raw_files.Malformed("a.csv", 2, "Z\ufffdrich,1", raw_files.MALFORMED),)


# Origins


def test_rows_say_where_they_are_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(raw_files, "_BLOCK_BYTES", 64)
    rows = [f"{n},x" if n % 7 else f"{n}" for n in range(1, 101)]
    for suffix, text in {"csv": "a,b\n" + "\n\n".join(rows), "b.csv": 'a,b\n"1\n2",x\n3\n4,y\n'}.items():
        _write(Path(f"one.{suffix}"), text)
    raw = scan(find(["one.csv", "one.b.csv"], "x"), "x", tmp_path / "work", provenance=True)
    found = raw.frame.collect()
    expected = [("one.csv", n) for n in range(1, 101) if n % 7] + [("one.b.csv", 1), ("one.b.csv", 3)]
    assert found.select(FILE, FILE_ROW).rows() == expected
    assert found["a"].to_list()[:-2] == [str(n) for n in range(1, 101) if n % 7]
    assert [(line.file, line.row) for line in raw.malformed] == [
        *(("one.csv", n) for n in range(7, 101, 7)),
        ("one.b.csv", 2),
    ]


def test_rows_of_headless_csv_parquet_and_json_say_it_too(tmp_path: Path) -> None:
    bare = _write(tmp_path / "bare.csv", "1|2\n3\n5|6\n")
    raw = scan({"bare": bare}, "x", tmp_path / "w1", provenance=True, names=["a", "b"], separator="|")
    assert raw.frame.collect().rows() == [("1", "2", 1, "bare"), ("5", "6", 3, "bare")]
    assert raw.malformed[0].row == 2
    pl.DataFrame({"a": range(5)}).write_parquet(tmp_path / "p.parquet", row_group_size=2)
    parquet = {"p": tmp_path / "p.parquet", "q": tmp_path / "p.parquet"}
    found = scan(parquet, "x", tmp_path / "w2", provenance=True).frame.collect()
    assert found[FILE_ROW].to_list() == [1, 2, 3, 4, 5] * 2
    assert found[FILE].to_list() == ["p"] * 5 + ["q"] * 5
    lines = _write(tmp_path / "j.jsonl", '{"a": 1}\n\nno\n{"a": 2}\n')
    raw = scan({"j": lines}, "x", tmp_path / "w3", provenance=True)
    assert raw.frame.collect().rows() == [(1, 1, "j"), (2, 3, "j")]


def test_origins_do_not_overwrite_a_column(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", f"{FILE_ROW},b\n1,2\n")
    assert _read(tmp_path, path).columns == [FILE_ROW, "b"]
    with pytest.raises(UserError, match="a column 'file:row', which recmtl uses itself; rename it"):
        _read(tmp_path, path, provenance=True)


def test_another_quote_encloses_fields(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "a,b\n'1,5',\"\n")
    assert _read(tmp_path, path, quote="'").rows() == [("1,5", '"')]
    bare = _write(tmp_path / "b.csv", "a,b\n'1,\"\n")
    assert _read(tmp_path, bare, quote=False).rows() == [("'1", '"')]


# Folders' columns


def _partitioned(tmp_path: Path, values: dict[str, str], suffix: str = "csv") -> Path:
    for folder, text in values.items():
        path = tmp_path / folder / f"part.{suffix}"
        if suffix == "parquet":
            path.parent.mkdir(parents=True, exist_ok=True)
            pl.DataFrame({"a": [int(text)]}).write_parquet(path)
        else:
            _write(path, f"a\n{text}\n" if suffix == "csv" else json.dumps({"a": int(text)}) + "\n")
    return tmp_path


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_folders_give_typed_columns(tmp_path: Path, suffix: str) -> None:
    root = _partitioned(
        tmp_path / "log",
        {
            "dt=2024-01-01/hour=3/zip=01/city=K%C3%B6ln%2Fx/v=1": "1",
            "dt=2024-01-02/hour=11/zip=22/city=__HIVE_DEFAULT_PARTITION__/v=x": "2",
        },
        suffix,
    )
    pattern = str(root / "**" / f"*.{suffix}")
    found = find(pattern, "x")
    assert header(next(iter(found.values())), "x") == ["a", "dt", "hour", "zip", "city", "v"]
    frame = _read(tmp_path, pattern)
    assert frame.drop("a").rows() == [
        (date(2024, 1, 1), 3, "01", "Köln/x", "1"),
        (date(2024, 1, 2), 11, "22", None, "x"),
    ]
    assert frame.drop("a").dtypes == [pl.Date, pl.Int64, pl.String, pl.String, pl.String]


def test_a_folder_named_like_a_column_is_refused(tmp_path: Path) -> None:
    root = _partitioned(tmp_path, {"a=1": "5"})
    for reading in (lambda: header(root / "a=1/part.csv", "x"), lambda: _read(tmp_path, root / "a=1" / "part.csv")):
        with pytest.raises(UserError, match=r"part\.csv has a column 'a', and its folder gives one too; rename"):
            reading()


def test_a_folder_that_only_some_files_have_is_refused(tmp_path: Path) -> None:
    root = _partitioned(tmp_path / "log", {"dt=2024-01-01": "1", "other": "2"})
    with pytest.raises(UserError, match=r"do not share the column\(s\) dt"):
        _read(tmp_path, root / "*" / "part.csv")


def test_a_folder_given_twice_is_refused(tmp_path: Path) -> None:
    root = _partitioned(tmp_path / "log", {"dt=1/dt=2": "1"})
    with pytest.raises(UserError, match="two folders give the column 'dt'"):
        _read(tmp_path, root / "dt=1/dt=2/part.csv")


def test_patterns_leave_out_what_is_no_data(tmp_path: Path) -> None:
    for name in ("a.csv", "_SUCCESS", ".a.csv.crc", "_temporary/b.csv", ".hidden/c.csv", "_p=1/d.csv", "x/_meta.csv"):
        _write(tmp_path / "log" / name, "a\n1\n")
    names = [Path(name).name for name in find(str(tmp_path / "log" / "**" / "*"), "x")]
    assert names == ["d.csv", "a.csv"]
    assert list(find(str(tmp_path / "log" / "*"), "x")) == [str(tmp_path / "log" / "a.csv")]
    assert [Path(name).name for name in find(str(tmp_path / "log" / "_S*"), "x")] == ["_SUCCESS"]
    assert [Path(name).name for name in find(str(tmp_path / "log" / "_temporary" / "*"), "x")] == ["b.csv"]
    assert list(find(str(tmp_path / "log" / "_SUCCESS"), "x")) == [str(tmp_path / "log" / "_SUCCESS")]
    with pytest.raises(UserError, match=r"matches only files whose name, or whose folder's, begins with _ or \."):
        find(str(tmp_path / "log" / "x" / "*"), "x")


@pytest.mark.parametrize(
    "name", ["a[v2]", "a*b", "a?b", "{a,b}", "a b", "50%", "%2F", "a#b", "Zürich", "a'b", 'a"b', "[!a]"]
)
def test_any_name_of_a_folder_is_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    _write(folder / "a.csv", "a\n1\n")
    folder.joinpath("p").mkdir()
    pl.DataFrame({"a": [1]}).write_parquet(folder / "p" / "a.parquet")
    for path in (folder / "a.csv", folder / "*.csv", folder / "p" / "*.parquet"):
        [file] = find(str(path), "x").values()
        assert header(file, "x") == ["a"]
        assert len(_read(tmp_path, path)) == 1


# UUIDs


def test_uuids_of_parquet_are_text(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=7), None, uuid.uuid4()]
    table = pa.table(
        {
            "id": pa.array([one and one.bytes for one in ids], pa.uuid()),
            "raw": pa.array([one and one.bytes for one in ids], pa.binary(16)),
            "nested": pa.array([[1]] * 3),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    frame = _read(tmp_path, tmp_path / "a.parquet")
    assert frame["id"].to_list() == [one and str(one) for one in ids]
    assert frame["raw"].to_list() == [one and one.bytes for one in ids]
    assert header(tmp_path / "a.parquet", "x") == ["id", "raw", "nested"]


@pytest.mark.parametrize("stored", [True, False], ids=["with Arrow's schema", "without"])
@pytest.mark.parametrize("depth", [40, 900, 4000])
def test_lists_nested_deep_in_parquet_are_refused(depth: int, stored: bool, tmp_path: Path) -> None:
    """Polars overflows the stack when it reads them, which ends the process."""
    kind = pa.int64()
    for _ in range(depth):
        kind = pa.list_(kind)
    pq.write_table(pa.table({"likes": pa.nulls(3, kind)}), tmp_path / "deep.parquet", store_schema=stored)
    with pytest.raises(UserError, match=r"deep\.parquet.*(deep within each other|is a damaged Parquet file)"):
        header(tmp_path / "deep.parquet", "--input")


def test_lists_of_structs_of_lists_are_read(tmp_path: Path) -> None:
    rows = [{"a": [{"b": [[1, 2]], "c": {"d": {"e": [None]}}}]}]
    pl.DataFrame({"likes": rows}).write_parquet(tmp_path / "nested.parquet")
    assert header(tmp_path / "nested.parquet", "--input") == ["likes"]


# What cannot be written

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def _log(tmp_path: Path, suffix: str) -> Path:
    path = tmp_path / f"input{suffix}"
    frame = pl.DataFrame({"a": range(1000)})
    if suffix == ".parquet":
        frame.write_parquet(path)
    elif suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path)
    return path


@needs_full
@pytest.mark.parametrize(
    ("suffix", "staged"),
    [(".csv", "text-00000.parquet"), (".jsonl", "text-00000.parquet"), (".jsonl", "text-00000-00000.tokens")],
)
def test_a_full_disk_names_what_is_staged_and_not_the_log(tmp_path: Path, suffix: str, staged: str) -> None:
    path = _log(tmp_path, suffix)
    target = tmp_path / "work" / staged
    target.parent.mkdir()
    target.symlink_to(FULL)
    with pytest.raises(OSError, match="No space left") as raised:
        scan({"input": path}, "x", tmp_path / "work")
    assert raised.value.filename == str(target)


@needs_full
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_full_disk_names_where_the_good_rows_go(tmp_path: Path, suffix: str) -> None:
    path = _log(tmp_path, suffix)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "good.parquet").symlink_to(FULL)
    with pytest.raises(OSError, match="No space left") as raised:
        ingest("log", {"input": path}, "x", tmp_path / "work", rules=Rules(), deduplicate=False)
    assert raised.value.filename == str(tmp_path / "work")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_failing_disk_names_where_the_good_rows_go(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pl.exceptions.ComputeError("parquet: underlying IO error: Input/output error (os error 5)")

    path = _log(tmp_path, suffix)
    monkeypatch.setattr(pl, "collect_all", fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        ingest("log", {"input": path}, "x", tmp_path / "work", rules=Rules(), deduplicate=False)
    said = input_or_output(raised.value)
    assert said is not None
    assert said.startswith(f"{tmp_path / 'work'}: Input/output error; the disk")


@pytest.mark.parametrize(
    ("write", "written"),
    [
        (lambda rows, folder: write_shard(rows, folder, "train/a.parquet"), "train/a.parquet"),
        (lambda rows, folder: partition(rows.lazy(), [ROW], 2, folder / "buckets"), "buckets"),
        (
            lambda rows, folder: stage_parts(
                rows.lazy(), pl.lit("train", SPLIT_TYPE), [ROW], seed=0, rows_per_part=2, folder=folder / "parts"
            ),
            "parts",
        ),
    ],
    ids=["shard", "buckets", "parts"],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_polars_cannot_write_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    write: Callable[[pl.DataFrame, Path], object],
    written: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pl.exceptions.ComputeError(f"parquet: underlying IO error: {os.strerror(number)} (os error {number})")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", fail)
    monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        write(pl.DataFrame({ROW: range(9)}), tmp_path)
    assert raised.value.filename == str(tmp_path / written)
