"""What a package may hold beside the model: a calibration, a fused score, and how they get in and out of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import recmtl.package
from recmtl import durable
from recmtl.calibration import Beta, Calibrations, Isotonic, Platt, TargetCalibration
from recmtl.errors import RunError, UserError
from recmtl.evaluation import Scored
from recmtl.evaluation.calibrating import apply_to
from recmtl.fusion import Fusion
from recmtl.package import Contents, load_package, verify_package, with_calibration, with_fusion

ROWS = pl.DataFrame(
    {
        "user_id": [1, 2, 9, None, 3] * 4,
        "item_id": ["a", None, "b", "a", "never seen"] * 4,
        "price": np.linspace(0, 3, 20),
        "age": np.linspace(10, 60, 20),
    }
)
CALIBRATION = Calibrations(
    targets={
        "click": TargetCalibration(curve=Platt(slope=0.5, intercept=-0.3), negative_rate=0.5),
        "purchase_given_click": TargetCalibration(curve=Beta(a=0.4, b=2.0, c=0.7), shift=0.1),
    },
    fitted_on="validation",
)
FUSION = Fusion(formula="click**a * (1 + purchase)**b * stars**c", weights={"a": 0.3, "b": 2.0, "c": 0.5})
MODELS = ("click", "purchase", "purchase_given_click", "watched", "stars", "mood_up", "mood_down")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "package"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# In and out


def test_a_package_without_is_as_it_was(saved: Path) -> None:
    contents = verify_package(saved)
    assert (contents.calibration, contents.fusion) == (None, None)
    assert contents.prediction_columns == MODELS
    assert {"calibration.json", "fusion.json"}.isdisjoint(files(saved))


def test_they_come_back_as_they_went_in(copy: Path) -> None:
    before = verify_package(copy)
    calibrated = with_calibration(copy, CALIBRATION)
    both = with_fusion(copy, FUSION)
    again = verify_package(copy)
    assert (again.calibration, again.fusion) == (CALIBRATION, FUSION)
    assert again.prediction_columns == (*MODELS, "score")
    assert len({before.digest, calibrated.digest, both.digest}) == 3
    assert again == both
    assert [path.name for path in copy.parent.iterdir()] == ["package"]
    listing = json.loads((copy / "hashes.json").read_text())
    assert list(listing["files"]) == sorted(listing["files"])
    assert listing["format"] == 2


def test_taken_out_it_is_the_package_that_it_was(saved: Path, copy: Path) -> None:
    with_calibration(copy, CALIBRATION)
    with_fusion(copy, FUSION)
    with_calibration(copy, None)
    assert with_fusion(copy, None).digest == verify_package(saved).digest
    assert files(copy) == files(saved)


def test_the_same_again_writes_nothing(copy: Path) -> None:
    with_calibration(copy, CALIBRATION)
    inode = copy.stat().st_ino
    with_calibration(copy, CALIBRATION)
    assert copy.stat().st_ino == inode


def test_the_order_of_putting_in_does_not_matter(saved: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        shutil.copytree(saved, folder)
    with_calibration(one, CALIBRATION)
    with_fusion(one, FUSION)
    with_fusion(other, FUSION)
    assert with_calibration(other, CALIBRATION).digest == verify_package(one).digest


def test_apart_leaves_the_other_untouched(copy: Path, tmp_path: Path) -> None:
    before = files(copy)
    output = tmp_path / "fused"
    found = with_fusion(copy, FUSION, output=output)
    assert found.folder == output
    assert files(copy) == before
    assert verify_package(output).fusion == FUSION
    assert not any((output / name).samefile(copy / name) for name in before)  # a byte changed here stays here
    with_fusion(copy, FUSION.model_copy(update={"chosen_on": "again"}), output=output)
    assert verify_package(output).fusion.chosen_on == "again"


@pytest.mark.parametrize("what", ["a file", "a folder of something else"])
def test_apart_never_removes_what_is_no_package(copy: Path, tmp_path: Path, what: str) -> None:
    place = tmp_path / "mine"
    if what == "a file":
        place.write_text("my thesis")
    else:
        place.mkdir()
        (place / "thesis").write_text("my thesis")
    with pytest.raises(UserError, match="holds something that is no package"):
        with_fusion(copy, FUSION, output=place)
    assert (place if what == "a file" else place / "thesis").read_text() == "my thesis"


def test_a_fusion_goes_with_the_calibration_that_it_was_chosen_on(copy: Path) -> None:
    with_calibration(copy, CALIBRATION)
    with_fusion(copy, FUSION.model_copy(update={"calibrated": True}))
    assert with_calibration(copy, CALIBRATION).fusion is not None
    other = CALIBRATION.model_copy(update={"fitted_on": "another day"})
    assert with_calibration(copy, other).fusion is None
    with_fusion(copy, FUSION)
    assert with_calibration(copy, None).fusion == FUSION  # it reads the model's own predictions


def test_a_model_saved_anew_has_neither(sample: Any, copy: Path) -> None:
    with_calibration(copy, CALIBRATION)
    sample.save(copy)
    assert verify_package(copy).calibration is None


def test_a_kill_between_the_two_renames_is_mended(copy: Path) -> None:
    copy.rename(copy.with_name(".package.0a1b2c3d.old"))
    assert with_calibration(copy, CALIBRATION).calibration == CALIBRATION
    assert [path.name for path in copy.parent.iterdir()] == ["package"]


def test_a_package_is_the_old_or_the_new_one_after_any_kill(
    saved: Path, tmp_path: Path, kill_at_each: Callable[[Callable[[], object], Callable[[], object]], int]
) -> None:
    """Whoever reads it next finds one of them, and the same command ends with the new one and nothing beside it."""
    package = tmp_path / "package"
    shutil.copytree(saved, package)
    before = verify_package(package).digest
    after = with_fusion(package, FUSION).digest
    seen = set()

    def look() -> None:
        seen.add(load_package(package).contents.digest)
        assert with_fusion(package, FUSION).digest == after
        durable.remove_litter(tmp_path, held=True)  # in the test the process that is dead is this one
        assert [path.name for path in tmp_path.iterdir()] == ["package"]
        with_fusion(package, None)

    with_fusion(package, None)
    kill_at_each(lambda: with_fusion(package, FUSION), look)
    assert seen == {before, after}


@pytest.mark.parametrize(
    "leftovers",
    [
        (".package.0a1b2c3d.old", ".package.0a1b2c3e.old"),  # which?
        (".package.0a1b2c3d.tmp",),  # perhaps half of one
        (".package.mine.old",),  # somebody else's
        (".other.0a1b2c3d.old",),
    ],
)
def test_what_may_be_another_thing_is_not_put_back(saved: Path, tmp_path: Path, leftovers: tuple[str, ...]) -> None:
    for name in leftovers:
        shutil.copytree(saved, tmp_path / name)
    with pytest.raises(UserError, match="no model package here"):
        verify_package(tmp_path / "package")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(leftovers)


def test_an_unfinished_leftover_is_not_put_back(tmp_path: Path) -> None:
    (tmp_path / ".package.0a1b2c3d.old").mkdir()
    with pytest.raises(UserError, match="no model package here"):
        verify_package(tmp_path / "package")


def test_a_reader_in_the_moment_between_two_renames_stops_no_writer(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    class Read(durable.Files):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if target.suffix == ".old" and not copy.exists():
                read.append(verify_package(copy).fusion)

    monkeypatch.setattr(durable, "files", Read())
    assert with_fusion(copy, FUSION).fusion == FUSION
    assert read == [FUSION]
    assert [path.name for path in copy.parent.iterdir()] == ["package"]


def test_a_write_that_fails_leaves_the_old_one(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(copy)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recmtl.package, "_write_hashes", full)
    with pytest.raises(OSError, match="No space"):
        with_calibration(copy, CALIBRATION)
    assert files(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["package"]


def test_a_file_system_without_links(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    assert with_calibration(copy, CALIBRATION).calibration == CALIBRATION


# What is refused


@pytest.mark.parametrize("name", ["calibration.json", "fusion.json"])
def test_a_changed_byte_is_refused(copy: Path, name: str) -> None:
    with_calibration(copy, CALIBRATION)
    with_fusion(copy, FUSION)
    path = copy / name
    path.write_text(path.read_text().replace("0.", "1.", 1))
    with pytest.raises(RunError, match=f"{name} is not what was packaged"):
        load_package(copy)


def test_one_that_nobody_listed_is_refused(copy: Path) -> None:
    (copy / "calibration.json").write_text(CALIBRATION.model_dump_json())
    with pytest.raises(RunError, match=r"files that it does not list: calibration\.json"):
        load_package(copy)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("calibration.json", "{}", "cannot read it"),
        ("calibration.json", '{"targets": {"stars": {}}, "fitted_on": ""}', r"calibration\.stars: there is no such"),
        ("fusion.json", '{"formula": "__import__(\'os\')", "weights": {}}', "is not allowed"),
        ("fusion.json", '{"formula": "clicks", "weights": {}}', "did you mean 'click'"),
        ("fusion.json", '{"formula": "a * click", "weights": {}}', "has the weights a, but values were given for none"),
        ("fusion.json", '{"formula": "click", "weights": {}, "calibrated": true}', "the package has no calibration"),
    ],
)
def test_listed_but_impossible(copy: Path, name: str, text: str, message: str) -> None:
    (copy / name).write_text(text)
    listing = json.loads((copy / "hashes.json").read_text())
    listing["files"][name] = recmtl.package.file_hash(copy / name)
    (copy / "hashes.json").write_text(json.dumps(listing))
    with pytest.raises(RunError, match=message):
        load_package(copy)


def test_what_the_model_does_not_predict(copy: Path) -> None:
    wrong = Calibrations(targets={"watched": TargetCalibration()}, fitted_on="validation")
    with pytest.raises(UserError, match=r"calibration\.watched"):
        with_calibration(copy, wrong)
    with pytest.raises(UserError, match="reads no prediction"):
        with_fusion(copy, Fusion(formula="likes", weights={"likes": 1.0}))
    with pytest.raises(UserError, match="reads calibrated predictions, but the package has no calibration"):
        with_fusion(copy, FUSION.model_copy(update={"calibrated": True}))


def test_asked_for_and_not_there(saved: Path) -> None:
    package = load_package(saved)
    for rows in (ROWS, ROWS.clear()):
        with pytest.raises(UserError, match=r"has no calibration; evaluate with `evaluation\.calibration`"):
            package.predict(rows, calibrated=True)
        with pytest.raises(UserError, match="has no fused score; `recmtl fuse` finds and saves one"):
            package.predict(rows, fused=True)


# Predicting


def test_old_outputs_do_not_change(saved: Path, copy: Path) -> None:
    plain = load_package(saved).predict(ROWS)
    assert tuple(plain.columns) == MODELS
    with_calibration(copy, CALIBRATION)
    assert_frame_equal(load_package(copy).predict(ROWS), plain)
    with_fusion(copy, FUSION)
    fused = load_package(copy).predict(ROWS)
    assert tuple(fused.columns) == (*MODELS, "score")
    assert_frame_equal(fused.drop("score"), plain)
    assert_frame_equal(load_package(copy).predict(ROWS, fused=False), plain)


def test_the_score_by_hand(copy: Path) -> None:
    with_fusion(copy, FUSION)
    frame = load_package(copy).predict(ROWS)
    expected = frame["click"] ** 0.3 * (1 + frame["purchase"]) ** 2 * frame["stars"] ** 0.5
    np.testing.assert_allclose(frame["score"], expected, rtol=1e-5)


def test_calibrated_when_asked(copy: Path) -> None:
    with_calibration(copy, CALIBRATION)
    package = load_package(copy)
    plain, calibrated = package.predict(ROWS), package.predict(ROWS, calibrated=True)
    assert calibrated.schema == plain.schema
    np.testing.assert_array_equal(
        calibrated["click"].to_numpy(), CALIBRATION.targets["click"].apply(plain["click"].to_numpy())
    )
    assert (calibrated["purchase"] <= calibrated["click"]).all()
    np.testing.assert_allclose(
        calibrated["purchase"], calibrated["click"] * calibrated["purchase_given_click"], rtol=1e-6
    )
    untouched = ("watched", "stars", "mood_up", "mood_down")
    assert_frame_equal(calibrated.select(untouched), plain.select(untouched))


def test_the_score_is_of_what_it_was_chosen_on(copy: Path) -> None:
    with_calibration(copy, CALIBRATION)
    with_fusion(copy, FUSION)
    raw = load_package(copy)
    assert_frame_equal(raw.predict(ROWS).select("score"), raw.predict(ROWS, calibrated=True).select("score"))
    with_fusion(copy, FUSION.model_copy(update={"calibrated": True}))
    right = load_package(copy)
    scores = [right.predict(ROWS, calibrated=calibrated)["score"].to_numpy() for calibrated in (False, True)]
    np.testing.assert_array_equal(scores[0], scores[1])
    frame = right.predict(ROWS, calibrated=True)
    expected = frame["click"] ** 0.3 * (1 + frame["purchase"]) ** 2 * frame["stars"] ** 0.5
    np.testing.assert_allclose(frame["score"], expected, rtol=1e-5)
    assert np.abs(scores[0] - raw.predict(ROWS)["score"].to_numpy()).max() > 0.01


def test_served_equals_offline(sample: Any, copy: Path) -> None:
    """Raw rows through the package, and its model's predictions through evaluation's functions, are the same bits."""
    isotonic = Isotonic(x=(0.1, 0.4, 0.9), y=(0.05, 0.5, 0.8))
    targets = {**CALIBRATION.targets, "click": TargetCalibration(curve=isotonic)}
    calibration = Calibrations(targets=targets, fitted_on="validation")
    fusion = FUSION.model_copy(update={"calibrated": True})
    with_calibration(copy, calibration)
    with_fusion(copy, fusion)
    package = load_package(copy)
    model = package.predict(ROWS, fused=False)
    offline = apply_to(
        Scored(
            predictions={name: model[name].to_numpy() for name in model.columns},
            labels={},
            observed={},
            group=None,
            row=np.arange(ROWS.height),
        ),
        calibration,
        sample.tasks,
    )
    served = package.predict(ROWS, calibrated=True, batch_rows=7)
    for name, values in offline.predictions.items():
        np.testing.assert_allclose(served[name].to_numpy(), values, rtol=1e-6)
    whole = package.predict(ROWS, calibrated=True)
    for name, values in offline.predictions.items():
        np.testing.assert_array_equal(whole[name].to_numpy(), values)
    np.testing.assert_array_equal(whole["score"].to_numpy(), fusion.apply(offline.predictions, sample.tasks))


def test_no_rows_have_the_columns_all_the_same(copy: Path) -> None:
    with_calibration(copy, CALIBRATION)
    with_fusion(copy, FUSION)
    package = load_package(copy)
    frame = package.predict(ROWS.clear(), calibrated=True)
    assert frame.schema == dict.fromkeys((*MODELS, "score"), pl.Float32)
    assert frame.height == 0
    assert package.predict_pandas(ROWS.clear().to_pandas()).shape == (0, 8)
    assert list(package.predict_pandas(ROWS.to_pandas()).columns) == list(package.prediction_columns)


def test_contents_made_by_hand_have_neither(saved: Path) -> None:
    found = verify_package(saved)
    made = Contents(
        found.folder, found.digest, found.schema, found.tasks, found.columns, found.model, found.data, found.versions
    )
    assert made == found


def test_a_damaged_package_may_be_replaced_and_nothing_else(copy: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    whole = with_fusion(copy, FUSION, output=output).digest
    (output / "hashes.json").unlink()
    assert with_fusion(copy, FUSION, output=output).digest == whole
    (output / "hashes.json").unlink()
    (output / "thesis.tex").write_text("three years")
    with pytest.raises(UserError, match="holds something that is no package"):
        with_fusion(copy, FUSION, output=output)
    assert (output / "thesis.tex").read_text() == "three years"
