"""Features: what the schema says of a row, made into the model's input x_BD. The model's TorchRec seam.

In: a :class:`recmtl.batch.Batch`. Out: (B, D). :mod:`~recmtl.features.tables` looks embeddings up,
:mod:`~recmtl.features.fused` does so with TorchRec's fused optimisers, :mod:`~recmtl.features.inputs` pools them and
puts them beside numbers and vectors, :mod:`~recmtl.features.interactions` multiplies them in pairs. Importing this
package imports neither TorchRec nor FBGEMM.
"""

from recmtl.features.inputs import Features, InputsConfig, initial_blocks, initial_table, table_shapes
from recmtl.features.interactions import Interactions
from recmtl.features.tables import InMemory, MakeTables, Piece, Pieces, PlainTables, Stored, Tables, TableShape

__all__ = [
    "Features",
    "InMemory",
    "InputsConfig",
    "Interactions",
    "MakeTables",
    "Piece",
    "Pieces",
    "PlainTables",
    "Stored",
    "TableShape",
    "Tables",
    "initial_blocks",
    "initial_table",
    "table_shapes",
]
