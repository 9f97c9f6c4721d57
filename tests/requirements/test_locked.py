"""The lock files hash every file that pip may choose, torch's builds included, and agree with each other."""

import re
import tomllib

import pytest

LOCKS = ("cpu", "cuda", "torch-cpu", "torch-cuda", "dev")
ONE = f"""\
one==1.0 ; sys_platform == 'win32' \\
    --hash=sha256:{"a" * 64} \\
    --hash=sha256:{"b" * 64}
"""


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_hashed_and_none_is_built_from_source(module, folder, name):
    text = (folder / f"{name}.txt").read_text()
    packages = module("locks").read(name)  # refuses a line without a hash
    assert len(packages) == len(re.findall(r"^[a-z]", text, re.MULTILINE)) > 0
    assert "\n--only-binary :all:\n" in text
    assert "://" not in text


def test_the_builds_of_torch_are_locked_with_what_each_brings(module, folder):
    locks = module("locks")
    pinned = re.search(r"^torch==(\S+)$", (folder / "pins.in").read_text(), re.MULTILINE)
    assert pinned is not None
    cpu, cuda = locks.read("torch-cpu"), {package.name: package for package in locks.read("torch-cuda")}
    assert [(package.name, package.version) for package in cpu] == [("torch", f"{pinned[1]}+cpu")]
    assert cuda["torch"].version == pinned[1]
    assert not set(cpu[0].hashes) & set(cuda["torch"].hashes)
    assert {"triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= set(cuda)
    for device in ("cpu", "cuda"):
        rest = {package.name for package in locks.read(device)}
        assert not rest & set(cuda)
        assert {"filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions"} <= rest


def test_whatever_a_locked_package_is_needed_by_is_locked_too(module):
    locks = module("locks")
    for what, names in locks.LOCKS.items():
        below = locks.LOCKS["cpu"] if what == "dev" else ()
        here = {package.name for package in locks.read(*names, *below)} | {"recmtl"}
        for package in locks.read(*names):
            assert package.via, package.name
            assert set(package.via) <= here, package.name


def test_the_devices_share_their_versions(module):
    locks = module("locks")
    cpu, cuda = ({(p.name, p.version) for p in locks.read(device)} for device in ("cpu", "cuda"))
    assert {name for name, _ in cpu ^ cuda} == {"fbgemm-gpu", "fbgemm-gpu-cpu", "nvidia-ml-py"}
    assert not {name for name, _ in cpu} & {package.name for package in locks.read("dev")}


def test_what_pyproject_asks_for_is_locked(module, folder):
    project = tomllib.loads((folder.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    locks = module("locks")
    for what, needs in {
        "cpu": project["dependencies"] + extras["cpu"],
        "cuda": project["dependencies"] + extras["cuda"],
        "dev": extras["dev"],
    }.items():
        names = {re.match(r"[A-Za-z0-9._-]+", need)[0].lower() for need in needs}
        assert names <= {package.name for package in locks.read(*locks.LOCKS[what])}, what


def test_a_lock_reads_as_it_was_written(module):
    (package,) = module("locks").parse(ONE + "    # via two, recmtl (pyproject.toml)\n")
    assert package.marker == "sys_platform == 'win32'"
    assert package.hashes == ("a" * 64, "b" * 64)
    assert package.via == ("recmtl", "two")


def test_uvs_own_comments_read_alike(module):
    text = ONE + "    # via\n    #   -c requirements/pins.in\n    #   recmtl (pyproject.toml)\n    #   two\n"
    assert module("locks").parse(text) == module("locks").parse(ONE + "    # via recmtl, two\n")


@pytest.mark.parametrize("line", ["one==1.0\n", "one>=1.0 \\\n    --hash=sha256:" + "a" * 64 + "\n", "-e .\n"])
def test_a_line_without_version_or_hash_is_no_lock(module, line):
    with pytest.raises(ValueError, match="not a package with a hash"):
        module("locks").parse(ONE + line)
