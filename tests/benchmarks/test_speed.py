"""The pure parts of benchmarks/speed: what is counted, who takes turns when, what is told."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """A module of the benchmark by name: they import each other as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(SPEED))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(SPEED)):
            del sys.modules[name]


def test_operations_of_a_small_work_by_hand(module):
    work = module("work").Work(
        cardinalities=(5, 7), dim=4, numbers=3, experts=2, expert_widths=(6,), head_widths=(5,), tasks=1
    )
    # 8 embedded columns and 3 numbers into 2 experts of 6; one gate of 2; mixing 2 experts of 6; a tower 6 → 5 → 1
    forward = 11 * 6 * 2 + 11 * 2 + 2 * 6 + 6 * 5 + 5
    assert work.forward_flop() == 2 * forward
    # back: the weights' gradients take as much again, the inputs' as well but for the 3 numbers' columns
    assert work.training_flop() == 2 * (3 * forward - 3 * (6 * 2 + 2))


def test_the_agreed_work_is_what_was_agreed(module):
    work = module("work").Work()
    assert (work.rows, work.features, work.width) == (2_964_334, 26, 429)
    assert work.training_flop() == pytest.approx(3.62e6, rel=1e-3)
    assert work.times(10).rows == 29_643_340
    assert work.times(10).training_flop() == work.training_flop()


def test_the_steps_matrices_hold_every_product_but_the_mixing(module):
    work = module("work").Work()
    batch = 64
    counted = sum(2 * m * k * n * times for _, m, k, n, times in work.matrices(batch))
    mixing = next(product.training for product in work.products() if product.name == "mixing")
    assert counted == batch * (work.training_flop() - mixing)


def test_ratios_are_of_the_same_round(module):
    measure = module("measure")
    rounds = [
        {"turns": {"a": {"rows": 20, "seconds": 1.0}, "b": {"rows": 10, "seconds": 1.0}}},
        {"turns": {"a": {"rows": 9, "seconds": 1.0}, "b": {"rows": 3, "seconds": 1.0}}},
        {"turns": {"b": {"rows": 50, "seconds": 1.0}}},
    ]
    a, b = measure.rates(rounds, "a"), measure.rates(rounds, "b")
    assert measure.ratios(a, b) == [2.0, 3.0]
    assert measure.fastest([a, b]) == {0: 20.0, 1: 9.0, 2: 50.0}
    assert measure.quartiles([1, 2, 3, 4, 5]) == [2, 3, 4]
    assert measure.quartiles([7.0]) == [7.0, 7.0, 7.0]
    assert measure.median([]) is None


def test_the_host_is_charged_with_what_is_not_ours(module):
    measure = module("measure")
    before = {"time": 0.0, "load": 1.0, "ticks": 100, "idle": 50, "stolen": 0, "ours": 10}
    after = {"time": 2.0, "load": 3.0, "ticks": 300, "idle": 90, "stolen": 10, "ours": 60}
    found = measure.between(before, after)
    assert found == {"seconds": 2.0, "load": [1.0, 3.0], "stolen": 0.05, "others": 0.5}


CONTENDER = """
import sys
from turns import Turns
print("a library says hello", flush=True)
turns = Turns()
print("and again")
def step(batch, seconds):
    if batch == 13:
        raise ValueError("unlucky")
    if batch == 99:
        sys.exit(3)
    return {"rows": batch, "seconds": 0.5}
turns.serve(step=step)
"""


