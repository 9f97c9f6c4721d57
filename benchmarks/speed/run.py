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
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
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
            found = PARTS[name](bench)
        except Exception as error:  # the others go on
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
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
        _write(file, json.dumps(result, indent=1) + "\n")
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
    parser.add_argument("--parts", help=f"of {', '.join(PARTS)}; by default all")
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
    usual = ["step", "end_to_end"] if options.quick and options.device == "cpu" else list(known)
    options.parts = options.parts.split(",") if options.parts else usual
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    options.output = (options.output or HOME / ("quick" if options.quick else "results")).absolute()
    options.home = options.home.absolute()
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    options.log_rows = options.log_rows or (300_000 if options.quick else 1_000_000)
    options.peers = [peer for peer in options.peers.split(",") if peer]
    return options


class Bench:
    """What the parts share: the data, the peers' environments, how contenders are started."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.missing: dict[str, str] = {}
        self._pythons: dict[str, Path] | None = None
        self._data: Path | None = None

    @property
    def data(self) -> Path:
        """The data's folder, made by recmtl in a process of its own when it is not there."""
        if self._data is None:
            self._data = self.options.home / f"data-{self.options.log_rows}"
            command = [sys.executable, "data.py", str(self._data), "--rows", str(self.options.log_rows)]
            subprocess.run([*command, "--seed", str(self.options.seed)], cwd=HERE, check=True)
        return self._data

    def peers(self, *arguments: object) -> list[Spec]:
        """The peers that can be had here; the others are in :attr:`missing`."""
        if self._pythons is None:
            self._pythons = {}
            for name in self.options.peers:
                try:
                    self._pythons[name] = installed.install(name, self.options.home / "peers")
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

    def _usual(self) -> tuple[str, ...]:
        options = self.options
        return ("--data", str(self.data), "--threads", str(options.threads), "--device", options.device)

    def race(
        self, specs: Sequence[Spec], heats: Mapping[str, Mapping[str, Mapping[str, Any]]], rounds: int | None = None
    ) -> dict[str, Any]:
        """Races of the same contenders, one after another.

        Args:
            specs: the contenders; they are all there at once.
            heats: name of a race to contender to its command.
            rounds: of each; by default as asked.

        Returns:
            A record per race, under ``heats``, and the contenders' ``kinds``.
        """
        errors: dict[str, str] = {}
        records = {}
        with field_of(specs, self.options.threads, self.options.output / "logs", errors) as there:
            for name, error in errors.items():
                _say(f"left out: {name}: {error}")
            for title, commands in heats.items():
                _say(f"  {title}: {', '.join(name for name in there if name in commands)}")
                found = race(there, commands, rounds=rounds or self.options.rounds, seed=self.options.seed)
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
    return [(f"recmtl, compile {value}", json.dumps(value).strip('"')) for value in json.loads(found.stdout)]


def end_to_end(bench: Bench) -> dict[str, Any]:
    """An epoch from Parquet, beside recmtl's step in the same rounds."""
    options = bench.options
    epochs, steps = f"{RECMTL}, epoch", f"{RECMTL}, step"
    specs = [bench.recmtl(epochs, "epochs"), bench.recmtl(steps, "steps")]
    commands: dict[str, Any] = {
        epochs: {"do": "epoch"},
        steps: {"do": "step", "batch": 4096, "seconds": (5 if options.quick else 10) * options.seconds},
    }
    if not options.quick:
        for spec in (bench.plain(f"{FUSED}, epoch"), *bench.peers()):
            commands[spec.name] = {"do": "epoch", "rows": 300_000}
            specs.append(spec)
    return bench.race(specs, {"epoch": commands}, rounds=2 if options.quick else max(options.rounds // 3, 3))


def inference(bench: Bench) -> dict[str, Any]:
    """The forward pass to predictions."""
    options = bench.options
    specs = [bench.recmtl(RECMTL, "infer"), bench.plain(FUSED), *bench.peers(), bench.ceiling()]
    commands: dict[str, Any] = {spec.name: {"do": "infer", "batch": 4096, "seconds": options.seconds} for spec in specs}
    commands[CEILING] = {"do": "products", "seconds": options.seconds}
    return bench.race(specs, {"infer at 4096": commands})


def rows(bench: Bench) -> dict[str, Any]:
    """The step with tables 1, 10 and 34 times as long (3M, 30M, 101M rows), where the memory allows."""
    options = bench.options
    found: dict[str, Any] = {"heats": {}, "kinds": {}, "left_out": {}}
    for times in (1, 10, 34):
        work = Work().times(times)
        tables = 4 * work.rows * work.dim / 1e9
        # What a contender holds, in tables' sizes: recmtl the tables and a copy of the longest while it makes them;
        # Adam over dense gradients the table, its gradient and two moments.
        fits = {RECMTL: 1.4 * tables + 1 <= options.memory, "others": 4 * tables + 1 <= options.memory}
        specs = [bench.recmtl(RECMTL, "steps", "--times", times)]
        specs += [bench.plain(FUSED, "--times", times), *bench.peers("--times", times)]
        for spec in specs:
            if not fits.get(spec.name, fits["others"]):
                found["left_out"][f"{spec.name}, {work.rows:,} rows"] = f"more than {options.memory:g} GB"
                continue
            # One after another: two of them at once would not fit. The machine's own speed stands beside each.
            command = {"do": "step", "batch": 4096, "seconds": options.seconds}
            heat = {spec.name: command, CEILING: {"do": "products", "seconds": options.seconds}}
            title = f"{spec.name}, {work.rows} rows"
            part = bench.race([spec, bench.ceiling()], {title: heat}, rounds=max(options.rounds // 2, 3))
            found["heats"] |= part["heats"]
            found["kinds"] |= part["kinds"]
    return found


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
    """The loader alone: an epoch that nobody trains on."""
    specs = [bench.recmtl(RECMTL, "load")]
    heats = {"loader": {RECMTL: {"do": "load", "epoch": 0}}}
    return bench.race(specs, heats, rounds=max(bench.options.rounds // 2, 3))


def balancers(bench: Bench) -> dict[str, Any]:
    """recmtl's balancers beside each other, on the agreed work."""
    code = "import json; from recmtl.balancing import BALANCERS; print(json.dumps(list(BALANCERS)))"
    known = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE)
    kinds = sorted(json.loads(known.stdout), key=lambda kind: kind != "fixed")
    specs = [bench.recmtl(kind, "steps", "--balancer", kind, "--pool", 1 << 15) for kind in kinds]
    commands = {kind: {"do": "step", "batch": 4096, "seconds": bench.options.seconds} for kind in kinds}
    return bench.race(specs, {"step at 4096": commands})


def ranks(bench: Bench) -> dict[str, Any]:
    """An epoch of ``recmtl train`` on one process and on two, as a user starts it."""
    known = subprocess.run(
        [sys.executable, "-m", "recmtl.cli", "train", "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    del known
    return {"skipped": "recmtl train has no --nproc"}


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


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
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
CPU_PARTS = tuple(PARTS)
GPU_PARTS = CPU_PARTS


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
