"""DiffAE's training configuration, as the official code leaves it in a Lightning file: what is done with each key.

The keys are those of phizaz/diffae's `TrainConfig` (config.py, over its history), and of the network's configuration
under `model_conf`. The official code makes the network from the former; `model_conf` may be older, so it counts where
the former say nothing. A key is followed, or expected to have the value that hspace computes with, or compared with
what the weights show, or known to change no number; any other is told to the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from hspace.checks import raise_faults
from hspace.errors import CheckpointError

from . import architecture
from .checkpoint import shown, unknown
from .exporter import Settings, settings_of
from .models.diffae import EncoderConfig, LatentConfig
from .models.guided import GuidedConfig

# what a file is read for: the autoencoder, the latent DDIM, the classifier
Part = Literal["image", "latent", "classifier"]

FOLLOWED: dict[Part, dict[str, str]] = {  # → the field of Settings
    "image": {
        "img_size": "image_size",
        "net_beatgans_attn_head": "num_heads",
        "use_new_attention_order": "attention_order",
        "net_enc_num_res_blocks": "enc_num_res_blocks",
        "T": "diffusion_steps",
        "beta_scheduler": "schedule",
        "beatgans_rescale_timesteps": "rescale_timesteps",
    },
    "latent": {
        "T": "latent_diffusion_steps",
        "latent_beta_scheduler": "latent_schedule",
        "latent_rescale_timesteps": "latent_rescale_timesteps",
        "net_latent_condition_bias": "condition_bias",
    },
    "classifier": {},
}
_EPS, _FIXED = ("eps", "epsilon"), ("fixed_large", "fixed_small")  # DDIM without noise reads no variance
EXPECTED: dict[Part, dict[str, tuple[Any, ...]]] = {  # → the values that hspace computes with; None is always one
    "image": {
        "train_mode": ("diffusion", "latent_diffusion", "latentdiffusion"),
        "diffusion_type": ("beatgans",),
        "model_name": ("beatgans_autoenc",),
        "model_type": ("autoencoder",),
        "beatgans_gen_type": ("ddim",),
        "beatgans_model_mean_type": _EPS,
        "beatgans_model_var_type": _FIXED,
        "autoenc_mid_attn": (True,),
        "net_autoenc_cond_at": ("all",),
        "net_autoenc_has_init": (False,),
        "net_autoenc_stochastic": (False,),
        "net_autoenc_time_at": ("all",),
        "net_beatgans_resnet_cond_emb_2xwidth": (False,),
        "net_beatgans_resnet_condition_scale_bias": (1,),
        "net_beatgans_resnet_gate_type": (),
        "net_beatgans_resnet_scale_at": ("after_norm", "afternorm"),
        "net_beatgans_resnet_time_emb_2xwidth": (True,),
        "net_beatgans_resnet_time_first": (True,),
        "net_beatgans_resnet_two_cond": (True,),
        "net_beatgans_resnet_use_after_norm": (False,),
        "net_beatgans_resnet_use_inlayers_cond": (False,),
        "net_beatgans_style_time_mode": ("time_style_separate", "timestylesep"),
        "net_beatgans_use_mid_attn": (True,),
        "net_enc_k": (),
        "net_enc_num_cls": (),
        "net_enc_pool": ("adaptive", "adaptivenonzero"),
        "net_enc_pool_tail_layer": (),
        "net_enc_tanh": (False,),
        "net_enc_use_time": (False,),
        "net_enc_vectorizer_type": ("identity",),
        "net_noise_type": (),
        # under model_conf alone
        "conv_resample": (True,),
        "dims": (2,),
        "in_channels": (3,),
        "input_channel_mult": (),
        "num_classes": (),
        "num_head_channels": (-1,),
        "num_heads_upsample": (-1,),
        "out_channels": (3,),
        "time_embed_channels": (),
        "use_external_encoder": (False,),
    },
    "latent": {
        "train_mode": ("latent_diffusion", "latentdiffusion"),
        "latent_clip_sample": (False,),
        "latent_gen_type": ("ddim",),
        "latent_model_mean_type": _EPS,
        "latent_model_var_type": _FIXED,
        "latent_running_znormalize": (False,),
        "latent_unit_normalize": (False,),
        "latent_znormalize": (True,),
        "net_latent_activation": ("silu",),
        "net_latent_condition_2x": (False,),
        "net_latent_net_last_act": ("none",),
        "net_latent_net_type": ("skip",),
        "net_latent_residual": (False,),
        "net_latent_time_last_act": (False,),
        "net_latent_use_norm": (True,),
        "time_is_int": (True,),
    },
    "classifier": {
        "train_mode": ("manipulate",),
        "manipulate_loss": ("bce",),
        "manipulate_znormalize": (True,),
    },
}
SHOWN: dict[Part, tuple[str, ...]] = {  # by the weights, see `check_shown`
    "image": (
        "net_attn",
        "net_beatgans_embed_channels",
        "net_beatgans_resnet_cond_channels",
        "net_ch",
        "net_ch_mult",
        "net_enc_attn",
        "net_enc_channel_mult",
        "net_num_input_res_blocks",
        "net_num_res_blocks",
        "net_resblock_updown",
        "style_ch",
    ),
    "latent": (
        "net_latent_layers",
        "net_latent_num_hid_channels",
        "net_latent_num_time_layers",
        "net_latent_skip_layers",
        "net_latent_time_emb_channels",
    ),
    "classifier": (),
}
_WITHOUT_EFFECT = """
    accum_batches batch_size batch_size_eval beatgans_loss_type beatgans_model_mse_weight_type
    beatgans_xstart_weight_type chamfer_coef chamfer_type continue_from dropout ema_decay fp16 grad_clip kl_coef
    latent_detach latent_loss_type latent_model_mse_weight_type latent_xstart_weight_type lr manipulate_cls
    manipulate_mode manipulate_seed manipulate_shots mmd_alphas mmd_coef net_beatgans_gradient_checkpoint
    net_beatgans_resnet_gate_init net_beatgans_resnet_use_zero_module net_enc_grad_checkpoint net_latent_dropout
    net_latent_time_layer_init optimizer postfix pretrain seed T_sampler total_samples train_cond0_prob
    train_interpolate_img train_interpolate_prob train_pred_xstart_detach warmup weight_decay attn_checkpoint
    use_checkpoint use_fp16
    base_dir data_cache_dir data_name data_val_name device eval_ema_every_samples eval_every_samples eval_num_images
    eval_path eval_programs fid_use_torch latent_infer_path latent_T_eval name num_workers parallel
    sample_every_samples sample_size save_every_samples T_eval use_cache_dataset work_cache_dir
    def_beta_1 def_beta_T def_mean_type def_var_type net_autoenc_merger_type net_beatgans_style_layer
    net_beatgans_style_lr_mul net_beatgans_time_style_layer net_enc_name net_enc_tail_depth
    net_latent_attn_resolutions net_latent_blocks net_latent_channel_mult net_latent_cond_both
    net_latent_num_res_blocks net_latent_pooling net_latent_project_size net_latent_unpool net_latent_use_mid_attn
    net_noise_activation net_noise_dropout net_noise_last_act net_noise_num_hid_channels net_noise_num_layers
    net_noise_use_norm
