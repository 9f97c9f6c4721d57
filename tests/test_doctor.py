"""The doctor says in words what does not fit; versions are handed in, so that no broken environment is needed."""

import pytest

from recmtl import doctor
from recmtl.errors import UserError

GOOD = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}


def verdicts(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], gpu: bool = False) -> dict[str, doctor.Check]:
    monkeypatch.setattr(doctor, "_has_gpu", lambda: gpu)
    return {check.name: check for check in doctor._trio(versions)}


@pytest.mark.parametrize("torch", list(doctor.TRIOS))
def test_every_known_trio_is_well(monkeypatch: pytest.MonkeyPatch, torch: str) -> None:
    fbgemm, torchrec = doctor.TRIOS[torch]
    versions = {"torch": f"{torch}.1", "torchrec": f"{torchrec}.0", "fbgemm-gpu-cpu": f"{fbgemm}.0"}
    assert {check.verdict for check in verdicts(monkeypatch, versions).values()} == {"ok"}


@pytest.mark.parametrize(
    ("change", "name", "says", "remedy"),
    [
        ({"torch": "2.9.0"}, "torch", "2.9.0 is none of", "torch==2.13.0"),
        ({"torchrec": "1.9.2"}, "torchrec", "1.9.2 does not fit torch 2.13.0", "torchrec==1.8.0"),
        ({"fbgemm-gpu-cpu": "1.6.0"}, "fbgemm", "1.6.0 does not fit", "fbgemm-gpu-cpu==1.8.0"),
        ({"fbgemm-gpu": "1.8.0"}, "fbgemm", "both installed", "uninstall"),
    ],
)
def test_a_mismatch_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], name: str, says: str, remedy: str
) -> None:
    check = verdicts(monkeypatch, GOOD | change)[name]
    assert check.verdict == "wrong"
    assert says in check.found
    assert remedy in check.remedy


def test_the_cuda_build_without_a_gpu_is_wrong_and_the_cpu_build_with_one_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0"}
    assert verdicts(monkeypatch, cuda)["fbgemm"].verdict == "wrong"
    assert verdicts(monkeypatch, cuda, gpu=True)["fbgemm"].verdict == "ok"
    assert verdicts(monkeypatch, GOOD, gpu=True)["fbgemm"].verdict == "note"


def test_training_refuses_a_mismatch_before_any_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_versions", lambda: GOOD | {"torchrec": "1.6.1"})
    monkeypatch.setattr(doctor, "_has_gpu", lambda: False)
    with pytest.raises(UserError, match=r"torchrec 1\.6\.1 does not fit torch 2\.13\.0\+cpu.*pip install"):
        doctor.require_trio()


def test_a_process_that_dies_is_a_finding_not_a_crash() -> None:
    good, said = doctor._python_says("import os; os.abort()")
    assert not good
    assert "died" in said or said
    assert doctor._python_says("print('x')") == (True, "x")


def test_the_operators_of_this_environment_work() -> None:
    assert doctor._operators().verdict == "ok"
