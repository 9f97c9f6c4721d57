"""torch-rechub's MMOE, driven by its own ``MTLTrainer``.

``train_one_epoch`` takes any iterable of batches: for steps one from memory, for the epoch the ``DataLoader`` that its
``DataGenerator`` makes, from pandas by a dict of arrays. Same widths, Adam at 0.001 without weight decay; its
perceptrons have batch normalisation and cannot be had without, its gates too. Its own environment has no recmtl.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
import torch_rechub
from flat import IDS, NUMBERS, Flat
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator
from turns import Stopwatch, Timed, Turns, arguments, repeat
from work import BINARY, RESERVED, TASKS, Work


def main() -> None:
    """Take turns until there are no more."""
    parser = arguments(__doc__, "fp32", "tf32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns = Turns()
    assert torch_rechub
    cuda = options.device != "cpu"
    if options.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    clock: dict[str, Any] = {"synchronize": torch.cuda.synchronize if cuda else None, "every": 16}
    work = replace(Work(), dim=options.dim).times(options.times)
    features = [
        *(SparseFeature(name, rows + RESERVED, work.dim) for name, rows in zip(IDS, work.cardinalities, strict=True)),
        *(DenseFeature(name) for name in NUMBERS),
    ]
    kinds = ["classification" if task in BINARY else "regression" for task in TASKS]
    model = MMOE(
        features,
        kinds,
        work.experts,
        expert_params={"dims": list(work.expert_widths)},
        tower_params_list=[{"dims": list(work.head_widths)} for _ in TASKS],
    )
    trainer = MTLTrainer(model, kinds, optimizer_params={"lr": 0.001}, n_epoch=1, device=options.device)
    pool: list[tuple[dict[str, torch.Tensor], torch.Tensor]] = []
    sizes = [0]

    def batches(size: int) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        if sizes[0] != size:
            every = Flat.read(options.data, max(options.pool, 2 * size)).longer(options.times)
            pool[:] = []
            for each in every.batches(size):
                ids, numbers, labels = each.tensors()
                inputs = dict(zip((*IDS, *NUMBERS), (*ids, *numbers.T.contiguous()), strict=True))
                pool.append((inputs, labels))
            sizes[0] = size
        return pool

    def step(batch: int, seconds: float) -> Mapping[str, Any]:
        timed = Timed(batches(batch), seconds, clock)
        trainer.train_one_epoch(timed)
        return timed.result

    def infer(batch: int, seconds: float) -> Mapping[str, Any]:
        model.eval()
        ready = [{key: value.to(options.device) for key, value in inputs.items()} for inputs, _ in batches(batch)]

        def one(number: int) -> int:
            model(ready[number % len(ready)])
            return batch

        with torch.inference_mode():
            return repeat(one, seconds, **clock)

    def epoch() -> Mapping[str, Any]:
        watch = Stopwatch(0.0, clock["synchronize"])
        frame = pd.read_parquet(options.data / "epoch.parquet")
        inputs = {name: frame[name].to_numpy() for name in (*IDS, *NUMBERS)}
        labels = frame[list(TASKS)].to_numpy()
        few = {name: values[:2] for name, values in inputs.items()}
        loader, _, _ = DataGenerator(inputs, labels).generate_dataloader(
            x_val=few, y_val=labels[:2], x_test=few, y_test=labels[:2], batch_size=options.batch
        )
        trainer.train_one_epoch(loader)
        watch.over(len(frame))
        return watch.result

    step(options.batch, 0.0)
    turns.serve(step=step, infer=infer, epoch=epoch)


if __name__ == "__main__":
    main()