"""
# of training; of data, evaluation (T_eval: how many steps its pictures take, which a preset says here) and files; of
# networks that a file of this kind cannot have
WITHOUT_EFFECT = frozenset(_WITHOUT_EFFECT.split())
# model_conf's own names, and those of TrainConfig; a name that is in neither column is the same in both
_MODEL_CONF = {
    "attention_resolutions": "net_attn",
    "channel_mult": "net_ch_mult",
    "cond_at": "net_autoenc_cond_at",
    "embed_channels": "net_beatgans_embed_channels",
    "enc_attn_resolutions": "net_enc_attn",
    "enc_channel_mult": "net_enc_channel_mult",
    "enc_grad_checkpoint": "net_enc_grad_checkpoint",
    "enc_num_cls": "net_enc_num_cls",
    "enc_num_res_block": "net_enc_num_res_blocks",
    "enc_out_channels": "style_ch",
    "enc_pool": "net_enc_pool",
    "enc_pool_tail_layer": "net_enc_pool_tail_layer",
    "enc_tanh": "net_enc_tanh",
    "has_init": "net_autoenc_has_init",
    "image_size": "img_size",
    "is_stochastic": "net_autoenc_stochastic",
    "merger_type": "net_autoenc_merger_type",
    "model_channels": "net_ch",
    "noise_net_conf": "net_noise_type",
    "num_heads": "net_beatgans_attn_head",
    "num_input_res_blocks": "net_num_input_res_blocks",
    "num_res_blocks": "net_num_res_blocks",
    "resblock_updown": "net_resblock_updown",
    "resnet_use_inlayers_condition": "net_beatgans_resnet_use_inlayers_cond",
    "style_layer": "net_beatgans_style_layer",
    "style_lr_mul": "net_beatgans_style_lr_mul",
    "style_time_mode": "net_beatgans_style_time_mode",
    "time_at": "net_autoenc_time_at",
    "time_style_layer": "net_beatgans_time_style_layer",
    "use_mid_attn": "net_beatgans_use_mid_attn",
    "vectorizer_type": "net_enc_vectorizer_type",
}
_LATENT_CONF = {
    "last_act": "net_latent_net_last_act",
    "num_channels": "style_ch",
    "num_layers": "net_latent_layers",
    "num_time_emb_channels": "net_latent_time_emb_channels",
    "time_is_int": "time_is_int",
}


def read(content: Any, path: Path, part: Part, given: Settings) -> tuple[Settings, list[str]]:
    """What a file's hyper_parameters say of a part, and warnings of keys that nobody here knows.

    given: the user's own settings, which stand above these. Raises CheckpointError with every key that has another
    value than hspace computes with, ArgumentError for one of another type.
    """
    values, inner = _flat(content)
    followed = {key: field for key, field in FOLLOWED[part].items() if getattr(given, field) is None}
    faults = []
    for key in (*followed, *EXPECTED[part]):
        each = [v for v in (values.get(key), inner.get(key)) if v is not None]
        if len(each) == 2 and not _same(*each):
            faults.append(f"{key}: found {shown(each[0])}, and {shown(each[1])} under model_conf")
        if each and key in EXPECTED[part] and not any(_same(each[0], v) for v in EXPECTED[part][key]):
            wanted = " or ".join(map(repr, EXPECTED[part][key])) or "None"
            faults.append(f"{key}: found {shown(each[0])}, expected {wanted}")
    raise_faults(CheckpointError, f"{path}: hyper_parameters", faults)
    settings = Settings()
    for key, field in followed.items():
        value = values.get(key, inner.get(key))
        if field == "attention_order" and isinstance(value, bool):
            value = "new" if value else "legacy"
        settings = settings_of({field: value}, f"{path}: hyper_parameters: {key}").over(settings)
    known = {k for t in (FOLLOWED, EXPECTED) for p in t.values() for k in p} | {k for p in SHOWN.values() for k in p}
    strange = (k for k in {**values, **inner} if k not in known | WITHOUT_EFFECT)
    return settings, unknown(f"{path}: hyper_parameters", strange)


def check_shown(
    settings: Any, path: Path, configs: tuple[GuidedConfig, EncoderConfig] | LatentConfig, size: int
) -> None:
    """Raises CheckpointError where hyper_parameters tell of another network than the weights show."""
    values, inner = _flat(settings)
    said = {k: v for k, v in (inner | values).items() if v is not None}
    faults = [
        f"{key}: found {shown(said[key])}, the weights show {shows}"
        for key, value, shows in _shown_by(said, configs, size)
        if not _same(value, shows)
    ]
    raise_faults(CheckpointError, f"{path}: hyper_parameters", faults)


def _shown_by(
    said: Mapping[str, Any], configs: tuple[GuidedConfig, EncoderConfig] | LatentConfig, size: int
) -> Iterator[tuple[str, Any, Any]]:
    """Each key of `SHOWN` that is said: its name, its value, and the weights' value."""
    if isinstance(configs, LatentConfig):
        fields = ("num_layers", "hidden", "num_time_layers", "skip_layers", "time_channels")
        pairs = dict(zip(SHOWN["latent"], (getattr(configs, f) for f in fields), strict=True))
    else:
        unet, encoder = configs
        pairs = {
            "net_beatgans_embed_channels": unet.embed_channels,
            "net_beatgans_resnet_cond_channels": unet.z_channels,
            "net_ch": unet.model_channels,
            "net_ch_mult": unet.channel_mult,
            "net_enc_channel_mult": encoder.channel_mult,
            "net_num_input_res_blocks": unet.num_res_blocks,
            "net_num_res_blocks": unet.num_res_blocks,
            "net_resblock_updown": unet.resblock_updown,
            "style_ch": unet.z_channels,
        }
        for key, config in (("net_attn", unet), ("net_enc_attn", encoder)):
            resolutions = said.get(key)
            whole = isinstance(resolutions, (list, tuple)) and all(type(r) is int for r in resolutions)
            levels = architecture.attention_levels(size, resolutions or () if whole else (), len(config.channel_mult))
            if key in said and (not whole or levels != config.attention_levels):
                yield key, resolutions, [size >> level for level in config.attention_levels]
    yield from ((key, said[key], shows) for key, shows in pairs.items() if key in said)


