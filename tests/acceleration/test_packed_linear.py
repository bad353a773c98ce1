"""Projections with laid out weights against plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from echostream.acceleration.packed_linear import PackedLinear, has_packed_kernels, pack, unpack

pytestmark = pytest.mark.skipif(not has_packed_kernels(), reason="torch was built without oneDNN")


def linears(bias=True):
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(48, 80, bias=bias), nn.Linear(80, 24, bias=bias)).eval()
    return plain, pack(copy.deepcopy(plain), min_weights=48 * 80)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 48), (1, 8, 48), (3, 5, 48), (1, 300, 48), (7, 48)])
def test_equals_the_plain_projection(shape, bias):
    plain, packed = linears(bias)
    assert [type(layer) for layer in packed] == [PackedLinear, nn.Linear]
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), plain(x), atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not has_packed_kernels(torch.bfloat16), reason="no bfloat16 on this processor")
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 5, 48), (1, 0, 48), (1, 300, 48)])
def test_bfloat16_equals_the_plain_projection(shape):
    plain = linears()[0].bfloat16()
    packed = pack(copy.deepcopy(plain), min_weights=48 * 80)
    assert [type(layer) for layer in packed] == [PackedLinear, nn.Linear]
    x = torch.randn(shape).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(packed(x), plain(x), atol=0.01, rtol=0.02)


def test_few_rows_of_a_slice_and_none_at_all():
    plain, packed = linears()
    rows = torch.randn(1, 9, 96)[:, 2:7, ::2]
    with torch.no_grad():
        torch.testing.assert_close(packed(rows), plain(rows), atol=1e-6, rtol=1e-5)
        assert packed(rows[:, :0]).shape == (1, 0, 24)


def test_changed_weights_are_laid_out_again():
    plain, packed = linears()
    x = torch.randn(1, 8, 48)
    with torch.no_grad():
        packed(x)
        for model in (plain, packed):
            model[0].weight.mul_(2.0)
        torch.testing.assert_close(packed(x), plain(x), atol=1e-6, rtol=1e-5)


def test_gradients_and_state_dict_are_those_of_the_plain_projection():
    plain, packed = linears()
    x = torch.randn(1, 8, 48, requires_grad=True)
    (expected,) = torch.autograd.grad(plain(x).sum(), x)
    (got,) = torch.autograd.grad(packed(x).sum(), x)
    assert torch.equal(got, expected)
    assert list(packed.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(packed.state_dict())


def test_unpack_gives_plain_layers_with_the_same_weights():
    plain, packed = linears()
    weight = packed[0].weight
    back = unpack(packed)
    assert [type(layer) for layer in back] == [nn.Linear, nn.Linear]
    assert back[0].weight is weight and back[0].out_features == 80
    x = torch.randn(1, 8, 48)
    with torch.no_grad():
        assert torch.equal(back(x), plain(x))
