"""The shim, and a laboratory that a file's tests share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.injector import build_shim
from tests.chaos.trials import Laboratory
from tests.chaos.world import World
from tests.chaos.zygote import Zygote


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = build_shim(tmp_path_factory.mktemp("shim"))
    if made is None:
        pytest.skip("no C compiler, or no Linux: nothing can be preloaded")
    return made


@pytest.fixture(scope="session")
def laboratory(shim: Path) -> Iterator[Laboratory]:
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="recmtl-chaos-", dir=memory if memory.is_dir() else None)).resolve()
    zygote = Zygote(shim, place / "zygote")
    try:
        yield Laboratory(World(place / "world", zygote))
    finally:
        zygote.close()
        shutil.rmtree(place, ignore_errors=True)
