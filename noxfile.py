"""Sessions of repa-bench. All share one environment: torch with CUDA is 5 GB, too much for one each. What only
developers need is installed when a session first wants it.

nox -s demo              the comparison on real digits, minutes on two cores
nox -s repa_e -- ARGS    train and score one recipe; ARGS go to `repa-bench run`
nox -l                   everything else
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
ENVIRONMENT = Path(os.environ.get("REPA_BENCH_ENV", ROOT / ".nox" / "shared"))
BIN = "Scripts" if os.name == "nt" else "bin"

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "none"
nox.options.error_on_external_run = False


def made(folder: Path, python: str, extra: str) -> bool:
    """Make an environment, or bring it up to date when pyproject.toml has changed; whether that could be done.

    An environment that has more than an extra, `dev` more than none, will do for it.
    """
    stamp, wanted = folder / "repa-bench.stamp", hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    done = stamp.read_text().split() if stamp.exists() else []
    if done[:1] == [wanted] and extra in ("", *done[1:]):
        return True
    extra = extra or " ".join(done[1:])  # what was there is brought up to date too
    print(f"setting up {folder} (once; torch and what it brings are about 3 GB to fetch, 6 on the disk)", flush=True)
    if not (folder / BIN).exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / BIN / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, "--editable", f"{ROOT}[{extra}]" if extra else str(ROOT)], check=False).returncode:
        return False
    stamp.write_text(f"{wanted} {extra}")
    print(f"repa-bench lies in {folder / BIN}; `source {folder / BIN / 'activate'}` puts it on the path", flush=True)
    return True


def environment(session: nox.Session, command: str) -> None:
    """The shared environment, with what a command needs."""
    if not made(ENVIRONMENT, sys.executable, "" if command == "repa-bench" else "dev"):
        session.error("pip could not install what pyproject.toml names")


def newer_pythons() -> list[str]:
    """The interpreters of this machine that are newer than ours, the newest first: on the path, or pyenv's."""
    named = (shutil.which(f"python3.{minor}") for minor in range(sys.version_info.minor + 1, 30))
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/3.*/bin/python")
    found = {}
    for python in [name for name in named if name] + [str(path) for path in pyenv]:
        asked = [python, "-c", "import sys; print(*sys.version_info[:3])"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False)  # a shim of pyenv may refuse
        if not told.returncode:
            found[tuple(map(int, told.stdout.split()))] = python
    return [found[version] for version in sorted(found, reverse=True) if version[:2] > sys.version_info[:2]]


def run(session: nox.Session, command: str, *arguments: str) -> None:
    """Run a command of the shared environment."""
    environment(session, command)
    session.run(str(ENVIRONMENT / BIN / command), *arguments, external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """Train, score and compare the three recipes on real handwritten digits; write the report."""
    run(session, "repa-bench", "run", "--suite", "digits", *session.posargs)


#: Files share what their fixtures make, so each is one process's; in their order, as the slowest have few tests.
PARALLEL = ["--numprocesses", "auto", "--maxprocesses", "8", "--dist", "loadfile", "--no-loadscope-reorder"]


@nox.session
def tests(session: nox.Session) -> None:
    """The tests that need no GPU: a file at a time on every core."""
    run(session, "pytest", *PARALLEL, *session.posargs)


#: What reads the files of others: seconds each.
QUICK = [
    "tests/reliability/test_real_images.py", "tests/reliability/test_security.py", "tests/unit/test_images.py",
    "tests/unit/test_stored_data.py", "tests/unit/test_latents.py", "tests/unit/test_files.py",
    "tests/unit/test_pickles.py", "tests/unit/test_spec.py", "tests/unit/test_curves.py", "tests/unit/test_models.py",
]  # fmt: skip


@nox.session(default=False)
def newest(session: nox.Session) -> None:
    """The quick part of the tests on the newest Python of this machine that the dependencies have."""
    folder = ENVIRONMENT.with_name(f"{ENVIRONMENT.name}-newest")
    for python in newer_pythons():
        if made(folder, python, "test"):
            session.run(str(folder / BIN / "python"), "-m", "pytest", *QUICK, *session.posargs, external=True)
            return
        session.warn(f"the dependencies cannot be had for {python}")
        shutil.rmtree(folder, ignore_errors=True)
    session.skip("no newer Python on this machine, on the path or of pyenv, that the dependencies have")


#: A session for each recipe.
RECIPES = {
    "vanilla": "vanilla SiT", "repa": "REPA", "repa_e": "REPA-E", "irepa": "iREPA", "reg": "REG", "haste": "HASTE",
    "layersync": "LayerSync", "sra": "SRA", "contrastive": "contrastive flow matching", "dispersive": "dispersive loss",
}  # fmt: skip


def recipe(name: str, called: str) -> None:
    """Make the session of a recipe."""

    def train(session: nox.Session) -> None:
        run(session, "repa-bench", "run", "--recipes", name, *session.posargs)

    train.__doc__ = f"Train and score {called}."
    nox.session(train, name=name)


for _name, _called in RECIPES.items():
    recipe(_name, _called)


@nox.session
def report(session: nox.Session) -> None:
    """Write the comparison report of an output folder (default: the demo's)."""
    run(session, "repa-bench", "report", *(session.posargs or ["runs/digits"]))


@nox.session(default=False)
def look(session: nox.Session) -> None:
    """Open a report as people do (phone, desk, paper), say what is wrong with it, keep the pictures."""
    run(session, "python", "tests/look.py", *(session.posargs or ["runs/digits/report/index.html", "runs/digits/seen"]))


@nox.session(default=False)
def notebook(session: nox.Session) -> None:
    """Execute docs/comparison.ipynb, and keep what it shows."""
    run(session, "python", "tests/notebook.py")


@nox.session
def regression(session: nox.Session) -> None:
    """Rerun the smoke suite and compare it with what baselines/reference accepted."""
    run(session, "pytest", "-m", "regression", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy --strict on the four packages."""
    run(session, "mypy")


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Kill fifty runs of the smoke suite at random moments, and what else is too slow for every day. Half an hour."""
    run(session, "pytest", "-m", "soak", "-s", *session.posargs)


@nox.session(default=False)
def slurm(session: nox.Session) -> None:
    """Start a real SLURM here (apt install slurm-wlm munge; as root), run grids on it whose jobs lose their place, and
    compare with a serial run. Ten minutes.
    """
    run(session, "pytest", "tests/reliability/test_slurm.py", "-m", "soak or not soak", "-s", *session.posargs)


@nox.session(default=False)
def mutations(session: nox.Session) -> None:
    """Make deliberate mistakes, one after the other; each must fail a test."""
    run(session, "python", "tests/mutations.py", *session.posargs)


@nox.session(default=False)
def parity(session: nox.Session) -> None:
    """Replay what was recorded from released code, and keep how much of it each recipe gives."""
    run(session, "python", "tests/parity.py")


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Bandit on the packages, and pip-audit on what is installed (asks PyPI). Exceptions are argued in docs."""
    run(session, "bandit", "-q", "-c", "pyproject.toml", "-r", "harness", "recipes", "baselines", "reports")
    run(session, "pip-audit", "--skip-editable", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Benchmarks (pytest-benchmark); keeps the figures as JSON."""
    storage = ("--benchmark-storage=file://baselines/performance", "--benchmark-autosave")
    run(session, "pytest", "tests/benchmarks", "-m", "benchmark", *storage, *session.posargs)


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """The tests that need a CUDA device."""
    run(session, "pytest", "-m", "gpu and not benchmark", *session.posargs)
