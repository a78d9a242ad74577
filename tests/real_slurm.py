"""A real SLURM on this machine, in a folder of its own: munge, a controller and a node daemon, each a process of ours.

Debian's packages slurm-wlm and munge. Jobs that the partition `high` gets have those of `low` saved and requeued.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch", "srun", "scontrol")
#: No call of SLURM may take longer: an srun that nothing satisfies waits for ever.
CALL_SECONDS = 60
#: States of a node whose daemon answers.
UP = ("IDLE", "MIXED", "ALLOCATED", "COMPLETING")
#: If a job begins again before SLURM has heard of the end of its last start, that end counts as the new one's.
LET_GO_SECONDS = 10

CONFIGURATION = """
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
SlurmctldPort={port}
SlurmdPort={node_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
SlurmdTimeout=10
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} CoresPerSocket={cores} RealMemory=8000 {gres}
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=UNLIMITED
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF
"""
#: In version 22.05, "disabled" is not known.
CGROUP = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n"


def missing() -> str:
    """Why there can be no SLURM here; empty if there can."""
    if sys.platform != "linux" or not hasattr(os, "geteuid") or os.geteuid():
        return "a node daemon wants root, on Linux"
    here = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return f"not installed: {', '.join(here)} (apt install slurm-wlm munge)" if here else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(happened: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@dataclass
class Slurm:
    """A running SLURM. Whatever has `environment` finds it."""

    folder: Path
    environment: dict[str, str]
    node: subprocess.Popen[bytes] | None = None
    pending: dict[str, float] = field(default_factory=dict)
    """Since when each job was seen waiting."""

    def call(self, *words: str) -> str:
        """What a program of SLURM prints."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=CALL_SECONDS, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def queue(self) -> dict[str, str]:
        """State of each job that is not over, by number."""
        lines = self.call("squeue", "--noheader", "--array", "--format=%F|%K|%T").splitlines()
        split = [line.strip().split("|") for line in lines]
        return {number if index == "N/A" else f"{number}_{index}": state for number, index, state in split}

    def hurry(self) -> None:
        """A requeued job waits two minutes: no longer than it takes its old processes to be gone."""
        waiting = {number for number, state in self.queue().items() if state == "PENDING"}
        self.pending = {number: self.pending.get(number, time.monotonic()) for number in waiting}
        for number, since in self.pending.items():
            if time.monotonic() - since > LET_GO_SECONDS and "BeginTime" in self.call(
                "scontrol", "show", "job", number
            ):
                self.call("scontrol", "update", f"JobId={number}", "StartTime=now")

    def start_node(self) -> None:
        """Start the node daemon, and wait until its node takes jobs."""
        with (self.folder / "node.out").open("ab") as log:
            self.node = subprocess.Popen(["slurmd", "-D"], env=self.environment, stdout=log, stderr=log)
        until(lambda: self.node_state() in UP, f"the node does not come up: {self.node_state()}")

    def node_state(self) -> str:
        """Of the one node: a down one is told to resume."""
        state = self.call("sinfo", "--noheader", "--format=%T", "--partition=low").split()[0].upper()
        if state.startswith(("DOWN", "DRAIN")) and self.node is not None:
            name = socket.gethostname()
            subprocess.run(
                ["scontrol", "update", f"NodeName={name}", "State=RESUME"], env=self.environment, check=False
            )
        return state.rstrip("*")

    def kill_node(self) -> None:
        """As when the machine dies: the daemon, and every process of a job on it."""
        assert self.node is not None
        self.node.kill()
        self.node.wait()
        self.node = None
        for process in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"SLURM_CONF={self.folder}/".encode() in (process / "environ").read_bytes()
                of_job = b"SLURM_JOB_ID=" in (process / "environ").read_bytes()
                if mine and (of_job or b"slurmstepd" in (process / "cmdline").read_bytes()):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                continue  # it has ended


@contextmanager
def running(folder: Path, *, cores: int = 2, gpus: int = 0) -> Iterator[Slurm]:
    """Context: a SLURM with one node, whose cores and GPUs are pretended."""
    import getpass

    for name in ("state", "spool", "dev"):
        (folder / name).mkdir(parents=True)
    facts = {"host": socket.gethostname(), "user": getpass.getuser(), "folder": folder, "cores": cores}
    facts |= {"gres": f"Gres=gpu:{gpus}" if gpus else "", "port": free_port(), "node_port": free_port()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**facts))
    (folder / "cgroup.conf").write_text(CGROUP)
    if gpus:
        devices = [folder / "dev" / f"gpu{number}" for number in range(gpus)]
        for device in devices:
            device.touch()
        (folder / "gres.conf").write_text(f"NodeName={facts['host']} Name=gpu File={folder}/dev/gpu[0-{gpus - 1}]\n")
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    slurm = Slurm(folder, environment)
    processes: list[subprocess.Popen[bytes]] = []

    def start(*words: str | Path) -> None:
        with (folder / f"{words[0]}.out").open("wb") as log:
            processes.append(subprocess.Popen([*map(str, words)], env=environment, stdout=log, stderr=log))

    try:
        slurm.call("mungekey", "--create", f"--keyfile={folder}/munge.key")
        files = [
            f"--{n}={folder}/munge.{n.split('-')[0]}"
            for n in ("socket", "key-file", "pid-file", "log-file", "seed-file")
        ]
        start("munged", "--force", "--foreground", *files)
        until((folder / "munge.socket").exists, "munged does not start")
        start("slurmctld", "-D")
        until(lambda: _answers(slurm, ["scontrol", "ping"]), "slurmctld does not answer")
        slurm.start_node()
        yield slurm
    finally:
        subprocess.run(["scancel", "--me"], env=environment, check=False, timeout=CALL_SECONDS)
        for process in [slurm.node, *reversed(processes)]:
            if process is not None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


def _answers(slurm: Slurm, words: Sequence[str]) -> bool:
    done = subprocess.run(
        words, env=slurm.environment, capture_output=True, text=True, check=False, timeout=CALL_SECONDS
    )
    return "is UP" in done.stdout
