"""Damaged files: every file that a command reads, damaged in every way that fits it, and what the command makes of it.

In: a world. Out: a :class:`Trial` per file and kind of damage. The rules: the command ends with exit code 0 and the
undisturbed end state, or with 1 or 2 (3 where the tracking store is damaged) and one sentence that names a path. It
never prints a traceback and never gives a wrong answer. recmtl makes the prepared rows, so it makes damaged ones anew.
"""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.injector import Disturbance
from tests.chaos.state import differences, end_state
from tests.chaos.trials import Laboratory, Trial, error_of, names_path, unseemly
from tests.chaos.world import SCENARIOS, Scenario

__all__ = ["DAMAGES", "READERS", "Reader", "cases", "try_damage"]


@dataclass(frozen=True)
class Reader:
    """A command, and which files that it reads are damaged before it."""

    name: str
    begins: str
    """A scenario: its end. ``during-NAME``: it was killed on its way."""
    scenario: str
    """The command, of a scenario."""
    files: str
    """A regular expression for names in the folder."""
    rebuilt: str = r"(?!)"
    """Of which files emptied, truncated or flipped ones must be made anew."""


_INPUTS = ("logs/", "more/", "shop.yaml")
"""The user's own files: another content is another input, and no wrong answer."""
_PREPARED = r"prepared/.*\.(json|parquet)$"
_PACKAGE = r"runs/shop/package/.*"
READERS = {
    each.name: each
    for each in (
        Reader("config", "logs", "prepare", r"shop\.yaml$"),
        Reader("logs", "logs", "prepare", r"logs/.*-2026-03-0[35].csv$"),
        Reader("prepare", "prepare", "prepare", _PREPARED, rebuilt=_PREPARED),
        Reader("train", "prepare", "train", _PREPARED, rebuilt=_PREPARED),
        Reader("resume", "during-train", "train", r"runs/shop/(?!config|package).*"),
        Reader("evaluate", "train", "evaluate", r"(prepared|runs/shop)/(?!checkpoints).*"),
        Reader("evaluate-package", "train", "evaluate-package", rf"{_PREPARED}|{_PACKAGE}"),
        Reader("register", "evaluate", "register", r"runs/shop/(?!checkpoints).*"),
        Reader("promote", "register", "promote", r"store/mlflow\.db$"),
        Reader("predict-registered", "register", "predict-registered", r"store/.*/models/.*/artifacts/(?!code).*"),
        Reader("predict", "train", "predict", rf"{_PACKAGE}|logs/impressions-2026-03-0[35].csv$"),
        Reader("predict-formats", "train", "predict-formats", r"more/.*"),
        Reader("predict-on", "during-predict", "predict", r"\.predictions\.predicting/.*(json|parquet)$"),
        Reader("predict-fused", "fuse", "predict-fused", r"runs/shop/package/(fusion|calibration|hashes)\.json$"),
        Reader("fuse", "train", "fuse", rf"{_PREPARED}|{_PACKAGE}|runs/shop/\w+\.json$"),
        Reader("export", "train", "export", rf"{_PREPARED}|{_PACKAGE}"),
        Reader("daily", "first-day", "daily", r"days/(store\.json|.*-0[456]\b.*parquet)$"),
        Reader(
            "daily-on",
            "during-daily",
            "daily",
            r"runs/shop/daily/2026-03-06/(?!run/check).*(json|jsonl|parquet|newest)$",
        ),
    )
}

_NESTED = "[" * 100_000
DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "gone": lambda path, _: path.unlink(),
    "emptied": lambda path, _: path.write_bytes(b""),
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path, draw: _flip(path, draw),
    "zeroed": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "not UTF-8": lambda path, _: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "UTF-16": lambda path, _: path.write_bytes(path.read_text(errors="replace").encode("utf-16")),
    "null": lambda path, _: path.write_text("null"),
    "a list": lambda path, _: path.write_text("[]"),
    "an object": lambda path, _: path.write_text("{}"),
    "a text": lambda path, _: path.write_text('"text"'),
    "deep": lambda path, _: path.write_text(_NESTED),
    "deep value": lambda path, draw: _replace(path, draw, lambda _: _Raw("[" * 50_000 + "]" * 50_000)),
    "huge number": lambda path, draw: _replace(path, draw, lambda _: _Raw("9" * 5000)),
    "infinite number": lambda path, draw: _replace(path, draw, lambda _: _Raw("1e999")),
    "NaN": lambda path, draw: _replace(path, draw, lambda _: float("nan")),
    "negative": lambda path, draw: _replace(path, draw, lambda value: -7),
    "other kind": lambda path, draw: _replace(path, draw, lambda value: {"a": 1} if isinstance(value, str) else "x"),
    "null value": lambda path, draw: _replace(path, draw, lambda value: None),
    "key gone": lambda path, draw: _drop(path, draw),
    "a folder": lambda path, _: _folder(path),
    "a link out": lambda path, _: _link(path),
    "a dangling link": lambda path, _: _dangling(path),
}
_JSON_ALONE = {
    "null", "a list", "an object", "a text", "deep", "deep value", "huge number", "infinite number", "NaN", "negative",
    "other kind", "null value", "key gone",
}  # fmt: skip
_TEXT_ALONE = {"not UTF-8", "UTF-16"}
_HARMED = {"emptied", "truncated", "flipped", "zeroed"}


