"""The hook for diffusers: folders of an unconditional UNet2DModel and its scheduler, as `save_pretrained` writes them.

Everything that a folder says is checked here, before the library sees it; nothing is looked up beyond the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from hspace import manifest as contract
from hspace.errors import ArgumentError, CheckpointError
from msgspec import Meta, Struct
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from . import architecture, asyrp
from .checkpoint import StateDict, check_tensors, load, looks_like, read_json, source, tensors, unknown
from .exporter import Model, Settings, few_steps
from .graph import unet_parts
from .models.diffusers import DiffusersUNet, Prediction

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_UNET, _SCHEDULER = "UNet2DModel", "scheduler_config.json"
_DOWN = {"DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"}
_UP = {"UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"}
# attention's tensors as the library named them before 0.14, and as it names them now
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(?<=\.attentions\.)(\d+)\.({'|'.join(_RENAMED)})(?=\.)")

Count = Annotated[int, Meta(ge=1, le=65536)]
Spacing = Literal["leading", "linspace", "trailing"]


class _UNetConfig(Struct, frozen=True, kw_only=True):
    """What a UNet2DModel's config.json may say; the defaults are the library's, as old files leave keys out.

    The fields are the constructor's own. Its others are in `_UNET_WITHOUT_EFFECT`, or refused by `_unet_config`.
    """

    in_channels: Literal[3] = 3
    out_channels: Literal[3, 6] = 3
    center_input_sample: bool = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Count | None = None
    freq_shift: Annotated[int, Meta(ge=-65536, le=65536)] = 0
    flip_sin_to_cos: bool = True
    down_block_types: Annotated[tuple[str, ...], Meta(min_length=1, max_length=16)] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[Count, ...] = (224, 448, 672, 896)
    layers_per_block: Annotated[int, Meta(ge=1, le=64)] = 2
    mid_block_scale_factor: Annotated[float, Meta(gt=0, le=1e6)] = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    attention_head_dim: Count | None = 8
    norm_num_groups: Count = 32
    attn_norm_num_groups: Count | None = None
    norm_eps: Annotated[float, Meta(gt=0, le=1)] = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    sample_size: int | list[int] | None = None


class _SchedulerConfig(Struct, frozen=True, kw_only=True):
    """What the schedulers' configs have in common. Where a class has another default than DDPMScheduler, `_CLASSES`
    has it.
    """

    num_train_timesteps: Annotated[int, Meta(ge=2, le=1_000_000)] = 1000
    beta_start: Annotated[float, Meta(ge=0, le=1)] = 1e-4
    beta_end: Annotated[float, Meta(ge=0, le=1)] = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    trained_betas: list[float] | None = None
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"] | None = (
        "fixed_small"
    )
    clip_sample: bool = True
    clip_sample_range: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    prediction_type: Prediction = "epsilon"
    timestep_spacing: Spacing = "leading"
    thresholding: Literal[False] = False
    rescale_betas_zero_snr: Literal[False] = False
    steps_offset: Literal[0] = 0
    set_alpha_to_one: Literal[True] = True
    use_flow_sigmas: Literal[False] = False
    predict_epsilon: Literal[True] = True  # before prediction_type was there


# what the constructors take besides: dropout acts in training alone; the rest is of conditions, learned times and
# thresholding, which are refused, and of these schedulers' own steps (beyond DDIM's), which are not reproduced
_UNET_WITHOUT_EFFECT = {"dropout", "num_train_timesteps", "class_embed_type", "num_class_embeds"}
_OWN_STEPS = """
    dynamic_thresholding_ratio sample_max_value tensor_format skip_prk_steps solver_order algorithm_type solver_type
    lower_order_final euler_at_final use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas flow_shift
    final_sigmas_type lambda_min_clipped use_dynamic_shifting time_shift_type predict_x0 disable_corrector solver_p
    sigma_min sigma_max shift_terminal
