"""What the machine can do: large matrix products, the step's own shapes, random rows read from a table."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from turns import Stopwatch, Turns, repeat
from work import Work

_TABLE_ROWS = 2_964_334


def main() -> None:
    """Take turns until there are no more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=4096, help="of the large product")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns = Turns()
    cuda = options.device != "cpu"
    if options.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    clock: dict[str, Any] = {"synchronize": torch.cuda.synchronize if cuda else None, "every": 16}

    onednn = None
    if not cuda and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, device=options.device, dtype=dtype)

    def products(seconds: float, size: int | None = None) -> Mapping[str, Any]:
        """Operations per second of one large product: torch's own, and oneDNN's where there is one; the better one."""
        size = size or options.size
        a, b, c = matrix(size, size), matrix(size, size), matrix(size, size)
        kernels = {"torch.mm": lambda: torch.mm(a, b, out=c)}
        if onednn is not None:
            kernels["oneDNN"] = lambda: onednn(a, b, None, "none", [], "")
        by = {}
        for name, kernel in kernels.items():

            def one(_: int, kernel: Callable[[], Tensor] = kernel) -> int:
                kernel()
                return 1

            found = repeat(one, seconds / len(kernels), **clock)
            by[name] = found["rows"] * 2 * size**3 / found["seconds"]
        return {"flops": max(by.values()), "by": by}

    def shapes(seconds: float, batch: int) -> Mapping[str, Any]:
        """Operations per second of each product of the step, alone, and of all of them after each other."""
        every: list[dict[str, Any]] = []
        matrices = Work().matrices(batch)
        for name, m, k, n, times in matrices:
            left, right = matrix(times, m, k), matrix(times, k, n)
            out = matrix(times, m, n)

            def one(_: int, left: Tensor = left, right: Tensor = right, out: Tensor = out) -> int:
                torch.bmm(left, right, out=out) if left.shape[0] > 1 else torch.mm(left[0], right[0], out=out[0])
                return 1

            found = repeat(one, seconds / len(matrices), **clock)
            operations = 2 * m * k * n * times
            each = found["seconds"] / found["rows"]
            every.append({"name": name, "shape": [m, k, n, times], "flops": operations / each, "seconds": each})
        total = sum(2 * m * k * n * times for _, m, k, n, times in matrices)
        return {"products": every, "flops": total / sum(each["seconds"] for each in every)}

    table: list[Tensor] = []

    def reads(seconds: float, batch: int) -> Mapping[str, Any]:
        """Random rows of 16 float32 read per second from a table as long as all of them together."""
        if not table:
            table.append(torch.randn(_TABLE_ROWS, 16, device=options.device))
        count = batch * len(Work().cardinalities)
        taken = [torch.randint(0, _TABLE_ROWS, (count,), device=options.device) for _ in range(4)]
        out = torch.empty(count, 16, device=options.device)

        def one(number: int) -> int:
            torch.index_select(table[0], 0, taken[number % 4], out=out)
            return count

        found = repeat(one, seconds, **clock)
        return {**found, "rows_per_second": found["rows"] / found["seconds"]}

    def stream(seconds: float, size: int = 1 << 26) -> Mapping[str, Any]:
        """Bytes per second of one large copy, read and written."""
        source, target = torch.ones(size, device=options.device), torch.empty(size, device=options.device)

        def one(_: int) -> int:
            target.copy_(source)
            return 1

        found = repeat(one, seconds, **clock)
        return {**found, "bytes_per_second": found["rows"] * 8 * size / found["seconds"]}

    watch = Stopwatch(0.0)
    products(0.0)
    watch.over(1)
    turns.serve(products=products, shapes=shapes, reads=reads, stream=stream)


if __name__ == "__main__":
    main()
