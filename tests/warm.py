"""Commands in real processes that begin warm: a server imports the libraries once and forks a process for each.

A process that starts cold spends most of a small command's time on importing torch, diffusers and SciPy.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from conftest import ROOT

#: What the commands import when they need it.
LIBRARIES = [
    "torch.optim", "torch._dynamo", "diffusers.models.autoencoders.autoencoder_kl", "timm", "scipy.stats",
    "sklearn.datasets", "matplotlib.pyplot", "torchmetrics.functional.image", "harness.cli.app",
]  # fmt: skip


def _main(arguments: list[str], environment: dict[str, str], folder: str, memory: int | None) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.argv = ["repa-bench", *arguments]
    from harness.cli.start import main

    main()


def repa_bench(
    *arguments: object, environment: Mapping[str, str] | None = None, memory: int | None = None, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would.

    Args:
        arguments: of ``repa-bench``.
        environment: more variables.
        memory: bytes of address space that it may have.
        timeout: in seconds.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(LIBRARIES)
    command = [str(argument) for argument in arguments]
    with TemporaryDirectory() as folder:
        process = server.Process(target=_main, args=(command, {**os.environ, **(environment or {})}, folder, memory))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        out, err = (Path(folder, name).read_text() if Path(folder, name).exists() else "" for name in ("out", "err"))
    return subprocess.CompletedProcess(command, process.exitcode, out, err)
