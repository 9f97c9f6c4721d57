"""Tasks: what the model predicts. In: a few lines of config. Out: frozen :class:`Task` objects keyed by name.

A task is data. It has a kind, a label column, a rule for when its label is observed and, for conditional
(entire-space) heads, a parent. Nothing else in recmtl knows what a click or a purchase is.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from recmtl.errors import UserError
from recmtl.settings import Name, Settings

__all__ = ["Comparison", "Observed", "Task", "TaskKind", "Tasks", "text_of"]

TaskKind = Literal["binary", "regression", "ordinal", "multiclass"]
Comparison: TypeAlias = Literal[">", ">=", "<", "<=", "==", "!="]

_COMPARISON = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")
_MOST = 10_000
"""Values that ``positive`` or ``labels`` may name."""


def text_of(given: Any) -> Any:
    """A value that a column may hold, as text: what YAML reads as a number or a boolean stands for the same text.

    Anything that is neither text, number nor boolean is returned as it is.
    """
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, (int, float)):
        return str(given)
    return given.strip() if isinstance(given, str) else given


_Value = Annotated[str, BeforeValidator(text_of)]


def _positives(given: Any) -> Any:
    """A single value is a list of one; a text is a comparison."""
    return given if isinstance(given, (str, list, tuple)) or given is None else [given]


class Observed(Settings):
    """When a task's label counts, beyond the label being present and mature."""

    when: Name
    """A binary task; the label counts only on rows where that task is observed and positive."""


class Task(Settings):
    """One objective.

    A label is observed where it is not null, where its attribution window had closed (event logs), and where
    ``observed.when`` holds. Everywhere else it is masked for this task alone.
    """

    name: Name
    """The task's name: the key of predictions, losses, metrics and weights."""
    kind: TaskKind
    """binary: probability of a label in {0, 1}; regression: a real label; ordinal: one of ``levels``, ordered;
    multiclass: one of ``classes``, unordered."""
    label: str
    """The label's column in the source."""
    parent: Name | None = None
    """A binary task that must be positive for this one to be; the prediction is then p(parent)·p(task | parent)."""
    observed: Observed | None = None
    """Restricts the label to rows where another task is positive (share watched means something after a click)."""
    levels: tuple[float, ...] | None = None
    """ordinal: the ordered label values, e.g. [1, 2, 3, 4, 5]; the prediction is the expectation over them."""
    classes: tuple[str, ...] | None = None
    """multiclass: the label values, as text; one predicted column each."""
    link: Literal["cumulative", "corn"] = "cumulative"
    """ordinal: cumulative link with ordered thresholds (McCullagh 1980), or CORN (Shi et al. 2021)."""
    range: Annotated[tuple[float, float] | None, Field()] = None
    """regression: the lowest and highest possible label; a label outside is invalid, a prediction is clipped to it."""
    weight_column: str | None = None
    """A column of non-negative weights per row for this task's loss; missing counts as 1."""
    positive: Annotated[
        str | Annotated[tuple[_Value, ...], Field(min_length=1, max_length=_MOST)] | None, BeforeValidator(_positives)
    ] = None
    """binary, where the column does not hold 0 and 1: which values count as 1. A list such as [2] or ["yes"], or a
    comparison with a number such as "> 0". Every other given value counts as 0; if all listed values are numbers, or
    for a comparison, a value that is no number is invalid."""
    labels: Annotated[dict[_Value, float | str | None], Field(min_length=1, max_length=_MOST)] | None = None
    """What the column holds → the label, for any kind: {"yes": 1, "no": 0}, {1: 0, 2: 1}, {"bad": 1, "good": 5}; null
    makes the value a missing label. A value that is not named is invalid. true also stands for yes and on, false for no
    and off, in any case, because YAML reads these alike."""

    @field_validator("labels", mode="before")
    @classmethod
    def _each_value_once(cls, labels: Any) -> Any:
        """``{1: 0, 1.0: 1}`` and ``{1: 0, "1": 1}`` name a value twice."""
        if isinstance(labels, Mapping):
            values = [text_of(value) for value in labels]
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"`labels` names the value {twice!r} twice")
            return {value: int(label) if isinstance(label, bool) else label for value, label in labels.items()}
        return labels

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> "Task":
        fields = (("levels", "ordinal"), ("classes", "multiclass"), ("range", "regression"), ("positive", "binary"))
        for field, kind in fields:
            if getattr(self, field) is not None and self.kind != kind:
                raise ValueError(f"task {self.name}: `{field}` belongs to kind {kind}, not {self.kind}")
        if self.kind == "ordinal" and (self.levels is None or len(self.levels) < 2):
            raise ValueError(f"task {self.name}: an ordinal task needs `levels`, at least two, e.g. [1, 2, 3, 4, 5]")
        if self.levels is not None and list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"task {self.name}: `levels` must rise strictly")
        if self.kind == "multiclass" and (self.classes is None or len(set(self.classes)) < 2):
            raise ValueError(f"task {self.name}: a multiclass task needs `classes`, at least two different ones")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError(f"task {self.name}: `classes` names one twice")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"task {self.name}: `range` must be [lowest, highest]")
        if self.parent is not None and self.kind != "binary":
            raise ValueError(f"task {self.name}: a task with a parent is binary (for other kinds use `observed`)")
        if self.parent is not None and self.observed is not None:
            raise ValueError(f"task {self.name}: `parent` and `observed` exclude each other")
        self._check_values()
        return self

    def _check_values(self) -> None:
        if self.positive is not None and self.labels is not None:
            raise ValueError(f"task {self.name}: `positive` and `labels` exclude each other")
        if isinstance(self.positive, str) and self.comparison is None:
            raise ValueError(
                f"task {self.name}: `positive` must be a list of values, such as [{self.positive or 2}], or a "
                f'comparison with a number, such as "> 0", not {self.positive!r}'
            )
        for value, label in (self.labels or {}).items():
            problem = None if label is None else self._unlike_a_label(label)
            if problem is not None:
                raise ValueError(f"task {self.name}: `labels` maps {value!r} to {label!r}, which is {problem}")
        if self.labels is not None and len({label for label in self.labels.values() if label is not None}) < 2:
            raise ValueError(f"task {self.name}: `labels` must map to at least two different labels")

    def _unlike_a_label(self, label: float | str) -> str | None:
        """What is wrong with a label that ``labels`` maps to, if anything."""
        if self.kind == "multiclass":
            named = str(text_of(label)) in (self.classes or ())
            return None if named else f"none of `classes` ({', '.join(self.classes or ())})"
        if isinstance(label, str) or not math.isfinite(label):
            return "no number"
        if self.kind == "binary" and label not in (0, 1):
            return "neither 0 nor 1"
        if self.kind == "ordinal" and label not in (self.levels or ()):
            return f"none of `levels` ({', '.join(f'{level:g}' for level in self.levels or ())})"
        if self.range is not None and not self.range[0] <= label <= self.range[1]:
            return f"outside `range` [{self.range[0]:g}, {self.range[1]:g}]"
        return None

    @property
    def comparison(self) -> tuple[Comparison, float] | None:
        """``positive`` as operator and number, where it is a comparison."""
        found = _COMPARISON.fullmatch(self.positive) if isinstance(self.positive, str) else None
        try:
            number = math.nan if found is None else float(found[2])
        except ValueError:
            return None
        return (found[1], number) if found is not None and math.isfinite(number) else None  # type: ignore[return-value]


