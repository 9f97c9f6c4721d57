"""The agreed work: its shapes, and the operations and bytes that they take. Counted here, stated nowhere else.

No import but the standard library's: the peers' environments read this too.

Counted are matrix products alone, a multiplication and an addition as two operations. Training takes every product
three times: forward, for the gradient of the weights, and for the gradient of what comes in, which the numbers at the
first layer do not need. Activations, losses and the optimiser are not counted: a ceiling made of these figures is one
that no trainer reaches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

CARDINALITIES = (1_000_000,) * 2 + (100_000,) * 9 + (10_000,) * 6 + (1_000,) * 4 + (100,) * 3 + (24, 10)
BINARY = ("click", "purchase")
REGRESSION = "rating"
TASKS = (*BINARY, REGRESSION)
RESERVED = 2
"""Rows of every table that recmtl keeps for missing and unseen ids; every contender's tables have them."""


@dataclass(frozen=True)
class Product:
    """A matrix product of one sample."""

    name: str
    inputs: int
    outputs: int
    times: int
    """How many alike."""
    learned: int
    """Inputs whose gradient is wanted."""

    @property
    def forward(self) -> int:
        """Operations."""
        return 2 * self.inputs * self.outputs * self.times

    @property
    def training(self) -> int:
        """Operations forward and back."""
        return 2 * self.outputs * self.times * (2 * self.inputs + self.learned)


@dataclass(frozen=True)
class Work:
    """An MMoE over id features and numbers."""

    cardinalities: tuple[int, ...] = CARDINALITIES
    dim: int = 16
    numbers: int = 13
    experts: int = 4
    expert_widths: tuple[int, ...] = (256, 128)
    head_widths: tuple[int, ...] = (64, 32)
    tasks: int = len(TASKS)

    @property
    def features(self) -> int:
        return len(self.cardinalities)

    @property
    def rows(self) -> int:
        """Of all tables, without the reserved ones."""
        return sum(self.cardinalities)

    @property
    def embedded(self) -> int:
        """Columns of the input that are learned."""
        return self.features * self.dim

    @property
    def width(self) -> int:
        """Columns of the input."""
        return self.embedded + self.numbers

    def times(self, factor: int) -> "Work":
        """The same with tables so many times as long."""
        return replace(self, cardinalities=tuple(rows * factor for rows in self.cardinalities))

    def products(self) -> list[Product]:
        """Every matrix product of a sample."""
        found = []
        inputs, learned = self.width, self.embedded
        for number, outputs in enumerate(self.expert_widths, 1):
            found.append(Product(f"experts, layer {number}", inputs, outputs, self.experts, learned))
            inputs = learned = outputs
        found.append(Product("gates", self.width, self.experts, self.tasks, self.embedded))
        found.append(Product("mixing", self.experts, inputs, self.tasks, self.experts))
        for number, outputs in enumerate((*self.head_widths, 1), 1):
            found.append(Product(f"towers, layer {number}", inputs, outputs, self.tasks, inputs))
            inputs = outputs
        return found

    def forward_flop(self) -> int:
        """Operations of a sample scored."""
        return sum(product.forward for product in self.products())

    def training_flop(self) -> int:
        """Operations of a sample trained."""
        return sum(product.training for product in self.products())

    def matrices(self, batch: int) -> list[tuple[str, int, int, int, int]]:
        """Name, M, K, N of one (M, K) by (K, N) product, and how many alike, of a whole training step.

        The experts' first layer and the gates are taken as one wide product, as whoever wants speed would: they read
        the same input.
        """
        first = self.experts * self.expert_widths[0] + self.tasks * self.experts
        found = [("first layer and gates, forward", batch, self.width, first, 1)]
        found += [("first layer and gates, weights", self.width, batch, first, 1)]
        found += [("first layer and gates, inputs", batch, first, self.embedded, 1)]
        for product in self.products():
            if product.name in ("experts, layer 1", "gates", "mixing"):
                continue
            i, o, times = product.inputs, product.outputs, product.times
            found += [
                (f"{product.name}, forward", batch, i, o, times),
                (f"{product.name}, weights", i, batch, o, times),
                (f"{product.name}, inputs", batch, o, i, times),
            ]
        return found

    def dense_parameters(self) -> int:
        """Weights and biases of everything but the tables (the gates have no bias)."""
        count = self.tasks * self.experts * self.width
        for product in self.products():
            if product.name not in ("gates", "mixing"):
                count += product.times * (product.inputs + 1) * product.outputs
        return count

    def bytes_per_sample(self, *, batch: int, element: int = 4, distinct: float = 1.0) -> Mapping[str, float]:
        """Bytes that a sample trained moves to and from memory at the very least, by what moves them.

        Args:
            batch: what is read or written once a step is divided by this.
            element: bytes of an activation (2 under bf16; tables, their state and the dense parameters stay float32).
            distinct: share of a batch's rows that are distinct: the others are in a cache by then.

        Row-wise Adagrad: a row is read forward, read and written back, with one float32 of state read and written.
        Activations are written once and read twice (forward, back), their gradients written and read once. The dense
        parameters, their gradients and Adam's two moments: read and written once a step, the gradient twice.
        """
        row = 4 * self.dim
        tables = self.features * (row + distinct * (2 * row + 8))
        gradients = 2 * self.embedded * element
        outputs = sum(product.outputs * product.times for product in self.products())
        activations = 5 * element * (self.width + outputs)
        dense = 4 * self.dense_parameters() * (2 * 3 + 2) / batch
        inputs = 8 * self.features + 4 * self.numbers + 4 * self.tasks
        return {
            "tables": tables,
            "gradients of embeddings": gradients,
            "activations": activations,
            "dense parameters": dense,
            "inputs": inputs,
        }
