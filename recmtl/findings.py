"""What an evaluation found: the content of ``report.json``, one class a section.

In: what the other files of this room measured. Out: :class:`Report`, plain data with a published JSON schema
(:func:`schema`), which the HTML page shows and the registry's gate judges. Nothing is computed here.

A system is what made the predictions: ``model`` (the one the report is about), ``champion``, ``baseline`` (the train
mean), ``optimum`` (the truth of a synthetic log), or another model under the name that it was given. A target is a task
or TASK_given_PARENT, as in :mod:`recmtl.evaluation.evaluate`. A number that is undefined is None.
"""

from pathlib import Path
from typing import Any, Literal

from recmtl.settings import Record

__all__ = [
    "About",
    "Calibration",
    "Check",
    "Coherence",
    "Conflict",
    "Cost",
    "Coverage",
    "Curve",
    "DataCard",
    "Difference",
    "Drift",
    "Epoch",
    "Expert",
    "FeatureDrift",
    "Figure",
    "FigureRow",
    "Fusion",
    "FusionPoint",
    "Gate",
    "Guard",
    "Importance",
    "LabelDrift",
    "RankingRow",
    "Report",
    "SliceRow",
    "Verdict",
    "read_report",
    "schema",
]

FORMAT = 1


class Figure(Record):
    """A number with its interval."""

    value: float | None = None
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None


class Difference(Figure):
    """The model's figure less another system's on the same rows, paired."""

    p_value: float | None = None
    """Two-sided, of no difference."""
    p_corrected: float | None = None
    """Corrected over the tasks (Holm 1979)."""


class FigureRow(Record):
    """A metric of a target, for every system."""

    target: str
    task: str
    metric: str
    higher_is_better: bool | None
    """None: neither; calibration is best at 1."""
    headline: bool = False
    """Whether it stands in the table at the top."""
    rows: int
    positives: int | None = None
    users: int | None = None
    """Users, or whatever the interval's clusters are, on these rows."""
    systems: dict[str, Figure]
    differences: dict[str, Difference] = {}
    """Other system → the model less it."""
    share_of_attainable: Figure | None = None
    """auc on synthetic logs: (AUC − 0.5) / (optimum's AUC − 0.5)."""
    method: str
    """What made the interval, for a person: "Poisson bootstrap over users, 1000 draws"."""


class Curve(Record):
    """A line of a chart."""

    kind: Literal["calibration", "roc", "pr", "lift"]
    """calibration: x mean prediction, y mean label of a bin; roc: x false, y true positive rate; pr: x recall, y
    precision; lift: x share of rows taken from the top, y rate among them over the rate of all."""
    target: str
    system: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    rows: tuple[int, ...] | None = None
    """Rows of each bin."""


class SliceRow(Record):
    """The metrics of a target on a part of the rows."""

    slice: str
    """What cuts the rows: a column, ``new_user``, ``time`` …"""
    value: str
    """Which part."""
    target: str
    rows: int
    users: int | None = None
    positives: int | None = None
    small: bool = False
    """Too few rows, positives or users for the figures to mean much: shown and marked."""
    systems: dict[str, dict[str, Figure]]
    """System → metric → figure."""
    differences: dict[str, dict[str, Difference]] = {}
    """Other system → metric → the model less it."""


class RankingRow(Record):
    """How well the rows of each group (a request, a user) are ranked, for one objective."""

    by: Literal["request", "user"]
    scored_by: str
    """What sorts the rows: ``fused``, or a prediction column."""
    objective: str
    """The task whose label counts as gain."""
    metric: str
    """ndcg, map, recall, mrr; auc, every list alike, and auc_by_rows, lists weighted by their rows."""
    k: int | None = None
    groups: int
    """Groups in which the metric is defined."""
    systems: dict[str, Figure]
    differences: dict[str, Difference] = {}


