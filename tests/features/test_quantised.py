"""Tables in 8 and 16 bits: worked by hand, FBGEMM's bytes, TorchRec's quantised collection, and as a package."""

from typing import Any

import numpy as np
import pytest
import torch

from recmtl.batch import SparseBatch
from recmtl.errors import RunError
from recmtl.features import PlainTables, TableShape
from recmtl.features.quantised import QuantisedTables, dequantise, quantise

SHAPES = {"item": TableShape(40, 8, ("item", "seen")), "tag": TableShape(7, 4, ("tag",), weighted=True)}


def weights() -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(3)
    made = {name: torch.randn(shape.rows, shape.dim, generator=draws) * 0.3 for name, shape in SHAPES.items()}
    made["item"][1] = 0.0
    return made


def batch(*, weighted: bool) -> SparseBatch:
    """item: one each; seen: bags with an empty one; tag: bags."""
    lengths = torch.tensor([1, 1, 1, 2, 0, 3, 1, 2, 0], dtype=torch.int32)
    values = torch.tensor([5, 0, 39, 1, 2, 7, 7, 8, 6, 3, 4])
    given = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 0.5, 2.0, -1.0]) if weighted else None
    return SparseBatch(("item", "seen", "tag"), values, lengths, given)


def test_a_row_by_hand() -> None:
    row = torch.tensor([[-1.0, 0.0, 1.55, 0.2]])
    stored = quantise(row, "int8")
    head = stored[:, :4].contiguous().view(torch.float16)[0]
    assert head.tolist() == [float(np.float16(2.55 / 255)), -1.0]
    assert stored[0, 4:].tolist() == [0, 100, 255, 120]
    assert dequantise(stored)[0].tolist() == pytest.approx([-1, 0, 1.55, 0.2], abs=1e-3)  # scale in float16, 255 times
    assert quantise(row, "float16").tolist() == row.half().tolist()


def test_what_is_lost_is_half_a_step_and_a_row_of_zeros_nothing() -> None:
    weight = weights()["item"]
    back = dequantise(quantise(weight, "int8"))
    span = weight.amax(1) - weight.amin(1)
    rounding = weight.abs().amax(1) * 2**-9  # of bias, and of scale 255 times
    assert ((weight - back).abs().amax(1) <= span / 510 + rounding).all()
    assert (back[1] == 0).all()
    same = torch.full((2, 3), 0.7)
    assert dequantise(quantise(same, "int8")) == pytest.approx(same, abs=4e-4)


def test_a_value_beyond_float16_is_refused() -> None:
    for precision in ("int8", "float16"):
        with pytest.raises(RunError, match="beyond what float16 holds"):
            quantise(torch.tensor([[1e9, 0.0]]), precision)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_they_pool_as_plain_tables_of_the_same_values_do(precision: Any, weighted: bool) -> None:
    stored = {name: quantise(weight, precision) for name, weight in weights().items()}
    ours, plain = QuantisedTables(SHAPES, precision), PlainTables(SHAPES)
    ours.load_weights(stored)
    plain.load_weights({name: dequantise(each) for name, each in stored.items()})
    given = batch(weighted=weighted)
    for feature, pooled in plain(given).items():
        torch.testing.assert_close(ours(given)[feature], pooled.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.joined(given, ["tag", "item"]), plain.joined(given, ["tag", "item"]).detach())
    assert {name: weight.shape for name, weight in ours.weights().items()} == {"item": (40, 8), "tag": (7, 4)}
    one = SparseBatch(("item",), torch.tensor([5, 1]), torch.tensor([1, 1], dtype=torch.int32))
    torch.testing.assert_close(ours(one)["item"], plain(one)["item"].detach())
    assert ours(SparseBatch((), torch.tensor([]), torch.tensor([]))) == {}


def test_tables_stored_otherwise_are_refused() -> None:
    ours = QuantisedTables(SHAPES, "int8")
    with pytest.raises(RunError, match="shape"):
        ours.load_weights({"item": torch.zeros(40, 8)})
    with pytest.raises(RunError, match=r"uint8 in this model but torch\.float32"):
        ours.load_weights({"item": torch.zeros(40, 12)})


def test_the_bytes_are_fbgemms_and_the_sums_torchrecs() -> None:
    pytest.importorskip("recmtl.features.fused", reason="FBGEMM is not installed")
    from torch.ao.quantization import PlaceholderObserver, QConfig
    from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
    from torchrec.modules.embedding_modules import EmbeddingBagCollection
    from torchrec.quant.embedding_modules import EmbeddingBagCollection as Quantised

    stored = {name: quantise(weight, "int8") for name, weight in weights().items()}
    for name, weight in weights().items():
        fused = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(weight, 8)
        assert torch.equal(stored[name], torch.cat([fused[:, -4:], fused[:, :-4]], dim=1))

    shapes = {name: shape for name, shape in SHAPES.items() if not shape.weighted}
    theirs = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                num_embeddings=shape.rows,
                embedding_dim=shape.dim,
                feature_names=list(shape.features),
                pooling=PoolingType.SUM,
                data_type=DataType.FP32,
            )
            for name, shape in shapes.items()
        ]
    )
    theirs.load_state_dict({f"embedding_bags.{name}.weight": weights()[name] for name in shapes})
    theirs.qconfig = QConfig(
        activation=PlaceholderObserver.with_args(dtype=torch.float32),
        weight=PlaceholderObserver.with_args(dtype=torch.qint8),
    )
    quantised = Quantised.from_float(theirs)
    given = batch(weighted=False)
    there = SparseBatch(given.keys[:2], given.values[:8], given.lengths[:6])
    ours = QuantisedTables(SHAPES, "int8")
    ours.load_weights(stored)
    pooled = quantised(there.to_kjt()).to_dict()
    for feature in ("item", "seen"):
        torch.testing.assert_close(ours(there)[feature], pooled[feature].float(), rtol=1e-5, atol=1e-6)