"""

# Schedulers whose β are computed alike, and their defaults. The last three's own steps are not reproduced.
_CLASSES: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {},
    "DDIMScheduler": {},
    "DDIMInverseScheduler": {},
    "PNDMScheduler": {"clip_sample": False},
    "DPMSolverMultistepScheduler": {"clip_sample": False, "timestep_spacing": "linspace"},
    "UniPCMultistepScheduler": {"clip_sample": False, "timestep_spacing": "linspace"},
}
_SAMPLERS = {"fixed_small": "ddpm", "fixed_small_log": "ddpm", "fixed_large": "ddpm_large", None: "ddpm"}


def load_model(folder: Path, *, attributes: Mapping[str, Path], settings: Settings) -> Model:
    """The U-Net of a pipeline folder (unet/, scheduler/), or of one that has its files side by side.

    Presets: "asyrp", "official" (diffusers' DDIM), where the variance is not learned "ddpm", and `few_steps`.
    """
    config_path, scheduler_path, weights = _files(folder)
    config, told = _unet_config(config_path)
    schedule, more = _scheduler_config(scheduler_path)
    learned = schedule.variance_type in ("learned", "learned_range")
    if config.out_channels == 6 and not learned:
        raise CheckpointError(f"{config_path}: out_channels: found 6, expected 3 where the variance is not learned")
    size = _image_size(config_path, config, settings)
    image = _schedule(scheduler_path, schedule)
    channels, embed = config.block_out_channels[-1], config.time_embedding_dim or 4 * config.block_out_channels[0]
    blocks = {
        name: asyrp.delta_block(path, channels=channels, embed=embed, layout="ddpm", n_train=settings.n_train)
        for name, path in attributes.items()
    }
    unet = _network(weights, config)
    network = DiffusersUNet(unet, torch.from_numpy(image.build().alphas_cumprod), schedule.prediction_type)
    roles = {"checkpoint": weights, "config": config_path, "scheduler": scheduler_path}
    roles |= {f"attribute {name}": path for name, path in attributes.items()}
    kept = {k: v for k, v in msgspec.to_builtins(config).items() if v is not None}
    return Model(
        family="asyrp",
        image_size=size,
        parts=unet_parts(network.eval(), size, 0),
        schedules=contract.Schedules(image=image),
        presets=_presets(schedule, image),
        config={"layout": "diffusers", "prediction_type": schedule.prediction_type, "unet": kept},
        sources={role: source(path) for role, path in roles.items()},
        attributes=blocks,
        licence=settings.licence or "",
        warnings=told + more,
    )


# --- files --------------------------------------------------------------------------------------------


def _files(folder: Path) -> tuple[Path, Path, Path]:
    """config.json, scheduler_config.json and the weights of either layout."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: {'a file' if folder.exists() else 'no such folder'}, expected a folder")
    _check_pipeline(folder / "model_index.json")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    config, scheduler_config = unet / "config.json", scheduler / _SCHEDULER
    for path in (config, scheduler_config):
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file, expected a diffusers folder: unet/ and scheduler/, or config.json, "
                f"{_SCHEDULER} and the weights side by side"
            )
    weights = [unet / name for name in _WEIGHTS if (unet / name).is_file()]
    if not weights:
        raise CheckpointError(f"{unet}: has no {_WEIGHTS[0]} and no {_WEIGHTS[1]}")
    return config, scheduler_config, weights[0]


def _check_pipeline(path: Path) -> None:
    """Refuses pipelines with more than a U-Net and a scheduler: the states of those are no images."""
    if path.is_file():
        others = sorted(k for k in _object(path) if not k.startswith("_") and k not in ("unet", "scheduler"))
        if others:
            raise CheckpointError(
                f"{path}: found the components {', '.join(others)[:100]}, expected unet and scheduler alone"
            )


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path, "an object")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object in JSON")
    return content


def _unknown(path: Path, settings: dict[str, Any], kind: type[Any], without_effect: set[str]) -> list[str]:
    """A warning of unknown keys; those with _ before them are the library's own notes."""
    known = without_effect.union(kind.__struct_fields__)
    return unknown(str(path), (k for k in settings if not k.startswith("_") and k not in known))


def _read(path: Path, settings: dict[str, Any], kind: type[Any]) -> Any:
    """`settings` as a struct, or an error that names the first key at fault, what it holds and what it may hold."""
    for field in msgspec.structs.fields(kind):
        if field.name in settings:
            try:
                msgspec.convert(settings[field.name], field.type)
            except msgspec.ValidationError as e:
                value, text = _shown(settings[field.name]), str(e)
                choices = " or ".join(map(json.dumps, _choices(field.type)))
                wanted = f"expected {choices}" if choices else text[0].lower() + text[1:]
                raise CheckpointError(f"{path}: {field.name}: found {value}, {wanted}") from None
    return msgspec.convert(settings, kind)


