"""What the gates of a model do: which task takes which expert, where, and which experts are of no use.

In: a model with gated experts and a split, streamed in batches. Out: mean gates per task and slice with their entropy,
and the experts that deserve a word: dead ones, and ones that say the same as another.

Two experts say the same where the linear CKA of their outputs is high (Kornblith et al. 2019, "Similarity of Neural
Network Representations Revisited", eq. 4 with the linear kernel): with both outputs' columns centred,

    CKA(X, Y) = ‖Yᵀ X‖²_F / (‖Xᵀ X‖_F · ‖Yᵀ Y‖_F),

1 where one is a rotation and scaling of the other, about 0 where they have nothing in common. On fewer rows than a few
times the experts' width it is biased upwards.

Dimensions: B batch, K experts of a gate, S width of an expert's output, V slices of a column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from recmtl.etl.slicing import SliceColumn
from recmtl.findings import Expert, Gate
from recmtl.loading import Loader
from recmtl.model import Model
from recmtl.progress import Progress, Silent
from recmtl.settings import Settings
from recmtl.towers import GatedLayer, GateShares

__all__ = ["DEAD_SHARE", "GatesConfig", "gates", "linear_cka"]

DEAD_SHARE = 0.1
"""An expert is dead whose mean weight is below this part of an even share with every gate that can take it."""

_DEAD_UNITS = 0.5
"""An expert with this part of its outputs at zero throughout deserves a word."""


class GatesConfig(Settings):
    """What is told of a model's gates and experts."""

    enabled: bool = True
    """Whether gates are looked at, where the tower has any."""
    max_rows: int | None = Field(default=500_000, ge=1)
    """Look at about this many rows, evenly taken batches, where there are more; null: at all."""
    similarity_rows: int = Field(default=4096, ge=2)
    """Rows, evenly taken, on which experts' outputs are compared."""
    similarity: float = Field(default=0.95, gt=0, le=1)
    """Linear CKA from which on two experts count as duplicates."""
    max_values: int = Field(default=20, ge=1)
    """Of a slicing column, the values with the most rows whose gates are told."""


