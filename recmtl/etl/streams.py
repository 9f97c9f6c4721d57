"""Files as bytes: which kind a file is, and its text as UTF-8 whatever its compression and encoding.

In: a path. Out: its kind, or a stream of UTF-8 in which bytes that are not in the file's encoding stand as U+FFFD and
are counted. Compression is seen by a file's first bytes, never by its name. Errors name the file.
"""

import codecs
import io
import lzma
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from recmtl.errors import RunError, UserError

__all__ = ["REPLACEMENT", "FileKind", "TextStream", "Undecodable", "encoding_setting", "is_parquet", "kind_of"]

FileKind = Literal["Parquet", "CSV", "JSON lines"]
"""The kinds of files that recmtl reads."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What stands for bytes that are not in the file's encoding."""

_JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
_COMPRESSED_SUFFIXES = {".gz", ".gzip", ".bz2", ".zst", ".zstd", ".xz", ".lz4"}
_COMPRESSION = (
    ("gzip", re.compile(rb"\x1f\x8b")),
    ("zstd", re.compile(rb"\x28\xb5\x2f\xfd")),
    ("bz2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")),
    ("xz", re.compile(rb"\xfd7zXZ\x00")),
    ("lz4", re.compile(rb"\x04\x22\x4d\x18")),
)
_OTHERS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"\x1f\x9d", "compressed with compress (.Z)"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Obj\x01", "an Avro file"),
    (b"ARROW1", "an Arrow IPC (Feather) file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF"),
)
_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD = 4096
_CHUNK = 1 << 20
_HANDLER = "recmtl-undecodable"
_SURROGATE = re.compile("[\ud800-\udfff]+")


def _mark(error: UnicodeError) -> tuple[str, int]:
    """A lone surrogate for undecodable bytes: no text has one, so it is told apart from all that the file says."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error(_HANDLER, _mark)


class Undecodable(NamedTuple):
    """Bytes of a file that are not in its encoding."""

    file: str
    """The file, as the user wrote it."""
    line: int
    """The first line that has some, from 1."""
    places: int
    """How many places have some."""
    encoding: str
    """The encoding that the file was read in."""
    advice: str
    """The encoding to try."""


def encoding_setting(where: str, encoding: str) -> str:
    """How a user sets the encoding: in the config, or by an option where ``where`` is one."""
    return f"`--encoding {encoding}`" if where.startswith("--") else f"`encoding: {encoding}`"


def is_parquet(path: Path) -> bool:
    """Whether the file is Parquet, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def kind_of(path: Path, where: str) -> FileKind:
    """What kind of file this is.

    Parquet is seen by its first bytes. JSON lines are seen by the suffix (``.jsonl``, ``.ndjson``, ``.json``, also
    before a compression's suffix), else by a first character ``{``. Everything else is CSV.

    Raises:
        UserError: a kind that recmtl does not read (an archive, a workbook, Avro), or damaged compression.
        RunError: the file cannot be read.
    """
    head = _raw_head(path, where)
    if head.startswith(b"PAR1"):
        return "Parquet"
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise UserError(
                f"{where}: {path} is {what}; recmtl reads CSV, JSON lines and Parquet, so export it as such"
            )
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED_SUFFIXES:
        suffixes.pop()
    if _compression(head) is not None:
        with _Bytes(path, where) as file:
            head = file.read(_HEAD)
        if head.startswith(b"PAR1"):
            raise UserError(f"{where}: {path} is a Parquet file inside of a compressed file; unpack it first")
    if suffixes and suffixes[-1] in _JSON_SUFFIXES:
        return "JSON lines"
    text = head.removeprefix(codecs.BOM_UTF8)
    for bom, _ in _BOMS:
        text = text.removeprefix(bom)
    return "JSON lines" if text.replace(b"\0", b"").lstrip().startswith(b"{") else "CSV"


def _raw_head(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise RunError(f"{where}: {path} cannot be read: {error.strerror}") from error


def _compression(head: bytes) -> str | None:
    return next((name for name, magic in _COMPRESSION if magic.match(head)), None)


class _Bytes:
    """A file's bytes, unpacked; what goes wrong names the file."""

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        self._compression = _compression(_raw_head(path, where))
        self._file: Any
        if self._compression == "xz":
            self._file = lzma.open(path)  # noqa: SIM115 - closed by __exit__
        elif self._compression is not None:
            self._file = pa.CompressedInputStream(pa.OSFile(str(path)), self._compression)
        else:
            self._file = path.open("rb")

    def __enter__(self) -> "_Bytes":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._file.read(size))
        except (OSError, EOFError, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise RunError(f"{self._where}: {self._path} cannot be read: {error.strerror}") from error
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{self._where}: {self._path} is cut off or damaged: its {self._compression} data cannot be unpacked "
                f"({reason}); fetch or write it again"
            ) from error


