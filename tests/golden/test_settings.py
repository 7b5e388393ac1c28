"""Settings that checkpoints carry, and those that they cannot carry, against the official codes' formulas.

The references are written here from the papers' code, so that they share no assumption with the exporter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hspace.errors import ArgumentError, CheckpointError

from ..conftest import GOLDEN, relative_error
from ..hostile.helpers import refused

torch = pytest.importorskip("torch", reason="exports need the extra `export`")

from hspace_export import asyrp, diffae, hyper_parameters  # noqa: E402
from hspace_export.checkpoint import load  # noqa: E402
from hspace_export.exporter import Model, Settings, read_config  # noqa: E402
from hspace_export.models.guided import Attention  # noqa: E402

DIFFAE, CLASSIFIER = GOLDEN / "diffae-tiny" / "last.ckpt", GOLDEN / "diffae-tiny" / "cls_last.ckpt"
DDPM, IDDPM = GOLDEN / "asyrp-ddpm-tiny" / "model.ckpt", GOLDEN / "asyrp-iddpm-tiny" / "model.ckpt"
HEADS = 4


def load_asyrp(path: Path, preset: str | None = None, **settings: Any) -> Model:
    return asyrp.load_model(path, attributes={}, preset=preset, settings=Settings(image_size=32, **settings))


def evaluate(model: Model, name: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """What a component's PyTorch module gives."""
    with torch.no_grad():
        found = model.parts[name].module(*map(torch.from_numpy, inputs))
    return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]


# --- attention order ----------------------------------------------------------------------------------


def legacy(qkv: np.ndarray, heads: int) -> np.ndarray:
    """QKVAttentionLegacy of guided-diffusion: [N, H·3·C, T], each head's q, k and v together → [N, H·C, T]."""
    n, width, length = qkv.shape
    each = width // (3 * heads)
    q, k, v = np.split(qkv.reshape(n, heads, 3 * each, length), 3, axis=2)
    return attended(q, k, v, each).reshape(n, -1, length)


def new(qkv: np.ndarray, heads: int) -> np.ndarray:
    """QKVAttention: [N, 3·H·C, T], all heads' q, then all k, then all v → [N, H·C, T]."""
    n, width, length = qkv.shape
    each = width // (3 * heads)
    q, k, v = (part.reshape(n, heads, each, length) for part in np.split(qkv, 3, axis=1))
    return attended(q, k, v, each).reshape(n, -1, length)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, each: int) -> np.ndarray:
    logits = np.einsum("nhct,nhcs->nhts", q, k) / math.sqrt(each)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("nhts,nhcs->nhct", weights, v)


@pytest.mark.parametrize(("order", "reference"), [("legacy", legacy), ("new", new)])
def test_attention_is_the_official_one(order: Any, reference: Callable[..., np.ndarray]) -> None:
    torch.manual_seed(0)
    block, x = Attention(32, HEADS, order), torch.randn(2, 32, 3, 5)
    with torch.no_grad():
        flat = x.reshape(2, 32, 15)  # 32 groups of one channel
        variance = flat.var(dim=2, keepdim=True, unbiased=False)
        qkv = block.qkv((flat - flat.mean(dim=2, keepdim=True)) / (variance + 1e-5).sqrt()).numpy()
        expected = flat + block.proj_out(torch.from_numpy(reference(qkv, HEADS)))
        assert relative_error(block(x).reshape(2, 32, 15).numpy(), expected.numpy()) < 1e-6
    other = new if reference is legacy else legacy
    assert relative_error(other(qkv, HEADS), reference(qkv, HEADS)) > 0.1


def in_new_order(state: dict[str, Any]) -> dict[str, Any]:
    """The same network, as use_new_attention_order would have it: the rows of qkv by part, then by head."""
    made = dict(state)
    for name in (n for n in state if ".qkv." in n):
        rows = torch.arange(len(state[name])).reshape(HEADS, 3, -1).transpose(0, 1).reshape(-1)
        made[name] = state[name][rows].clone()
    return made


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "asyrp-iddpm-tiny" / "golden.npz"))


