"""A request for scores, read strictly and answered: what a server of a package does with its JSON.

In: a request's body as MLflow's protocol has it, one of ``dataframe_split``, ``dataframe_records``, ``instances`` and
``inputs``, perhaps with ``params``. Out: a pandas frame of predictions, or one sentence that says what is wrong with
the request. A request either has an answer for each of its rows or is refused: MLflow's own reading answers rows that
it cannot read with no rows, and puts values beside those of other rows where ``instances`` have different keys.

Whoever can send a request can send any bytes. Size and depth are bounded before the body is parsed, and rows, columns,
lists and texts before a frame is made of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from recmtl.bounded import parse_json
from recmtl.errors import UserError
from recmtl.fusion import SCORE
from recmtl.package import Package
from recmtl.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Params", "answer", "predictions", "read"]

_FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_PARAMS = "params"
_LARGEST = 1 << 20
"""Rows of one request; more belong into `recmtl predict`."""
_LARGEST_BODY = 1 << 26
"""Bytes of one request."""
_DEEPEST = 8
"""Lists and objects within each other: request, rows, row and value are four, five in ``dataframe_split``."""
_MOST_COLUMNS = 1 << 12
_MOST_CELLS = 1 << 24
"""Rows times columns: rows of different columns make a table that is much larger than the request."""
_LONGEST_LIST = 1 << 16
"""Values of a list in a row."""
_LONGEST_TEXT = 1 << 20
"""Characters of a text in a row."""


class Params(Settings):
    """What a request may ask for beside scores."""

    calibrated: bool = False
    """Give calibrated probabilities."""
    top_k: int = 0
    """Answer with so many rows alone, those of the highest score, best first; 0: all, in their order."""
    score: str = ""
    """The prediction that top_k sorts by; empty: the fused score."""


def answer(package: Package, body: bytes | str, content_type: str | None) -> "pd.DataFrame":
    """Read a request and score it.

    Args:
        package: the model.
        body: of the request.
        content_type: of the body; none is taken for JSON.

    Raises:
        UserError: what is wrong with the request, in one sentence.
    """
    frame, params = read(body, content_type)
    if frame.empty:
        raise UserError("this request holds no rows of any column")
    return predictions(package, frame, params)


def predictions(package: Package, frame: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
    """Predictions for rows, a column each, under the frame's index and in its order.

    With ``top_k`` the best rows alone, by falling score (equal ones in their order), after ``row``, their position in
    the request from 0, and ``rank``, from 1.

    Raises:
        UserError: none of the model's columns, values that cannot be what the schema says; no such parameter,
            or the package cannot do it.
    """
    asked = _params(params)
    frame = _as_in_training(package, frame)
    if not any(column in frame.columns for column in package.schema.columns):
        there = ", ".join(map(_short, list(frame.columns)[:5])) or "none"
        raise UserError(
            f"these rows have none of the columns that the model reads ({', '.join(package.schema.columns)}), "
            f"but {there}"
        )
    try:
        found = package.predict_pandas(frame, calibrated=asked.calibrated)
    except (OverflowError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"these rows cannot be read: {_first_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Polars, which no value of a request may cause to end a server
            raise
        raise UserError(f"these rows cannot be read: {_first_line(error)}") from error
    if not asked.top_k:
        return found
    score = asked.score or SCORE
    if score not in found.columns:
        wanted = f"score {_short(score)!r}" if asked.score else "fused score to sort by, so name one as `score`"
        raise UserError(f"params.top_k: the model has no {wanted}; it predicts {', '.join(found.columns)}")
    taken = [name for name in ("row", "rank") if name in found.columns]
    if taken:
        raise UserError(f"params.top_k: a prediction of the model is called {taken[0]!r}, as a column of the answer is")
    best = found[score].reset_index(drop=True).sort_values(ascending=False, kind="stable").index[: asked.top_k]
    kept = found.iloc[best]
    kept.insert(0, "row", best)
    kept.insert(1, "rank", range(1, len(kept) + 1))
    return kept


def _as_in_training(package: Package, frame: "pd.DataFrame") -> "pd.DataFrame":
    """The rows with user and item called as the training logs called them, where a request uses recmtl's names."""
    keys, reads = package.contents.columns, package.schema.columns
    ours = {"user_id": keys.user, "item_id": keys.item}
    names = {
        name: theirs
        for name, theirs in ours.items()
        if name in frame.columns and name not in reads and theirs in reads and theirs not in frame.columns
    }
    return frame.rename(columns=names) if names else frame


def read(body: bytes | str, content_type: str | None) -> tuple["pd.DataFrame", dict[str, Any]]:
    """A request's rows, and its parameters as they stand there.

    Raises:
        UserError: it is no such request, or larger than one may be.
    """
    if len(body) > _LARGEST_BODY:
        raise UserError(
            f"this request is {len(body):,} bytes long; one request holds {_LARGEST_BODY:,} at most, and "
            "`recmtl predict` scores files of any size"
        )
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UserError(f"send the rows as application/json, not {kind}")
    try:
        content = body.encode() if isinstance(body, str) else body
        request = parse_json(content, deepest=_DEEPEST, finite=False)
    except (ValueError, RecursionError) as error:
        raise UserError(f"this request is no JSON that has an answer ({error})") from error
    named = ", ".join(_FORMATS)
    if not isinstance(request, dict):
        raise UserError(f"a request is a JSON object with one of {named}, not {_called(request)}")
    strange = [key for key in request if key not in (*_FORMATS, _PARAMS)]
    if strange:
        raise UserError(f"a request holds one of {named}, and perhaps params, not {_short(strange[0])!r}")
    given = [key for key in _FORMATS if key in request]
    if len(given) != 1:
        raise UserError(f"a request holds one of {named}; this one holds {' and '.join(given) or 'none'}")
    params = request.get(_PARAMS)
    if params is not None and not isinstance(params, dict):
        raise UserError(f"params: an object of names and values is expected, not {_called(params)}")
    key, rows = given[0], request[given[0]]
    if key == "dataframe_split":
        frame = _split(rows)
    elif key == "inputs" and isinstance(rows, dict):
        frame = _columns(rows)
    else:
        frame = _records(key, rows)
    return frame, params or {}