def test_everyone_takes_turns_in_a_changing_order_and_a_failure_stops_nobody_else(module, tmp_path):
    contenders = module("contenders")
    script = tmp_path / "side.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(SPEED)!r})\n{CONTENDER}")
    specs = [contenders.Spec(name, (sys.executable, str(script))) for name in ("a", "b", "unlucky", "dies")]
    specs.append(contenders.Spec("absent", (str(tmp_path / "nothing"),)))
    errors: dict[str, str] = {}
    with contenders.field_of(specs, 1, tmp_path / "logs", errors) as there:
        pids = [contender.process.pid for contender in there.values()]
        commands = {"a": 1, "b": 2, "unlucky": 13, "dies": 99}
        commands = {name: {"do": "step", "batch": batch, "seconds": 0} for name, batch in commands.items()}
        found = contenders.race(there, commands, rounds=6, seed=1)
    assert list(errors) == ["absent"]
    assert len(pids) == 4
    assert [sorted(each["turns"]) for each in found.rounds] == [["a", "b"]] * 6
    assert {tuple(each["order"]) for each in found.rounds[1:]} == {("a", "b"), ("b", "a")}
    assert found.rounds[0]["turns"]["b"]["rows"] == 2
    assert "ValueError: unlucky" in found.errors["unlucky"]
    assert "ended with 3" in found.errors["dies"]
    assert found.peaks["a"] > 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _record(**rates):
    turns = {name.replace("_", " "): {"rows": rate, "seconds": 1.0} for name, rate in rates.items()}
    return {"turns": turns, "host": {"seconds": 1.0, "others": 0.1, "stolen": 0.0, "load": [1.0, 2.0]}}


def test_the_headline_and_the_tables(module):
    report, work = module("report"), module("work").Work()
    rounds = []
    for speed in (1.0, 2.0, 3.0):
        each = _record(recmtl=60 * speed, peer=20 * speed, slower=10)
        each["turns"]["plain, fused Adam"] = {"rows": 30 * speed, "seconds": 1.0}
        each["turns"]["machine"] = {"flops": 100 * speed * work.training_flop()}
        rounds.append(each)
    kinds = {"recmtl": "recmtl", "plain, fused Adam": "plain", "peer": "peer", "slower": "peer", "machine": "ceiling"}
    heat = {"rounds": rounds, "errors": {"gone": "it died"}, "peak_bytes": {"recmtl": 10**9}}
    result = {"parts": {"step": {"heats": {"step at 4096": heat}, "kinds": kinds, "peers_missing": {"x": "no wheel"}}}}
    result["headline"] = report.headline(result["parts"])
    assert result["headline"] == {
        "step_share_of_ceiling": 0.6,
        "step_over_plain_reference": 2.0,
        "step_over_fastest_peer": 3.0,
        "end_to_end_over_step": None,
    }
    json.dumps(result)
    text = report.markdown(result)
    assert "| recmtl | 120 (90–150) | 60% |  | 1.00 |" in text
    assert "| plain, fused Adam | 60 (45–75) | 30% | 2.00 |  |" in text
    assert "Not there: x: no wheel" in text
    assert "gone, step at 4096: it died" in text
    for title in ("10 rows, peer", "1000 rows, peer"):
        result["parts"].setdefault("rows", {"heats": {}, "kinds": {"peer": "peer"}})["heats"][title] = heat
    result["parts"]["batch"] = {"heats": {f"step at {size}": heat for size in (256, 1024)}, "kinds": kinds}
    drawn = "".join(ElementTree.fromstring(report.plot(result)).itertext())
    assert "ceiling 200" in drawn
    assert "µs per sample by rows of the tables" in drawn
    assert "samples/s by size of the batch" in drawn


def test_every_peers_pins_are_hashed_and_its_environment_is_made_from_them(module, monkeypatch, tmp_path):
    installed = module("installed")
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(installed, "_run", lambda name, *command: asked.append(command))
    for name, (package, _) in installed.PEERS.items():
        pins = installed.HERE / "peers" / f"{package}.txt"
        blocks = [block for block in re.split(r"(?m)^(?=[a-z])", pins.read_text()) if not block.startswith("#")]
        assert f"{package}==" in pins.read_text()
        assert "\n--only-binary :all:\n" in pins.read_text()
        assert all("==" in block and "--hash=sha256:" in block for block in blocks)
        (tmp_path / package).mkdir()
        python = installed.install(name, tmp_path, "cpu")
        assert ("bash", str(installed.LOCKS / "install.sh"), str(python), "cpu", str(pins)) in asked
        assert not any("install" in command for command in asked)  # pip, past install.sh
        asked.clear()
        assert installed.install(name, tmp_path, "cpu") == python
        assert not asked  # the second time it is there
        installed.install(name, tmp_path, "cuda")
        assert asked  # the other device's torch
