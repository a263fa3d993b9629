"""Real munged, slurmctld and slurmd on this machine, in a separate folder, started and stopped by the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=30 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Reason why no Slurm can be started here, None if one can."""
    missing = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed (on Debian: apt-get install slurmctld slurmd slurm-client munge)"
    if os.getuid() != 0:
        return "slurmd starts jobs for other users and so must be root"
    return None


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@contextlib.contextmanager
def cluster(folder: Path, *, cpus: int = 2) -> Iterator[Path]:
    """A cluster of one node with two partitions, of which ``high`` pre-empts ``low``; yields its slurm.conf.

    Raises:
        RuntimeError: it did not come up; the message ends with the daemons' logs.
    """
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf, key = folder / "slurm.conf", folder / "munge.key"
    conf.write_text(CONF.format(host=host, folder=folder, ports=_free_ports(), cpus=cpus))
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environ = {**os.environ, "PATH": _path(), "SLURM_CONF": str(conf)}
    munge = {"key-file": "munge.key", "socket": "munge.sock", "log-file": "munged.log", "seed-file": "munge.seed"}
    commands = [
        ["munged", "--foreground", "--force", *(f"--{k}={folder / v}" for k, v in munge.items())],
        ["slurmctld", "-D", "-i", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf), "-N", host],
    ]
    commands[0].append(f"--pid-file={folder / 'munged.pid'}")
    daemons = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out.log").open("wb") as log:
                daemons.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
            time.sleep(0.5)
        _wait_for_idle(environ, folder)
        yield conf
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_for_idle(environ: dict[str, str], folder: Path, timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environ, capture_output=True, text=True, check=False)
        if "idle" in asked.stdout:
            return
        time.sleep(0.5)
    logs = "\n".join(p.read_text(errors="replace")[-1000:] for p in sorted(folder.glob("*.log")))
    raise RuntimeError(f"Slurm did not come up within {timeout_s:g} s:\n{logs}")