class TextStream(io.RawIOBase):
    """A text file as a stream of UTF-8, unpacked and without a byte order mark.

    Args:
        path: the file.
        name: as the user wrote it.
        where: the setting's name, for errors.
        encoding: the file's encoding, as Python calls it.

    Raises:
        UserError: the compression is damaged; the file is UTF-16 or UTF-32 and ``encoding`` says otherwise, or the
            other way round; it is binary. Reading raises the same.
        RunError: the file cannot be read.
    """

    def __init__(self, path: Path, name: str, where: str, encoding: str) -> None:
        super().__init__()
        self._name, self._where = name, where
        self._bytes = _Bytes(path, where)
        self._encoding = codecs.lookup(encoding).name
        self._decoder = codecs.getincrementaldecoder(self._encoding)(_HANDLER)
        self._ascii = self._encoding.startswith(("utf-8", "ascii", "cp125", "iso8859"))
        self._began = False
        self._ended = False
        self._ready = memoryview(b"")
        self.last = b""
        """The last byte that ends no line, of what was read by now."""
        self._lines = 0
        self._first = 0
        self._count = 0
        self._advice = "cp1252"
        self._head = self._bytes.read(_HEAD)
        self._check(path)

    @property
    def undecodable(self) -> Undecodable | None:
        """What could not be decoded in all that was read by now; None: nothing."""
        if not self._count:
            return None
        return Undecodable(self._name, self._first, self._count, self._encoding, self._advice)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, into: Any, /) -> int:
        """Fill the buffer, less of it at the end of the file."""
        view = memoryview(into)
        filled = 0
        # In full, because Arrow takes what a read returns for a block.
        while filled < len(view):
            if not self._ready:
                if self._ended:
                    break
                ready = self._next()
                self.last = ready.rstrip(b"\r\n")[-1:] or self.last
                self._ready = memoryview(ready)
            taken = self._ready[: len(view) - filled]
            view[filled : filled + len(taken)] = taken
            self._ready = self._ready[len(taken) :]
            filled += len(taken)
        return filled

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._bytes.__exit__()
        super().close()

    def _check(self, path: Path) -> None:
        wide = self._encoding.startswith(("utf-16", "utf-32"))
        seen = next((encoding for bom, encoding in _BOMS if self._head.startswith(bom)), None) or _by_zeros(self._head)
        if seen is not None and not (self._encoding.startswith(seen) or seen == f"{self._encoding}-le"):
            raise UserError(
                f"{self._where}: {path} is {seen.upper()} text and is read as {self._encoding}; "
                f"set {encoding_setting(self._where, seen)}"
            )
        if wide and self._head and b"\0" not in self._head and self._head.isascii():
            raise UserError(
                f"{self._where}: {path} is no {self._encoding} text; set {encoding_setting(self._where, 'utf-8')}"
            )
        if not wide and self._head.count(0) > len(self._head) // 100:
            raise UserError(
                f"{self._where}: {path} is a binary file or damaged (it has zero bytes); recmtl reads CSV, JSON lines "
                "and Parquet"
            )

    def _next(self) -> bytes:
        raw, self._head = (self._head, b"") if self._head else (self._bytes.read(_CHUNK), b"")
        self._ended = not raw
        if self._ascii and self._began and raw.isascii() and not self._decoder.getstate()[0]:
            self._lines += raw.count(b"\n")
            return raw
        text = self._decoder.decode(raw, self._ended)
        if not self._began and text:
            text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
            self._began = True
        try:
            ready = text.encode()
        except UnicodeEncodeError:
            ready = self._marked(text, raw).encode()
        self._lines += text.count("\n")
        return ready

    def _marked(self, text: str, raw: bytes) -> str:
        """The text with U+FFFD for what could not be decoded, which is counted."""
        if not self._count:
            found = _SURROGATE.search(text)
            assert found is not None
            self._first = self._lines + text.count("\n", 0, found.start()) + 1
            self._advice = _other_encoding(raw, self._encoding)
        marked, count = _SURROGATE.subn(REPLACEMENT, text)
        self._count += count
        return marked


def _by_zeros(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark: of ASCII letters every other byte is zero, or three in four."""
    if len(head) < 8:
        return None
    zeros = [head[place::4].count(0) / len(head[place::4]) for place in range(4)]
    for encoding, full in (("utf-32-le", {0}), ("utf-32-be", {3}), ("utf-16-le", {0, 2}), ("utf-16-be", {1, 3})):
        if all((share < 0.3) if place in full else (share > 0.6) for place, share in enumerate(zeros)):
            return encoding
    return None


def _other_encoding(raw: bytes, encoding: str) -> str:
    for other in ("utf-8", "cp1252"):
        if other == encoding:
            continue
        try:
            raw.decode(other)
        except UnicodeDecodeError as error:
            # A character may be cut at the end of what is looked at.
            if error.start < len(raw) - 4 or other != "utf-8":
                continue
        return other
    return "latin-1"
