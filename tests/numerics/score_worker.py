"""One process of torchrun that scores files: `test_score_files.test_two_processes_are_one`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from harness.scoring import feature_shards, score_images
from harness.scoring.image_sets import open_samples
from recipes.core.distributed import gather_equal, world

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests_support import Toy

place, out = map(Path, sys.argv[1:])
feature_shards.SHARD = 3

with world("cpu") as here:
    network = Toy()
    wanted = ("fid", "sfid", "is", "precision", "recall", "f_score", "density", "coverage", "kid")
    job = score_images.Job(network=network, features="inception", wanted=wanted, cache=out / "cache", world=here)
    job.measure(open_samples(place / "real.npz", flag="--reference"), "reference")
    network.looked = 0
    found = score_images.score(open_samples(place / "fake.npz", flag="--samples"), place / "real.npz", job)
    counts = gather_equal(torch.tensor([network.looked])).flatten().tolist()
    if here.main:
        (out / "found.json").write_text(json.dumps({"found": found, "looked": counts}))