def test_a_network_of_the_new_order(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    """It gives the official outputs with the option, and others without."""
    torch.save(in_new_order(load(IDDPM)), tmp_path / "new.pt")
    for order, low, high in (("new", 0.0, 1e-5), (None, 1e-3, 10.0)):
        model = load_asyrp(tmp_path / "new.pt", num_heads=HEADS, attention_order=order)
        h = evaluate(model, "trunk", golden["x0"], golden["unet_t"].astype(np.int32))[0]
        assert low <= relative_error(h, golden["unet_h"]) <= high
        assert model.config["unet"]["attention_order"] == (order or "legacy")


def test_attention_order_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"attention_order": "new", "num_heads": 4, "diffusion_steps": 4000}')
    settings = Settings(image_size=32).over(read_config(tmp_path / "c.json"))
    model = asyrp.load_model(IDDPM, attributes={}, settings=settings)
    assert model.config["unet"]["attention_order"] == "new" and model.schedules.image.timesteps == 4000


def test_what_the_ddpm_layout_has_not() -> None:
    for settings in ({"attention_order": "new"}, {"rescale_timesteps": True}):
        with refused(ArgumentError, f"{DDPM}: attention_order and rescale_timesteps: of guided-diffusion networks"):
            load_asyrp(DDPM, **settings)


# --- timesteps of the training ------------------------------------------------------------------------


def official_betas(name: str, steps: int) -> np.ndarray:
    """get_named_beta_schedule of improved-diffusion, guided-diffusion and DiffAE."""
    scale = 1000 / steps
    if name == "linear":
        return np.linspace(scale * 0.0001, scale * 0.02, steps, dtype=np.float64)
    if name.startswith("const"):
        return np.array([scale * float(name[5:])] * steps)

    def bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps)])


