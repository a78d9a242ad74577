"""How far training seeds spread on each suite: for comparisons with a single seed, and for planning."""

from __future__ import annotations

from harness.results.confidence import SeedNoise

#: By suite. `tests/end_to_end/test_example.py` keeps the one of digits equal to what the example's records say.
NOISE = {
    "digits": SeedNoise(cv=0.0346, freedom=12, slope=0.699, source="measured in reports/examples/digits"),
    "imagenet256": SeedNoise(
        cv=0.013, freedom=0, slope=0.27, source="arXiv 2606.20536; slope: SiT of Figure 1d, 400K to 7M steps"
    ),
}
