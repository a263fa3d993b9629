"""Generated programs, run in isolation: separate processes without a network, with limits on memory, time, output and
number of processes, as nobody, in an empty folder that is deleted.

Only where the sweep says ``run_generated_code: true``, and only where the kernel gives the isolation; otherwise the
cell is refused with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from harness.errors import Unsupported, UserError
from runners.worker import checker
from runners.worker.context import Context
from tasks.task import COMPLETION, Item

TIME_LIMIT_S = 10.0
MEMORY_LIMIT_BYTES = 512 * 2**20
FILE_LIMIT_BYTES = 2**20
TAIL_BYTES = 2000
NOBODY = 65534

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x20000000, 0x40000000

Ending = Literal["passed", "failed", "timeout"]


@dataclass(frozen=True)
class Ran:
    """End of a program.

    Attributes:
        ending: ``passed`` (exit code 0), ``failed`` (an error, a signal, a limit) or ``timeout``.
        seconds: wall time.
        tail: the end of what it printed.
    """

    ending: Ending
    seconds: float
    tail: str


LAUNCHER = """
import ctypes, os, resource, struct, sys
folder, prefix, python = sys.argv[1:4]
uid, memory, size, cpu_s = map(int, sys.argv[4:8])
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: end with the worker, however that ends
libc.syscall({"x86_64": 250, "aarch64": 219}[os.uname().machine], 1, None)  # keyctl: join a new session keyring
if libc.unshare({flags}) != 0:
    os._exit(120)
for _ in range(2):
    # the first child is the first process of the new namespace: when it ends, the kernel ends every other one in it.
    # The program is the second, because signals with their default action do not reach a first process
    child = os.fork()
    if not child:
        libc.prctl(1, 9, 0, 0, 0)
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xff)
program = open(os.path.join(folder, "program.py"), "rb").read()
read_only = struct.pack("QQQQ", 1, 0, 0, 0)
steps = (  # a mount here is seen by nobody else; all is read-only but one small folder, which becomes the root
    libc.mount(None, b"/", None, 0x44000, None),
    libc.syscall(442, -100, b"/", 0x8000, read_only, len(read_only)),
    libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=8m,nr_inodes=256,mode=700,uid=%d" % uid),
)
if any(steps):
    print("mounts:", steps)
    os._exit(121)
os.chdir(folder)
os.mkdir("python")  # the interpreter may lie where nobody cannot go
if libc.mount(os.fsencode(prefix), b"python", None, 4096 | 16384, None):
    os._exit(121)
for name in ("usr/lib", "usr/lib64", "lib", "lib64"):  # what the interpreter is linked with, and no other file
    if os.path.islink("/" + name):
        os.symlink(os.readlink("/" + name), name)
    elif os.path.isdir("/" + name):
        os.makedirs(name)
        if libc.mount(os.fsencode("/" + name), os.fsencode(name), None, 4096 | 16384, None):
            os._exit(121)
os.mkdir("proc")
if libc.mount(b"proc", b"proc", b"proc", 0, None):
    os._exit(121)
os.chroot(".")
os.chdir("/")
with open("program.py", "wb") as file:
    file.write(program)
os.chmod("program.py", 0o644)
for kind, limit in (
    (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, size), (resource.RLIMIT_CPU, cpu_s),
    (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64),
):
    resource.setrlimit(kind, (limit, limit))
