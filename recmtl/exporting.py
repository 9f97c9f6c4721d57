"""A model for other runtimes: ``torch.export``, AOTInductor and ONNX, over plain tensors of encoded rows.

In: a :class:`recmtl.package.Package`. Out: files that take what :func:`inputs` makes of encoded rows, and give the
package's predictions, for any number of rows. Every file is read back and compared with the package on rows before it
counts as written. Per sparse feature F, of B rows with N values in all::

    F.ids        (B,)  int64     an id's table row; of a managed table its hash
    F.values     (N,)  int64     a bag's, row after row
    F.offsets    (B,)  int64     where each row's values begin
    F.weights    (N,)  float32   of a weighted bag
    dense        (B, D) float32  numbers and vectors, as :attr:`recmtl.batch.Batch.dense`

These are outputs for a serving system of one's own. recmtl never loads them: a ``.pt2`` may hold pickles, which
``torch.export.load`` reads, and a compiled one is machine code.

Dimensions: B rows, N values of one feature, W width of an embedding, D columns of ``dense``.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl import durable
from recmtl.batch import Batch
from recmtl.errors import RunError, UserError
from recmtl.failures import ends_no_reading, writing
from recmtl.features import table_shapes
from recmtl.features.quantised import Precision, QuantisedTables, quantise
from recmtl.model import Model, ModelConfig, build_model
from recmtl.modules import generator
from recmtl.package import Package
from recmtl.schema import Schema
from recmtl.settings import Settings

__all__ = [
    "ABSOLUTE",
    "RELATIVE",
    "Check",
    "EncodedModel",
    "InputTensor",
    "check_compiled",
    "check_onnx",
    "check_torch",
    "compile_torch",
    "described",
    "export_onnx",
    "export_torch",
    "inputs",
    "made_up",
    "quantised",
]

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""What an exported model's predictions may differ by: ABSOLUTE + RELATIVE · |prediction|."""
_EXAMPLE_ROWS = 8
_ONE_FILE = 1 << 30
"""Bytes of weights that still go into the ONNX file itself, which Protocol Buffers limit to 2 GiB."""


class InputTensor(Settings):
    """One input of an exported model."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    """``batch``, or ``F.values`` for the number of values of feature F."""
    what: str


class Check(Settings):
    """What an exported file was compared on."""

    rows: int
    largest_difference: float
    """Of any prediction, absolute."""
    relative: float = RELATIVE
    absolute: float = ABSOLUTE


class EncodedModel(nn.Module):
    """The whole model over plain tensors: tables, features, tower, heads.

    Args:
        model: with plain tables.
        schema: its features.
        columns: the predictions, in order.
    """

    def __init__(self, model: Model, schema: Schema, columns: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._schema = schema
        self._columns = tuple(columns)
        self._names = tuple(each.name for each in described(schema))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of :func:`described` to (B,) float32 per prediction column."""
        given = dict(zip(self._names, tensors, strict=True))
        pooled = [self._pooled(feature.name, given) for feature in self._schema.sparse]
        beside = self.model.features.beside(given["dense"]) if "dense" in given else []
        output = self.model.decide(torch.cat([*pooled, *beside], dim=1))
        found = self.model.predictions(output)
        return tuple(found[column].float() for column in self._columns)

    def _pooled(self, name: str, given: Mapping[str, Tensor]) -> Tensor:
        """(B, W): as :class:`recmtl.features.Features` pools, in operators that every runtime has."""
        feature = self._schema[name]
        assert feature.table is not None
        table_VW = self.model.tables.weights()[feature.table]
        if feature.kind == "id":
            return F.embedding(self._rows(feature.table, given[f"{name}.ids"]), table_VW)
        values_N, offsets_B = self._rows(feature.table, given[f"{name}.values"]), given[f"{name}.offsets"]
        rows_NW = F.embedding(values_N, table_VW)
        if f"{name}.weights" in given:
            rows_NW = rows_NW * given[f"{name}.weights"].unsqueeze(1)
        # A value's row: how many rows begin at or before it, less one; empty rows begin where the next one does.
        begun = torch.zeros(values_N.shape[0] + 1, dtype=torch.int64, device=values_N.device)
        begun = begun.index_add(0, offsets_B, torch.ones_like(offsets_B))
        row_N = begun.cumsum(0)[: values_N.shape[0]] - 1
        pooled_BW = rows_NW.new_zeros(offsets_B.shape[0], table_VW.shape[1]).index_add(0, row_N, rows_NW)
        if feature.kind == "bag" and feature.pooling == "mean":
            counts_B = torch.zeros_like(offsets_B).index_add(0, row_N, torch.ones_like(row_N))
            pooled_BW = pooled_BW / counts_B.clamp(min=1).unsqueeze(1)
        return pooled_BW

    def _rows(self, table: str, values: Tensor) -> Tensor:
        maps: dict[str, nn.Module] = dict(self.model.features.id_maps.maps.items())
        found: Tensor = maps[table](values) if table in maps else values
        return found