class Tasks(Mapping[str, Task]):
    """The tasks of a run, in config order, checked against each other.

    Raises:
        UserError: a name twice; a parent or ``observed.when`` that is unknown, not binary, or in a circle; predictions
            of two tasks that would have one name.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.name: task for task in tasks}
        if not tasks:
            raise UserError("tasks: at least one task is needed")
        if len(self._tasks) != len(tasks):
            raise UserError("tasks: a name is used twice")
        for task in tasks:
            for field, other in (("parent", task.parent), ("observed.when", task.observed and task.observed.when)):
                if other is None:
                    continue
                if other not in self._tasks:
                    raise UserError(f"tasks.{task.name}.{field}: there is no task named {other!r}")
                if self._tasks[other].kind != "binary":
                    raise UserError(f"tasks.{task.name}.{field}: task {other!r} must be binary")
        for task in tasks:
            self._walk(task.name, ())
        self._check_columns()

    def _check_columns(self) -> None:
        """No two predictions may have one column."""
        owners: dict[str, str] = {}
        for name in self._tasks:
            for column in self.prediction_columns(name):
                if column in owners:
                    raise UserError(
                        f"tasks: {owners[column]} and {name} would both write predictions called {column!r}; rename one"
                    )
                owners[column] = name

    def _walk(self, name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(f"tasks: {' → '.join((*path, name))} is a circle")
        task = self._tasks[name]
        for other in (task.parent, task.observed.when if task.observed else None):
            if other is not None:
                self._walk(other, (*path, name))

    def __getitem__(self, name: str) -> Task:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def ancestors(self, name: str) -> tuple[str, ...]:
        """The parents of a task from nearest to furthest; empty for a task without one."""
        found: list[str] = []
        parent = self._tasks[name].parent
        while parent is not None:
            found.append(parent)
            parent = self._tasks[parent].parent
        return tuple(found)

    def parents_first(self) -> tuple[Task, ...]:
        """The tasks with every parent (and every ``observed.when``) before those that name it; else in config order."""
        done: dict[str, Task] = {}

        def visit(name: str) -> None:
            task = self._tasks[name]
            for other in (task.parent, task.observed.when if task.observed else None):
                if other is not None:
                    visit(other)
            done.setdefault(name, task)

        for name in self._tasks:
            visit(name)
        return tuple(done.values())

    def prediction_columns(self, name: str) -> tuple[str, ...]:
        """The columns that ``predict`` writes for a task.

        binary, regression, ordinal: NAME (probability, label units, expectation); with a parent also NAME_given_PARENT
        (the conditional probability); multiclass: NAME_CLASS for every class.
        """
        task = self._tasks[name]
        if task.kind == "multiclass":
            assert task.classes is not None
            return tuple(f"{name}_{label}" for label in task.classes)
        return (name,) if task.parent is None else (name, f"{name}_given_{task.parent}")
