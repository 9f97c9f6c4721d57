"""The model: features → tower → heads. In: a batch. Out: logits, and predictions from them. No training in here.

    x_BD    = features(batch)         embeddings, vectors, numbers         recmtl.features.inputs
    x_BI    = interactions(x_BD)      the same and its pairwise products   recmtl.features.interactions
    h_BH    = tower(x_BI)             a hidden vector per task             recmtl.towers
    logits  = heads(h_BH)             one or more per task, float32        recmtl.heads

Between the first line and the second lies the cut at which gradient balancers work: :meth:`Model.embed` stands before
it, :meth:`Model.decide` after it. Importing this file imports neither TorchRec nor FBGEMM.

Dimensions: B batch, D width of the features, I width of the tower's input, H hidden width.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field
from torch import Tensor, nn

from recmtl.batch import Batch
from recmtl.errors import RunError
from recmtl.features import (
    Features,
    InputsConfig,
    Interactions,
    MakeTables,
    Pieces,
    PlainTables,
    Stored,
    Tables,
    initial_blocks,
    table_shapes,
)
from recmtl.heads import Heads, RegressionHead
from recmtl.losses import task_losses
from recmtl.modules import generator
from recmtl.schema import Schema
from recmtl.settings import Settings
from recmtl.statistics import Statistics
from recmtl.tasks import Tasks
from recmtl.towers import TOWERS, Tower
from recmtl.towers.blocks import NormKind, make_norm
from recmtl.towers.mmoe import MMoEConfig

__all__ = ["Model", "ModelConfig", "Output", "build_model"]

if TYPE_CHECKING:
    AnyTower = Settings
else:
    AnyTower = Annotated[Union[tuple(kind.config for kind in TOWERS.values())], Field(discriminator="kind")]  # noqa: UP007


class ModelConfig(Settings):
    """The model: its tower, and how features enter it."""

    tower: AnyTower = MMoEConfig()
    """What stands between features and heads; ``kind`` says which."""
    inputs: InputsConfig = InputsConfig()
    """How features enter."""
    input_norm: NormKind = "none"
    """Normalisation of the tower's whole input: none, layer or batch."""


@dataclass(frozen=True)
class Output:
    """What the model makes of a batch."""

    logits: dict[str, Tensor]
    """Task name to float32 logits. binary: (B,), with a parent that of the conditional probability; regression: (B,)
    standardised; ordinal: (B, K - 1); multiclass: (B, K)."""
    auxiliary: dict[str, Tensor]
    """Name to a scalar loss of the tower's own, already weighted; empty for most towers, and when not training."""