def gates(
    model: Model,
    loader: Loader,
    slices: Sequence[SliceColumn] = (),
    *,
    config: GatesConfig | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[tuple[Gate, ...], tuple[Expert, ...]]:
    """Mean gates and noteworthy experts of a model on a split; both empty for a tower without gates.

    Args:
        model: on ``device``; scored in evaluation mode and left in the mode in which it was.
        loader: the split in source order.
        slices: columns whose codes are aligned with the split's rows.
        config: how many rows are looked at.
        device: where the model is.
        progress: shows rows.

    Returns:
        For every layer and gate one row over all rows looked at, then one for each slice that has any of them (the
        largest ``max_values`` of a column); and the experts with something to say, layer by layer.
    """
    config = config or GatesConfig()
    if not config.enabled or not _has_gates(model, device):
        return (), ()
    every = 1 if config.max_rows is None else max(1, -(-loader.rows // config.max_rows))
    looked_at = -(-loader.batches // every) * loader.batch_size
    compared_every = max(1, min(looked_at, loader.rows) // config.similarity_rows)
    layers: dict[str, _Layer] = {}
    was_training = model.training
    model.eval()
    kind = torch.device(device).type
    try:
        with (
            torch.no_grad(),
            torch.autocast(kind, enabled=False),
            (progress or Silent()).bar(f"gates on {loader.split}", total=loader.rows) as bar,
        ):
            start = 0
            for number, batch in enumerate(loader.epoch(0)):
                if number % every == 0:
                    x_BD = model.input_norm(model.interactions(model.embed(batch.to(device))))
                    codes = [torch.from_numpy(column.codes[start : start + batch.size]).long() for column in slices]
                    for layer in model.tower.gated_layers(x_BD):
                        layers.setdefault(layer.name, _Layer(layer, slices)).see(layer, codes, compared_every)
                start += batch.size
                bar.advance(batch.size)
    finally:
        model.train(was_training)
    found = [layer.findings(config) for layer in layers.values()]
    return tuple(gate for some, _ in found for gate in some), tuple(expert for _, some in found for expert in some)


def _has_gates(model: Model, device: torch.device | str) -> bool:
    """Asked with no rows: most towers' gates cost a forward, a tower without them nothing."""
    width = model.interactions(torch.zeros(0, model.features.output_dim, device=device)).shape[1]
    with torch.no_grad():
        return bool(model.tower.gated_layers(torch.zeros(0, width, device=device)))


def linear_cka(x_NS: NDArray[np.floating], y_NS: NDArray[np.floating]) -> float | None:
    """The linear CKA of two outputs on the same N rows; None where one of them is constant."""
    x, y = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (x_NS, y_NS))
    own = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(np.square(y.T @ x).sum() / own) if own > 0 else None


@dataclass
class _Sums:
    """Of one gate: over all rows, and for each column over each slice and, last, over rows in none."""

    experts: tuple[str, ...]
    rows: Tensor
    shares: Tensor
    entropy: Tensor


class _Layer:
    """What is summed over the batches for one layer; on the CPU, in float64."""

    def __init__(self, layer: GatedLayer, slices: Sequence[SliceColumn]) -> None:
        self._name = layer.name
        self._slices = slices
        self._gates: dict[str, list[_Sums]] = {
            task: [_empty(gate, 1), *(_empty(gate, len(column.labels) + 1) for column in slices)]
            for task, gate in layer.gates.items()
        }
        self._speaks = {name: torch.zeros(output.shape[1], dtype=torch.bool) for name, output in layer.outputs.items()}
        self._sample: dict[str, list[NDArray[np.float32]]] = {name: [] for name in layer.outputs}
        self._seen = 0

    def see(self, layer: GatedLayer, codes: Sequence[Tensor], compared_every: int) -> None:
        """Add a batch: its gates, which outputs spoke, and every so many rows of the outputs."""
        for task, gate in layer.gates.items():
            shares = gate.shares.double().cpu()
            entropy = -torch.xlogy(shares, shares).sum(dim=1) / max(np.log(len(gate.experts)), 1e-12)
            if len(gate.experts) == 1:
                entropy = torch.zeros_like(entropy)
            whole = torch.zeros(len(shares), dtype=torch.int64)
            for sums, code in zip(self._gates[task], (whole, *codes), strict=True):
                place = torch.where(code < 0, len(sums.rows) - 1, code)
                sums.rows.index_add_(0, place, torch.ones_like(entropy))
                sums.shares.index_add_(0, place, shares)
                sums.entropy.index_add_(0, place, entropy)
        first = -self._seen % compared_every
        for name, output in layer.outputs.items():
            self._speaks[name] |= (output != 0).any(dim=0).cpu()
            self._sample[name].append(output[first::compared_every].float().cpu().numpy())
        self._seen += len(next(iter(layer.outputs.values())))

    def findings(self, config: GatesConfig) -> tuple[list[Gate], list[Expert]]:
        """What the sums say."""
        told: list[Gate] = []
        for task, (whole, *parts) in self._gates.items():
            told += self._rows(task, whole, None, ("",))
            for column, sums in zip(self._slices, parts, strict=True):
                told += self._rows(task, sums, column.name, column.labels, config.max_values)
        return told, list(self._experts(config))

    def _rows(
        self, task: str, sums: _Sums, column: str | None, labels: Sequence[str], most: int | None = None
    ) -> list[Gate]:
        ordered = np.argsort(-sums.rows[: len(labels)].numpy(), kind="stable")
        told = set(ordered[:most].tolist())
        return [
            Gate(
                layer=self._name,
                task=task,
                slice=column,
                value=None if column is None else label,
                rows=int(rows),
                experts=sums.experts,
                mean=tuple((shares / rows).tolist()),
                entropy=float(entropy / rows),
            )
            for place, (label, rows, shares, entropy) in enumerate(
                zip(labels, sums.rows, sums.shares, sums.entropy, strict=False)
            )
            if rows and place in told
        ]

    def _experts(self, config: GatesConfig) -> list[Expert]:
        weights = self._weights()
        outputs = {name: np.concatenate(parts)[: 2 * config.similarity_rows] for name, parts in self._sample.items()}
        found: list[Expert] = []
        before: list[str] = []
        for name, speaks in self._speaks.items():
            dead = all(weight < DEAD_SHARE * even for weight, even in weights[name])
            silent = 1 - float(speaks.double().mean())
            similar = [
                (similarity, other) for other in before for similarity in [linear_cka(outputs[name], outputs[other])]
            ]
            similarity, other = max(((s, o) for s, o in similar if s is not None), default=(0.0, ""))
            duplicate = similarity >= config.similarity
            before.append(name)
            if dead or duplicate or silent >= _DEAD_UNITS:
                found.append(
                    Expert(
                        layer=self._name,
                        expert=name,
                        dead=dead,
                        units_dead=silent,
                        duplicate_of=other if duplicate else None,
                        similarity=similarity if duplicate else None,
                    )
                )
        return found

    def _weights(self) -> Mapping[str, list[tuple[float, float]]]:
        """Expert to (mean weight, even share) with every gate that can take it."""
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in self._speaks}
        for whole, *_ in self._gates.values():
            if whole.rows[0]:
                for name, weight in zip(whole.experts, (whole.shares[0] / whole.rows[0]).tolist(), strict=True):
                    found[name].append((weight, 1 / len(whole.experts)))
        return found


def _empty(gate: GateShares, parts: int) -> _Sums:
    rows, shares, entropy = (
        torch.zeros(*shape, dtype=torch.float64) for shape in ((parts,), (parts, len(gate.experts)), (parts,))
    )
    return _Sums(gate.experts, rows, shares, entropy)
