"""Muon against torch's, and the laws of its orthogonal step."""

import torch
from torch import nn

from attensor.models.language import Decoder, DecoderConfig
from attensor.nn import SoftmaxAttention
from attensor.train.checkpoint import load_checkpoint, save_checkpoint
from attensor.train.muon import muon, orthogonal
from attensor.train.optimizer import adamw


class Parts(nn.Module):
    """Wide and tall matrices, a vector, an embedding, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 5)
        self.wide, self.tall, self.square = nn.Linear(7, 3), nn.Linear(3, 7, bias=False), nn.Linear(5, 5)
        self.lm_head = nn.Linear(5, 11, bias=False)


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_an_orthogonal_step_has_singular_values_near_one():
    matrices = (
        torch.randn(4, 5, 13, generator=torch.Generator().manual_seed(2))
        * torch.tensor([1e-4, 1.0, 7.0, 1e3])[:, None, None]
    )
    found = orthogonal(matrices)
    assert torch.linalg.svdvals(found).min() > 0.5
    assert torch.linalg.svdvals(found).max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert (torch.linalg.matrix_norm(found - u @ v) < 0.35 * 5**0.5).all()


def test_matrices_of_linear_layers_step_as_torch_says():
    """torch computes in bfloat16, so that only a hundredth of a step is known."""
    own, other = Parts(), Parts()
    rate = 0.01
    ours = muon(own, rate)
    names = ("wide", "tall", "square")
    matrices = [getattr(other, name).weight for name in names]
    theirs = torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        set_gradients(own, step)
        set_gradients(other, step)
        ours.step()
        theirs.step()
    for name, matrix in zip(names, matrices, strict=True):
        torch.testing.assert_close(getattr(own, name).weight, matrix, rtol=0, atol=0.02 * 4 * rate * 0.2 * 7**0.5)


def test_everything_else_steps_as_adamw():
    own, other = Parts(), Parts()
    ours, theirs = muon(own, 0.01), adamw(other, 0.01)
    for step in range(3):
        set_gradients(own, step)
        set_gradients(other, step)
        ours.step()
        theirs.step()
    for name in ("embed.weight", "wide.bias", "square.bias", "lm_head.weight"):
        assert torch.equal(own.get_parameter(name), other.get_parameter(name))
    assert not torch.equal(own.wide.weight, other.wide.weight)
    assert own.wide.weight.grad is not None


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    one, two = Parts(), Parts()
    straight, first = muon(one, 0.01), muon(two, 0.01)
    for step in range(5):
        set_gradients(one, step)
        straight.step()
    for step in range(2):
        set_gradients(two, step)
        first.step()
    save_checkpoint(tmp_path / "state", two, first, {})
    again = Parts()
    second = muon(again, 0.01)
    load_checkpoint(tmp_path / "state", again, second)
    for step in range(2, 5):
        set_gradients(again, step)
        second.step()
    for ours, theirs in zip(again.parameters(), one.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_embedding_of_a_decoder_is_no_matrix_of_it():
    model = Decoder(DecoderConfig(19, 8, 2, 2, 12), lambda index: SoftmaxAttention(8, 2))
    chosen = {id(p) for p in muon(model, 0.1).param_groups[-1]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in chosen}
    assert "embed_tokens.weight" not in names
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in names} >= {
        "gate_proj",
        "up_proj",
        "down_proj",
        "q_proj",
    }
