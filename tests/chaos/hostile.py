"""Hostile packages, configs and requests: what an attacker, or a careless tool, hands to recmtl.

In: a world. Out: a :class:`Trial` per case. The rules: the case is refused in one sentence, with exit code 1 or 2, within
seconds and with little memory; nothing of it is run. A request may also be answered, with finite predictions alone.
"""

import hashlib
import json
import math
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.trials import Laboratory, Trial, error_of, unseemly

__all__ = ["CONFIGS", "PACKAGES", "REQUESTS", "ask", "cases", "try_hostile"]

SECONDS = 30.0
"""How long a refusal may take, on a busy machine."""
MEMORY_GIB = 3
"""How much memory a command may ask for beyond what it begins with."""
CANARY = "/dev/shm/recmtl-chaos-canary"
"""A file that planted code makes."""
_CODE = f"open({CANARY!r}, 'w').close()\n"
_PREDICT = ("predict", "--input", "logs/impressions-2026-03-02.csv", "--output", "predictions", "--model")
_PACKAGE = "runs/shop/package"


# Packages


@dataclass(frozen=True)
class Planted:
    """What is done to a package whose hashes are right again afterwards."""

    change: Callable[[Path], None]
    rehash: bool = True
    command: tuple[str, ...] = (*_PREDICT, _PACKAGE)