def _flat(content: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """hyper_parameters by TrainConfig's names: its own keys, and those of model_conf."""
    hyper = _mapping(content, "hyper_parameters")
    conf = _mapping(hyper, "model_conf")
    latent = _mapping(conf, "latent_net_conf")
    inner = {_renamed(str(k)): v for k, v in conf.items() if k != "latent_net_conf"}
    inner |= {_LATENT_CONF.get(str(k), f"net_latent_{k}"): v for k, v in latent.items()}
    return {str(k): v for k, v in hyper.items() if k != "model_conf"}, inner


def _renamed(key: str) -> str:
    return _MODEL_CONF.get(key, f"net_beatgans_{key}" if key.startswith("resnet_") else key)


def _mapping(content: Any, key: str) -> Mapping[str, Any]:
    value = content.get(key) if isinstance(content, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _same(value: Any, expected: Any) -> bool:
    """Whether two plain values are alike; a list is a tuple, and an enumeration's member goes by its name."""
    if isinstance(value, (list, tuple)) and isinstance(expected, (list, tuple)):
        scalars = not any(isinstance(v, (list, tuple)) for v in value)
        return scalars and len(value) == len(expected) and all(map(_same, value, expected))
    if isinstance(value, str) and isinstance(expected, str):
        return value.rpartition(".")[2] == expected
    plain = isinstance(value, (bool, int, float)) and isinstance(value, bool) == isinstance(expected, bool)
    return plain and bool(value == expected)