@pytest.mark.parametrize("name", ["linear", "cosine", "const0.008"])
@pytest.mark.parametrize("steps", [250, 1000, 4000])
def test_diffusion_steps_of_guided_diffusion(name: str, steps: int) -> None:
    model = load_asyrp(IDDPM, num_heads=HEADS, schedule=name, diffusion_steps=steps)
    found = model.schedules.image.build().alphas_cumprod
    assert len(found) == steps
    assert np.allclose(found, np.cumprod(1 - official_betas(name, steps)), rtol=1e-10, atol=0)
    official = model.presets["official"]
    assert (official.t_edit, official.t_boost) == (steps // 2, steps // 5)  # 500 and 200 of the papers' 1000


def test_diffusion_steps_of_ddpm() -> None:
    """Its code keeps the ends of the schedule, whatever the number of steps."""
    found = load_asyrp(DDPM, diffusion_steps=2000).schedules.image.build().alphas_cumprod
    assert np.allclose(found, np.cumprod(1 - np.linspace(1e-4, 0.02, 2000)), rtol=1e-12, atol=0)


def test_steps_that_no_schedule_has() -> None:
    with refused(ArgumentError, "schedule: linear over 15 timesteps: alphas_cumprod: expected finite values"):
        load_asyrp(IDDPM, num_heads=HEADS, diffusion_steps=15)


def test_rescaled_timesteps(golden: dict[str, np.ndarray]) -> None:
    """Of 4000 timesteps, 2444 is what 611 is of 1000: the official outputs at 611. Without the option it is not."""
    t = golden["unet_t"].astype(np.int32) * 4
    for rescale, low, high in ((True, 0.0, 1e-5), (None, 1e-3, 10.0)):
        model = load_asyrp(IDDPM, num_heads=HEADS, diffusion_steps=4000, rescale_timesteps=rescale)
        h = evaluate(model, "trunk", golden["x0"], t)[0]
        assert low <= relative_error(h, golden["unet_h"]) <= high
        assert model.config["unet"]["time_scale"] == (0.25 if rescale else 1.0)


# --- DiffAE's hyper_parameters ------------------------------------------------------------------------


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a golden checkpoint, with hyper_parameters changed."""

    def alter(source: Path = DIFFAE, **changes: Any) -> Path:
        found = load(source)
        found.pop("callbacks", None)
        hyper = found.setdefault("hyper_parameters", {})
        for key, value in changes.items():
            at = hyper
            *path, last = key.split("__")
            for part in path:
                at = at[part]
            at[last] = value
        torch.save(found, tmp_path / source.name)
        return tmp_path / source.name

    return alter


def load_diffae(path: Path, **options: Any) -> Model:
    return diffae.load_model(path, **{"settings": Settings(), **options})


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "const0.01"])
@pytest.mark.parametrize("steps", [250, 1000, 2000])
def test_schedules_of_diffae(altered: Callable[..., Path], scheduler: str, steps: int) -> None:
    model = load_diffae(altered(T=steps, beta_scheduler=scheduler, latent_beta_scheduler="const0.0065"))
    for schedule, name in ((model.schedules.image, scheduler), (model.schedules.latent, "const0.0065")):
        assert schedule is not None
        expected = np.cumprod(1 - official_betas(name, steps))
        assert np.allclose(schedule.build().alphas_cumprod, expected, rtol=1e-10, atol=0)
    official = model.presets["official"]
    wanted = {250: (250, 84, 125), 1000: (250, 100, 200), 2000: (250, 100, 200)}[steps]
    assert (official.encode_steps, official.decode_steps, official.latent_steps) == wanted


def test_rescaled_timesteps_of_diffae(altered: Callable[..., Path]) -> None:
    """Both networks are told t·1000/T: with T = 500 the golden outputs are those of half the timestep."""
    golden = dict(np.load(GOLDEN / "diffae-tiny" / "golden.npz"))
    model = load_diffae(altered(T=500, beatgans_rescale_timesteps=True, latent_rescale_timesteps=True))
    plain = load_diffae(DIFFAE)
    t = np.array([5, 500, 998], dtype=np.int32)
    noise = golden["latent_noise"]
    expected = evaluate(plain, "latent", noise, t)[0]
    assert relative_error(evaluate(model, "latent", noise, t // 2)[0], expected) == pytest.approx(
        relative_error(evaluate(plain, "latent", noise, t // 2 * 2)[0], expected), abs=1e-6
    )
    x, even, z = golden["unet_x"], golden["unet_t"].astype(np.int32) // 2 * 2, golden["z_sem"]
    ours, theirs = evaluate(model, "trunk", x, even // 2, z)[0], evaluate(plain, "trunk", x, even, z)[0]
    assert relative_error(ours, theirs) < 1e-6


def test_heads_and_bias_of_diffae(altered: Callable[..., Path]) -> None:
    """They change the numbers; TrainConfig's own keys decide where model_conf is silent."""
    golden = dict(np.load(GOLDEN / "diffae-tiny" / "golden.npz"))
    noise, t = golden["latent_noise"], np.array([5, 500, 999], dtype=np.int32)
    biased = altered(net_latent_condition_bias=0.5, model_conf__latent_net_conf=None)
    got = evaluate(load_diffae(biased), "latent", noise, t)[0]
    assert relative_error(got, golden["latent_eps"]) > 1e-3
    model = load_diffae(altered(net_beatgans_attn_head=2, model_conf__num_heads=2))
    assert (model.config["unet"]["num_heads"], model.config["encoder"]["num_heads"]) == (2, 2)
    z = evaluate(model, "encoder", golden["x0"])[0]
    assert relative_error(z, golden["z_sem"]) > 1e-4
    with refused(CheckpointError, "net_beatgans_attn_head: found 2, and 1 under model_conf"):
        load_diffae(altered(net_beatgans_attn_head=2))
    given = load_diffae(altered(net_beatgans_attn_head=2), settings=Settings(num_heads=1))
    assert relative_error(evaluate(given, "encoder", golden["x0"])[0], golden["z_sem"]) < 1e-5


def test_the_new_attention_order_of_diffae(altered: Callable[..., Path]) -> None:
    order = {"model_conf__use_new_attention_order": True}
    model = load_diffae(altered(net_beatgans_attn_head=2, model_conf__num_heads=2, **order))
    assert {model.config[k]["attention_order"] for k in ("unet", "encoder")} == {"new"}


def others(values: tuple[Any, ...]) -> list[Any]:
    """Values that are not among those expected, and odd ones."""
    return [v for v in (True, False, 0, 2, 0.5, "other", [1, 2], 10**30) if not any(v is w for w in values)]


@pytest.mark.parametrize(
    ("part", "key"), [(part, key) for part, keys in hyper_parameters.EXPECTED.items() for key in keys]
)
def test_another_value_is_refused_by_name(altered: Callable[..., Path], part: str, key: str) -> None:
    """Every key that hspace computes with one value of."""
    source = CLASSIFIER if part == "classifier" else DIFFAE
    expected = hyper_parameters.EXPECTED[part][key]  # type: ignore[index]
    conf = "model_conf__latent_net_conf__" if key == "time_is_int" else ""

    def read(value: Any) -> Model:
        path = altered(source, **{conf + key: value})
        return load_diffae(DIFFAE, classifier=path) if part == "classifier" else load_diffae(path)

    for value in others(expected)[:3]:
        with refused(CheckpointError, f"{source.name}: hyper_parameters", f"{key}: found {value!r}, "):
            read(value)
    # what is expected is let pass; of train_mode what both parts of the file expect, of others what model_conf says
    for value in (*expected, None):
        if value != "diffusion" and (key, value) != ("net_enc_pool", "adaptive"):
            read(value)


SHOWN = {
    "net_ch": 64,
    "net_ch_mult": [1, 4],
    "net_num_res_blocks": 2,
    "net_attn": [32],
    "net_beatgans_embed_channels": 512,
    "net_beatgans_resnet_cond_channels": 7,
    "net_enc_attn": [8],
    "net_enc_channel_mult": [1, 2],
    "net_num_input_res_blocks": 3,
    "net_resblock_updown": False,
    "style_ch": 512,
    "net_latent_layers": 10,
    "net_latent_num_hid_channels": 2048,
    "net_latent_num_time_layers": 3,
    "net_latent_skip_layers": [1, 2],
    "net_latent_time_emb_channels": 32,
}


@pytest.mark.parametrize("key", SHOWN)
def test_another_network_than_the_weights_show(altered: Callable[..., Path], key: str) -> None:
    with refused(CheckpointError, f"hyper_parameters: {key}: found {SHOWN[key]!r}, the weights show "):
        load_diffae(altered(**{key: SHOWN[key]}))
    assert set(SHOWN) == {k for keys in hyper_parameters.SHOWN.values() for k in keys}


# phizaz/diffae, config.py: the fields of TrainConfig as the published code has it
OFFICIAL = """
    seed train_mode train_cond0_prob train_pred_xstart_detach train_interpolate_prob train_interpolate_img
    manipulate_mode manipulate_cls manipulate_shots manipulate_loss manipulate_znormalize manipulate_seed accum_batches
    autoenc_mid_attn batch_size batch_size_eval beatgans_gen_type beatgans_loss_type beatgans_model_mean_type
    beatgans_model_var_type beatgans_rescale_timesteps latent_infer_path latent_znormalize latent_gen_type
    latent_loss_type latent_model_mean_type latent_model_var_type latent_rescale_timesteps latent_T_eval
    latent_clip_sample latent_beta_scheduler beta_scheduler data_name data_val_name diffusion_type dropout ema_decay
    eval_num_images eval_every_samples eval_ema_every_samples fid_use_torch fp16 grad_clip img_size lr optimizer
    weight_decay model_conf model_name model_type net_attn net_beatgans_attn_head net_beatgans_embed_channels
    net_resblock_updown net_enc_use_time net_enc_pool net_beatgans_gradient_checkpoint net_beatgans_resnet_two_cond
    net_beatgans_resnet_use_zero_module net_beatgans_resnet_scale_at net_beatgans_resnet_cond_channels net_ch_mult
    net_ch net_enc_attn net_enc_k net_enc_num_res_blocks net_enc_channel_mult net_enc_grad_checkpoint
    net_autoenc_stochastic net_latent_activation net_latent_channel_mult net_latent_condition_bias net_latent_dropout
    net_latent_layers net_latent_net_last_act net_latent_net_type net_latent_num_hid_channels
    net_latent_num_time_layers net_latent_skip_layers net_latent_time_emb_channels net_latent_use_norm
    net_latent_time_last_act net_num_res_blocks net_num_input_res_blocks net_enc_num_cls num_workers parallel postfix
    sample_size sample_every_samples save_every_samples style_ch T_eval T_sampler T total_samples warmup pretrain
    continue_from eval_programs eval_path base_dir use_cache_dataset data_cache_dir work_cache_dir name
"""


def test_every_official_key_is_in_one_table() -> None:
    followed = {k for part in hyper_parameters.FOLLOWED.values() for k in part}
    expected = {k for part in hyper_parameters.EXPECTED.values() for k in part}
    shown = {k for part in hyper_parameters.SHOWN.values() for k in part}
    tables = [followed, expected, shown, hyper_parameters.WITHOUT_EFFECT]
    for key in set(OFFICIAL.split()) - {"model_conf"}:
        assert sum(key in table for table in tables) == 1, key
    assert sum(map(len, tables)) == len(set().union(*tables))


def test_a_key_that_nobody_knows_is_told(altered: Callable[..., Path]) -> None:
    path = altered(noise_offset=0.1, model_conf__mystery=2)
    assert load_diffae(path).warnings == [
        f"{path}: hyper_parameters: noise_offset, mystery: not known, so not followed"
    ]
    assert load_diffae(DIFFAE, classifier=CLASSIFIER).warnings == []
    path = altered(CLASSIFIER, mystery=1)
    says = f"{path}: hyper_parameters: mystery: not known, so not followed"
    assert load_diffae(DIFFAE, classifier=path).warnings == [says]


@pytest.mark.parametrize(
    ("key", "value", "fragment"),
    [
        ("T", 10**30, "diffusion_steps"),
        ("T", "1000", "diffusion_steps"),
        ("T", float("nan"), "diffusion_steps"),
        ("T", 1, "diffusion_steps"),
        ("img_size", float("inf"), "image_size"),
        ("net_latent_condition_bias", float("inf"), "condition_bias"),
        ("beta_scheduler", "lin\ud800ear", "expected plain text"),
        ("beatgans_rescale_timesteps", "yes", "rescale_timesteps"),
    ],
)
def test_values_of_other_types(altered: Callable[..., Path], key: str, value: Any, fragment: str) -> None:
    path = altered(model_conf=None, **{key: value})
    with pytest.raises((ArgumentError, CheckpointError), match=fragment) as caught:
        load_diffae(path)
    assert str(caught.value).startswith(f"{path}: hyper_parameters: {key}: ")


# --- presets ------------------------------------------------------------------------------------------


def test_a_preset_over_another_network(altered: Callable[..., Path]) -> None:
    """Each difference is named, before a network is made."""
    expected = ["model_channels 32, expected 128", "channel_mult (1.0, 2.0), expected (1.0, 1.0, 2.0, 2.0, 4.0, 4.0)"]
    expected += ["attention_levels (1,), expected (4,)"]
    with refused(CheckpointError, f"{DDPM}: not the network of the preset celebahq256", *expected):
        load_asyrp(DDPM, preset="celebahq256")
    with refused(CheckpointError, f"{IDDPM}: not the network of the preset afhqdog256", "embed_channels 128, expected"):
        load_asyrp(IDDPM, preset="afhqdog256")
    expected = ["model_channels 32, expected 64", "encoder's channel_mult (1.0, 2.0, 2.0), expected (1, 2, 4, 8, 8)"]
    expected += ["z_channels 64, expected 512", "encoder's model_channels 32, expected 64"]
    with refused(CheckpointError, "last.ckpt: not the network of the preset celeba64", *expected):
        load_diffae(altered(img_size=64, model_conf=None), preset="celeba64")
    for key, value, text in (("T", 250, "diffusion steps 250"), ("net_beatgans_attn_head", 4, "num heads 4")):
        with refused(CheckpointError, f"its hyper_parameters say {text}, the preset celeba64 says "):
            load_diffae(altered(img_size=64, model_conf=None, **{key: value}), preset="celeba64")
