"""Tasks: what the model predicts. In: a few lines of config. Out: frozen :class:`Task` objects keyed by name.

A task is data. It has a kind, a label column, a rule for when its label is observed and, for conditional
(entire-space) heads, a parent. Nothing else in recmtl knows what a click or a purchase is.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from recmtl.errors import UserError
from recmtl.settings import Name, Settings

__all__ = ["Observed", "Task", "TaskKind", "Tasks"]

TaskKind = Literal["binary", "regression", "ordinal", "multiclass"]


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

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> "Task":
        for field, kind in (("levels", "ordinal"), ("classes", "multiclass"), ("range", "regression")):
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
        return self


class Tasks(Mapping[str, Task]):
    """The tasks of a run, in config order, checked against each other.

    Raises:
        UserError: a name twice; a parent or ``observed.when`` that is unknown, not binary, or in a circle.
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
