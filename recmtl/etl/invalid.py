"""Labels that are given and cannot be read: counted, kept for a person to look at, and too many of them refused.

In: the raw rows of every split, part by part. Out: a file of the values that could not be read, a warning per task, or
one error that names the values seen and the setting that would read them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recmtl.errors import UserError
from recmtl.etl.encode import canonical
from recmtl.etl.mask import read_label
from recmtl.failures import writing
from recmtl.manifest import ROW, Columns
from recmtl.tasks import Task, Tasks

__all__ = ["InvalidLabels", "examples", "setting"]

_SHOWN = 3
"""Values that a sentence shows."""
_LISTED = 12
"""Values that a suggested setting lists."""
_FEW = 100
"""Different values of a column, at most, from which a setting that lists them is suggested."""
_YES = {
    "1",
    "y",
    "yes",
    "t",
    "true",
    "on",
    "pos",
    "positive",
    "click",
    "clicked",
    "like",
    "liked",
    "bought",
    "converted",
}


@dataclass(frozen=True)
class _Count:
    given: int
    invalid: int


class InvalidLabels:
    """The labels that cannot be read, gathered over the parts of a dataset.

    Args:
        tasks: whose labels are read.
        columns: the key columns, which are kept beside a value.
        folder: a folder of its own, for the values that could not be read.
    """

    def __init__(self, tasks: Tasks, columns: Columns, folder: Path) -> None:
        self._tasks, self._folder = tasks, folder
        keys = (columns.request, columns.user, columns.item, columns.time)
        self._keys = [key for key in keys if key is not None]
        self._counts = {name: _Count(0, 0) for name in tasks}
        self._types = pl.Schema()
        self._parts: dict[str, list[Path]] = {name: [] for name in tasks}
        folder.mkdir(parents=True)

    def add(self, frame: pl.DataFrame) -> None:
        """Judge the labels of some raw rows; a label that is missing is no invalid one."""
        self._types = frame.schema
        for name, task in self._tasks.items():
            dtype = frame.schema[task.label]
            value, missing = read_label(task, dtype)
            judged = frame.select(given=~missing, invalid=~missing & value.is_null())
            invalid = judged["invalid"]
            before = self._counts[name]
            self._counts[name] = _Count(before.given + int(judged["given"].sum()), before.invalid + int(invalid.sum()))
            if not invalid.any():
                continue
            path = self._folder / f"{name}-{len(self._parts[name]):05}.parquet"
            rows = frame.filter(invalid).select(
                pl.lit(name).alias("task"),
                pl.lit(task.label).alias("column"),
                canonical(pl.col(task.label), dtype).alias("value"),
                pl.col(ROW).cast(pl.Int64).alias("row"),
                (pl.struct(self._keys).struct.json_encode() if self._keys else pl.lit(None, pl.String)).alias("keys"),
            )
            with writing(path):
                rows.write_parquet(path)
            self._parts[name].append(path)

    def write(self, path: Path) -> bool:
        """Write what could not be read: task, column, value, row (its number in source order) and keys (JSON text).

        Returns:
            Whether there was anything.
        """
        parts = [part for parts in self._parts.values() for part in parts]
        if parts:
            with writing(path):
                pl.scan_parquet(parts, glob=False).sink_parquet(path)
        return bool(parts)

    def judge(self, most: float, rows: Sequence[Path], *, kept: Path, refused: Path) -> tuple[str, ...]:
        """Say what could not be read.

        Args:
            most: the share of a task's given labels that may be invalid.
            rows: Parquet files of all the raw rows, from which a setting is suggested.
            kept, refused: the file of the values that could not be read, where the run goes on and where it stops.

        Returns:
            A warning for each task with invalid labels.

        Raises:
            UserError: more than that share of a task's given labels is invalid.
        """
        warnings = []
        for name, count in self._counts.items():
            if not count.invalid:
                continue
            task = self._tasks[name]
            values = pl.scan_parquet(self._parts[name], glob=False).select("value")
            share = count.invalid / count.given
            said = (
                f"tasks.{name}.label: {count.invalid:,} of the {count.given:,} labels in column {task.label!r} "
                f"({share:.2%}) are not {_wanted(task)}: {examples(_counted(values))}"
            )
            dtype = self._types[task.label]
            given = pl.scan_parquet(list(rows), glob=False).select(value=canonical(pl.col(task.label), dtype))
            remedy = setting(task, _counted(given.filter(pl.col("value").str.strip_chars() != "")))
            if count.invalid > most * count.given:
                raise UserError(
                    f"{said}; data.max_invalid allows {most:.2%}, and {refused} holds them; {remedy}, or raise "
                    "data.max_invalid"
                )
            warnings.append(f"{said}; they are masked for this task and kept in {kept}; {remedy}")
        return tuple(warnings)


def _counted(values: pl.LazyFrame) -> pl.DataFrame:
    """The different values (`value`) and how often each occurs (`len`), the most frequent first."""
    return values.group_by("value").len().sort(["len", "value"], descending=[True, False]).collect(engine="streaming")


def examples(counted: pl.DataFrame) -> str:
    """The most frequent values with their counts: '2' (1,480), '3' (12), …"""
    shown = [f"{_clipped(value)!r} ({count:,})" for value, count in counted.head(_SHOWN).iter_rows()]
    return ", ".join([*shown, *(["…"] if counted.height > _SHOWN else [])])


def _clipped(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:39]}…"


def _wanted(task: Task) -> str:
    """What a label of the task may be."""
    if task.labels is not None:
        return f"among the values that tasks.{task.name}.labels names"
    if task.kind == "ordinal":
        return f"among its levels [{_listed(f'{level:g}' for level in task.levels or ())}]"
    if task.kind == "multiclass":
        return f"among its classes [{_listed(task.classes or ())}]"
    if task.kind == "regression":
        return "finite numbers" if task.range is None else f"numbers from {task.range[0]:g} to {task.range[1]:g}"
    return "numbers" if task.positive is not None else "0, 1, true or false"


def _listed(values: Iterable[str]) -> str:
    every = list(values)
    return ", ".join(every[:_LISTED]) + (", …" if len(every) > _LISTED else "")


def setting(task: Task, counted: pl.DataFrame) -> str:
    """The setting that would read a column of these values, as the end of a sentence.

    Args:
        task: whose labels they are.
        counted: the given values as text (`value`) and how often each occurs, the most frequent first.
    """
    where = f"tasks.{task.name}"
    texts = counted["value"].to_list()
    if task.labels is not None:
        return f"name them in {where}.labels"
    total = max(int(counted["len"].sum()), 1)
    number = pl.col("value").str.strip_chars().cast(pl.Float64, strict=False)
    numeric = counted.with_columns(number=number).filter(pl.col("number").is_finite())
    numbers = sorted(set(numeric["number"].to_list()))
    if not numbers or int(numeric["len"].sum()) < 0.95 * total:
        return _for_text(task, texts, where)
    if task.kind == "ordinal":
        levels = _listed(f"{value:g}" for value in numbers)
        return f"if these are levels, set {where}.levels: [{levels}]" if len(numbers) <= _FEW else _regress(where)
    if task.kind == "multiclass":
        return f"if these are classes, set {where}.classes: [{_listed(map(_quoted, texts))}]"
    if task.kind == "regression":
        return f"if these are right, set {where}.range: [{numbers[0]:g}, {numbers[-1]:g}], or leave it out"
    whole = all(value.is_integer() for value in numbers)
    if len(numbers) == 2:
        return f"if {numbers[1]:g} means 1, set {where}.positive: [{numbers[1]:g}]"
    if whole and numbers[0] >= 0 and 0 in numbers:
        return f'if these are counts, set {where}.positive: "> 0"'
    if whole and numbers[0] < 0:
        return f'if what is above 0 means 1, set {where}.positive: "> 0"'
    middle = numbers[len(numbers) // 2]
    return f'say from which value on a label counts as 1, e.g. {where}.positive: ">= {middle:g}"'


def _regress(where: str) -> str:
    return f"if it is a quantity, set {where}.kind: regression"


def _for_text(task: Task, texts: Sequence[str], where: str) -> str:
    if task.kind == "multiclass":
        return f"if these are classes, set {where}.classes: [{_listed(map(_quoted, texts))}]"
    if len(texts) > _FEW:
        return f"mend the column, or map what it holds by {where}.labels: {{value: label}}"
    shown = sorted(texts[:_SHOWN]) if len(texts) > 2 else sorted(texts, key=lambda text: text.strip().lower() in _YES)
    guessed = task.kind == "binary" and len(shown) == 2 and shown[1].strip().lower() in _YES
    labels = ["0", "1"] if guessed else ["…"] * len(shown)
    pairs = [f"{_quoted(text)}: {label}" for text, label in zip(shown, labels, strict=True)]
    more = ", …" if len(texts) > len(shown) else ""
    return f"say what they mean by {where}.labels: {{{', '.join(pairs)}{more}}}"


def _quoted(text: str) -> str:
    """The text as YAML has it between double quotes."""
    return '"' + _clipped(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