class Coverage(Record):
    """What a system ranks first, by items."""

    system: str
    by: Literal["request", "user"]
    scored_by: str
    k: int
    items: int
    """Different items among the first k."""
    catalogue: int
    """Different items that could have been."""
    gini: float | None = None
    """Inequality of how often items stand among the first k: 0 all alike, 1 one item alone."""
    popularity: float | None = None
    """Mean share of train's items that are no more popular than the item: 1 is the most popular one."""


class Calibration(Record):
    """What a fitted calibration does, on rows that it was not fitted on."""

    target: str
    method: Literal["none", "isotonic", "platt", "beta"]
    chosen: bool = False
    log_loss: float | None = None
    ece: float | None = None
    ratio: float | None = None
    """Mean prediction over mean label."""
    rows: int
    fitted_on: str
    """The split that it was fitted on, and how the figures were made ("validation, 5 folds")."""
    split: str | None = None
    """The split that the figures are of, where nothing was fitted on it; None: they are of the folds."""


class Gate(Record):
    """How much of each expert a task takes, on average, in a part of the rows."""

    layer: str
    """``gate`` of an MMoE; ``level 1`` of a PLE."""
    task: str
    slice: str | None = None
    value: str | None = None
    """A part of the rows; None: all."""
    rows: int
    experts: tuple[str, ...]
    mean: tuple[float, ...]
    """Mean weight of each expert; they sum to 1."""
    entropy: float
    """Mean entropy of a row's gate over its highest possible: 0 one expert alone, 1 all alike."""


class Expert(Record):
    """An expert that deserves a word."""

    layer: str
    expert: str
    dead: bool = False
    """No task gives it a mean weight above a tenth of an even share."""
    units_dead: float | None = None
    """Share of its outputs that are zero on every row."""
    duplicate_of: str | None = None
    similarity: float | None = None
    """Of its outputs to that expert's (linear CKA, 0 to 1)."""


class Importance(Record):
    """What a feature contributes to a target."""

    target: str
    feature: str
    method: Literal["permutation", "integrated_gradients"]
    figure: Figure
    """permutation: what the metric loses when the feature is shuffled over the rows; integrated gradients: its share of
    the mean absolute attribution."""
    metric: str
    """Of the permutation: auc, rmse …; of the gradients: ``attribution``."""


class Conflict(Record):
    """How two tasks' gradients lie to each other while training."""

    one: str
    other: str
    cosine: tuple[float, ...]
    """Mean over each epoch, or over what was logged."""
    steps: tuple[int, ...]
    negative: float | None = None
    """Share of the logged steps with a negative cosine."""


class Coherence(Record):
    """Something that cannot be, and how often it is."""

    kind: Literal["prediction", "label"]
    text: str
    """"p(purchase) > p(click)", "a purchase without a click"."""
    system: str | None = None
    rows: int
    of: int
    share: float | None


class FusionPoint(Record):
    """One choice of a formula's weights."""

    weights: dict[str, float]
    objectives: dict[str, float]
    """Task → NDCG."""
    on_front: bool = False
    """No other choice is better for one task and no worse for the others."""
    chosen: bool = False


class Fusion(Record):
    """The search for the weights of a fused score."""

    formula: str
    split: str
    by: Literal["request", "user"]
    k: int
    points: tuple[FusionPoint, ...]
    weights: dict[str, float]
    """As chosen."""


class FeatureDrift(Record):
    """A feature in the evaluated rows against what the model's own training saw."""

    feature: str
    psi: float | None = None
    """Population stability index: below 0.1 little, above 0.25 much."""
    unseen_before: float | None = None
    """Share of values that training's vocabulary lacks; before: in training's own rows."""
    unseen_now: float | None = None
    missing_before: float | None = None
    missing_now: float | None = None


class LabelDrift(Record):
    """A target's mean label."""

    target: str
    before: float | None
    now: float | None
    observed_before: int
    observed_now: int


class Drift(Record):
    """The prepared data against the data that a model was trained on."""

    against: str
    """Whose training data: ``champion``, or ``model``."""
    split: str
    rows_before: int
    rows_now: int
    features: tuple[FeatureDrift, ...] = ()
    labels: tuple[LabelDrift, ...] = ()


