"""Checkpoints: whole or not at all, verified, the newest few kept."""

import json

import pytest
import torch

from recmtl.errors import RunError, UserError
from recmtl.progress import Silent
from recmtl.training.checkpoint import Checkpoints


class Store:
    def __init__(self, folder):
        self.folder = folder
        self.progress = Silent()

    def open(self, keep=2, identity="a"):
        return Checkpoints(self.folder, keep=keep, identity=identity, progress=self.progress)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "checkpoints")


def tensors(step):
    whole = torch.arange(12.0).view(3, 4) + step
    return {"view": whole[:, :2], "other": whole[:, 2:], "number": torch.tensor(step), "nothing": torch.empty(0, 3)}


def test_what_is_saved_comes_back(store):
    store.open().save(7, tensors(7), {"epoch": 1, "score": 0.1 + 0.2, "best": None})
    found = store.open().newest()
    assert found.state["epoch"] == 1
    assert found.state["score"] == 0.1 + 0.2
    assert found.state["step"] == 7
    assert found.tensors.shapes() == {"view": (3, 2), "other": (3, 2), "number": (), "nothing": (0, 3)}
    whole = found.tensors.whole()
    for name, tensor in tensors(7).items():
        assert torch.equal(whole[name], tensor)
        assert whole[name].dtype == tensor.dtype


def test_nothing_saved_is_nothing_found(store):
    assert store.open().newest() is None


def test_the_newest_few_are_kept(store):
    checkpoints = store.open(keep=2)
    for step in (5, 10, 15):
        checkpoints.save(step, tensors(step), {})
    assert sorted(path.name for path in store.folder.iterdir()) == ["newest", "step-000000010-00", "step-000000015-00"]
    assert (store.folder / "newest").read_text() == "step-000000015-00\n"
    assert checkpoints.newest().tensors.whole()["number"].item() == 15


def test_nothing_is_overwritten(store):
    checkpoints = store.open()
    for number in (1, 2):
        checkpoints.save(5, tensors(number), {})
    assert sorted(path.name for path in store.folder.glob("step-*")) == ["step-000000005-00", "step-000000005-01"]
    assert checkpoints.newest().tensors.whole()["number"].item() == 2
    checkpoints.save(5, tensors(3), {})
    assert sorted(path.name for path in store.folder.glob("step-*")) == ["step-000000005-01", "step-000000005-02"]


@pytest.mark.parametrize("file", ["tensors-00000.safetensors", "state.json", "hashes.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_a_damaged_newest_falls_back_to_the_one_before(store, file, harm):
    checkpoints = store.open()
    for step in (5, 10):
        checkpoints.save(step, tensors(step), {})
    path = store.folder / "step-000000010-00" / file
    content = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert checkpoints.newest().tensors.whole()["number"].item() == 5
    assert "step-000000010-00 is damaged" in store.progress.warnings[0]
    checkpoints.save(10, tensors(10), {})
    assert store.open().newest().tensors.whole()["number"].item() == 10


def test_all_damaged_is_a_beginning_with_warnings(store):
    store.open().save(5, tensors(5), {})
    (store.folder / "step-000000005-00" / "hashes.json").write_text("{}")
    assert store.open().newest() is None
    assert len(store.progress.warnings) == 1


def test_a_pointer_that_points_nowhere_is_passed_over(store):
    store.open().save(5, tensors(5), {})
    for content in ("step-000000099-00", "../elsewhere", "\x00", ""):
        (store.folder / "newest").write_text(content)
        assert store.open().newest().tensors.whole()["number"].item() == 5
    (store.folder / "newest").unlink()
    assert store.open().newest().tensors.whole()["number"].item() == 5


def test_remains_of_a_killed_process_are_removed(store):
    store.open().save(5, tensors(5), {})
    (store.folder / ".unfinished-step-000000010-00").mkdir()
    (store.folder / ".unfinished-step-000000010-00" / "tensors-00000.safetensors").write_bytes(b"half")
    (store.folder / ".unfinished-newest").write_text("step-0")
    checkpoints = store.open()
    assert sorted(path.name for path in store.folder.iterdir()) == ["newest", "step-000000005-00"]
    checkpoints.save(10, tensors(10), {})
    assert checkpoints.newest().tensors.whole()["number"].item() == 10


def test_another_config_or_other_data_is_refused(store):
    store.open(identity="a").save(5, tensors(5), {})
    with pytest.raises(UserError, match="another config or other data"):
        store.open(identity="b").newest()


def test_best_weights_stay_while_a_kept_checkpoint_names_them(store):
    checkpoints = store.open(keep=2)
    first = checkpoints.save_best(5, tensors(5))
    checkpoints.save(5, tensors(5), {"best": first})
    checkpoints.save(8, tensors(8), {"best": first})
    second = checkpoints.save_best(10, tensors(10))
    checkpoints.save(10, tensors(10), {"best": second})
    assert torch.equal(checkpoints.load_best(first).whole()["view"], tensors(5)["view"])
    checkpoints.save(12, tensors(12), {"best": second})
    assert not (store.folder / first).exists()
    assert torch.equal(checkpoints.load_best(second).whole()["view"], tensors(10)["view"])


def test_a_checkpoint_whose_best_weights_are_damaged_is_passed_over(store):
    checkpoints = store.open()
    first = checkpoints.save_best(5, tensors(5))
    checkpoints.save(5, tensors(5), {"best": first})
    second = checkpoints.save_best(10, tensors(10))
    checkpoints.save(10, tensors(10), {"best": second})
    (store.folder / second / "tensors-00000.safetensors").write_bytes(b"")
    assert checkpoints.newest().tensors.whole()["number"].item() == 5
    with pytest.raises(RunError, match="does not have the hash"):
        checkpoints.load_best(second)


def test_a_name_cannot_lead_out_of_the_folder(store):
    checkpoints = store.open()
    for name in ("../best-1", "best-1/../../x", "step-000000005-00"):
        with pytest.raises(RunError, match="no name of weights"):
            checkpoints.load_best(name)


def test_weights_that_are_saved_twice_are_saved_once(store):
    checkpoints = store.open()
    assert checkpoints.save_best(5, tensors(5)) == checkpoints.save_best(5, tensors(5))
    assert len(list(store.folder.iterdir())) == 1


def test_nothing_is_pickled(store):
    checkpoints = store.open()
    checkpoints.save(5, tensors(5), {})
    folder = store.folder / "step-000000005-00"
    assert sorted(path.name for path in folder.iterdir()) == ["hashes.json", "state.json", "tensors-00000.safetensors"]
    json.loads((folder / "state.json").read_text())


def test_a_full_disk_is_said(store, monkeypatch):
    checkpoints = store.open()
    checkpoints.save(5, tensors(5), {})

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recmtl.training.storage.save_file", full)
    with pytest.raises(RunError, match=r"cannot save a checkpoint: .*No space left"):
        checkpoints.save(10, tensors(10), {})
    with pytest.raises(RunError, match="cannot save the best weights"):
        checkpoints.save_best(10, tensors(10))
    monkeypatch.undo()
    assert store.open().newest().tensors.whole()["number"].item() == 5
