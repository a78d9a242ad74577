"""Deliberate mistakes that the fast tests must catch: ``nox -s mutations [-- WORD ...]``.

Each is made in a copy of the repository, and the tests named beside it must then fail. A mistake that survives ends the
session with exit code 1: a test is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
COPIED = ("recipes", "harness", "baselines", "reports", "tests", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """One mistake."""

    what: str
    file: str
    right: str
    wrong: str
    tests: str
    """Of the fast ones, the first that should notice."""


#: What replays the recorded computations of the recipes that followed.
FOLLOWUPS = "tests/golden/test_followups.py"
MUTATIONS = (
    # losses
    Mutation(
        "alignment loss without its minus", "recipes/core/losses.py",
        "return -torch.stack(cosines).mean()", "return torch.stack(cosines).mean()", "tests/unit/test_losses.py",
    ),
    Mutation(
        "KL with the standard deviation for the variance", "recipes/core/losses.py",
        "at_least_float32(std).square()", "at_least_float32(std)", "tests/unit/test_losses.py",
    ),
    Mutation(
        "hinge margin of 0 for the fakes", "recipes/core/losses.py",
        "F.relu(1.0 + fake)", "F.relu(fake)", "tests/unit/test_losses.py",
    ),
    Mutation(
        "velocity of the cosine path without pi / 2", "recipes/core/interpolant.py",
        "Coefficients(cos, sin, -half_pi * sin, half_pi * cos)", "Coefficients(cos, sin, -sin, cos)",
        "tests/numerics/test_samplers.py tests/golden",
    ),
    Mutation(
        "stop-gradient forgotten: the SiT's step trains the tokenizer", "recipes/repa_e.py",
        "        latents = latents.detach()\n", "", "tests/golden",
    ),
    Mutation(
        "tokenizer's alignment under batch statistics, not running ones", "recipes/repa_e.py",
        "diffuse(self.sit.bn.normalize(latents), step", "diffuse(self.sit.bn.normalize_batch(latents), step",
        "tests/golden",
    ),
    Mutation(
        "label dropout keeps what it should drop", "recipes/base.py",
        'draws.uniform("label_dropout") < options', 'draws.uniform("label_dropout") > options',
        "tests/golden tests/unit/test_loop.py",
    ),
    # training core
    Mutation(
        "gradients of micro-batches added, not averaged", "recipes/core/loop.py",
        "scale(update.loss / len(running))", "scale(update.loss)", "tests/unit/test_distributed.py",
    ),
    Mutation(
        "EMA decay and its complement exchanged", "recipes/core/ema.py",
        "torch._foreach_lerp_(*pairs.floats, 1.0 - decay)", "torch._foreach_lerp_(*pairs.floats, decay)",
        "tests/unit/test_ema.py",
    ),
    Mutation(
        "warm-up that begins at its end", "recipes/core/loop.py",
        "min(1.0, (self.position + 1) / max(1, spec.warmup_steps))", "1.0", "tests/unit/test_loop.py",
    ),
    Mutation(
        "an update that is not finite happens", "recipes/core/watchdog.py",
        "optimizer.found_inf = bad.float()", "pass",
        "tests/unit/test_watchdog.py",
    ),
    # resume
    Mutation(
        "resume draws as if from the start", "recipes/core/loop.py",
        "        self.position = position\n        self.settle()", "        self.settle()", "tests/unit/test_run.py",
    ),
    Mutation(
        "resume forgets the optimizer's moments", "recipes/core/loop.py",
        'own.load_state_dict({"state": state,', 'own.load_state_dict({"state": {},', "tests/unit/test_run.py",
    ),
    Mutation(
        "the same order in every epoch", "recipes/data/loader.py",
        'seed_of(seed, "order", epoch)', 'seed_of(seed, "order", 0)', "tests/unit/test_data.py",
    ),
    Mutation(
        "a checkpoint's hash is not looked at", "recipes/core/checkpoint.py",
        "if sha256_of(path) != wanted:", "if False:", "tests/reliability/test_faults.py",
    ),
    # samplers
    Mutation(
        "Heun without its correction", "harness/sampling/solvers.py",
        "0.5 * (first + drift(ahead, t_next, t))", "first", "tests/numerics/test_samplers.py",
    ),
    Mutation(
        "diffusion of the SDE t for 2 t", "harness/sampling/solvers.py",
        "return 2.0 * t", "return t", "tests/numerics/test_samplers.py tests/golden",
    ),
    Mutation(
        "guidance of scale w - 1", "harness/sampling/solvers.py",
        "null + self.scale * (conditional - null)", "null + (self.scale - 1) * (conditional - null)",
        "tests/numerics/test_samplers.py tests/golden",
    ),
    Mutation(
        "samples depend on their place in the batch", "harness/sampling/sampler.py",
        'first.normal_like("sample start", like)', "torch.randn_like(like)",
        "tests/numerics/test_samplers.py",
    ),
    Mutation(
        "pixels rounded where the protocol truncates", "harness/sampling/protocol.py",
        'to_uint8="floor"', 'to_uint8="round"', "tests/unit/test_protocol.py",
    ),
    # metrics
    Mutation(
        "FID with a biased covariance", "harness/metrics/frechet.py",
        "(2 * (self.n - 1))", "(2 * self.n)", "tests/numerics/test_metrics.py",
    ),
    Mutation(
        "FID without the means", "harness/metrics/frechet.py",
        "distance=mean_term + trace_term", "distance=trace_term", "tests/numerics/test_metrics.py",
    ),
    Mutation(
        "KID with the diagonal", "harness/metrics/kid.py",
        ".fill_diagonal_(0).sum(1) / (n - 1)", ".sum(1) / n", "tests/numerics/test_metrics.py",
    ),
    Mutation(
        "Inception score of the reverse divergence", "harness/metrics/inception_score.py",
        "logp.exp() * (logp - marginal)", "marginal.exp() * (marginal - logp)", "tests/numerics/test_metrics.py",
    ),
    Mutation(
        "open balls in precision and recall", "harness/metrics/manifold.py",
        "exact <= radii.expand_as(low)[p, q]", "exact < radii.expand_as(low)[p, q]", "tests/numerics/test_metrics.py",
    ),
    Mutation(
        "PSNR of a peak of 1", "harness/metrics/reconstruction.py",
        "255.0**2 / error", "1.0 / error", "tests/numerics/test_metrics.py",
    ),
    # results
    Mutation(
        "speedup interpolated linearly under the name of log-log", "harness/results/speedup.py",
        "math.exp(math.log(before) + share * math.log(at / before))", "before + share * (at - before)",
        "tests/unit/test_speedup.py",
    ),
    Mutation(
        "a duplicate record is appended again", "harness/records/file.py",
        "if record.key() in self._sound_keys():", "if False:", "tests/unit/test_files.py",
    ),
    # recipes that followed: three each
    Mutation(
        "iREPA's normalisation with the biased deviation", "recipes/models/heads.py",
        "z.std(1, keepdim=True) + 1e-6", "z.std(1, keepdim=True, correction=0) + 1e-6", FOLLOWUPS,
    ),
    Mutation(
        "iREPA's eps under the root", "recipes/models/heads.py",
        "/ (z.std(1, keepdim=True) + 1e-6)", "/ (z.var(1, keepdim=True) + 1e-6).sqrt() / 1.0001", FOLLOWUPS,
    ),
    Mutation(
        "iREPA's tokens column by column", "recipes/models/heads.py",
        ".flatten(2).transpose(1, 2)", ".transpose(2, 3).flatten(2).transpose(1, 2)", FOLLOWUPS,
    ),
    Mutation(
        "REG's class token not aligned", "recipes/reg.py",
        "torch.cat((token[:, None], patches), dim=1)", "torch.cat((0 * token[:, None], patches), dim=1)", FOLLOWUPS,
    ),
    Mutation(
        "REG's class token behind the patches", "recipes/models/sit.py",
        "tokens = torch.cat((self.class_norm(self.class_embedder(class_token))[:, None], tokens), dim=1)",
        "tokens = torch.cat((tokens, self.class_norm(self.class_embedder(class_token))[:, None]), dim=1)", FOLLOWUPS,
    ),
    Mutation(
        "REG's class token guided by the image's scale", "harness/sampling/solvers.py",
        "scale = self.scale if self.class_scale is None else self.class_scale", "scale = self.scale", FOLLOWUPS,
    ),
    Mutation(
        "HASTE stops one iteration late", "recipes/haste.py",
        "        if step.number >= self.options.stop_at:\n            return None, {}",
        "        if step.number > self.options.stop_at:\n            return None, {}", FOLLOWUPS,
    ),
    Mutation(
        "HASTE's logits without their scale", "recipes/models/sit.py",
        "(q * q.shape[-1] ** -0.5) @ k.mT", "q @ k.mT", FOLLOWUPS,
    ),
    Mutation(
        "HASTE's cross-entropy turned round", "recipes/core/losses.py",
        "for ours, theirs in zip(student", "for theirs, ours in zip(student",
        FOLLOWUPS,
    ),
    Mutation(
        "LayerSync without stop-gradient", "recipes/layersync.py",
        "taps[deep].detach()", "taps[deep]", FOLLOWUPS,
    ),
    Mutation(
        "LayerSync counts the first pair", "recipes/layersync.py",
        "self.options.blocks[-1:]", "self.options.blocks[:1]", FOLLOWUPS,
    ),
    Mutation(
        "tokens before a block for those after it", "recipes/models/sit.py",
        "            tokens, scores = self._run(block, tokens, condition, with_logits=depth in logits)\n",
        "            if depth in taps:\n                tapped[depth] = tokens\n"
        "            tokens, scores = self._run(block, tokens, condition, with_logits=depth in logits)\n"
        "            taps = [k for k in taps if k != depth]\n",
        FOLLOWUPS,
    ),
    Mutation(
        "SRA's cosine over the channels", "recipes/core/losses.py",
        "at_least_float32(teacher), dim=1)", "at_least_float32(teacher), dim=2)", FOLLOWUPS,
    ),
    Mutation(
        "SRA's teacher is the student", "recipes/sra.py",
        'step.averages["sit"](at.x_t', "self.sit(at.x_t", FOLLOWUPS,
    ),
    Mutation(
        "SRA's teacher at more noise", "recipes/sra.py",
        "(seen.point.t - less).clamp(0, 1)", "(seen.point.t + less).clamp(0, 1)", FOLLOWUPS,
    ),
    Mutation(
        "a negative may be the image itself", "recipes/contrastive.py",
        "drawn + (drawn >= own)", "drawn", FOLLOWUPS,
    ),
    Mutation(
        "images without a label count half", "recipes/contrastive.py",
        "if not self.options.contrast_null:", "if False:", FOLLOWUPS,
    ),
    Mutation(
        "interference after the score", "harness/sampling/solvers.py",
        "v = interference.velocity * v - interference.weight * interference.vector",
        "v = v - interference.weight * interference.vector", FOLLOWUPS,
    ),
    Mutation(
        "dispersive loss without the diagonal", "recipes/core/losses.py",
        "return torch.logsumexp(-distances.flatten() / temperature, 0) - 2 * math.log(len(z))",
        "keep = ~torch.eye(len(z), dtype=torch.bool)\n"
        "    return torch.logsumexp(-distances[keep] / temperature, 0) - 2 * math.log(len(z))", FOLLOWUPS,
    ),
    Mutation(
        "dispersive loss not over the dimension", "recipes/core/losses.py",
        "_squared_distances(z) / z.shape[1]", "_squared_distances(z)", FOLLOWUPS,
    ),
    Mutation(
        "DDT's pairs with themselves", "recipes/core/losses.py",
        "offset=1, device", "offset=0, device", FOLLOWUPS,
    ),
    Mutation(
        "Muon without Nesterov's step", "recipes/core/optimizers.py",
        "gradient + mu * buffer if self._nesterov else buffer", "buffer", FOLLOWUPS,
    ),
    Mutation(
        "Muon's step by the smaller side", "recipes/core/optimizers.py",
        "max(p.shape) ** 0.5", "min(p.shape) ** 0.5", FOLLOWUPS,
    ),
    Mutation(
        "what has stopped still costs", "recipes/haste.py",
        "if number >= options.stop_at and not options.run_on:", "if False:", "tests/unit/test_arena.py",
    ),
    Mutation(
        "a loss across images sees one process", "recipes/dispersive.py",
        "[gather_rows(tokens)]", "[tokens]", "tests/unit/test_distributed.py",
    ),
)  # fmt: skip


def caught(mutation: Mutation, place: Path) -> bool:
    """Make the mistake in a copy, run its tests, and take it back; whether they failed."""
    path = place / mutation.file
    before = path.read_text()
    if before.count(mutation.right) != 1:
        raise SystemExit(f"{mutation.file} does not hold {mutation.right!r} once: bring the mutation up to date")
    path.write_text(before.replace(mutation.right, mutation.wrong))
    failed = tested(mutation.tests.split(), place)
    path.write_text(before)
    return failed


def tested(tests: list[str], place: Path) -> bool:
    """Run some tests of a copy; whether one failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {done.returncode}\n{done.stdout[-2000:]}")
    return done.returncode == 1


def main(words: list[str]) -> int:
    """Try those mutations whose sentence holds one of the words; all by default."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.what for word in words)]
    survived = []
    with TemporaryDirectory() as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        everything = sorted({test for mutation in chosen for test in mutation.tests.split()})
        if tested(everything, Path(folder)):
            raise SystemExit("the tests fail without a mistake")
        for number, mutation in enumerate(chosen, start=1):
            began = time.monotonic()
            found = caught(mutation, Path(folder))
            survived += [] if found else [mutation.what]
            told = "caught" if found else "SURVIVED"
            print(f"{number}/{len(chosen)} {told:8s} {time.monotonic() - began:5.1f} s  {mutation.what}", flush=True)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
