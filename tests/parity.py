"""Replay every folder of recorded computations and write baselines/parity.json: ``nox -s parity``."""

from __future__ import annotations

import json
from pathlib import Path

from harness.checks.replay import replay

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
#: Of the folder that does not say it.
RELEASED = "End2End-Diffusion/REPA-E@3ad8046"
#: Folder, and the recipes that it proves, by the beginning of the quantities' names.
FOLDERS: dict[str, dict[str, str]] = {
    ".": {"vanilla": "vanilla_steps", "repa": "repa_steps", "repa_e": "repa_e_steps"},
    "followups/irepa": {"irepa": ""},
    "followups/reg": {"reg": ""},
    "followups/haste": {"haste": ""},
    "followups/layersync": {"layersync": ""},
    "followups/sra": {"sra": ""},
    "followups/contrastive_fm": {"contrastive": ""},
    "followups/dispersive": {"dispersive": ""},
}


def measured() -> dict[str, dict[str, object]]:
    """What each recipe reproduces."""
    out: dict[str, dict[str, object]] = {}
    for folder, recipes in FOLDERS.items():
        results = list(replay(GOLDEN / folder))
        released = json.loads((GOLDEN / folder / "meta.json").read_text()).get(
            "source", "End2End-Diffusion/REPA-E@3ad8046"
        )
        for recipe, beginning in recipes.items():
            # What the three recipes share (network, samplers, autoencoder) counts for each of them.
            others = [b for b in recipes.values() if b and b != beginning]
            own = [r for r in results if not r.quantity.startswith(tuple(others))] if others else results
            out[recipe] = {
                "folder": folder,
                "released": str(released).split()[0],
                "quantities": len(own),
                "passed": sum(r.passed for r in own),
            }
    return out


if __name__ == "__main__":
    path = ROOT / "baselines" / "parity.json"
    path.write_text(json.dumps(measured(), indent=1) + "\n")
    print(path)
