"""The head that is exported does the skips' share of its blocks once per trunk sample: against the plain one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="exports need the extra `export`")

from hspace_export.graph import Head, relative_error, trace, unet_parts  # noqa: E402
from hspace_export.models.ddpm import DdpmConfig, DdpmUNet  # noqa: E402
from hspace_export.models.guided import GuidedConfig, GuidedUNet  # noqa: E402
from hspace_export.models.layers import SkipBlock  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE, N, M, Z = 16, 2, 3, 6
LIMIT = 2e-6


def ddpm(*mult: float) -> nn.Module:
    return DdpmUNet(DdpmConfig(32, mult, 1, (1,), 3, True))


def guided(mult: tuple[float, ...], z: int, updown: bool, scale_shift: bool) -> nn.Module:
    return GuidedUNet(GuidedConfig(32, mult, 1, (1,), 64, 3, z, updown, scale_shift, 2, None))


def diffusers(prediction: str, **settings: Any) -> nn.Module:
    UNet2DModel = pytest.importorskip("diffusers", reason="needs the extra `diffusers`").UNet2DModel
    from hspace_export.models.diffusers import DiffusersUNet

    small = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 16,
    }
    return DiffusersUNet(UNet2DModel(**small | settings), torch.linspace(0.99, 0.01, 1000).double(), prediction)


RESNET = {
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "mish",
}
# name → the network, and how many channels of each block's skip lie in a group of h's
CASES: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "ddpm": (lambda: ddpm(1, 1), [0, 0, 0, 0]),
    "ddpm, borders within groups": (lambda: ddpm(1, 2), [0, 2, 2, 0]),
    "guided": (lambda: guided((1, 1), 0, True, True), [0, 0, 0, 0]),
    "guided, plain": (lambda: guided((1, 2), 0, False, False), [0, 2, 2, 0]),
    "diffae": (lambda: guided((1, 2, 4), Z, True, True), [0, 4, 4, 2, 2, 0]),
    "diffusers": (lambda: diffusers("epsilon"), [0, 2, 2, 0]),
    "diffusers, v": (lambda: diffusers("v_prediction", **RESNET), [0, 2, 2, 0]),
    "diffusers, one group": (lambda: diffusers("sample", norm_num_groups=1), [64, 32, 32, 32]),
}


def head(make: Callable[[], nn.Module]) -> Any:
    """The head of a network with random weights, none of them a norm's ones and zeros."""
    torch.manual_seed(0)
    unet = make().eval()
    with torch.no_grad():
        for p in unet.parameters():
            p.normal_(std=p[0].numel() ** -0.5) if p.ndim > 1 else p.add_(0.3 * torch.randn_like(p))
    return unet_parts(unet, SIZE, getattr(unet.config, "z_channels", 0) if hasattr(unet, "config") else 0)["head"]


def drawn(part: Any, source: list[int]) -> list[Any]:
    sizes = {"N": N, "M": len(source)}
    shapes = [[sizes[d] if isinstance(d, str) else d for d in shape] for _, shape in part.inputs.values()]
    made = [torch.randn(s) for s in shapes]
    made[list(part.inputs).index("source")] = torch.tensor(source)
    return made


@pytest.mark.parametrize("name", CASES)
def test_the_shared_head_is_the_plain_one(name: str) -> None:
    make, borders = CASES[name]
    part = head(make)
    assert isinstance(part.module, Head)
    before = {k: v.clone() for k, v in part.module.state_dict().items()}
    shared = part.module.shared()
    seed = secrets.randbelow(2**31)
    torch.manual_seed(seed)
    for source in ([0, 1, 0], [1, 1, 0], [1], [0, 0, 1, 1]):
        inputs = drawn(part, source)
        with torch.no_grad():
            expected, got = part.module(*inputs), shared(*inputs)
        error = relative_error(got.numpy(), expected.numpy())
        print(f"{name} {source}: {error:.1e}")
        assert error <= LIMIT, f"source {source}, seed {seed}"
    blocks = [b for b in shared.modules() if isinstance(b, SkipBlock) and b.own is not None]
    assert sorted(b.border for b in blocks) == sorted(borders)
    after = part.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", ["ddpm", "guided"])
def test_the_graph_joins_no_feature_maps(name: str) -> None:
    """No Concat nor Slice of [batch, channels, height, width], and half of the blocks' first convolutions are on N."""
    make, borders = CASES[name]
    part = head(make)
    assert not part.module.share  # images this small are not worth it
    part.module.share = True
    model = trace(part, "fp32")
    dims = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    outputs = [(n.op_type, dims[n.output[0]]) for n in model.graph.node if n.output[0] in dims]
    maps = [(kind, shape[0]) for kind, shape in outputs if len(shape) == 4]
    assert not {"Concat", "Slice"} & {kind for kind, _ in maps}
    assert maps.count(("Conv", "N")) == 2 * len(borders)  # with the shortcuts
    assert {n for kind, n in maps if kind == "Conv"} == {"N", "M"}