def _shown(value: Any) -> str:
    """A value of a JSON file as it stands there, not at any length."""
    return json.dumps(value)[:100]


def _choices(kind: Any) -> list[Any]:
    """The values that a type lists, where it lists some."""
    inner = get_args(kind)
    return list(inner) if get_origin(kind) is Literal else [c for k in inner for c in _choices(k)]


# --- what the files say -------------------------------------------------------------------------------


def _unet_config(path: Path) -> tuple[_UNetConfig, list[str]]:
    """config.json, and warnings."""
    settings = _object(path)
    if settings.get("_class_name") != _UNET:
        raise CheckpointError(f"{path}: _class_name: found {_shown(settings.get('_class_name'))}, expected {_UNET}")
    for key in ("class_embed_type", "num_class_embeds"):
        if settings.get(key) is not None:
            raise CheckpointError(f"{path}: {key}: found {_shown(settings[key])}, expected an unconditional network")
    config: _UNetConfig = _read(path, settings, _UNetConfig)
    for key, names, known in (
        ("down_block_types", config.down_block_types, _DOWN),
        ("up_block_types", config.up_block_types, _UP),
    ):
        unknown = sorted(set(names) - known)
        if unknown:
            raise CheckpointError(f"{path}: {key}: found {_shown(unknown[0])}, expected {', '.join(sorted(known))}")
    count = len(config.down_block_types)
    for key, values in (("up_block_types", config.up_block_types), ("block_out_channels", config.block_out_channels)):
        if len(values) != count:
            raise CheckpointError(f"{path}: {key}: found {len(values)}, expected {count}, as many as down_block_types")
    widths = config.block_out_channels
    groups = [("norm_num_groups", config.norm_num_groups, widths)]
    if config.attn_norm_num_groups is not None:
        groups.append(("attn_norm_num_groups", config.attn_norm_num_groups, widths[-1:]))
    for key, number, channels in groups:
        if any(c % number for c in channels):
            raise CheckpointError(f"{path}: {key}: found {number}, which does not divide the channels {channels}")
    if config.attention_head_dim is not None and any(c % config.attention_head_dim for c in _attending(config)):
        raise CheckpointError(
            f"{path}: attention_head_dim: found {config.attention_head_dim}, which does not divide the "
            f"channels {_attending(config)} that attend to themselves"
        )
    if widths[0] // 2 - config.freq_shift < 1:
        raise CheckpointError(f"{path}: freq_shift: found {config.freq_shift}, expected less than {widths[0] // 2}")
    return config, _unknown(path, settings, _UNetConfig, _UNET_WITHOUT_EFFECT)


def _attending(config: _UNetConfig) -> list[int]:
    """Widths of the levels that attend to themselves, the bottleneck's the last."""
    widths = config.block_out_channels
    down = [w for w, kind in zip(widths, config.down_block_types, strict=True) if kind.startswith("Attn")]
    up = [w for w, kind in zip(reversed(widths), config.up_block_types, strict=True) if kind.startswith("Attn")]
    return sorted({*down, *up, *(widths[-1:] if config.add_attention else [])})


def _image_size(path: Path, config: _UNetConfig, settings: Settings) -> int:
    """Of the settings, or of the config."""
    size = config.sample_size if settings.image_size is None else settings.image_size
    if isinstance(size, list):
        if len(size) != 2 or size[0] != size[1]:
            raise CheckpointError(f"{path}: sample_size: found {_shown(size)}, expected a square")
        size = size[0]
    if size is None:
        raise ArgumentError(f"{path}: sample_size: missing; give --image-size")
    try:
        msgspec.convert({"size": size}, contract.ImageShape)
        architecture.check_size(size, len(config.block_out_channels))
    except (msgspec.ValidationError, ArgumentError):
        step = 2 ** (len(config.block_out_channels) - 1)
        raise CheckpointError(
            f"{path}: image size: found {_shown(size)}, expected a multiple of {step} from {max(8, 2 * step)} to 4096"
        ) from None
    return size


