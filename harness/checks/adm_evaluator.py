"""ADM's own evaluator (openai/guided-diffusion, TensorFlow 1), run where the user has it, beside our numbers."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from harness.scoring.array_files import NpzImages
from harness.scoring.image_files import write_npz
from harness.scoring.image_sets import ImageSet, batches, open_samples
from recipes.core.errors import UserError

#: The evaluator's labels for our metric names.
PRINTED = {
    "is": "Inception Score",
    "fid": "FID",
    "sfid": "sFID",
    "precision": "Precision",
    "recall": "Recall",
}
#: Its numbers for ``admnet_guided_upsampled_imagenet256.npz`` against ``VIRTUAL_imagenet256_labeled.npz``
#: (guided-diffusion, evaluations/README.md), and by how much another computation of the same may lie below and above:
#: its features are TensorFlow's. It computes squared distances in float16, whose spacing at norms of several hundred is
#: 0.25 to 0.5, and takes closed balls: ties and the nearest of many rounded distances put more points inside, 0.003 to
#: 0.0085 of them (tests/numerics/test_float16_distances.py). So its precision and recall are above exact ones.
KNOWN = {
    "is": (215.8370361328125, 0.5, 0.5),
    "fid": (3.9425574129223264, 0.01, 0.01),
    "sfid": (6.140433703346162, 0.02, 0.02),
    "precision": (0.8265, 0.01, 0.001),
    "recall": (0.5309, 0.01, 0.001),
}


def parse_printed(text: str) -> dict[str, float]:
    """The five numbers in what the evaluator printed; those that it did not print are absent."""
    found = {}
    for name, printed in PRINTED.items():
        # TensorFlow's log may share the stream; the numbers stand on lines of their own, and "FID" ends "sFID".
        match = re.search(rf"^{printed}: *([-+0-9.eE]+|nan|inf)\s*$", text, re.MULTILINE)
        if match:
            found[name] = float(match[1])
    return found


def refuse_absent(python: Path, evaluator: Path, reference: Path) -> None:
    """See at once that the evaluator could run.

    Raises:
        UserError: a file is missing, or the reference is not in its form.
    """
    for flag, path in (("--adm-python", python), ("--adm-evaluator", evaluator)):
        if not path.is_file():
            raise UserError(f"{flag} {path}: there is no such file.")
    if reference.suffix != ".npz":
        raise UserError(f"--adm-evaluator wants a reference in ADM's form: {reference} is no .npz.")


def run_evaluator(python: Path, evaluator: Path, samples: Path, reference: Path) -> dict[str, float]:
    """What ADM's evaluator says of these samples.

    Args:
        python: the interpreter of the environment that has TensorFlow.
        evaluator: guided-diffusion's ``evaluations/evaluator.py``.
        samples: an .npz, or anything that `open_samples` reads: it is written as one first.
        reference: an .npz.

    Raises:
        UserError: a file is missing, or the evaluator failed; its last lines are shown.
    """
    refuse_absent(python, evaluator, reference)
    with tempfile.TemporaryDirectory() as scratch:
        images: ImageSet = open_samples(samples, flag="--samples")
        if not (isinstance(images, NpzImages) and images.adm):
            samples = Path(scratch) / "samples.npz"
            write_npz(samples, batches(images, 64), len(images))
        command = [str(p.absolute()) for p in (python, evaluator, reference, samples)]
        # It downloads its network into the folder where it runs, so that is the folder of the script.
        done = subprocess.run(command, cwd=evaluator.absolute().parent, capture_output=True, text=True, check=False)
    found = parse_printed(done.stdout)
    if done.returncode or not found:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise UserError(
            f"--adm-evaluator {evaluator} failed with code {done.returncode} and printed no numbers: {last}"
        )
    return found