def described(schema: Schema) -> tuple[InputTensor, ...]:
    """The inputs of a model's export, in order."""
    found = []
    for feature in schema.sparse:
        name = feature.name
        what = "hashed id" if feature.managed is not None else "row"
        if feature.kind == "id":
            what = f"{what} in table {feature.table}"
            found.append(InputTensor(name=f"{name}.ids", dtype="int64", shape=("batch",), what=what))
            continue
        count = f"{name}.values"
        what = f"{what}s in table {feature.table}, row after row"
        found.append(InputTensor(name=count, dtype="int64", shape=(count,), what=what))
        what = "where each row's values begin"
        found.append(InputTensor(name=f"{name}.offsets", dtype="int64", shape=("batch",), what=what))
        if feature.kind == "weighted_bag":
            what = "a weight for each value"
            found.append(InputTensor(name=f"{name}.weights", dtype="float32", shape=(count,), what=what))
    if schema.dense:
        parts = ", ".join(feature.name for feature in schema.dense)
        what = f"standardised value or values, then the missing indicator, of {parts}"
        found.append(InputTensor(name="dense", dtype="float32", shape=("batch", schema.dense_width), what=what))
    return tuple(found)


def inputs(batch: Batch, schema: Schema) -> dict[str, Tensor]:
    """A batch as an exported model takes it, by the names of :func:`described`."""
    found: dict[str, Tensor] = {}
    features = {one.feature: one for one in batch.sparse.by_feature()}
    for each in described(schema):
        name, _, part = each.name.rpartition(".")
        if part in ("ids", "values"):
            found[each.name] = features[name].values.long().contiguous()
        elif part == "offsets":
            lengths = features[name].lengths.long()
            found[each.name] = lengths.cumsum(0) - lengths
        elif part == "weights":
            weights = features[name].weights
            assert weights is not None, "a schema with a weighted bag gives every batch weights"
            found[each.name] = weights.contiguous()
        else:
            found[each.name] = batch.dense
    return found


def made_up(package: Package, rows: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Encoded rows drawn at random, every table row and bags of 0 to 3 values among them: what exports are tried on."""
    draws = generator(seed, "made up rows")
    shapes = table_shapes(package.schema, package.statistics)
    maps = dict(package.model.features.id_maps.maps.items())
    found: dict[str, Tensor] = {}
    for feature in package.schema.sparse:
        assert feature.table is not None
        lengths = torch.ones(rows, dtype=torch.int64)
        if feature.kind != "id":
            lengths = torch.randint(0, 4, (rows,), generator=draws)
        count = int(lengths.sum())
        if feature.table in maps:
            known = maps[feature.table].ids
            values = known[torch.randint(0, len(known), (count,), generator=draws)].clone()
            values[::7] = torch.randint(2, 1 << 40, values[::7].shape, generator=draws)
        else:
            values = torch.randint(0, shapes[feature.table].rows, (count,), generator=draws)
        found[f"{feature.name}.{'ids' if feature.kind == 'id' else 'values'}"] = values
        found[f"{feature.name}.offsets"] = lengths.cumsum(0) - lengths
        found[f"{feature.name}.weights"] = torch.randn(count, generator=draws)
    found["dense"] = torch.randn(rows, package.schema.dense_width, generator=draws)
    return {each.name: found[each.name] for each in described(package.schema)}


def export_torch(package: Package, path: Path) -> Any:
    """Write ``torch.export``'s ExportedProgram, with a dynamic number of rows; it is returned too.

    Raises:
        RunError: torch cannot export this model.
        OSError: the file cannot be written.
    """
    module, given = _module(package), made_up(package, _EXAMPLE_ROWS)
    try:
        with _quietly(), torch.no_grad():
            program = torch.export.export(
                module, tuple(given.values()), dynamic_shapes=(_dynamic(package.schema),), strict=False
            )
    except Exception as error:  # whatever the tracer raises
        raise RunError(f"torch cannot export this model: {_first_line(error)}") from error
    # Through memory: where its writer meets a full disk, torch ends the whole process.
    whole = io.BytesIO()
    with _quietly():
        torch.export.save(program, whole)
    durable.write_file(path, whole.getbuffer())
    return program


def compile_torch(program: Any, path: Path) -> None:
    """Compile an ExportedProgram to machine code of this machine (AOTInductor); takes a minute or so.

    Raises:
        RunError: there is no C++ compiler, or it fails.
        OSError: the file cannot be written.
    """
    whole = io.BytesIO()  # as in export_torch()
    try:
        with _quietly():
            from torch._inductor import aoti_compile_and_package

            aoti_compile_and_package(program, package_path=whole)
    except Exception as error:  # whatever the compiler and its driver raise
        if ends_no_reading(error):  # the compiler's own folder is full
            raise
        raise RunError(f"AOTInductor cannot compile this model: {_first_line(error)}") from error
    durable.write_file(path, whole.getbuffer())


def export_onnx(package: Package, path: Path) -> None:
    """Write an ONNX file, with a dynamic number of rows; weights of more than 1 GiB go to a second file beside it.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is not installed; a table is managed, whose map of ids has no
            operator there.
        RunError: torch cannot export this model.
        OSError: the file cannot be written.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx: {', '.join(missing)} is not installed; pip install 'recmtl[onnx]'")
    managed = sorted(name for name, table in package.schema.tables.items() if table.managed is not None)
    if managed:
        raise UserError(
            f"--format onnx: table {', '.join(managed)} is managed, and ONNX has no operator that finds an id in its "
            "map; use --format torch"
        )
    module, given = _module(package), made_up(package, _EXAMPLE_ROWS)
    weights = sum(tensor.nbytes for tensor in package.model.tensors().values())
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(given.values()),
                dynamo=True,
                verbose=False,
                input_names=list(given),
                output_names=list(_columns(package)),
                dynamic_shapes=(_dynamic(package.schema),),
            )
            assert program is not None
    except Exception as error:
        raise RunError(f"torch cannot export this model to ONNX: {_first_line(error)}") from error
    with writing(path), _quietly():
        program.save(str(path), external_data=weights > _ONE_FILE)