class Model(nn.Module):
    """See the file's head; :func:`build_model` makes one.

    Its ``parameters()`` are what a dense optimiser may hold; they include the tables when those are plain ones
    (:meth:`dense_parameters` leaves them out) and not when they step inside ``backward``.
    """

    def __init__(
        self,
        features: Features,
        interactions: nn.Module,
        input_norm: nn.Module,
        tower: Tower,
        heads: Heads,
        tasks: Tasks,
    ) -> None:
        super().__init__()
        self.features = features
        self.interactions = interactions
        self.input_norm = input_norm
        self.tower = tower
        self.heads = heads
        self._tasks = tasks

    def forward(self, batch: Batch) -> Output:
        """Logits for every task."""
        x_BD = self.embed(batch)
        return self.decide(x_BD)

    def embed(self, batch: Batch) -> Tensor:
        """(B, D) float32: the input of the tower, before the cut.

        Its leading ``features.learned_dim`` columns depend on parameters (tables, projections of vectors).
        """
        x_BD: Tensor = self.features(batch)
        return x_BD

    def decide(self, x_BD: Tensor) -> Output:
        """Interactions, tower and heads: everything after the cut."""
        x_BI = self.input_norm(self.interactions(x_BD))
        hidden = self.tower(x_BI)
        logits = self.heads(hidden.hidden)
        return Output(logits, hidden.auxiliary)

    def predictions(self, output: Output) -> dict[str, Tensor]:
        """Column name (``Tasks.prediction_columns``) to (B,) float32: probabilities, expectations, label units."""
        return self.heads.predictions(output.logits)

    def losses(self, output: Output, batch: Batch, rows: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Task name to its loss: the mean over the rows observed in this batch (:mod:`recmtl.losses`).

        Args:
            output: of this batch.
            batch: with labels.
            rows: task to the number of rows observed on all ranks, where the batch is one rank's part.
        """
        scales = {
            name: (head.mean, head.std) for name, head in self.heads.by_task.items() if isinstance(head, RegressionHead)
        }
        return task_losses(self.heads.outcomes(output.logits), batch, self._tasks, scales, rows)

    @property
    def tables(self) -> Tables:
        """The embedding tables."""
        return self.features.tables

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """Name to parameter: all but the embedding tables."""
        return {name: p for name, p in self.named_parameters() if not name.startswith(_TABLES) and p.requires_grad}

    def shared_parameters(self) -> list[nn.Parameter]:
        """The parameters after the cut that more than one task reads."""
        return [
            *self.interactions.parameters(),
            *self.input_norm.parameters(),
            *self.tower.shared_parameters(),
        ]

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Those of the last layer that all tasks share."""
        return self.tower.last_shared_parameters()

    def tensors(self) -> dict[str, Tensor]:
        """All that was learned, by names that no kind of tables changes: ``tables.NAME``, ``tower.…``, ``heads.…``.

        Live views: copy them to keep them. Where ranks hold parts of the tables every rank calls it, and rank 0 alone
        gets the tables, as whole copies.
        """
        tables = {f"tables.{name}": weight for name, weight in self.tables.weights().items()}
        return {**tables, **self._dense_tensors()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy in what :meth:`tensors` gave.

        Raises:
            RunError: a tensor is missing, left over, or of another shape.
        """
        tables = self.tables.pieces().keys()
        _same_names({*(f"tables.{name}" for name in tables), *self._dense_tensors()}, tensors.keys())
        for name, tensor in self._dense_tensors().items():
            if tensor.shape != tensors[name].shape:
                raise RunError(f"{name} has shape {tuple(tensor.shape)} here but {tuple(tensors[name].shape)} there")
        self.tables.load_weights({name: tensors[f"tables.{name}"] for name in tables})
        for name, tensor in self._dense_tensors().items():
            tensor.copy_(tensors[name])

    def pieces(self) -> dict[str, Tensor | Pieces]:
        """:meth:`tensors` as a checkpoint saves and loads them: of a table that is cut up, this rank's part. Live."""
        return {**{f"tables.{name}": part for name, part in self.tables.pieces().items()}, **self._dense_tensors()}

    def load_pieces(self, stored: Stored) -> None:
        """Read what :meth:`pieces` was when it was saved, perhaps by another number of ranks.

        Raises:
            RunError: a tensor is missing, left over, or of another shape.
        """
        _same_names(self.pieces().keys(), stored.shapes().keys())
        stored.read({**self._dense_tensors()})
        self.tables.load_pieces(lambda parts: stored.read({f"tables.{name}": part for name, part in parts.items()}))

    def _dense_tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(_TABLES)}


_TABLES = "features.tables."


def _same_names(have: Set[str], given: Set[str]) -> None:
    if have != given:
        missing, left = sorted(have - given), sorted(given - have)
        raise RunError(
            f"these weights are of another model: {missing or 'none'} are missing, {left or 'none'} too many"
        )


def build_model(
    config: ModelConfig,
    schema: Schema,
    tasks: Tasks,
    statistics: Statistics,
    *,
    seed: int,
    tables: MakeTables | None = None,
) -> Model:
    """A model at its initial values, which depend on nothing but these arguments.

    Args:
        config: tower and inputs.
        schema: the features.
        tasks: what is predicted.
        statistics: fitted on train: sizes of the tables, base rates of the labels.
        seed: of the initial values; each component has a stream of its own, so that tables of either kind start equal.
        tables: how to make the embedding tables; by default :class:`recmtl.features.PlainTables`.
    """
    shapes = table_shapes(schema, statistics)
    made = (tables or PlainTables)(shapes)
    for name, shape in shapes.items():
        made.load_blocks(name, initial_blocks(shape, std=config.inputs.embedding_std, seed=seed, name=name))
    features = Features(schema, made, config.inputs, generator=generator(seed, "features"))
    interactions: nn.Module = nn.Identity()
    input_dim = features.output_dim
    if config.inputs.interactions == "dot":
        fields = {name: columns for name, columns in features.columns.items() if schema[name].kind != "number"}
        interactions = Interactions(fields, input_dim, generator=generator(seed, "interactions"))
        input_dim = interactions.output_dim
    kind = next(kind for kind in TOWERS.values() if isinstance(config.tower, kind.config))
    tower = kind.build(config.tower, input_dim=input_dim, tasks=tuple(tasks), generator=generator(seed, "tower"))
    heads = Heads(tasks, tower.output_dim, statistics, seed=seed)
    return Model(features, interactions, make_norm(config.input_norm, input_dim), tower, heads, tasks)