def _scheduler_config(path: Path) -> tuple[_SchedulerConfig, list[str]]:
    """What scheduler_config.json says, and warnings."""
    settings = _object(path)
    name = settings.get("_class_name")
    if name not in list(_CLASSES):  # a name may be anything that JSON has
        raise CheckpointError(f"{path}: _class_name: found {_shown(name)}, expected one of {', '.join(_CLASSES)}")
    if name == "PNDMScheduler":
        settings.pop("set_alpha_to_one", None)  # of its own last step
    config: _SchedulerConfig = _read(path, _CLASSES[name] | settings, _SchedulerConfig)
    if config.clip_sample and config.clip_sample_range != 1:
        raise CheckpointError(f"{path}: clip_sample_range: found {config.clip_sample_range}, expected 1")
    if config.trained_betas is not None and len(config.trained_betas) != config.num_train_timesteps:
        raise CheckpointError(
            f"{path}: trained_betas: found {len(config.trained_betas)}, expected {config.num_train_timesteps}, "
            "num_train_timesteps"
        )
    return config, _unknown(path, settings, _SchedulerConfig, set(_OWN_STEPS.split()))


def _schedule(path: Path, config: _SchedulerConfig) -> contract.AnySchedule:
    """The noise schedule; the library computes β in float32, here they are float64."""
    total, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    schedule: contract.AnySchedule
    with np.errstate(all="ignore"):  # what overflows, build refuses
        if config.trained_betas is not None:
            schedule = contract.ArraySchedule(betas=config.trained_betas)
        elif config.beta_schedule == "linear":
            schedule = contract.LinearSchedule(timesteps=total, beta_start=start, beta_end=end)
        elif config.beta_schedule == "squaredcos_cap_v2":
            schedule = contract.CosineSchedule(timesteps=total)
        elif config.beta_schedule == "scaled_linear":
            schedule = contract.ArraySchedule(betas=(np.linspace(start**0.5, end**0.5, total) ** 2).tolist())
        else:
            share = 1 / (1 + np.exp(-np.linspace(-6, 6, total)))
            schedule = contract.ArraySchedule(betas=(share * (end - start) + start).tolist())
        try:
            schedule.build()
        except ArgumentError as e:
            raise CheckpointError(f"{path}: β: {e}") from None
    return schedule


def _presets(config: _SchedulerConfig, schedule: contract.AnySchedule) -> dict[str, contract.Preset]:
    total = config.num_train_timesteps
    few = min(40, len(schedule.build().span))
    # DDIMPipeline's 50 steps
    official = contract.Preset(
        encode_steps=min(50, total),
        decode_steps=min(50, total),
        spacing=config.timestep_spacing,
        clip=config.clip_sample,
    )
    made = {
        # the steps, t_edit and t_boost of the published attributes, which had 1000 timesteps
        "asyrp": contract.Preset(
            encode_steps=few,
            decode_steps=few,
            spacing="asyrp",
            clip=False,
            t_edit=round(0.5 * total),
            t_boost=round(0.2 * total),
        ),
        "official": official,
    }
    if config.variance_type in _SAMPLERS:  # DDPMPipeline's 1000 steps
        made["ddpm"] = msgspec.structs.replace(
            official, decode_steps=min(1000, total), sampler=_SAMPLERS[config.variance_type]
        )
    return {**made, **few_steps("asyrp", made["asyrp"], schedule)}


# --- the network --------------------------------------------------------------------------------------


def _network(path: Path, config: _UNetConfig) -> nn.Module:
    """The library's network with the weights in it, learned variance cut off."""
    state = _state(path)
    with torch.device("meta"):  # a config that asks for more than there is costs nothing
        unet: Any = UNet2DModel(**msgspec.structs.asdict(config))
    check_tensors(path, unet.state_dict(), state, "the UNet2DModel of its config.json")
    unet.to_empty(device="cpu").load_state_dict(state)
    unet.conv_out = asyrp.eps_only(unet.conv_out)
    network: nn.Module = unet.eval()
    return network


def _state(path: Path) -> StateDict:
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except (SafetensorError, OSError):
            raise CheckpointError(f"{path}: expected a safetensors file") from None
    else:
        content = load(path)
    state = {_OLD_NAME.sub(lambda m: f"{m[1]}.{_RENAMED[m[2]]}", k): v for k, v in tensors(content, path).items()}
    if "conv_in.weight" not in state or not any(k.startswith("down_blocks.") for k in state):
        raise CheckpointError(f"{path}: looks like {looks_like(content)}, expected the weights of a {_UNET}")
    return state
