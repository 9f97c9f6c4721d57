"""DeepCTR-Torch's MMoE, driven by its own ``fit``.

Its training loop stands inside ``fit``, which makes a ``DataLoader`` for itself. For steps from memory that class is
replaced by one that hands out whole batches, so the loop is theirs to the letter; the epoch is ``fit`` as it is, from
pandas by a dict of arrays. Same widths, gates without hidden layers, Adam at 0.001, and no L2 penalty (by default it
has one on every embedding, a pass over all tables more). Its own environment has no recmtl.
"""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import basemodel
from deepctr_torch.models.multitask.mmoe import MMOE
from flat import IDS, NUMBERS, Flat
from turns import Stopwatch, Timed, Turns, arguments, repeat
from work import BINARY, RESERVED, TASKS, Work


def main() -> None:
    """Take turns until there are no more."""
    parser = arguments(__doc__, "fp32", "tf32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns = Turns()
    cuda = options.device != "cpu"
    if options.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    clock: dict[str, Any] = {"synchronize": torch.cuda.synchronize if cuda else None, "every": 16}
    work = replace(Work(), dim=options.dim).times(options.times)
    columns = [
        *(SparseFeat(name, rows + RESERVED, work.dim) for name, rows in zip(IDS, work.cardinalities, strict=True)),
        *(DenseFeat(name) for name in NUMBERS),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        model = MMOE(
            columns,
            num_experts=work.experts,
            expert_dnn_hidden_units=work.expert_widths,
            gate_dnn_hidden_units=(),
            tower_dnn_hidden_units=work.head_widths,
            l2_reg_linear=0,
            l2_reg_embedding=0,
            task_types=["binary" if task in BINARY else "regression" for task in TASKS],
            task_names=list(TASKS),
            device=options.device,
        )
    losses = ["binary_crossentropy" if task in BINARY else "mse" for task in TASKS]
    model.compile("adam", loss=losses, metrics=[])
    # The last row of each table that float32 has: rounded up, an id would be one beyond its table.
    ends = np.array([rows + RESERVED - 1 for rows in work.cardinalities])
    last = ends.astype(np.float32)
    last = np.where(last > ends, np.nextafter(last, np.float32(0)), last)
    pool: list[tuple[torch.Tensor, torch.Tensor]] = []
    sizes = [0]

    def batches(size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Ids and numbers in one float32 matrix, as it wants them: exact up to 2**24, above rounded to a neighbour."""
        if sizes[0] != size:
            every = Flat.read(options.data, max(options.pool, 2 * size)).longer(options.times)
            pool[:] = [
                (
                    torch.from_numpy(
                        np.concatenate([each.ids.T.astype(np.float32).clip(None, last), each.numbers], axis=1)
                    ),
                    torch.from_numpy(each.labels),
                )
                for each in every.batches(size)
            ]
            sizes[0] = size
        return pool

    def fit(frame: pd.DataFrame, **arguments: Any) -> None:
        inputs = {name: frame[name].to_numpy() for name in (*IDS, *NUMBERS)}
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(inputs, frame[list(TASKS)].to_numpy(), epochs=1, verbose=0, **arguments)

    def step(batch: int, seconds: float) -> Mapping[str, Any]:
        ready = batches(batch)
        timed = Timed(ready, seconds, clock)
        theirs, basemodel.DataLoader = basemodel.DataLoader, lambda **_: timed
        try:
            fit(_few())
        finally:
            basemodel.DataLoader = theirs
        return timed.result

    def infer(batch: int, seconds: float) -> Mapping[str, Any]:
        model.eval()
        ready = [inputs.to(options.device) for inputs, _ in batches(batch)]

        def one(number: int) -> int:
            model(ready[number % len(ready)])
            return batch

        with torch.inference_mode():
            return repeat(one, seconds, **clock)

    def epoch() -> Mapping[str, Any]:
        watch = Stopwatch(0.0, clock["synchronize"])
        frame = pd.read_parquet(options.data / "epoch.parquet")
        fit(frame, batch_size=options.batch)
        watch.over(len(frame))
        return watch.result

    step(options.batch, 0.0)
    turns.serve(step=step, infer=infer, epoch=epoch)


def _few() -> pd.DataFrame:
    """Rows for ``fit`` to take hold of, which it will not train on."""
    return pd.DataFrame({name: np.zeros(2, np.float32) for name in (*IDS, *NUMBERS, *TASKS)})


if __name__ == "__main__":
    main()
