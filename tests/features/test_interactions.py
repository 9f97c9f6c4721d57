"""Pairwise products, by hand."""

import torch

from recmtl.features import Interactions
from recmtl.modules import generator


def test_products_of_pairs_by_hand():
    fields = {"a": slice(0, 2), "b": slice(2, 4), "c": slice(4, 6)}
    made = Interactions(fields, 7, generator=generator(1))
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0]])
    # a·b = 3 + 8, a·c = 5 + 12, b·c = 15 + 24; the seventh column is no field
    assert torch.equal(made(x), torch.cat([x, torch.tensor([[11.0, 17.0, 39.0]])], dim=1))
    assert made.output_dim == 10
    assert list(made.parameters()) == []
    assert made.state_dict() == {}


def test_a_field_of_another_width_is_projected_to_the_usual_one():
    fields = {"a": slice(0, 2), "type": slice(2, 5), "c": slice(5, 7)}
    made = Interactions(fields, 7, generator=generator(1))
    x = torch.randn(4, 7, generator=generator(2))
    b = x[:, 2:5] @ made.projections["type"].weight.T
    expected = [x[:, 0:2] * b, x[:, 0:2] * x[:, 5:7], b * x[:, 5:7]]
    torch.testing.assert_close(made(x)[:, 7:], torch.stack([pair.sum(1) for pair in expected], dim=1))


def test_less_than_two_fields_have_no_pairs():
    x = torch.randn(4, 3, generator=generator(2))
    for fields in ({}, {"a": slice(0, 2)}):
        made = Interactions(fields, 3, generator=generator(1))
        assert made(x) is x
        assert made.output_dim == 3
        assert list(made.parameters()) == []