def check_torch(package: Package, path: Path, rows: Sequence[Mapping[str, Tensor]]) -> Check:
    """Read an ExportedProgram back and compare it with the package.

    Raises:
        RunError: a prediction differs by more than :data:`ABSOLUTE` and :data:`RELATIVE`.
    """
    with _quietly():
        module = torch.export.load(path).module()
    return _compared(package, rows, lambda given: module(*given.values()), path)


def check_compiled(package: Package, path: Path, rows: Sequence[Mapping[str, Tensor]]) -> Check:
    """The same of a compiled one."""
    with _quietly():
        from torch._inductor import aoti_load_package

        compiled = aoti_load_package(str(path))
    return _compared(package, rows, lambda given: compiled(*given.values()), path)


def check_onnx(package: Package, path: Path, rows: Sequence[Mapping[str, Tensor]]) -> Check:
    """The same of an ONNX file, by onnxruntime on a CPU."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(given: Mapping[str, Tensor]) -> list[Tensor]:
        found = session.run(list(_columns(package)), {name: tensor.numpy() for name, tensor in given.items()})
        return [torch.from_numpy(each) for each in found]

    return _compared(package, rows, run, path)


def quantised(package: Package, precision: Precision) -> tuple[Package, dict[str, Tensor]]:
    """The same model with its tables in fewer bits, and its weights as a package stores them.

    Raises:
        UserError: it has no tables, or they are in fewer bits already.
        RunError: an embedding is beyond float16.
    """
    if package.contents.quantised is not None:
        raise UserError(
            f"--model {package.contents.folder}: its tables are {package.contents.quantised.precision} already; "
            "export the package that it was made of"
        )
    if not package.schema.tables:
        raise UserError(f"--model {package.contents.folder}: this model has no embedding tables")
    tensors = {
        name: quantise(tensor, precision) if name.startswith("tables.") else tensor.detach().contiguous()
        for name, tensor in package.model.tensors().items()
    }
    config = ModelConfig.model_validate(dict(package.contents.model))
    model = build_model(
        config,
        package.schema,
        package.tasks,
        package.statistics,
        seed=0,
        tables=partial(QuantisedTables, precision=precision),
    )
    model.load_tensors(tensors)
    return Package(package.contents, package.statistics, model), tensors


def _compared(
    package: Package,
    rows: Sequence[Mapping[str, Tensor]],
    run: Callable[[Mapping[str, Tensor]], Sequence[Tensor]],
    path: Path,
) -> Check:
    module, columns = _module(package), _columns(package)
    largest, count = 0.0, 0
    for given in rows:
        with torch.no_grad():
            wanted = module(*given.values())
            found = run(given)
        for column, ours, theirs in zip(columns, wanted, found, strict=True):
            off = (ours - theirs).abs()
            if not (off <= ABSOLUTE + RELATIVE * ours.abs()).all():
                raise RunError(
                    f"{path.name}: predicts {column} {float(off.max()):.2g} away from the package, more than "
                    f"{ABSOLUTE} + {RELATIVE} of it; nothing was written"
                )
            largest = max(largest, float(off.max()) if off.numel() else 0.0)
        count += wanted[0].shape[0]
    return Check(rows=count, largest_difference=largest)


def _module(package: Package) -> EncodedModel:
    return EncodedModel(package.model, package.schema, _columns(package)).eval()


def _columns(package: Package) -> tuple[str, ...]:
    """What the model itself predicts; calibration and fusion are the package's."""
    return tuple(column for name in package.tasks for column in package.tasks.prediction_columns(name))


def _dynamic(schema: Schema) -> tuple[dict[int, Any], ...]:
    """The numbers of rows and of values, free; one name each, so that those that go together stay together."""
    free: dict[str | int, Any] = {"batch": torch.export.Dim("batch", min=1)}
    found = []
    for each in described(schema):
        count = each.shape[0]
        free.setdefault(count, torch.export.Dim(f"values_{len(free)}", min=0))
        found.append({0: free[count]})
    return tuple(found)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters warn of about themselves."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch._inductor", "torch.export")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
