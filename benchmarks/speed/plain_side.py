"""The plain reference: what one writes with torch alone, module by module, in its own words.

An ``nn.EmbeddingBag`` per table, an ``nn.Sequential`` per expert, Adam. ``--fused`` is the one flag that a reader of
torch's documentation adds. Under ``--precision bf16`` the forward pass is autocast. The epoch is a careful reader's:
Parquet to tensors in one go with pyarrow, shuffled by index (a ``DataLoader`` would be slower).
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from flat import Flat
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Stopwatch, Turns, arguments, repeat
from work import BINARY, RESERVED, Work


class PlainMMoE(nn.Module):
    """MMoE over embedding bags."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(rows + RESERVED, work.dim, mode="sum") for rows in work.cardinalities
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.01)
        self.experts = nn.ModuleList(_mlp((work.width, *work.expert_widths)) for _ in range(work.experts))
        self.gates = nn.ModuleList(nn.Linear(work.width, work.experts, bias=False) for _ in range(work.tasks))
        self.towers = nn.ModuleList(
            nn.Sequential(*_mlp((work.expert_widths[-1], *work.head_widths)), nn.Linear(work.head_widths[-1], 1))
            for _ in range(work.tasks)
        )

    def forward(self, ids_FB: Tensor, numbers_BN: Tensor) -> list[Tensor]:
        """(B,) logit or value per task."""
        offsets_B = torch.arange(ids_FB.shape[1], device=ids_FB.device)
        pooled = [table(ids_B, offsets_B) for table, ids_B in zip(self.tables, ids_FB, strict=True)]
        x_BD = torch.cat([*pooled, numbers_BN], dim=1)
        experts_BES = torch.stack([expert(x_BD) for expert in self.experts], dim=1)
        shares_BE = [torch.softmax(gate(x_BD), dim=1) for gate in self.gates]
        mixed_BS = [(share.unsqueeze(2) * experts_BES).sum(1) for share in shares_BE]
        return [tower(mixed).squeeze(1) for tower, mixed in zip(self.towers, mixed_BS, strict=True)]


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def main() -> None:
    """Take turns until there are no more."""
    parser = arguments(__doc__, "fp32", "tf32", "bf16")
    parser.add_argument("--fused", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns = Turns()
    cuda = options.device != "cpu"
    if cuda and options.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    clock: dict[str, Any] = {"synchronize": torch.cuda.synchronize if cuda else None, "every": 16}
    precise = nullcontext() if options.precision != "bf16" else torch.autocast(options.device, torch.bfloat16)

    torch.manual_seed(1)
    model = PlainMMoE(replace(Work(), dim=options.dim).times(options.times)).to(options.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, **({"fused": True} if options.fused else {}))
    pool: list[tuple[Tensor, ...]] = []
    sizes = [0]

    def train(ids_FB: Tensor, numbers_BN: Tensor, labels_BT: Tensor) -> None:
        with precise:
            outputs = model(ids_FB, numbers_BN)
        losses = [
            F.binary_cross_entropy_with_logits(output.float(), label)
            if number < len(BINARY)
            else F.mse_loss(output.float(), label)
            for number, (output, label) in enumerate(zip(outputs, labels_BT.unbind(1), strict=True))
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()

    def batches(size: int) -> list[tuple[Tensor, ...]]:
        """In memory, in the layout that the model reads; from there a GPU's user copies them."""
        if sizes[0] != size:
            rows = max(options.pool, 2 * size)
            every = Flat.read(options.data, rows).longer(options.times)
            pool[:] = [each.tensors() for each in every.batches(size)]
            if cuda:
                pool[:] = [tuple(tensor.pin_memory() for tensor in each) for each in pool]
            sizes[0] = size
        return pool

    def on_device(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(options.device, non_blocking=True) for tensor in batch)

    def step(batch: int, seconds: float) -> Mapping[str, Any]:
        model.train()
        ready = batches(batch)

        def one(number: int) -> int:
            train(*on_device(ready[number % len(ready)]))
            return batch

        return repeat(one, seconds, **clock)

    def infer(batch: int, seconds: float) -> Mapping[str, Any]:
        model.eval()
        ready = [on_device(each) for each in batches(batch)]

        def one(number: int) -> int:
            ids_FB, numbers_BN, _ = ready[number % len(ready)]
            outputs = model(ids_FB, numbers_BN)
            for output in outputs[: len(BINARY)]:
                torch.sigmoid(output)
            return batch

        with torch.inference_mode(), precise:
            return repeat(one, seconds, **clock)

    def epoch() -> Mapping[str, Any]:
        model.train()
        watch = Stopwatch(0.0, clock["synchronize"], every=64)
        every = Flat.read(options.data, name="epoch.parquet")
        ids, numbers, labels = every.tensors()
        for taken in torch.randperm(every.rows).split(options.batch):
            batch = ids[:, taken], numbers[taken], labels[taken]
            train(*on_device(batch))
            watch.over(len(taken))
        watch.look()
        return watch.result

    step(options.batch, 0.0)
    turns.serve(step=step, infer=infer, epoch=epoch)


if __name__ == "__main__":
    main()