def cases(laboratory: Laboratory, reader: Reader) -> Iterator[tuple[str, str]]:
    """Every file's name with every damage that fits it."""
    place(laboratory, reader)
    root = laboratory.world.root
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() or not re.match(reader.files, name) or name.endswith("lock"):
            continue
        for damage in DAMAGES:
            if damage in _JSON_ALONE and path.suffix not in (".json", ".jsonl", ".yaml", ".yml"):
                continue
            if damage in _TEXT_ALONE and path.suffix in (".parquet", ".safetensors", ".db", ".gz"):
                continue
            yield name, damage


def place(laboratory: Laboratory, reader: Reader) -> None:
    """Put the folder to where the reader begins."""
    world = laboratory.world
    if not reader.begins.startswith("during-"):
        world.put(reader.begins)
        return
    if not (world.kept / reader.begins).exists():
        scenario = SCENARIOS[reader.begins.removeprefix("during-")]
        sites = laboratory.sites(scenario)
        marks = [n for site in sites if re.search(_WAY[scenario.name], site.path) for n in site.numbers]
        world.begin(scenario)
        laboratory.state.arm(Disturbance("kill", sorted(marks)[len(marks) // 2]))
        world.run(scenario, state=laboratory.state.path)
        world.keep(reader.begins)
    world.put(reader.begins)


_WAY = {
    "train": r"checkpoints/.*state\.json$",
    "predict": r"predicting/scored/part-00003",
    "daily": r"2026-03-06/run/checkpoints/.*state\.json$",
}
"""At which calls a command is killed on its way, in the middle of those that match."""


def try_damage(laboratory: Laboratory, reader: Reader, name: str, damage: str, seed: int) -> Trial:
    """Damage one file, run the command."""
    world = laboratory.world
    scenario: Scenario = SCENARIOS[reader.scenario]
    expected = laboratory.end(scenario)
    place(laboratory, reader)
    (world.place / "outside").mkdir(exist_ok=True)
    trial = Trial(f"damage: {reader.name}", damage, 0, call="damage", path=name)
    path = world.root / name
    before = path.read_bytes()
    DAMAGES[damage](path, random.Random(f"{seed} {name}"))
    if path.is_file() and not path.is_symlink() and path.read_bytes() == before:
        trial.call = ""  # there is nothing of that kind in it
        return trial
    done = world.run(scenario, timeout=120)
    trial.code, trial.said, trial.seconds = done.code, error_of(done), done.seconds
    trial.wrong += unseemly(done)
    if done.code == 0 and not name.startswith(_INPUTS):
        left = differences(end_state(world.root), expected)
        itself = (f"{name}:", f"{name}/:", f"{Path(name).parent.as_posix()}/:")
        trial.wrong += [f"exit code 0, but {line}" for line in left if not line.startswith(itself)]
    elif done.code == 0:
        pass
    elif done.code in (1, 2) or (done.code == 3 and name.startswith("store")):
        if not names_path(error_of(done), name):
            trial.wrong.append(f"the path is not named: {error_of(done)}")
        if re.match(reader.rebuilt, name) and damage in _HARMED:
            trial.wrong.append(f"not made anew: {error_of(done)}")
    else:
        trial.wrong.append(f"exit code {done.code}: {error_of(done)}")
    if (
        damage == "a link out"
        and not name.startswith("store")
        and (world.place / "outside" / path.name).read_bytes() != before
    ):
        trial.wrong.append("what the link leads to was written")
    return trial


class _Raw(str):
    """A token of JSON as it is to stand there."""

    __slots__ = ()


def _replace(path: Path, draw: random.Random, change: Callable[[Any], Any]) -> None:
    """Replace one value, wherever it is in the file's JSON (or in a line's, or in YAML)."""

    def changed(content: Any) -> Any:
        places = list(_places(content))
        if not places:
            return content
        holder, key = draw.choice(places)
        new = change(holder[key])
        holder[key] = f"\0{new}\0" if isinstance(new, _Raw) else new
        return content

    _rewrite(path, draw, changed)


def _drop(path: Path, draw: random.Random) -> None:
    def changed(content: Any) -> Any:
        places = [(holder, key) for holder, key in _places(content) if isinstance(holder, dict)]
        if places:
            holder, key = draw.choice(places)
            del holder[key]
        return content

    _rewrite(path, draw, changed)


def _rewrite(path: Path, draw: random.Random, change: Callable[[Any], Any]) -> None:
    import yaml

    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = draw.randrange(len(lines))
    content = yaml.safe_load(lines[number]) if path.suffix in (".yaml", ".yml") else json.loads(lines[number])
    text = json.dumps(change(content), indent=None if len(lines) > 1 else 2)
    lines[number] = re.sub(r'"\\u0000(.*?)\\u0000"', r"\1", text)
    path.write_text("\n".join(lines) + "\n")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) of a leaf."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _outside(path: Path) -> Path:
    """Its name in the folder ``outside`` beside the shop."""
    return next(parent for parent in path.parents if (parent / "outside").is_dir()) / "outside" / path.name


def _link(path: Path) -> None:
    target = _outside(path)
    shutil.copy2(path, target)
    path.unlink()
    path.symlink_to(target)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")
