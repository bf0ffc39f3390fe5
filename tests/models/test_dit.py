"""DiT and MoH-DiT against the authors' model; a diffusion against its equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attensor import models
from attensor.errors import ShapeError
from attensor.models.vision.diffusion import Diffusion
from attensor.models.vision.dit import DiT, DiTConfig
from tests.golden.drawn import fingerprint, golden, listing, summaries, uniform, weighed, weights

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
CONFIG = DiTConfig(
    image_size=(6, 6), hidden_size=12, num_heads=(4, 2), head_dim=5, num_shared=(2, 2), num_active=(3, 2),
    mlp_ratio=2.0, num_classes=5,
)  # fmt: skip


def theirs(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names of the release: three projections are one."""
    found = {}
    for name, x in parameters.items():
        name = name.replace("attn.o_proj", "attn.proj").replace("attn.router.", "attn.")
        if ".q_proj." in name:
            parts = [parameters[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            name, x = name.replace(".q_proj.", ".qkv."), torch.cat(parts)
        if "k_proj" not in name and "v_proj" not in name:
            found[name] = x
    return found


def test_equals_the_authors_model() -> None:
    model = DiT(CONFIG).double().eval()
    named = dict(model.named_parameters())
    drawn = weights({f"dit.{name}": x.shape for name, x in theirs(named).items()})
    drawn = {name.removeprefix("dit."): x for name, x in drawn.items()}
    model.load_state_dict(model.convert_state_dict(drawn | {"pos_embed": torch.zeros(1, 9, 12)}))
    expected, images = golden("moh"), uniform("latent", 2, 4, 6, 6).requires_grad_()
    out = model(images, torch.tensor([3, 700]), torch.tensor([1, 4]))
    weighed(out).backward()
    torch.testing.assert_close(out, expected["dit.out"], **CLOSE)
    torch.testing.assert_close(images.grad, expected["dit.dx"], **CLOSE)
    grads = theirs({name: x.grad for name, x in named.items()})
    torch.testing.assert_close(summaries(grads), expected["dit.dp"], **CLOSE)


@pytest.mark.parametrize("name", [name for name in DiT.presets if name.startswith("moh")])
def test_released_sizes_have_the_authors_names_and_shapes(name: str) -> None:
    model = models.create(name, device="meta")
    shapes = {key: x.shape for key, x in theirs(dict(model.named_parameters())).items()}
    assert fingerprint(shapes) == listing("moh")[name]["fingerprint"]


@pytest.mark.parametrize(
    ("name", "published"), [("dit_s_2", 6.06), ("dit_b_2", 23.01), ("dit_l_2", 80.71), ("dit_xl_2", 118.64)]
)
def test_operations_are_the_paper_s(name: str, published: float) -> None:
    """GMACs of arXiv:2212.09748, table 4."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        models.create(name, device="meta").eval()(torch.empty(1, 4, 32, 32), torch.zeros(1), torch.zeros(1).long())
    assert counter.get_total_flops() / 2e9 == pytest.approx(published, rel=5e-3)


def test_a_new_model_tells_no_noise_and_guidance_leaves_what_knows_no_class() -> None:
    torch.manual_seed(0)
    model = DiT(CONFIG).eval()
    given = (torch.randn(3, 4, 8, 4), torch.tensor([0, 5, 9]), torch.tensor([0, 1, 4]))
    assert not model(*given).any()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    nothing = torch.full((3,), 5)
    torch.testing.assert_close(model.guided(*given, 1.0), model(*given))
    torch.testing.assert_close(model.guided(*given, 0.0), model(*given[:2], nothing))
    torch.testing.assert_close(model.guided(*given, 3.0), 3 * model(*given) - 2 * model(*given[:2], nothing))
    with pytest.raises(
        ShapeError, match=r"DiT: images must be \[B, 4, height, width\].*multiples of 2, got \[3, 4, 7, 4\]"
    ):
        model(given[0][:, :, 1:], *given[1:])
    with pytest.raises(ShapeError, match=r"DiT: labels must be \[B\] = \[3\], got \[2\]"):
        model(*given[:2], given[2][1:])


def test_labels_are_forgotten_in_training_alone() -> None:
    torch.manual_seed(0)
    table = DiT(CONFIG).y_embedder
    labels = torch.arange(5).repeat(400)
    forgotten = (table.train()(labels) == table.embedding_table.weight[5]).all(1).float().mean()
    assert 0.08 < forgotten < 0.12
    assert torch.equal(table.eval()(labels), table.embedding_table.weight[labels])


def test_sampling_undoes_the_noise_of_a_model_that_knows_it() -> None:
    """Of one image, the noise in x_t is (x_t - sqrt(a) x) / sqrt(1 - a): any number of steps leads back to it."""
    diffusion, image = Diffusion(100), torch.rand(1, 2, 3, 4) * 2 - 1

    def knows(images: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        kept = diffusion.kept[timesteps].float()[:, None, None, None]
        return torch.cat([(images - kept.sqrt() * image) / (1 - kept).sqrt(), images], 1)

    for steps in (1, 7, 100):
        found = diffusion.sample(knows, torch.tensor([0, 1]), (2, 3, 4), steps=steps)
        torch.testing.assert_close(found, image.expand(2, -1, -1, -1), rtol=1e-4, atol=1e-4)


def test_noise_takes_the_place_of_the_image_and_its_loss_is_its_mean_square() -> None:
    diffusion, generator = Diffusion(), torch.Generator().manual_seed(0)
    assert diffusion.kept[0] == pytest.approx(1 - 1e-4)
    assert diffusion.kept[-1] == pytest.approx(4.036e-5, rel=1e-3)
    images = torch.randn(64, 1, 8, 8)
    for time, share in ((0, 0.9999), (999, 0.0)):
        noise = torch.randn(64, 1, 8, 8)
        found = diffusion.noised(images, torch.full((64,), time), noise)
        assert (found * images).mean() == pytest.approx(share, abs=0.06)
        assert found.square().mean() == pytest.approx(1.0, abs=0.06)
    silent = diffusion.loss(lambda x, t, y: torch.zeros(64, 2, 8, 8), images, torch.zeros(64).long(), generator)
    assert silent.item() == pytest.approx(1.0, abs=0.1)
