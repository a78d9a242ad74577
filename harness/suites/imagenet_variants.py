"""The paper's recipes and ablations, as variants of the ImageNet suite."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from harness.suites.base import Variant
from harness.suites.followups import Changes, followups
from recipes.core.spec import Depth, OptimizerSpec
from recipes.registry import find_recipe


class PaperVariant(Variant):
    """A recipe with the networks it is run on."""

    size: str = "XL"
    tokenizer: str = "sd-vae"
    from_scratch: bool = False
    """Joint training from a tokenizer and discriminator with random weights."""
    encoders: tuple[str, ...] = ("dinov2-vit-b",)
    encoder_depth: Depth = 8
    source: str = ""
    """Which table of the paper it belongs to."""


def _variant(name: str, label: str, about: str, source: str = "", **changes: Any) -> PaperVariant:
    """A variant with every option written out, so that each can be overridden by its key."""
    options: dict[str, JsonValue] = changes.pop("options", {})
    full = find_recipe(name, options, where=label).options.model_dump(mode="json")
    return PaperVariant(recipe=name, label=label, about=about, source=source, options=full, **changes)


def _pair(key: str, label: str, source: str, **changes: Any) -> dict[str, PaperVariant]:
    """REPA and REPA-E under the same change."""
    return {
        f"repa_{key}": _variant("repa", f"REPA, {label}", f"REPA with {label}.", source, **changes),
        f"repa_e_{key}": _variant("repa_e", f"REPA-E, {label}", f"REPA-E with {label}.", source, **changes),
    }


def paper_variants() -> dict[str, PaperVariant]:
    """The three recipes, the two-stage recipe, and the paper's ablations, which run on SiT-L for 100,000 steps."""
    variants = {
        "vanilla": _variant("vanilla", "vanilla (SiT)", "Denoising loss only, SD-VAE frozen."),
        "repa": _variant("repa", "REPA", "Plus alignment of block 8 with DINOv2-B."),
        "repa_e": _variant("repa_e", "REPA-E", "Plus joint training of the SD-VAE, through the alignment loss alone."),
        "two_stage": _variant(
            "repa", "REPA on a tuned VAE", "REPA on the frozen VAE of a REPA-E run of yours.", tokenizer="tuned-vae"
        ),
        "two_stage_f16d32": _variant(
            "repa",
            "REPA on a tuned f16d32 VAE",
            "REPA on the frozen IN-VAE or VA-VAE of a REPA-E run of yours.",
            tokenizer="tuned-vae-f16d32",
        ),
        "repa_e_invae": _variant("repa_e", "REPA-E, IN-VAE", "REPA-E at SiT-XL/1 on the IN-VAE.", tokenizer="in-vae"),
        "repa_e_vavae": _variant(
            "repa_e",
            "REPA-E, VA-VAE",
            "REPA-E at SiT-XL/1 on the VA-VAE: the first stage of the paper's best numbers.",
            tokenizer="va-vae",
        ),
        "two_stage_e2e_sdvae": _variant(
            "repa", "REPA on E2E-SDVAE", "REPA on the released tuned SD-VAE.", "Table 8", tokenizer="e2e-sdvae"
        ),
        "two_stage_e2e_vavae": _variant(
            "repa",
            "REPA on E2E-VAVAE",
            "REPA on the released tuned VA-VAE: FID 1.83 and 1.26 (later 1.69 and 1.12) after 4M steps.",
            "Table 9",
            tokenizer="e2e-vavae",
        ),
    }
    return variants | _ablations() | later_variants(RELEASED)


#: Paper settings for SiT-XL/2: SRA's blocks; contrast groups of 32 (256 images on 8 GPUs).
RELEASED: Changes = {
    "sra": {"student_block": 8, "teacher_block": 20},
    "contrastive": {"group": 32},
    "dispersive": {"group": 32},
}


def later_variants(changes: Changes, **fields: Any) -> dict[str, PaperVariant]:
    """The recipes that followed, and REPA-E with iREPA's head; `changes` as for `followups`, `fields` of each."""
    out = {name: PaperVariant(**dict(variant), **fields) for name, variant in followups(changes).items()}
    for name in ("layersync", "layersync_constant", "dispersive", "dispersive_ddt", "dispersive_no_gradient"):
        # SiT's own code does not clip.
        out[name] = out[name].changed(sit_optimizer=OptimizerSpec(clip_norm=None))
    head = {"projector": "convolution", "gamma": 0.6}
    out["repa_e_irepa"] = _variant(
        "repa_e", "REPA-E, iREPA's head", "REPA-E with iREPA's projector and targets.", options=head, **fields
    ).changed(later=True)
    return out


def _ablations() -> dict[str, PaperVariant]:
    """Tables 2 to 7: one thing changed, on SiT-L for 100,000 steps if nothing else is said."""
    variants: dict[str, PaperVariant] = {}
    for size in ("B", "L"):
        variants |= _pair(f"size_{size.lower()}", f"SiT-{size}/2", "Table 2", size=size)
    for key, encoder in (("ijepa_h", "jepa-vit-h"), ("clip_l", "clip-vit-L"), ("dinov2_l", "dinov2-vit-l")):
        variants |= _pair(f"encoder_{key}", f"SiT-L and {encoder}", "Table 3", size="L", encoders=(encoder,))
    for key, tokenizer in (("invae", "in-vae"), ("vavae", "va-vae")):
        variants |= _pair(f"tokenizer_{key}", f"SiT-L and {tokenizer}", "Table 4", size="L", tokenizer=tokenizer)
    for depth in (6, 10):
        variants |= _pair(f"depth_{depth}", f"SiT-L aligned at block {depth}", "Table 5", size="L", encoder_depth=depth)
    components = {
        "no_stop_gradient": ("without stop-gradient: the denoising loss trains the VAE too", {"vae_diffusion": 1.0}),
        "no_batch_norm": ("without batch norm: the latents keep their first statistics", {"batch_norm": False}),
        "no_gan": ("without the GAN term", {"gan": 0.0}),
    }
    for key, (label, options) in components.items():
        variants[f"repa_e_{key}"] = _variant(
            "repa_e", f"REPA-E {label.split(':')[0]}", f"SiT-L, {label}.", "Table 6", size="L", options=options
        )
    variants["repa_e_scratch"] = _variant(
        "repa_e",
        "REPA-E from scratch",
        "VAE and discriminator start from random weights.",
        "Table 7",
        from_scratch=True,
    )
    return variants