os.umask(0o077)
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # no further process or thread; holds for nobody, not for root
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
os.execv(python, [python, "-I", "-S", "-B", "program.py"])
"""


@functools.cache
def why_not() -> str | None:
    """Reason why generated programs cannot be run here, or None if they can."""
    if sys.platform != "linux":
        return "the isolation of generated programs is Linux's: namespaces and resource limits"
    if os.geteuid() != 0:
        return "generated programs run as user nobody, which needs root; run the sweep in a container as root"
    ran = run("import os\nassert os.getuid() == 65534\n", time_limit_s=60.0)
    if ran.ending != "passed":
        return f"the kernel does not give this process separate namespaces ({ran.ending}: {ran.tail[-200:].strip()})"
    return None


def run(program: str, *, time_limit_s: float = TIME_LIMIT_S, memory_bytes: int = MEMORY_LIMIT_BYTES) -> Ran:
    """Run a Python program in isolation.

    It sees no environment variable, no working network interface, no other process, and only files readable by nobody;
    all of them are read-only but for an empty folder in memory. It can start no process or thread.

    Args:
        time_limit_s: wall time; CPU time is limited to as much, rounded up.
        memory_bytes: address space.
    """
    with _started(program, time_limit_s=time_limit_s, memory_bytes=memory_bytes) as running:
        code, seconds, tail = running.wait(time_limit_s)
    return Ran("timeout" if code is None else "passed" if code == 0 else "failed", seconds, tail)


def check(candidate: str, tests: str, *, time_limit_s: float = TIME_LIMIT_S, scratch: Path | None = None) -> Ran:
    """Run a candidate and its tests in two sandboxes that share a socket (:mod:`runners.worker.checker`).

    ``passed`` means that the tests' process wrote the random word that it alone was given, after its last statement.
    """
    word = secrets.token_hex(16)
    start = functools.partial(_started, time_limit_s=time_limit_s, scratch=scratch)
    ours, theirs = socket.socketpair()
    reads, writes = os.pipe()
    writer = os.fdopen(writes, "wb", 0)
    served = checker.candidate_program(candidate, ours.fileno())
    tested = checker.test_program(tests, theirs.fileno(), writes, word)
    try:
        with (
            start(served, fds=(ours.fileno(),)) as program,
            start(tested, fds=(theirs.fileno(), writes)) as judging,
        ):
            ours.close()
            theirs.close()
            writer.close()
            code, seconds, tail = judging.wait(time_limit_s)
            said = os.read(reads, 64).decode(errors="replace") if code is not None else ""
            tail = tail or program.tail()
    finally:
        os.close(reads)
        ours.close()
        theirs.close()
        writer.close()
    return Ran("timeout" if code is None else "passed" if said == word else "failed", seconds, tail)


@dataclass
class _Running:
    """A started sandbox."""

    process: subprocess.Popen[bytes]
    output: BinaryIO
    began: float

    def wait(self, time_limit_s: float) -> tuple[int | None, float, str]:
        """Exit code (None if the time was up), wall seconds, and the end of its output; nothing is left running."""
        try:
            code: int | None = self.process.wait(timeout=time_limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(self.process)
        return code, time.monotonic() - self.began, self.tail()

    def tail(self) -> str:
        """The end of what it printed."""
        self.output.seek(max(0, self.output.seek(0, os.SEEK_END) - TAIL_BYTES))
        return self.output.read().decode(errors="replace")


@contextlib.contextmanager
def _started(
    program: str,
    *,
    time_limit_s: float,
    memory_bytes: int = MEMORY_LIMIT_BYTES,
    fds: Sequence[int] = (),
    scratch: Path | None = None,
) -> Iterator[_Running]:
    """A program in a sandbox; afterwards neither processes nor files are left.

    Args:
        fds: descriptors that it keeps.
        scratch: where its folder is made; a job's folder is removed even if the worker is killed.
    """
    folder = Path(tempfile.mkdtemp(prefix="program-", dir=scratch))
    launcher = LAUNCHER.replace("{flags}", str(_CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET))
    python = Path(os.path.realpath(sys.executable)).relative_to(Path(sys.base_prefix).resolve())
    where = [str(folder), str(Path(sys.base_prefix).resolve()), str("python" / python)]
    limits = [str(n) for n in (NOBODY, memory_bytes, FILE_LIMIT_BYTES, int(time_limit_s) + 1)]
    try:
        (folder / "program.py").write_bytes(program.encode("utf-8", errors="surrogatepass"))
        with (folder.parent / f"{folder.name}.out").open("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", launcher, *where, *limits],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={},
                cwd="/",
                start_new_session=True,
                pass_fds=fds,
            )
            try:
                yield _Running(process, output, time.monotonic())
            finally:
                _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.out").unlink(missing_ok=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left: the launcher's child is the first of its namespace, and with it goes everything in there."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def judge(ctx: Context, items: Sequence[Item], completions: Sequence[str]) -> list[bool]:
    """True for each completion that passes its item's program. What it printed is not kept; how many ran out of time
    is.

    Raises:
        Unsupported: the sweep does not allow it, or this machine cannot isolate it.
        UserError: an item has no program, so that anything would pass.
    """
    check_allowed(ctx)
    if not all(item.program for item in items):
        raise UserError("only test items have programs to run", fix="Judge the validation split by validation_nll.")
    parts = [item.program.partition(COMPLETION) for item in items]
    if untested := [item.id for item, (_, _, tests) in zip(items, parts, strict=True) if not tests.strip()]:
        raise UserError(
            f"the program of {untested[0]} has nothing behind the completion, so nothing tests it",
            fix="Put the tests behind {completion} in the task's 'program'.",
        )
    candidates = [before + text for (before, _, _), text in zip(parts, completions, strict=True)]
    workers = max(1, len(os.sched_getaffinity(0)) // 2)
    with ThreadPoolExecutor(workers) as pool:
        judged = functools.partial(check, scratch=ctx.folder if ctx.job is not None else None)
        ran = list(pool.map(judged, candidates, [tests.replace(COMPLETION, "") for _, _, tests in parts]))
    endings = [r.ending for r in ran]
    ctx.facts["programs"] = {ending: endings.count(ending) for ending in ("passed", "failed", "timeout")}
    return [ending == "passed" for ending in endings]


def check_allowed(ctx: Context) -> None:
    """Refuse before anything is trained what would be refused after it.

    Raises:
        Unsupported: with the reason.
    """
    if not ctx.evaluation.run_generated_code:
        raise Unsupported(
            "the task is judged by running what the model writes, and the sweep does not allow it; say evaluation: "
            "{run_generated_code: true} if you accept that it is run, isolated, on this machine"
        )
    reason = why_not()
    if reason is not None:
        raise Unsupported(reason)