class Guard(Record):
    """A check of the protocol."""

    name: str
    """As ``evaluation.guards.allow`` names it."""
    status: Literal["passed", "allowed", "failed", "not applicable"]
    text: str
    """What was looked at, and what was found."""
    reason: str | None = None
    """Why it is allowed, in the config's words."""


class Check(Record):
    """A check of the registry's gate."""

    name: str
    """What a tag and a sentence call it: ``click.auc vs champion``."""
    group: Literal["metric", "slice", "floor", "calibration", "coherence", "drift", "package", "guard"]
    passed: bool | None
    """None: it could not be judged; then it stops nothing unless it is required."""
    text: str
    """One sentence with the figures and the bound."""
    target: str | None = None
    metric: str | None = None
    slice: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None


class Verdict(Record):
    """What follows from all this."""

    decision: Literal["promote", "refuse", "not judged"]
    """not judged: no gate is configured."""
    reasons: tuple[str, ...] = ()
    """Sentences for a person, the weightiest first."""
    checks: tuple[Check, ...] = ()
    overridden: str | None = None
    """The reason that somebody gave for promoting all the same."""


class Epoch(Record):
    """A point of the training curves."""

    epoch: int | None = None
    step: int
    train: dict[str, float | None] = {}
    """Task → mean loss."""
    validation: dict[str, dict[str, float | None]] = {}
    """Target → metric → value."""


class DataCard(Record):
    """What the rows are."""

    name: str
    source: str
    fingerprint: str
    statistics: str
    splits: dict[str, dict[str, Any]]
    """Split → rows, time range, per task observed, positives, mean, masked by reason."""
    inputs: dict[str, str] = {}
    """File → SHA-256."""
    read: dict[str, int] = {}
    duplicates: dict[str, int] = {}
    rejected: dict[str, dict[str, int]] = {}
    filtered: dict[str, dict[str, int]] = {}
    unattributed: dict[str, dict[str, int]] = {}
    observed_until: str | None = None
    labels_as_of: str | None = None
    warnings: tuple[str, ...] = ()


class Cost(Record):
    """What it took."""

    seconds: dict[str, float] = {}
    """Stage → seconds."""
    rows_per_second: dict[str, float] = {}
    """``train``, ``score``."""
    peak_memory_mb: float | None = None
    """Highest resident memory of the process, in MiB."""
    package_mb: float | None = None
    device: str | None = None
    cores: int | None = None
    steps: int | None = None
    epochs: int | None = None


class About(Record):
    """Where the report is from."""

    name: str
    created: str
    """ISO 8601, UTC."""
    version: str
    """Of recmtl."""
    commit: str | None = None
    split: str
    """What was evaluated on: test, or validation before it."""
    models: dict[str, str] = {}
    """System → the package's digest, or where it is from."""
    systems: tuple[str, ...]
    """In the order in which they are shown, ``model`` first."""
    confidence: float = 0.95


class Report(Record):
    """All of it."""

    format: int = FORMAT
    about: About
    verdict: Verdict
    figures: tuple[FigureRow, ...]
    legend: dict[str, str] = {}
    """Metric → what it means."""
    history: tuple[Epoch, ...] = ()
    curves: tuple[Curve, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    slices: tuple[SliceRow, ...] = ()
    ranking: tuple[RankingRow, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    gates: tuple[Gate, ...] = ()
    experts: tuple[Expert, ...] = ()
    importance: tuple[Importance, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    coherence: tuple[Coherence, ...] = ()
    fusion: Fusion | None = None
    drift: tuple[Drift, ...] = ()
    guards: tuple[Guard, ...] = ()
    data: DataCard
    config: dict[str, Any] = {}
    cost: Cost = Cost()
    notes: tuple[str, ...] = ()
    """What a reader must know: sections left out and why."""


def schema() -> dict[str, Any]:
    """The JSON schema of ``report.json``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}


def read_report(path: Path) -> Report:
    """``report.json`` as it was written.

    Raises:
        OSError, pydantic.ValidationError: it cannot be read, or is none.
    """
    return Report.model_validate_json(path.read_bytes())
