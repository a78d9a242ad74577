"""Write a replay folder of any size from our own computations: it proves the reading of folders, not the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from builders import make_sit
from safetensors.torch import save_file
from torch import Tensor

from harness.checks.replay import PATHS, SOLVERS, MeanSquares, RecordedDraws, _batch, _logged
from harness.sampling.solvers import Guidance, sample_latents
from recipes.base import Networks, Objective
from recipes.core.interpolant import interpolate
from recipes.core.loop import Trainer
from recipes.core.losses import alignment_loss, denoising_loss, kl_loss
from recipes.core.spec import OptimizerSpec, TrainSpec
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec, PatchDiscriminator
from recipes.models.sit import SiT, SiTSpec
from recipes.released.autoencoder import diffusers_name
from recipes.repa import Repa
from recipes.repa_e import RepaE
from recipes.vanilla import Vanilla

DIMS = {
    "hidden": 24, "depth": 4, "heads": 3, "enc_depth": 3, "classes": 5, "zdim": 7, "proj": 20, "B": 5, "img": 32,
    "ch": 32, "mult": [1, 2, 2], "nres": 2, "zc": 3, "patch": 2, "ndf": 4,
}  # fmt: skip
LAYERS = 2


def rounded(network: torch.nn.Module) -> torch.nn.Module:
    """Float64 with float32 values, as a recording has them."""
    return network.float().double()


def compvis(vae: Autoencoder, names: list[str]) -> dict[str, Tensor]:
    """CompVis names and shapes of a diffusers autoencoder."""
    state = vae.kl.state_dict()
    out = {}
    for name in names:
        value = state[diffusers_name(name, len(DIMS["mult"]))]
        projection = ".attn_1." in name and ".norm." not in name and value.ndim == 2
        out[name] = value[..., None, None] if projection else value
    return out


def record(folder: Path, names: list[str]) -> None:
    """Write the whole folder; `names` are the autoencoder's CompVis names."""
    d, g = DIMS, torch.Generator().manual_seed(0)
    side = d["img"] // 2 ** (len(d["mult"]) - 1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).double()

    spec = SiTSpec(
        latent_size=side, channels=d["zc"], num_classes=d["classes"], patch_size=d["patch"], hidden=d["hidden"],
        depth=d["depth"], heads=d["heads"], encoder_depth=d["enc_depth"], encoder_widths=(d["zdim"],),
        projector_width=d["proj"],
    )  # fmt: skip

    def sit() -> SiT:
        made = make_sit(spec=spec)
        made.bn.start_from(torch.linspace(-1, 1, d["zc"]), torch.linspace(0.5, 2, d["zc"]))
        return rounded(made)

    torch.manual_seed(0)
    tokenizer = AutoencoderSpec(
        latent_channels=d["zc"], base_width=d["ch"], multipliers=tuple(d["mult"]), residual_blocks=d["nres"]
    )
    vae, gan = (
        rounded(Autoencoder(tokenizer)),
        rounded(PatchDiscriminator(DiscriminatorSpec(base_width=d["ndf"], layers=LAYERS))),
    )
    shape, n = (d["B"], d["zc"], side, side), d["B"]
    y, t, zs = torch.arange(n) % d["classes"], torch.rand(n, generator=g).double(), randn(n, spec.tokens, d["zdim"])

    files: dict[str, dict[str, Tensor]] = {}
    network, x, noise = sit().eval(), randn(*shape), randn(*shape)
    weights = {f"sit.{k}": v for k, v in network.state_dict().items()}
    with torch.no_grad():
        out = network(x, t, y)
        f = {"x": x, "y": y, "t": t, "noise": noise, "zs": zs, "velocity": out.velocity, "features": out.features}
        for path in PATHS:
            point = interpolate(network.bn.normalize(x), noise, t, path)
            out = network(point.x_t, point.t, y)
            f |= {f"{path}.model_output": out.velocity, f"{path}.zs_tilde": out.projected[0]}
            f[f"{path}.denoising_loss"] = denoising_loss(out.velocity, point.target)
            f[f"{path}.proj_loss"] = alignment_loss(out.projected, (zs,)).reshape(1)
        files["sit_forward"] = f | weights
        steps = randn(12, *shape)
        f = {"latents": x, "y": y, "sde_noise": steps}
        for name, solver in SOLVERS.items():
            f[f"{name}.linear.cfg1.5.0.25-0.75"] = sample_latents(
                network, x, y, solver=solver, steps=8, guidance=Guidance(1.5, 0.25, 0.75), path="linear",
                noise=lambda k, _: steps[k],
            )  # fmt: skip
        files["samplers"] = f | weights
        image, eps = randn(n, 3, d["img"], d["img"]).clamp(-1, 1), randn(*shape)
        posterior = vae.eval().encode(image)
        z = posterior.sample(eps)
        files["autoencoder"] = {
            "image": image, "eps": eps, "z": z, "posterior_mean": posterior.mean, "posterior_std": posterior.std,
            "posterior_kl": kl_loss(posterior.mean, posterior.std), "recon": vae.decode(z),
            "disc_logits": gan.eval()(image),
        } | {f"vae.{k}": v.clone() for k, v in compvis(vae, names).items()}  # fmt: skip
        files["autoencoder"] |= {f"disc.{k}": v.clone() for k, v in gan.state_dict().items()}

    meta: dict[str, object] = {"dims": d, "latent_size": side}
    for kind, name in ((Vanilla, "vanilla"), (Repa, "repa"), (RepaE, "repa_e")):
        networks = Networks(sit=sit(), vae=vae, discriminator=gan.train(), perceptual=MeanSquares())
        recipe = kind(networks, Objective() if kind is Vanilla else kind.Options())
        parts = {"sit": recipe.sit} | ({"vae": vae, "disc": gan} if kind is RepaE else {})

        def states(prefix: str, parts: dict[str, torch.nn.Module] = parts) -> dict[str, Tensor]:
            return {
                f"{prefix}.{part}.{k}": v.clone()
                for part, network in parts.items()
                for k, v in (compvis(network, names) if part == "vae" else network.state_dict()).items()
            }

        f, logs = states("before"), []
        trainer = Trainer(
            recipe, TrainSpec(seed=0, batch_size=n, optimizers={k: OptimizerSpec() for k in recipe.networks})
        )
        for step in range(2):
            drawn = {
                "y": y, "zs": zs, "t": torch.rand(n, generator=g).double(),
                "noise": randn(*shape), "eps": randn(*shape),
                "drop": (torch.arange(n) == step).long(),
            }  # fmt: skip
            if kind is RepaE:
                drawn["image"] = torch.randint(0, 256, (n, 3, d["img"], d["img"]), generator=g).double()
            else:
                drawn |= {"mean": randn(*shape), "std": torch.rand(shape, generator=g).double()}
            f |= {f"step{step}.{k}": v for k, v in drawn.items()}
            row = trainer.train_step(_batch(drawn, d["img"]), RecordedDraws(drawn))
            logs.append(_logged(recipe, {k: v for k, v in row.items() if k != "latent_variance"}))
        meta[f"{name}_log"] = logs
        f |= states("after") | {f"after.ema.{k}": v for k, v in trainer.averages["sit"].state_dict().items()}
        files[f"{name}_steps"] = f

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    for name, tensors in files.items():
        stored = {k: (v.float() if v.is_floating_point() else v).clone().contiguous() for k, v in tensors.items()}
        save_file(stored, folder / f"{name}.safetensors")
