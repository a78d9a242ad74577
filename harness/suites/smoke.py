"""The digits suite at sizes that take seconds, for tests and kill experiments. Its numbers mean nothing."""

from __future__ import annotations

from harness.suites.base import Budget
from harness.suites.digits import DigitsSuite, digits
from harness.suites.digits_specs import DigitsData, NetworkTraining
from harness.suites.followups import Changes, followups

#: Options of the recipes that followed, for two blocks, an encoder of one layer and 24 steps.
SMOKE_FOLLOWUPS: Changes = {
    "haste": {"student_blocks": (1,), "encoder_layers": (1,), "stop_at": 12},
    "layersync": {"blocks": ((1, 2),)},
    "sra": {"student_block": 1, "teacher_block": 2, "epoch": 6},
}


def smoke() -> DigitsSuite:
    """Every stage of `digits`, made small."""
    full = digits()

    def short(training: NetworkTraining, steps: int) -> NetworkTraining:
        return training.model_copy(update={"steps": steps, "batch_size": 32})

    return full.model_copy(
        update={
            "name": "smoke",
            "notice": "smoke suite: proves that the path works; its numbers mean nothing",
            "data": DigitsData(train=768, reference=768),
            "tokenizer": full.tokenizer.model_copy(update={"training": short(full.tokenizer.training, 40)}),
            "encoder": full.encoder.model_copy(
                update={"width": 48, "depth": 1, "training": short(full.encoder.training, 20)}
            ),
            "features": full.features.model_copy(update={"width": 16, "training": short(full.features.training, 40)}),
            "sit": full.sit.model_copy(update={"hidden": 48, "depth": 2, "encoder_depth": 1, "projector_width": 64}),
            "variants": {
                **{name: variant for name, variant in full.variants.items() if not variant.later},
                **followups(SMOKE_FOLLOWUPS, full.sit_optimizer),
            },
            "batch_size": 16,
            "curve_protocol": full.curve_protocol.model_copy(
                update={"name": "smoke-ode4", "steps": 4, "samples": 128, "manifold_size": 128}
            ),
            "final_protocols": tuple(
                p.model_copy(update={"name": "smoke-sde4", "steps": 4, "samples": 128, "manifold_size": 128})
                for p in full.final_protocols
            ),
            "max_rfid": 1e6,
            "default_seeds": (0,),
            "default_jobs": 1,  # its runs take less time than a process takes to start
            "budget": Budget(steps=24, score_every=8),
        }
    )
