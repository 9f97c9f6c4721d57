"""Which hand an error is by: the user's or the disk's."""

import errno

import pytest

from recmtl.errors import RunError, UserError, unwritable


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, RunError),
        (errno.EIO, RunError),
        (errno.EDQUOT, RunError),
        (errno.EACCES, UserError),
        (errno.EROFS, UserError),
        (errno.ENOTDIR, UserError),
    ],
)
def test_a_full_disk_is_nobodys_mistake(number: int, kind: type[Exception]) -> None:
    error = unwritable("--output out: cannot write in this folder", OSError(number, "why", "out"))
    assert type(error) is kind
    assert str(error) == "--output out: cannot write in this folder (why)"
