"""recmtl's speed beside plain PyTorch, its peers and what the machine can do: one command.

    python benchmarks/speed/run.py              everything (make bench)
    python benchmarks/speed/run.py --quick      step and epoch, under two minutes once the peers are there
    python benchmarks/speed/run.py --parts step,rows

Every contender is a process of its own that waits for turns on its standard input; one works at a time, in another
order every round. A ratio is taken within a round, so that what else the machine does falls on both sides of it; told
are medians and quartiles over the rounds. What else it did stands beside every round.

Out, in ``--output``: ``speed.json`` (parts are replaced one by one, so a run may be continued), ``speed.md``,
``speed.svg``, ``profile.txt``, ``logs/``. The last line printed is one JSON object.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import installed
import measure
import report
from contenders import Spec, field_of, race
from work import Work

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HOME = ROOT / "runs" / "benchmarks" / "speed"

RECMTL, EXACT = "recmtl", "recmtl, exact Adam"
FUSED, PLAIN = "plain, fused Adam", "plain, Adam"
CEILING = "machine"


def main() -> None:
    """Measure the parts that were asked for, add them to what is there, and report."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "speed.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    bench = Bench(options)
    for name in options.parts:
        began = time.time()
        _say(f"part {name}")
        try:
            found = (GPU_PARTS if options.device == "cuda" else CPU_PARTS)[name](bench)
        except Exception as error:  # the others go on, and what was measured before stays
            traceback.print_exc()
            result.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"
            continue
        finally:
            shutil.rmtree(options.output / "scratch", ignore_errors=True)  # checkpoints, of all tables
        found |= {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            "wall_seconds": time.time() - began,
            "commit": measure.commit(ROOT),
            "machine": measure.machine(),
            "threads": options.threads,
            "device": options.device,
            "quick": options.quick,
            "peers_missing": bench.missing,
        }
        result["parts"][name] = found
        result.get("failed", {}).pop(name, None)
        _write(file, json.dumps(result, indent=1) + "\n")
    result["threads"] = options.threads
    result["headline"] = report.headline(result["parts"])
    _write(file, json.dumps(result, indent=1) + "\n")
    text = report.markdown(result)
    _write(options.output / "speed.md", text)
    _write(options.output / "speed.svg", report.plot(result))
    print(text)
    print(json.dumps(result["headline"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="step and epoch alone, few rounds")
    parser.add_argument(
        "--parts",
        help=f"of {', '.join(CPU_PARTS)}; with --device cuda of {', '.join(GPU_PARTS)}; by default all",
    )
    parser.add_argument("--output", type=Path, help="by default runs/benchmarks/speed/results, or quick")
    parser.add_argument("--home", type=Path, default=HOME, help="keeps the data and the peers' environments")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--seconds", type=float, help="of a turn")
    parser.add_argument("--log-rows", type=int, help="rows of the log")
    parser.add_argument("--memory", type=float, default=12.0, help="GB that a part may take")
    parser.add_argument("--peers", default=",".join(installed.PEERS), help="which; empty: none")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    known = GPU_PARTS if options.device == "cuda" else CPU_PARTS
    usual = ["step", "end_to_end"] if options.quick else list(known)
    options.parts = options.parts.split(",") if options.parts else usual
    unknown = [part for part in options.parts if part not in known]
    if unknown:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(known)}")
    if options.device == "cuda" and not _gpu():
        parser.error("--device cuda: torch sees no GPU here, so nothing was measured; run it where there is one")
    name = ("quick" if options.quick else "results") + ("-cuda" if options.device == "cuda" else "")
    options.output = (options.output or HOME / name).absolute()
    options.home = options.home.absolute()
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    full = 1_000_000 if options.device == "cpu" else 4_000_000
    options.log_rows = options.log_rows or (400_000 if options.quick else full)
    options.peers = [peer for peer in options.peers.split(",") if peer]
    return options


def _gpu() -> bool:
    """Asked in a process of its own: this one needs no torch."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Bench:
    """What the parts share: the data, the peers' environments, how contenders are started."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.missing: dict[str, str] = {}
        self._pythons: dict[str, Path] | None = None
        self._data: dict[int, Path] = {}

    @property
    def data(self) -> Path:
        """The data's folder."""
        return self.data_of(self.options.log_rows)

    def data_of(self, rows: int) -> Path:
        """The folder of a log of so many rows, made by recmtl in a process of its own when it is not there."""
        if rows not in self._data:
            folder = self.options.home / f"data-{rows}"
            command = [sys.executable, "data.py", str(folder), "--rows", str(rows), "--seed", str(self.options.seed)]
            subprocess.run(command, cwd=HERE, check=True)
            self._data[rows] = folder
        return self._data[rows]

    def peers(self, *arguments: object) -> list[Spec]:
        """The peers that can be had here; the others are in :attr:`missing`."""
        if self._pythons is None:
            self._pythons = {}
            for name in self.options.peers:
                try:
                    self._pythons[name] = installed.install(name, self.options.home / "peers", self.options.device)
                except installed.InstallError as error:
                    _say(f"left out: {error}")
                    self.missing[name] = str(error)
        return [
            Spec(name, (str(python), installed.PEERS[name][1], *self._usual(), *map(str, arguments)), "peer")
            for name, python in self._pythons.items()
        ]

    def recmtl(self, name: str, mode: str, *arguments: object) -> Spec:
        scratch = self.options.output / "scratch" / f"{mode}-{name.replace(' ', '-')}-{os.getpid()}"
        command = (sys.executable, "recmtl_side.py", mode, *self._usual(), "--scratch", str(scratch))
        return Spec(name, (*command, *map(str, arguments)))

    def plain(self, name: str, *arguments: object) -> Spec:
        flags = ("--fused",) if name.startswith(FUSED) else ()
        return Spec(name, (sys.executable, "plain_side.py", *self._usual(), *flags, *map(str, arguments)), "plain")

    def ceiling(self, *arguments: object) -> Spec:
        usual = ("--threads", str(self.options.threads), "--device", self.options.device)
        return Spec(CEILING, (sys.executable, "ceiling_side.py", *usual, *map(str, arguments)), "ceiling")

    def gpu_memory(self) -> float:
        """Gigabytes that are free on the GPU."""
        code = "import torch; print(torch.cuda.mem_get_info()[0] / 1e9)"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(found.stdout)

    def _usual(self) -> tuple[str, ...]:
        options = self.options
        return ("--data", str(self.data), "--threads", str(options.threads), "--device", options.device)

    def race(
        self,
        specs: Sequence[Spec],
        heats: Mapping[str, Mapping[str, Mapping[str, Any]]],
        rounds: int | None = None,
        *,
        one_by_one: bool = False,
        timeout: float = 600,
    ) -> dict[str, Any]:
        """Races of the same contenders, one after another.

        Args:
            specs: the contenders; they are all there at once.
            heats: name of a race to contender to its command.
            rounds: of each; by default as asked.
            one_by_one: start each when the one before is ready: what it needs for that alone is free again by then.
            timeout: seconds that an answer may take.

        Returns:
            A record per race, under ``heats``, and the contenders' ``kinds``.
        """
        errors: dict[str, str] = {}
        records = {}
        logs = self.options.output / "logs"
        with field_of(specs, self.options.threads, logs, errors, one_by_one=one_by_one) as there:
            for name, error in errors.items():
                _say(f"left out: {name}: {error}")
            for title, commands in heats.items():
                _say(f"  {title}: {', '.join(name for name in there if name in commands)}")
                found = race(
                    there, commands, rounds=rounds or self.options.rounds, seed=self.options.seed, timeout=timeout
                )
                found.errors |= errors
                records[title] = found.record()
                for name, error in found.errors.items():
                    if name not in errors:
                        _say(f"  failed: {name}: {error}")
        return {"heats": records, "kinds": {spec.name: spec.kind for spec in specs}}


def step(bench: Bench) -> dict[str, Any]:
    """The training step from memory, at two sizes of the batch; memory."""
    options = bench.options
    sizes = (4096,) if options.quick else (4096, 1024)
    extra = [] if options.quick else [bench.recmtl(EXACT, "steps", "--exact"), bench.plain(PLAIN)]
    extra += [] if options.quick else [bench.recmtl(name, "steps", "--compile", how) for name, how in compilations()]
    specs = [bench.recmtl(RECMTL, "steps"), bench.plain(FUSED), *extra, *bench.peers(), bench.ceiling()]
    heats = {}
    for size in sizes:
        commands: dict[str, Any] = {
            spec.name: {"do": "step", "batch": size, "seconds": options.seconds} for spec in specs
        }
        commands[CEILING] = {"do": "products", "seconds": options.seconds}
        if size != 4096:  # compiling anew for a batch four times smaller says nothing of the step
            commands = {name: command for name, command in commands.items() if ", compile" not in name}
        heats[f"step at {size}"] = commands
    if not options.quick:
        heats["shapes at 4096"] = {CEILING: {"do": "shapes", "batch": 4096, "seconds": 3 * options.seconds}}
        heats["random rows"] = {CEILING: {"do": "reads", "batch": 4096, "seconds": options.seconds}}
    return bench.race(specs, heats)


def compilations() -> list[tuple[str, str]]:
    """recmtl under each setting of ``training.compile`` but its default, as far as this recmtl has it."""
    code = (
        "import json, typing; from recmtl.training import TrainingConfig as T; f = T.model_fields.get('compile');"
        "print(json.dumps([] if f is None else"
        " [v for v in typing.get_args(f.annotation) or (True, False) if v is not None and v != f.default]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE)
    return [(f"recmtl, compile {value}", json.dumps(value)) for value in json.loads(found.stdout)]


def end_to_end(bench: Bench) -> dict[str, Any]:
    """An epoch from Parquet, beside recmtl's step in the same rounds."""
    options = bench.options
    epochs, steps = f"{RECMTL}, epoch", f"{RECMTL}, step"
    specs = [bench.recmtl(epochs, "epochs"), bench.recmtl(steps, "steps")]
    if not options.quick:
        specs += [bench.plain(f"{FUSED}, epoch"), *bench.peers()]
    commands: dict[str, Any] = {spec.name: {"do": "epoch"} for spec in specs}
    commands[steps] = {"do": "step", "batch": 4096, "seconds": (5 if options.quick else 10) * options.seconds}
    rounds = 2 if options.quick else max(options.rounds // 3, 3)
    return bench.race(specs, {"epoch": commands}, rounds, timeout=3600)


def inference(bench: Bench) -> dict[str, Any]:
    """The forward pass to predictions."""
    options = bench.options
    specs = [bench.recmtl(RECMTL, "infer"), bench.plain(FUSED), *bench.peers(), bench.ceiling()]
    commands: dict[str, Any] = {spec.name: {"do": "infer", "batch": 4096, "seconds": options.seconds} for spec in specs}
    commands[CEILING] = {"do": "products", "seconds": options.seconds}
    return bench.race(specs, {"infer at 4096": commands})


def rows(bench: Bench) -> dict[str, Any]:
    """The step with tables 1, 10 and 34 times as long (3M, 30M, 101M rows), as far as the memory allows."""
    options = bench.options
    found: dict[str, Any] = {"heats": {}, "kinds": {}, "left_out": {}}
    for times in (1, 10, 34):
        work = Work().times(times)
        some = ("--times", times, "--pool", 1 << 15)
        mine = bench.recmtl(RECMTL, "steps", *some)
        others = [bench.plain(FUSED, *some), *bench.peers(*some)]
        free = options.memory - _CEILING_GB - _needed(work, mine)
        pairs = [[mine, other] for other in others if _needed(work, other) <= free]
        for other in others:
            if _needed(work, other) > free:
                found["left_out"][f"{other.name} at {work.rows:,} rows"] = (
                    f"would take recmtl and it over {options.memory:g} GB"
                )
        if free < 0:
            found["left_out"][f"{RECMTL} at {work.rows:,} rows"] = f"would take over {options.memory:g} GB"
        elif not pairs:
            pairs = [[mine]]
        for pair in pairs:
            # Two at a time: more would not fit. The machine's own speed stands beside each.
            title = f"{work.rows} rows, {pair[-1].name}"
            heat: dict[str, Any] = {
                spec.name: {"do": "step", "batch": 4096, "seconds": options.seconds} for spec in pair
            }
            heat[CEILING] = {"do": "products", "seconds": options.seconds}
            part = bench.race([*pair, bench.ceiling()], {title: heat}, max(options.rounds // 2, 3), one_by_one=True)
            found["heats"] |= part["heats"]
            found["kinds"] |= part["kinds"]
    return found


_CEILING_GB = 0.45


def _needed(work: Work, spec: Spec) -> float:
    """Gigabytes that a contender takes: as seen at 3M rows, the tables counted.

    recmtl holds the tables, a sixteenth for Adagrad's state, and once a copy of the longest (a third) while it makes
    them; Adam over dense gradients holds four times the tables.
    """
    tables = 4 * work.rows * work.dim / 1e9
    return 0.75 + 1.4 * tables if spec.kind == "recmtl" else 0.75 + 4 * tables


def batch(bench: Bench) -> dict[str, Any]:
    """The step at batches from 256 to 65,536."""
    options = bench.options
    specs = [bench.recmtl(RECMTL, "steps", "--pool", 1 << 18), bench.plain(FUSED, "--pool", 1 << 18), bench.ceiling()]
    specs[2:2] = bench.peers("--pool", 1 << 18)
    heats = {}
    for size in (256, 1024, 4096, 16384, 65536):
        commands: dict[str, Any] = {
            spec.name: {"do": "step", "batch": size, "seconds": options.seconds} for spec in specs
        }
        commands[CEILING] = {"do": "products", "seconds": options.seconds}
        heats[f"step at {size}"] = commands
    return bench.race(specs, heats, rounds=max(options.rounds // 3, 3))


def loader(bench: Bench) -> dict[str, Any]:
    """The loader alone, shuffled: epochs that nobody trains on; and one eight times as long, for its memory."""
    longer = f"{RECMTL}, eight times the rows"
    specs = [bench.recmtl(RECMTL, "load"), bench.recmtl(longer, "load", "--shards-times", 8)]
    commands: dict[str, Any] = {
        RECMTL: {"do": "load", "seconds": bench.options.seconds},
        longer: {"do": "load", "seconds": 0},
    }
    return bench.race(specs, {"loader": commands}, max(bench.options.rounds // 2, 3))


def balancers(bench: Bench) -> dict[str, Any]:
    """recmtl's balancers beside each other, on the agreed work."""
    code = "import json; from recmtl.balancing import BALANCERS; print(json.dumps(list(BALANCERS)))"
    known = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE)
    kinds = sorted(json.loads(known.stdout), key=lambda kind: kind != "fixed")
    specs = [bench.recmtl(kind, "steps", "--balancer", kind, "--pool", 1 << 15) for kind in kinds]
    commands = {kind: {"do": "step", "batch": 4096, "seconds": bench.options.seconds} for kind in kinds}
    return bench.race(specs, {"step at 4096": commands})


def ranks(bench: Bench) -> dict[str, Any]:
    """Epochs of ``recmtl train`` on one process and on two, as a user starts it, with the same threads in all.

    The time of an epoch is the difference between a run of three and a run of one, halved: starting up falls out,
    validation (a hundredth of the rows) and the epoch's checkpoint stay in.
    """
    options = bench.options
    recmtl = str(Path(sys.executable).parent / "recmtl")
    known = subprocess.run([recmtl, "train", "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    if "--nproc" not in known.stdout:
        return {"skipped": "this recmtl has no `train --nproc`"}
    folder = bench.data_of(min(options.log_rows, 200_000))
    home = options.output / "scratch" / "ranks"
    home.mkdir(parents=True, exist_ok=True)
    config = home / "config.yaml"
    code = (
        "import sys, json, pathlib, data; folder = pathlib.Path(sys.argv[1]);"
        "print(json.dumps(data.config(folder, {'device': sys.argv[2]})))"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, str(folder), options.device],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE,
    )
    config.write_text(made.stdout)  # JSON is YAML
    train_rows = _rows_of(folder / "flat.parquet")
    rounds = []
    for number in range(max(options.rounds // 3, 2)):
        turns = {}
        for size in (1, 2) if number % 2 else (2, 1):
            seconds = {}
            for epochs in (1, 3):
                run = home / f"run-{size}"
                environment = {**os.environ, "OMP_NUM_THREADS": str(max(options.threads // size, 1))}
                command = [recmtl, "train", str(config), "--nproc", str(size), "--output", str(run), "--overwrite"]
                subprocess.run(
                    [*command, "--set", f"training.epochs={epochs}"],
                    env=environment,
                    cwd=ROOT,
                    check=True,
                    capture_output=True,
                    timeout=3600,
                )
                seconds[epochs] = json.loads((run / "metrics.json").read_text())["seconds"]["train"]
            turns[f"{size} rank{'s' if size > 1 else ''}"] = {
                "rows": 2 * train_rows,
                "seconds": seconds[3] - seconds[1],
                "of": seconds,
            }
        rounds.append({"turns": turns})
    return {"heats": {"epoch": {"rounds": rounds, "errors": {}, "peak_bytes": {}}}, "kinds": {}}


def _rows_of(file: Path) -> int:
    """Rows of a Parquet file."""
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(file).metadata.num_rows)


def profile(bench: Bench) -> dict[str, Any]:
    """Where the time of recmtl's step goes, as torch's profiler has it."""
    options = bench.options
    specs = [bench.recmtl(RECMTL, "steps")]
    command = {RECMTL: {"do": "profile", "batch": 4096, "seconds": options.seconds}}
    found = bench.race(specs, {"profile at 4096": command}, rounds=1)
    turn = found["heats"]["profile at 4096"]["rounds"][0]["turns"][RECMTL]
    head = f"{turn['steps']} steps at batch 4096, {turn['seconds']:.3f} s under the profiler\n\n"
    _write(options.output / "profile.txt", head + turn.pop("table") + "\n")
    return found


def startup(bench: Bench) -> dict[str, Any]:
    """Seconds to import and to show the help."""
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import recmtl": [sys.executable, "-c", "import recmtl"],
        "recmtl --help": [str(Path(sys.executable).parent / "recmtl"), "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(bench.options.rounds):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
            seconds[name].append(time.perf_counter() - began)
    return {"seconds": seconds}


def gpu_step(bench: Bench) -> dict[str, Any]:
    """On a GPU: the step over lengths and widths of tables, sizes of the batch and precisions."""
    options = bench.options
    found: dict[str, Any] = {"heats": {}, "kinds": {}, "left_out": {}}
    sizes = (4096, 65536) if options.quick else (4096, 16384, 65536, 262144)
    for times in (1, 10, 100):
        for dim in (16, 64):
            work = replace(Work(), dim=dim).times(times)
            for precision in ("fp32", "tf32", "bf16"):
                some = ("--times", times, "--dim", dim, "--precision", precision, "--pool", 1 << 20)
                specs = [bench.recmtl(RECMTL, "steps", *some), bench.plain(FUSED, *some)]
                if precision != "bf16":  # it has no autocast of its own
                    specs += bench.peers(*some)
                free, there = bench.gpu_memory(), []
                for spec in specs:
                    need = _needed(work, spec) + 2
                    if need > free:
                        found["left_out"][f"{spec.name} at {work.rows:,} rows of {dim}"] = f"needs about {need:.0f} GB"
                        continue
                    free -= need
                    there.append(spec)
                if not there:
                    continue
                heats = {}
                for size in sizes:
                    heat: dict[str, Any] = {
                        spec.name: {"do": "step", "batch": size, "seconds": options.seconds} for spec in there
                    }
                    heat[CEILING] = {"do": "products", "seconds": options.seconds, "size": 8192}
                    heats[f"{work.rows} rows of {dim}, batch {size}, {precision}"] = heat
                part = bench.race(
                    [*there, bench.ceiling("--precision", precision)],
                    heats,
                    max(options.rounds // 3, 3),
                    one_by_one=True,
                )
                found["heats"] |= part["heats"]
                found["kinds"] |= part["kinds"]
    return found


def gpu_bytes(bench: Bench) -> dict[str, Any]:
    """On a GPU: bytes per second of a copy, random rows per second; with the bytes of a sample, the other ceiling."""
    seconds = bench.options.seconds
    heats = {
        "stream": {CEILING: {"do": "stream", "seconds": seconds, "size": 1 << 28}},
        "random rows": {CEILING: {"do": "reads", "seconds": seconds, "batch": 65536}},
    }
    found = bench.race([bench.ceiling()], heats)
    found["bytes_per_sample"] = {
        f"{name}, batch {size}": dict(Work().bytes_per_sample(batch=size, element=element))
        for name, element in (("fp32", 4), ("bf16", 2))
        for size in (4096, 65536, 262144)
    }
    return found


def gpu_end_to_end(bench: Bench) -> dict[str, Any]:
    """On a GPU: an epoch from Parquet at batch 65,536 in bf16, beside recmtl's step."""
    some = ("--precision", "bf16", "--batch", 65536, "--pool", 1 << 20)
    epochs, steps = f"{RECMTL}, epoch", f"{RECMTL}, step"
    specs = [
        bench.recmtl(epochs, "epochs", *some),
        bench.recmtl(steps, "steps", *some),
        bench.plain(f"{FUSED}, epoch", *some),
        *bench.peers("--batch", 65536),
    ]
    commands: dict[str, Any] = {spec.name: {"do": "epoch"} for spec in specs}
    commands[steps] = {"do": "step", "batch": 65536, "seconds": 2 * bench.options.seconds}
    return bench.race(specs, {"epoch": commands}, max(bench.options.rounds // 3, 3), timeout=3600)


CPU_PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "step": step,
    "end_to_end": end_to_end,
    "inference": inference,
    "rows": rows,
    "batch": batch,
    "ranks": ranks,
    "loader": loader,
    "balancers": balancers,
    "profile": profile,
    "startup": startup,
}
GPU_PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "step": step,
    "end_to_end": gpu_end_to_end,
    "inference": inference,
    "grid": gpu_step,
    "bytes": gpu_bytes,
    "profile": profile,
}


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
