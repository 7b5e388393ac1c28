"""Architectures are read off a state dict's names and shapes: every published one, and every kind of block."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the extra `export`")

import torch
from hspace_export import architecture
from hspace_export.models.ddpm import DdpmConfig, DdpmUNet
from hspace_export.models.diffae import Encoder, EncoderConfig, LatentConfig, LatentNet
from hspace_export.models.guided import GuidedConfig, GuidedUNet

WIDE = (1.0, 1.0, 2.0, 2.0, 4.0, 4.0)
GUIDED = {
    "afhq dog": GuidedConfig(128, WIDE, 1, (4,), 512, 6, 0, True, True, 1, 64),
    "imagenet 256": GuidedConfig(256, WIDE, 2, (3, 4, 5), 1024, 6, 0, True, True, 1, 64),
    "diffae ffhq256": GuidedConfig(128, WIDE, 2, (4,), 512, 3, 512, True, True, 1, None),
    "diffae ffhq128": GuidedConfig(128, (1.0, 1.0, 2.0, 3.0, 4.0), 2, (3,), 512, 3, 512, True, True, 1, None),
    "diffae celeba64": GuidedConfig(64, (1.0, 2.0, 4.0, 8.0), 2, (2,), 512, 3, 512, True, True, 1, None),
    "convolutions up and down": GuidedConfig(64, (1.0, 2.0), 2, (1,), 256, 3, 0, False, True, 4, None),
    "no scale-shift": GuidedConfig(64, (1.0, 2.0, 2.0), 3, (), 256, 3, 0, True, False, 1, None),
    "half-width level": GuidedConfig(64, (0.5, 1.0), 1, (0, 1), 256, 3, 0, True, True, 1, 32),
}


@pytest.mark.parametrize("config", GUIDED.values(), ids=GUIDED.keys())
def test_guided(config: GuidedConfig) -> None:
    with torch.device("meta"):
        state = GuidedUNet(config).state_dict()
    found = architecture.guided(state, num_heads=config.num_heads, num_head_channels=config.num_head_channels)
    assert found == config


@pytest.mark.parametrize(
    "config",
    [DdpmConfig(128, WIDE, 2, (4,), 3, True), DdpmConfig(32, (1.0, 2.0), 3, (0, 1), 3, False)],
    ids=["celebahq", "other"],
)
def test_ddpm(config: DdpmConfig) -> None:
    with torch.device("meta"):
        state = DdpmUNet(config).state_dict()
    found = architecture.ddpm(state)
    assert found == config


def test_diffaes_encoder_and_latent_network() -> None:
    encoder = EncoderConfig(128, (*WIDE, 4.0), 2, (4,), 512, 1)
    latent = LatentConfig(512, 2048, 20, tuple(range(1, 20)), 64, 2, 1.0)
    with torch.device("meta"):
        states = Encoder(encoder).state_dict(), LatentNet(latent).state_dict()
    assert architecture.encoder(states[0], num_res_blocks=2, num_heads=1) == encoder
    assert architecture.latent(states[1], condition_bias=1.0) == latent


@pytest.mark.parametrize("config", [GUIDED["convolutions up and down"], GUIDED["no scale-shift"]], ids=["conv", "add"])
def test_the_parts_make_the_whole(config: GuidedConfig) -> None:
    """Trunk and head of the variants that no golden network has: shapes, and `source` picks the sample."""
    torch.manual_seed(0)
    net = GuidedUNet(config).eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    with torch.no_grad():
        h, temb, skips = net.trunk(x, t)
        eps = net.head(h, temb, skips, torch.tensor([0, 1]))
        picked = net.head(h[[1, 1]], temb, skips, torch.tensor([1, 1]))
    assert eps.shape == (2, 3, 16, 16)
    assert torch.allclose(picked[0], eps[1], atol=1e-6) and torch.allclose(picked[1], eps[1], atol=1e-6)
