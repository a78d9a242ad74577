"""The recipes that followed REPA and REPA-E, as variants of any suite, each beside what it contradicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.suites.base import Variant
from recipes.core.spec import OptimizerSpec
from recipes.registry import find_recipe

Changes = Mapping[str, Mapping[str, Any]]
#: Variant: recipe, label, one sentence, and the options that differ from the recipe's own.
_FOLLOWUPS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "irepa": ("irepa", "iREPA", "REPA with a convolution for its projector, kernel 1, and normalised targets.", {}),
    "irepa_k3": (
        "irepa", "iREPA, kernel 3", "iREPA as its paper has it; its own command trains kernel 1.", {"kernel": 3}
    ),
    "reg": ("reg", "REG", "REPA, and the encoder's class token denoised as one more token.", {}),
    "haste": ("haste", "HASTE", "REPA and attention distillation, both of which stop.", {}),
    "haste_run_on": (
        "haste", "HASTE, encoder runs on",
        "HASTE as released: encoder, projector and logits are computed after the stop too.", {"run_on": True},
    ),
    "haste_no_stop": (
        "haste", "HASTE, never stopped", "Control: what stopping gains.", {"stop_at": 2**31}
    ),
    "layersync": ("layersync", "LayerSync", "Tokens of a shallow block follow a deep one's; no encoder.", {}),
    "layersync_constant": (
        "layersync", "LayerSync, equal blocks",
        "LayerSync with both blocks equal, as its code defaults: a constant loss.", {},
    ),
    "sra": ("sra", "SRA", "Tokens of a block follow a deeper one's of the average; the released cosine.", {}),
    "sra_tokens": (
        "sra", "SRA, cosine of tokens", "SRA with the cosine over the channels of each token.",
        {"loss": "cosine_of_tokens"},
    ),
    "sra_smooth_l1": ("sra", "SRA, smooth L1", "SRA with the paper's loss.", {"loss": "smooth_l1"}),
    "contrastive": ("contrastive", "contrastive FM", "REPA, its velocity kept away from another image's target.", {}),
    "dispersive": ("dispersive", "dispersive loss", "Tokens of different images kept apart; no encoder.", {}),
    "dispersive_ddt": (
        "dispersive", "dispersive, DDT's", "DDT's variant with its gradient.",
        {"variant": "ddt", "dispersive": 0.5},
    ),
    "dispersive_no_gradient": (
        "dispersive", "dispersive, DDT's as released", "DDT's variant as released: its term has no gradient.",
        {"variant": "ddt_as_released", "dispersive": 0.5},
    ),
    "repa_lognormal": ("repa", "REPA, log-normal t", "REPA with log-normal times.", {"time_sampling": "lognormal"}),
    "repa_cosine": ("repa", "REPA, cosine path", "REPA on the cosine path.", {"path": "cosine"}),
    "repa_muon": ("repa", "REPA, Muon", "REPA with Muon (RAEv2's coefficients) for the SiT's matrices.", {}),
}  # fmt: skip


def followups(changes: Changes, optimizer: OptimizerSpec | None = None) -> dict[str, Variant]:
    """The variants, by name.

    Args:
        changes: options by recipe, for the suite's depth and budget.
        optimizer: the suite's, which Muon takes the place of.
    """
    out = {}
    for name, (recipe, label, about, options) in _FOLLOWUPS.items():
        full = {**changes.get(recipe, {}), **options}
        if name == "layersync_constant":
            deep = find_recipe(recipe, full, where=label).options.blocks[0][1]  # type: ignore[attr-defined]
            full["blocks"] = ((deep, deep),)
        found = find_recipe(recipe, full, where=label).options.model_dump(mode="json")
        muon = name == "repa_muon"
        changed = (optimizer or OptimizerSpec()).changed(kind="muon", betas=(0.9, 0.95)) if muon else None
        out[name] = Variant(recipe=recipe, label=label, about=about, options=found, sit_optimizer=changed, later=True)
    return out
