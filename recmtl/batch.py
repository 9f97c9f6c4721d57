"""One batch: what the loader yields, the model reads and the losses divide by.

In: encoded rows. Out: :class:`Batch`, whose sparse part is a KeyedJaggedTensor in all but class: :class:`SparseBatch`
carries its three tensors and becomes TorchRec's own with :meth:`SparseBatch.to_kjt`. That keeps TorchRec and FBGEMM,
which pair with one torch build each, out of the way of serving.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["Batch", "FeatureValues", "SparseBatch"]


class FeatureValues(NamedTuple):
    """One sparse feature of a batch."""

    feature: str
    values: Tensor
    """(n,) int64: embedding table rows."""
    lengths: Tensor
    """(B,) int32: how many of them each example has."""
    weights: Tensor | None
    """(n,) float32; None when no feature of the schema is a weighted bag."""


@dataclass(frozen=True)
class SparseBatch:
    """Table rows per feature and example, in the layout of a KeyedJaggedTensor: feature-major, then example."""

    keys: tuple[str, ...]
    """The F sparse features, in schema order."""
    values: Tensor
    """(N,) int64: embedding table rows."""
    lengths: Tensor
    """(F·B,) int32: how many values each feature has in each example."""
    weights: Tensor | None = None
    """(N,) float32, one per value; None when no feature of the schema is a weighted bag (1 where a feature is not)."""
    sizes: tuple[int, ...] | None = None
    """(F,) how many values each feature has in the batch, where the host knows it, so that nobody has to ask a GPU."""

    def to_kjt(self) -> "KeyedJaggedTensor":
        """The same as TorchRec's class, without a copy."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        return KeyedJaggedTensor(
            keys=list(self.keys),
            values=self.values,
            lengths=self.lengths,
            weights=self.weights,
            stride=self.batch_size,
            length_per_key=None if self.sizes is None else list(self.sizes),
        )

    def feature_sizes(self) -> list[int]:
        """(F,) :attr:`sizes`, or, where the host does not know them, as the lengths' device has them."""
        if self.sizes is not None:
            return list(self.sizes)
        per_feature: list[int] = self.lengths.view(len(self.keys), self.batch_size).sum(dim=1).tolist()
        return per_feature

    def by_feature(self) -> Iterator["FeatureValues"]:
        """The features one by one, in order; no copies."""
        if not self.keys:
            return
        sizes = self.feature_sizes()
        weights = (None,) * len(sizes) if self.weights is None else torch.split(self.weights, sizes)
        lengths_FB = self.lengths.view(len(self.keys), self.batch_size)
        yield from map(FeatureValues, self.keys, torch.split(self.values, sizes), lengths_FB, weights)

    @property
    def batch_size(self) -> int:
        """Examples B (0 when there is no feature)."""
        return self.lengths.numel() // len(self.keys) if self.keys else 0


@dataclass(frozen=True)
class Batch:
    """B examples on one device."""

    size: int
    """B."""
    sparse: SparseBatch
    dense: Tensor
    """(B, N) float32: numbers (standardised value, missing indicator) and vectors (values, missing indicator) in
    schema order; N = ``schema.dense_width``, which may be 0."""
    labels: Mapping[str, Tensor]
    """Task name to (B,) float32: binary 0 or 1, regression in label units, ordinal and multiclass the index of the
    level or class. 0 where not observed; read it through ``observed``."""
    observed: Mapping[str, Tensor]
    """Task name to (B,) bool. For a task with a parent: all labels of its chain are observed."""
    weights: Mapping[str, Tensor]
    """Task name to (B,) float32, for the tasks that have row weights alone."""
    group: Tensor
    """(B,) int64: equal for rows of the same user (for metrics grouped by user); the model never reads it."""
    row: Tensor
    """(B,) int64: the row's number in the prepared dataset's source order; -1 for rows scored outside of one."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the GPU's allocator that this stream reads the batch too, which another one copied."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(record)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        sparse = replace(
            self.sparse,
            values=function(self.sparse.values),
            lengths=function(self.sparse.lengths),
            weights=None if self.sparse.weights is None else function(self.sparse.weights),
        )
        return replace(
            self,
            sparse=sparse,
            dense=function(self.dense),
            labels={name: function(tensor) for name, tensor in self.labels.items()},
            observed={name: function(tensor) for name, tensor in self.observed.items()},
            weights={name: function(tensor) for name, tensor in self.weights.items()},
            group=function(self.group),
            row=function(self.row),
        )