def _bound(where: str, rows: int, columns: int) -> None:
    for what, number, most in (
        ("rows", rows, _LARGEST),
        ("columns", columns, _MOST_COLUMNS),
        ("values", rows * columns, _MOST_CELLS),
    ):
        if number > most:
            raise UserError(f"{where}: {number:,} {what}; one request holds {most:,} at most")


def _bound_values(name: str, values: Iterable[Any]) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"column {_short(name)!r}: half of a surrogate pair is no character") from error
    for number, value in enumerate(values):
        texts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else (value,)
        if len(texts) > _LONGEST_LIST:
            raise UserError(
                f"column {_short(name)!r}, row {number}: {len(texts):,} values in one list; {_LONGEST_LIST:,} at most"
            )
        longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
        if longest > _LONGEST_TEXT:
            raise UserError(
                f"column {_short(name)!r}, row {number}: a text of {longest:,} characters; {_LONGEST_TEXT:,} at most"
            )


def _split(rows: Any) -> "pd.DataFrame":
    where = "dataframe_split"
    if not isinstance(rows, dict) or not {"columns", "data"} <= rows.keys() <= {"columns", "data", "index"}:
        raise UserError(f"{where}: an object of `columns` and `data` is expected")
    columns, data, index = rows["columns"], rows["data"], rows.get("index")
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise UserError(f"{where}.columns: a list of names is expected")
    twice = sorted(name for name, times in Counter(columns).items() if times > 1)
    if twice:
        raise UserError(f"{where}.columns: {_short(twice[0])!r} stands there twice")
    if not isinstance(data, list):
        raise UserError(f"{where}.data: a list of rows is expected, not {_called(data)}")
    _bound(where, len(data), len(columns))
    for number, row in enumerate(data):
        if not isinstance(row, list):
            raise UserError(f"{where}.data[{number}]: a row is a list of values, not {_called(row)}")
        if len(row) != len(columns):
            raise UserError(f"{where}.data[{number}]: {len(row)} values for {len(columns)} columns")
    if index is not None and (not isinstance(index, list) or len(index) != len(data)):
        raise UserError(f"{where}.index: a list as long as data is expected")
    return _framed({name: [row[place] for row in data] for place, name in enumerate(columns)}, len(data))


def _columns(rows: Mapping[str, Any]) -> "pd.DataFrame":
    lengths = {}
    for name, values in rows.items():
        if not isinstance(values, list):
            raise UserError(f"inputs.{_short(name)}: a list of the rows' values is expected, not {_called(values)}")
        lengths[name] = len(values)
    if len(set(lengths.values())) > 1:
        (first, one), (other, another) = next((a, b) for a in lengths.items() for b in lengths.items() if a[1] != b[1])
        raise UserError(
            f"inputs: column {_short(first)!r} has {one} values and {_short(other)!r} {another}; every row has one "
            "in each"
        )
    height = next(iter(lengths.values()), 0)
    _bound("inputs", height, len(rows))
    return _framed(dict(rows), height)


def _records(where: str, rows: Any) -> "pd.DataFrame":
    if not isinstance(rows, list):
        raise UserError(f"{where}: a list of rows is expected, not {_called(rows)}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{where}[{number}]: a row is an object of columns and values, not {_called(row)}")
    _bound(where, len(rows), 0)
    names = dict.fromkeys(name for row in rows for name in row)
    _bound(where, len(rows), len(names))
    return _framed({name: [row.get(name) for row in rows] for name in names}, len(rows))


def _framed(columns: Mapping[str, list[Any]], rows: int) -> "pd.DataFrame":
    import pandas as pd

    for name, values in columns.items():
        _bound_values(name, values)
    # As objects: pandas would make floats of whole numbers with a gap, and so lose digits of large ids.
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()}, index=range(rows))


def _params(params: Mapping[str, Any] | None) -> Params:
    given = dict(params or {})
    for name, value in given.items():
        if name not in Params.model_fields:
            raise UserError(
                f"params.{_short(name)}: there is no such parameter; there are {', '.join(Params.model_fields)}"
            )
        kind = Params.model_fields[name].annotation
        if type(value) is not kind:
            raise UserError(f"params.{name}: {_NAMES[kind]} is expected, not {_called(value)}")
    if given.get("top_k", 0) < 0:
        raise UserError("params.top_k: 1 or more rows, or 0 for all")
    return Params(**given)


def _first_line(error: BaseException) -> str:
    return _short((str(error).strip().splitlines() or [type(error).__name__])[0], 300)


def _short(text: object, longest: int = 60) -> str:
    """Text of a request as an answer may repeat it: of bounded length, in characters that can be written."""
    shown = str(text)
    shown = shown if len(shown) <= longest else f"{shown[:longest]}…"
    return shown if shown.isprintable() else ascii(shown)[1:-1]


_NAMES: dict[Any, str] = {bool: "true or false", int: "a whole number", str: "a text"}


def _called(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
