"""Attention as training computes it under autocast on a CPU."""

import pytest
import torch
from torch.nn import functional as F

from echostream.fairseq_plugin.mixed_precision import autocast, unfused_attention


def tensors(seed=0):
    torch.manual_seed(seed)
    query = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 3, 7, 8, dtype=torch.float64, requires_grad=True) for _ in "kv")
    mask = torch.rand(2, 1, 5, 7) < 0.6
    mask[..., 0] = True
    return query, key, value, mask


@pytest.mark.parametrize("masked", ["no", "hidden", "biased"])
def test_unfused_attention_equals_the_fused_kernel(masked):
    query, key, value, mask = tensors()
    learned = [query, key, value]
    if masked == "no":
        mask = None
    if masked == "biased":
        learned.append(torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True))
        mask = torch.where(mask, learned[-1], -torch.inf)
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    expected = torch.autograd.grad(fused.square().sum(), learned, retain_graph=True)
    plain = unfused_attention(query, key, value, mask, 0.0)
    assert torch.allclose(plain, fused, atol=1e-12)
    gradients = torch.autograd.grad(plain.square().sum(), learned)
    for found, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-12)


def test_rows_that_see_nothing_give_zeros_and_finite_gradients():
    query, key, value, mask = tensors()
    mask[0, 0, 2] = False
    attended = unfused_attention(query, key, value, mask, 0.0)
    assert not attended[0, :, 2].any() and attended[0, :, 1].any()
    gradients = torch.autograd.grad(attended.sum(), (query, key, value))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][0, :, 2].any()


def test_dropout_drops():
    query, key, value, mask = tensors()
    torch.manual_seed(1)
    first = unfused_attention(query, key, value, mask, 0.5)
    assert not torch.equal(first, unfused_attention(query, key, value, mask, 0.5))


def test_autocast_reaches_attention_and_ends_with_its_block():
    query, key, value, mask = (x.detach() for x in tensors())
    query, key, value = query.float(), key.float(), value.float()

    def attend():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.0)

    exact = attend()
    with autocast("cpu", True):
        assert attend().dtype == torch.bfloat16
        assert torch.allclose(attend().float(), exact, atol=0.05)
    with autocast("cpu", False):
        assert torch.equal(attend(), exact)
    assert torch.equal(attend(), exact)
