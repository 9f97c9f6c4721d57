"""Columns on disk: what was written is what is read, whole and in pieces."""

import numpy as np

from recmtl.evaluation.spill import Spill, is_spilled, pieces, read


def test_what_was_written_is_read(tmp_path):
    values = np.arange(1000, dtype=np.float32)
    with Spill(tmp_path / "columns") as spill:
        for start, stop in pieces(1000, 300):
            spill.append("p/../strange name", values[start:stop])
            spill.append("flag", values[start:stop] > 10)
    column = spill.column("p/../strange name", "float32")
    assert spill.columns == ("p/../strange name", "flag")
    assert (column == values).all()
    assert (spill.column("flag", "bool") == (values > 10)).all()
    assert spill.column("other", "float32").size == 0
    for start, stop in ((0, 1000), (300, 301), (990, 2000), (5, 5), (1000, 1300)):
        piece = read(column, start, stop)
        assert (piece == values[start:stop]).all()
        assert not isinstance(piece, np.memmap)
    assert is_spilled({"a": values, "b": column})
    assert not is_spilled([values])


def test_a_part_of_a_map_is_read_as_itself(tmp_path):
    with Spill(tmp_path) as spill:
        spill.append("a", np.arange(10))
    part = spill.column("a", "int64")[4:]
    assert read(part, 1, 3).tolist() == [5, 6]


def test_pieces():
    assert list(pieces(5, 2)) == [(0, 2), (2, 4), (4, 5)]
    assert list(pieces(0)) == []
