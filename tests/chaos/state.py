"""What is left in a shop's folder, in a form in which two ends can be compared.

In: the folder. Out: a text per thing that must not depend on what went wrong on the way, by name: files by their bytes,
JSON without times, the tracking store's runs, points, versions and aliases, and the newest checkpoint's tensors.
"""

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["differences", "end_state"]

_TIMES = frozenset(
    ("seconds", "peak_memory_mb", "cost", "created", "commit", "when", "attempts", "rows_per_second", "days_rebuilt")
)
"""Keys of JSON that tell of the way: when, how long, what was done again."""
_TIMED = re.compile(r"second|memory|system/|recmtl.gate.report$|recmtl.move.(done|time)$")
_INPUTS = ("logs/", "shop.yaml", "daily.yaml")
_LOCKS = re.compile(r"(^|/)\.?[\w-]*\.?lock$")
_RUN = re.compile(r"\b[0-9a-f]{32}\b|\bm-[0-9a-f]{32}\b")
_REPORT = re.compile(r"tracking/reports/[0-9a-f]{64}")
_SECONDS = re.compile(r"\n## Seconds\n.*?(?=\n## |\Z)", re.DOTALL)


def end_state(root: Path) -> dict[str, str]:
    """Everything that counts, by name."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.startswith(_INPUTS) or _LOCKS.search(name) or name.split("/")[0] == "store":
            continue
        if path.is_symlink() or not path.is_dir():
            if "/checkpoints/" not in f"/{name}":
                found[_REPORT.sub("tracking/reports/*", name)] = _or_damage(_content, path)
            elif not re.search(r"/checkpoints/(newest|step-\d+-\d+/[\w-]+\.(json|safetensors))$", f"/{name}"):
                found[name] = "litter among checkpoints"
        elif not any(path.iterdir()):
            found[name + "/"] = "an empty folder"
    for newest in root.rglob("checkpoints/newest"):
        found[f"{newest.relative_to(root).as_posix()} → tensors"] = _or_damage(_checkpoint, newest)
    if (root / "store" / "mlflow.db").exists():
        found.update(_tracked(root / "store"))
    return found


def differences(mine: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """In what two ends differ, a line each."""
    lines = []
    for name in sorted(mine.keys() | expected.keys()):
        one, other = mine.get(name), expected.get(name)
        if one == other:
            continue
        if other is None:
            lines.append(f"{name}: left over: {str(one)[:120]}")
        elif one is None:
            lines.append(f"{name}: lost")
        else:
            at = next(
                (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
            )
            lines.append(
                f"{name}: differs: …{one[max(at - 40, 0) : at + 60]!r}, not …{other[max(at - 40, 0) : at + 60]!r}"
            )
    return lines


def _or_damage(read: Callable[[Path], str], path: Path) -> str:
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"damaged: {error!r}"[:200]


def _content(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    if path.name == "sent.json":
        return _sent(path)
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text())
            if path.name == "run.json":  # the hashes of itself and of metrics.json, which hold times
                content = {key: value for key, value in content.items() if key not in ("digest", "metrics")}
            return json.dumps(_timeless(content), sort_keys=True)
        except ValueError:
            return f"no JSON: {path.read_bytes()[:80]!r}"
    if path.name == "journal.jsonl":
        return _journal(path)
    if path.suffix == ".md":
        return re.sub(r" at commit `\w+\+?`", "", _SECONDS.sub("", path.read_text()))
    if path.suffix == ".html":
        return f"whole: {path.read_text().rstrip().endswith('</html>')}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in _TIMES and not _is_hash(key, item)}
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if isinstance(value, str):
        return _REPORT.sub("tracking/reports/*", _RUN.sub("ID", value))
    return value


def _is_hash(key: str, value: Any) -> bool:
    """Whether it is the hash of a report, which holds times."""
    return key in ("verdict", "report") and isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _journal(path: Path) -> str:
    """The points, the last of everything else, and the state of the run."""
    points: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        kind = record["kind"]
        if kind == "metrics":
            for name, value in record["values"].items():
                if not _TIMED.search(name):
                    points[f"{name}@{record['step']}"] = value
        elif kind in ("params", "tags"):
            last |= {f"{kind}.{key}": value for key, value in record["values"].items()}
        elif kind == "status":
            last["status"] = record["status"]
        elif kind != "run":
            last[f"{kind}.{record.get('name', '')}"] = sorted(record.keys())
    last.setdefault("status", "RUNNING")
    return json.dumps(_timeless({"points": points, "last": last}), sort_keys=True)


def _sent(path: Path) -> str:
    """How many stores have the whole journal, and what was registered there."""
    size = (path.parent / "journal.jsonl").stat().st_size
    stores = json.loads(path.read_text())["stores"].values()
    return str([(store["acknowledged"] == size, sorted(map(str, store["registered"].values()))) for store in stores])


def _checkpoint(newest: Path) -> str:
    folder = newest.parent / newest.read_text().strip()
    if not folder.is_dir():
        return f"points at nothing: {newest.read_text()[:80]!r}"
    told = [folder.name[: len("step-000000000")]]
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, about in sorted(json.loads(content[8:start]).items()):
            if name != "__metadata__":
                first, last = about["data_offsets"]
                told.append(f"{name} {hashlib.sha256(content[start + first : start + last]).hexdigest()[:16]}")
    return " ".join(told)


def _tracked(store: Path) -> Iterator[tuple[str, str]]:
    """MLflow's runs with their points and artifacts, and the registry."""
    with sqlite3.connect(store / "mlflow.db") as database:

        def rows(query: str, *values: str) -> list[tuple[Any, ...]]:
            return database.execute(query, values).fetchall()

        yield "mlflow: integrity", str(rows("PRAGMA integrity_check"))
        runs = rows("SELECT run_uuid, name, status, lifecycle_stage FROM runs ORDER BY start_time")
        yield "mlflow: runs", str([run[1:] for run in runs])
        for number, (run, *_) in enumerate(runs):
            points = rows("SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY key, step", run)
            yield f"mlflow: points of run {number}", str([point for point in points if not _TIMED.search(point[0])])
            params = rows("SELECT key, value FROM params WHERE run_uuid = ? ORDER BY key", run)
            yield f"mlflow: params of run {number}", str(params)
            tags = rows("SELECT key, value FROM tags WHERE run_uuid = ? AND key LIKE 'recmtl%' ORDER BY key", run)
            yield f"mlflow: tags of run {number}", _ids(tags)
            folder = next(iter(store.glob(f"mlartifacts/*/{run}/artifacts")), None)
            for path in sorted(folder.rglob("*") if folder else ()):
                if path.is_file() and not path.name.startswith(".artifact.uploading."):  # MLflow's own, of a kill
                    yield f"mlflow: artifact of run {number}: {path.relative_to(folder).as_posix()}", _content(path)
        yield "mlflow: aliases", str(rows("SELECT name, alias, version FROM registered_model_aliases ORDER BY 1, 2"))
        versions = rows(
            "SELECT name, version, status, current_stage, storage_location FROM model_versions ORDER BY 1, 2"
        )
        yield "mlflow: versions", str([version[:4] for version in versions])
        query = "SELECT name, version, key, value FROM model_version_tags WHERE value IS NOT NULL ORDER BY 1, 2, 3"
        yield "mlflow: tags of versions", _ids(rows(query))
        yield "mlflow: tags of models", _ids(rows("SELECT name, key, value FROM registered_model_tags ORDER BY 1, 2"))
        for name, version, _, _, place in versions:
            hashes = list(Path(str(place).removeprefix("file://")).rglob("package/hashes.json"))
            yield f"mlflow: package of {name} {version}", str([_content(path) for path in hashes])


def _ids(rows: list[tuple[Any, ...]]) -> str:
    """Rows without what times, ids and hashes of reports are in them."""
    told = []
    for row in rows:
        if _TIMED.search(str(row[-2])):
            continue
        value = str(row[-1])
        try:
            value = json.dumps(_timeless(json.loads(value)), sort_keys=True)
        except ValueError:
            value = _RUN.sub("ID", value)
        told.append((*row[:-1], value))
    return str(told)