def _add(name: str, content: bytes | str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def _json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def changed(package: Path) -> None:
        content = json.loads((package / name).read_text())
        (package / name).write_text(json.dumps(change(content) or content))

    return changed


def _set(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def _weights(change: Callable[[bytearray], Any]) -> Callable[[Path], None]:
    """Change the weights' bytes behind the header."""

    def changed(package: Path) -> None:
        path = package / "model.safetensors"
        content = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        body = content[start:]
        change(body)
        path.write_bytes(content[:start] + body)

    return changed


def _every_float(value: float) -> Callable[[bytearray], None]:
    def change(body: bytearray) -> None:
        body[:] = struct.pack("<f", value) * (len(body) // 4)

    return change


def _mlflow_model(package: Path) -> None:
    """A package that says of itself that it is an MLflow model, whose code is to be run."""
    _add(
        "MLmodel",
        "flavors:\n  python_function:\n    loader_module: planted\n    code: code\n    python_version: 3.11.7\n",
    )(package)
    _add("code/planted.py", _CODE + "def _load_pyfunc(path):\n    return None\n")(package)


def _link(package: Path) -> None:
    target = package.parents[2] / "outside.json"
    (package / "calibration.json").replace(target)
    (package / "calibration.json").symlink_to(target)


def _bomb(package: Path) -> None:
    """A vocabulary of a hundred million entries in a few kilobytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = package / "statistics" / "vocabulary" / "item_id.parquet"
    schema = pq.read_schema(path)
    rows = 4_000_000
    columns = [
        pa.repeat(pa.scalar("x" if pa.types.is_string(f.type) or pa.types.is_large_string(f.type) else 1, f.type), rows)
        for f in schema
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(25):
            writer.write_table(table)


def _claim(package: Path) -> None:
    """Weights whose header claims a tensor of 10 TB."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**7, 10**6], "data_offsets": [0, 4 * 10**13]}}).encode()
    (package / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def _pickle(package: Path) -> None:
    import pickle

    class Planted:
        def __reduce__(self) -> Any:
            return exec, (_CODE,)

    _add("model.pkl", pickle.dumps(Planted()))(package)
    (package / "model.safetensors").write_bytes(pickle.dumps(Planted()))


def _formula(text: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = package / "fusion.json"
        content = json.loads(path.read_text())
        content["formula"] = text
        path.write_text(json.dumps(content))

    return change


_GATED = ("evaluate", "gated.yaml", "--model", _PACKAGE, "--output", "judged", "--champion", "none")
PACKAGES: dict[str, Planted] = {
    "a file that is not listed": Planted(_add("notes.txt", "x"), rehash=False),
    "MLmodel and code, listed": Planted(_mlflow_model),
    "MLmodel and code, evaluated with a gate": Planted(_mlflow_model, command=_GATED),
    "MLmodel and code, not listed": Planted(_mlflow_model, rehash=False),
    "a name that leads out": Planted(_json("hashes.json", _set("files", "../../../outside.json", value="0" * 64)), rehash=False),
    "an absolute name": Planted(_json("hashes.json", _set("files", "/etc/passwd", value="0" * 64)), rehash=False),
    "a name with a NUL": Planted(_json("hashes.json", _set("files", "a\0b", value="0" * 64)), rehash=False),
    "a link out": Planted(_link, rehash=False),
    "pickles": Planted(_pickle),
    "a pickle beside": Planted(_add("model.pkl", b"\x80\x04N.")),
    "python source, listed": Planted(_add("recmtl/__init__.py", _CODE)),
    "layers 10^7 wide": Planted(_json("package.json", _set("model", "tower", "widths", value=[10**7, 10**7]))),
    "layers 10^18 wide": Planted(_json("package.json", _set("model", "tower", "widths", value=[10**18]))),
    "a million layers": Planted(_json("package.json", _set("model", "tower", "widths", value=[8] * 10**6))),
    "embeddings 10^9 wide": Planted(_json("package.json", _set("features", 0, "embedding_dim", value=10**9))),
    "NaN weights": Planted(_weights(_every_float(math.nan))),
    "infinite weights": Planted(_weights(_every_float(math.inf))),
    "enormous weights": Planted(_weights(_every_float(3e38))),
    "a tensor of 10 TB": Planted(_claim),
    "a header of 2^60 bytes": Planted(lambda p: (p / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")) ,
    "a std of 0": Planted(_json("statistics/statistics.json", lambda c: _first_number(c, "std", 0.0))),
    "a std of NaN": Planted(_json("statistics/statistics.json", lambda c: _first_number(c, "std", math.nan))),
    "a mean of 1e308": Planted(_json("statistics/statistics.json", lambda c: _first_number(c, "mean", 1e308))),
    "a vocabulary bomb": Planted(_bomb),
    "hashes 200,000 deep": Planted(lambda p: (p / "hashes.json").write_text("[" * 200_000), rehash=False),
    "hashes of 20 MB": Planted(lambda p: (p / "hashes.json").write_text(" " * 20_000_000 + "{}"), rehash=False),
    "package.json 200,000 deep": Planted(lambda p: (p / "package.json").write_text('{"model": ' + "[" * 200_000)),
    "statistics 200,000 deep": Planted(lambda p: (p / "statistics" / "statistics.json").write_text("[" * 200_000)),
    "a formula that imports": Planted(_formula("__import__('os').system('x')")),
    "a formula that never ends": Planted(_formula("9**9**9**9**9")),
    "a formula 10,000 deep": Planted(_formula("(" * 10_000 + "click" + ")" * 10_000)),
    "a formula of 10,000 signs": Planted(_formula("-" * 10_000 + "click")),
    "a YAML bomb": Planted(lambda p: (p / "config.resolved.yaml").write_text(_laughs())),
    "a task twice": Planted(_json("package.json", lambda c: c["tasks"].append(c["tasks"][0]))),
    "format of the future": Planted(_json("package.json", _set("format", value=10**9))),
}  # fmt: skip
_ANSWERED = {
    "a YAML bomb", "a mean of 1e308", "enormous weights", "a binary", "base 60", "a name of 5,000 characters", "duplicate keys",
}  # fmt: skip
"""What may be taken: it is not read, or harms nobody. What is predicted must be finite."""


def _first_number(content: Any, key: str, value: float) -> None:
    for numbers in content["numbers"].values():
        numbers[key] = value


def _rehash(package: Path) -> None:
    files = {
        path.relative_to(package).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(package.rglob("*"))
        if path.is_file() and path.name != "hashes.json"
    }
    listing = json.loads((package / "hashes.json").read_text())
    (package / "hashes.json").write_text(json.dumps(listing | {"files": files}))


# Configs


def _laughs(levels: int = 12) -> str:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


CONFIGS: dict[str, bytes | str] = {
    "billion laughs": _laughs(),
    "billion laughs as the whole": _laughs() + "features: *a11\n",
    "quadratic": "a: &a " + "x" * 50_000 + "\nfeatures: [" + ", ".join(["*a"] * 20_000) + "]\n",
    "100,000 deep, one line": "name: " + "[" * 100_000,
    "100,000 deep, closed": "name: " + "[" * 100_000 + "]" * 100_000,
    "2,000 deep, by columns": "\n".join("  " * n + "a:" for n in range(2000)),
    "5,000 sequences in one line": "- " * 5000,
    "a key that is a list": "? [a, b]\n: c\n",
    "a key that is a map": "{{a: b}: c}\n",
    "a key that is null": "~: 1\n",
    "a key that is a number": "3: 1\n",
    "merge of no map": "<<: 3\n",
    "merge of itself": "a: &a {<<: *a}\n",
    "a list that holds itself": "name: &a [*a]\n",
    "an unknown alias": "name: *a\n",
    "Python's objects": f"name: !!python/object/apply:os.system ['touch {CANARY}']\n",
    "Python's names": "name: !!python/name:os.system\n",
    "a binary": "name: !!binary aGVsbG8=\n",
    "a set": "name: !!set {a, b}\n",
    "an unknown tag": "name: !mine x\n",
    "a NUL": "name: a\0b\n",
    "no UTF-8": b"name: \xff\xfe\xfd\n",
    "UTF-16": "name: shop\n".encode("utf-16"),
    "a line of 30 MB": "name: " + "x" * 30_000_000,
    "300,000 keys": "\n".join(f"k{n}: 1" for n in range(300_000)),
    "nothing": "",
    "a list": "- a\n",
    "a text": "hello\n",
    "two documents": "name: a\n---\nname: b\n",
    "duplicate keys": "name: a\nname: b\n",
    "a date": "name: 2026-01-01\n",
    "10,000 digits": "training: {epochs: " + "9" * 10_000 + "}\n",
    "base 60": "training: {epochs: " + ":".join(["59"] * 20_000) + "}\n",
    "NaN rate": "training: {dense: {lr: .nan}}\n",
    "infinite rate": "training: {dense: {lr: .inf}}\n",
    "negative infinite rate": "training: {sparse: {lr: -.inf}}\n",
    "tabs": "\tname: x\n",
    "a name that leads out": "name: ../../outside\n",
    "a slash": "name: /etc/passwd\n",
    "a name of 5,000 characters": "name: " + "n" * 5000 + "\n",
}
"""Each is put behind the shop's own config, or stands alone where it is no mapping to add."""


# Requests


def _row(**columns: Any) -> str:
    return json.dumps({"instances": [columns]})


_ODD = {
    "null": "null", "true": "true", "a text": '"x"', "an empty text": '""', "a surrogate": '"\\ud800"', "a NUL": '"a\\u0000b"',
    "a list": "[1]", "an empty list": "[]", "a list of lists": "[[1], [2]]", "a mixed list": '[1, "a", null, {}]', "an object": '{"a": 1}',
    "NaN": "NaN", "Infinity": "Infinity", "-Infinity": "-Infinity", "1e999": "1e999", "-0.0": "-0.0", "1e308": "1e308", "2^63": str(2**63),
    "2^64": str(2**64), "-2^63-1": str(-(2**63) - 1), "400 digits": "9" * 400, "5,000 digits": "9" * 5000, "1e400 digits": "1" + "0" * 400 + ".5",
    "a deep list": "[" * 900 + "]" * 900, "a deep object": '{"a":' * 500 + "1" + "}" * 500, "a text of 5 MB": '"' + "x" * 5_000_000 + '"',
}  # fmt: skip
REQUESTS: dict[str, bytes | str] = {
    **{f"{column}: {kind}": f'{{"instances": [{{"{column}": {value}, "item_id": "i1"}}]}}' for column in ("user_id", "price") for kind, value in _ODD.items()},
    **{f"mixed {kind}": f'{{"dataframe_records": [{{"price": 1.5, "user_id": "u1"}}, {{"price": {value}, "user_id": {value}}}]}}' for kind, value in _ODD.items()},
    "nested 500 deep": '{"instances": [{"user_id": ' + "[" * 500 + "]" * 500 + "}]}",
    "nested 100,000 deep": '{"instances": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "objects 100,000 deep": '{"instances": ' * 100_000 + "1" + "}" * 100_000,
    "an open list": "[" * 1_000_000,
    "100,000 columns": json.dumps({"instances": [{f"c{n}": n for n in range(100_000)} | {"user_id": "u1"}]}),
    "a name of 1 MB": _row(**{"x" * 1_000_000: 1, "user_id": "u1"}),
    "an empty name": '{"instances": [{"": 1, "user_id": "u1"}]}',
    "2,000,000 rows": '{"instances": [' + "{}," * 1_999_999 + "{}]}",
    "rows × names": json.dumps({"instances": [{f"c{n}": 1} for n in range(30_000)]}),
    "64 MB": '{"instances": [{"user_id": "' + "x" * 64_000_000 + '"}]}',
    "our own column": _row(**{"recmtl:row": 1, "user_id": "u1"}),
    "a key twice": '{"instances": [{"user_id": "u1", "user_id": "u2"}]}',
    "instances twice": '{"instances": [{"user_id": "u1"}], "instances": [{"user_id": "u2"}]}',
    "no rows": '{"instances": []}',
    "empty rows": '{"instances": [{}, {}]}',
    "rows of lists": '{"instances": [[1, 2]]}',
    "ragged": '{"dataframe_split": {"columns": ["user_id", "price"], "data": [["u1"], ["u1", 2]]}}',
    "columns twice": '{"dataframe_split": {"columns": ["user_id", "user_id"], "data": [["u1", "u2"]]}}',
    "columns of numbers": '{"dataframe_split": {"columns": [1], "data": [["u1"]]}}',
    "an index of objects": '{"dataframe_split": {"columns": ["user_id"], "index": [{}], "data": [["u1"]]}}',
    "columns uneven": '{"inputs": {"user_id": ["u1"], "price": [1, 2]}}',
    "columns of texts": '{"inputs": {"user_id": "u1"}}',
    "top_k 10^12": '{"instances": [{"user_id": "u1"}], "params": {"top_k": 1000000000000, "score": "click"}}',
    "top_k 10^30": '{"instances": [{"user_id": "u1"}], "params": {"top_k": ' + "1" + "0" * 30 + ', "score": "click"}}',
    "top_k NaN": '{"instances": [{"user_id": "u1"}], "params": {"top_k": NaN}}',
    "params of lists": '{"instances": [{"user_id": "u1"}], "params": {"score": ["click"]}}',
    "params a list": '{"instances": [{"user_id": "u1"}], "params": []}',
    "an unknown key": '{"instances": [{"user_id": "u1"}], "x": 1}',
    "two forms": '{"instances": [{"user_id": "u1"}], "inputs": []}',
    "nothing": "",
    "no JSON": "user_id=u1",
    "not UTF-8": b'{"instances": [{"user_id": "\xff\xfe"}]}',
    "UTF-16": '{"instances": [{"user_id": "u1"}]}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"instances": [{"user_id": "u1"}]}',
    "more behind": '{"instances": [{"user_id": "u1"}]} {}',
    "NULs": b"\0" * 1000,
    "a number": "3",
    "null": "null",
}  # fmt: skip


def ask(package: str, request: str) -> None:
    """Answer a request from a file as a server does, and print the answer."""
    from recmtl.answering import answer
    from recmtl.package import load_package

    loaded = load_package(Path(package))
    body = Path(request).read_bytes()
    found = answer(loaded, body, "application/json")
    print(json.dumps(found.to_dict("records"))[:100_000])


def cases() -> Iterator[tuple[str, str]]:
    """(kind, name) of each."""
    for kind, some in (("package", PACKAGES), ("config", CONFIGS), ("request", REQUESTS)):
        for name in some:
            yield kind, name


def try_hostile(laboratory: Laboratory, kind: str, name: str) -> Trial:
    """Hand a case over, and judge what became of it."""
    world = laboratory.world
    trial = Trial(f"hostile: {kind}", name, 0, call="hostile", path=name)
    world.put("fuse" if kind == "package" and "formula" in name else "train")
    Path(CANARY).unlink(missing_ok=True)
    options: dict[str, Any] = {"memory_gib": MEMORY_GIB, "timeout": 2 * SECONDS}
    if kind == "package":
        planted = PACKAGES[name]
        planted.change(world.root / _PACKAGE)
        if planted.rehash:
            _rehash(world.root / _PACKAGE)
        text = (world.root / "shop.yaml").read_text()
        (world.root / "gated.yaml").write_text(text.replace("  alias: challenger", "  alias: challenger\n  gate: {}"))
        done = world.zygote.run(list(planted.command), world.root, **options)
    elif kind == "config":
        content = CONFIGS[name]
        own = (world.root / "shop.yaml").read_bytes()
        key = re.match(r"(\w+):", content) if isinstance(content, str) else None
        if key is not None:  # in place of what the shop's config says
            own = re.sub(rf"(?m)^{key[1]}:.*\n(?:[ -].*\n)*".encode(), b"", own)
            content = own + content.encode()
        (world.root / "hostile.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        done = world.zygote.run(["config", "check", "hostile.yaml"], world.root, **options)
    else:
        content = REQUESTS[name]
        (world.root / "request").write_bytes(content.encode() if isinstance(content, str) else content)
        arguments = ["tests.chaos.hostile:ask", _PACKAGE, "request"]
        done = world.zygote.run(arguments, world.root, program="call", **options)
    trial.code, trial.said, trial.seconds = done.code, error_of(done), done.seconds
    trial.wrong += unseemly(done)
    if Path(CANARY).exists():
        trial.wrong.append("the planted code was run")
        Path(CANARY).unlink()
    if done.seconds > SECONDS:
        trial.wrong.append(f"it took {done.seconds:.0f} seconds")
    if done.code == 0 and kind == "request":
        trial.wrong += _answered(done.out)
    elif done.code == 0:
        if name not in _ANSWERED:
            trial.wrong.append("it was taken")
        trial.wrong += _predicted(world.root / "predictions")
    elif done.code not in (1, 2):
        trial.wrong.append(f"exit code {done.code}: {error_of(done)}")
    elif not done.err.strip().splitlines()[-1].startswith("error: "):
        trial.wrong.append(f"no sentence: {error_of(done)}")
    elif "out of memory" in error_of(done):
        trial.wrong.append(error_of(done))
    shutil.rmtree(world.root / "predictions", ignore_errors=True)
    return trial


def _predicted(folder: Path) -> Iterator[str]:
    """What is wrong with predictions."""
    import numpy as np
    import pyarrow.parquet as pq

    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        for name in table.column_names:
            if str(table.schema.field(name).type) == "float" and not np.isfinite(table[name].to_numpy()).all():
                yield f"{name} is predicted as no number"


def _answered(out: str) -> Iterator[str]:
    """What is wrong with an answer."""
    rows = json.loads(out)
    if not rows:
        yield "answered with no rows"
    for row in rows:
        for column, value in row.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                yield f"{column} is {value!r}"
                return
