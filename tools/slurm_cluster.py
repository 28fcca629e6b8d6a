"""A real Slurm cluster on one machine, for tests and for trying things: a controller and several nodes, without systemd, as root or not.

  python tools/slurm_cluster.py start nodes=2 cpus=4     brings it up (about a second) and says how to use it
  eval "$(python tools/slurm_cluster.py env)"            points this shell's srun, sbatch, squeue ... to it
  python tools/slurm_cluster.py status                   its nodes and jobs
  python tools/slurm_cluster.py stop                     ends its jobs and daemons, and removes its folder

nodes=N        (2) nodes node1 ... nodeN; each is a slurmd of its own
cpus=N         (4) CPUs that a node says it has, whatever the machine has
gpus=N         (0) fake GPUs of a node: device files that do nothing, which Slurm deals out and puts into CUDA_VISIBLE_DEVICES as if they
               were real (root only, since they are device nodes)
memory=MB      (4000) memory that a node says it has
folder=PATH    all of its state, so that several clusters can be up at once, each on ports of its own; without it the folder that
               LLM_JAX_SLURM_CLUSTER names, or llm_jax_slurm_<user id> in the temporary folder

Partitions: main, and urgent, whose jobs take the place of main's (these get SIGTERM, a minute to give way, and are requeued).

  --help       this text

Exit codes: 0 done, 1 a daemon didn't come up (its log is shown), 2 a mistake in what was asked (one line says which).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.command import read_arguments, run_command
from llm_jax.core.errors import UserError, nearest, one_of, require

INSTALL = "apt-get install -y --no-install-recommends slurm-wlm munge"
DAEMONS = ("slurmctld", "slurmd", "munged")
COMMANDS = ("start", "stop", "env", "status")
SIZES = {"nodes": 2, "cpus": 4, "gpus": 0, "memory": 4000}
RESERVED_PORTS = 20
"""Ports that `srun --resv-ports` deals out to steps."""

SLURM_CONF = """\
# Written by tools/slurm_cluster.py, which removes this folder when it stops the cluster.
ClusterName=llm_jax
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job may start again when its credential has expired: after two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
# Without cgroups, which a container may not have.
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
MpiParams=ports={reserved}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=60
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Cluster:
    """The cluster whose state is in a folder, up or not."""

    folder: Path

    @property
    def conf(self) -> Path:
        """What SLURM_CONF is to name."""
        return self.folder / "slurm.conf"

    def call(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands, asked of this cluster."""
        return subprocess.run(list(map(str, command)), env={**os.environ, "SLURM_CONF": str(self.conf)}, capture_output=True, text=True)

    def pids(self) -> list[list[int]]:
        """The daemons that are up, in the order in which they are to end: nodes, controller, munged.

        A pid file may outlive its process, and another may have its number then.
        """
        found: list[list[int]] = []
        for pattern in ("node*.pid", "slurmctld.pid", "munged.pid"):
            found.append([])
            for path in self.folder.glob(pattern):
                with contextlib.suppress(OSError, ValueError):
                    pid = int(path.read_text())
                    if Path(f"/proc/{pid}/comm").read_text().strip() in DAEMONS:
                        found[-1].append(pid)
        return found

    def start(self, nodes: int, cpus: int, gpus: int, memory: int) -> None:
        """Brings it up. Raises UserError where it can't be, and RuntimeError, with its log, where a daemon doesn't come up."""
        if any(self.pids()):
            raise UserError(f"folder={self.folder}: a cluster is up in it; stop it first, or choose another folder=")
        if len(str(self.folder)) > 90:  # a socket's path has at most 107 characters
            raise UserError(f"folder={self.folder}: its path is too long for a socket in it; choose a shorter one")
        self.remove()
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)  # munge insists
        self.configure(nodes, cpus, gpus, memory)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        files = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "log/munged.log", "seed-file": "munge.seed"}
        self.daemon("munged", "--force", *(f"--{option}={self.folder / name}" for option, name in files.items()))
        self.wait_for("munged", lambda: self.call("munge", "-n", "-S", self.folder / "munge.socket").returncode == 0)
        self.daemon("slurmctld", "-f", self.conf)
        self.wait_for("slurmctld", lambda: self.call("scontrol", "ping").returncode == 0)
        names = [f"node{i + 1}" for i in range(nodes)]
        for name in names:
            self.daemon("slurmd", "-f", self.conf, "-N", name)
        self.wait_for("slurmd", lambda: set(self.call("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").stdout.split()) == set(names))

    def configure(self, nodes: int, cpus: int, gpus: int, memory: int) -> None:
        """Writes the files that Slurm reads."""
        import pwd

        host, ports = socket.gethostname().split(".")[0], free_ports(1 + nodes + RESERVED_PORTS)
        gres = f"Gres=gpu:{gpus} " if gpus else ""
        lines = [
            f"NodeName=node{i + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1 + i]} CPUs={cpus} RealMemory={memory} {gres}State=UNKNOWN"
            for i in range(nodes)
        ]
        if gpus:
            lines.insert(0, "GresTypes=gpu")
            for i in range(gpus):
                self.fake_gpu(self.folder / f"gpu{i}")
            (self.folder / "gres.conf").write_text(f"NodeName=node[1-{nodes}] Name=gpu File={self.folder}/gpu[0-{gpus - 1}]\n")
        # Slurm looks for cgroups even where they aren't used, and a container may have none; newer versions have a word for that.
        version = tuple(map(int, self.call("slurmctld", "-V").stdout.split()[-1].split(".")[:2]))
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if version >= (24, 5) else 'cgroup/v1'}\n")
        self.conf.write_text(
            SLURM_CONF.format(
                host=host, user=pwd.getpwuid(os.getuid()).pw_name, folder=self.folder, nodes="\n".join(lines),
                control_port=ports[0], reserved=f"{ports[1 + nodes]}-{ports[-1]}",
            )
        )  # fmt: skip

    def fake_gpu(self, path: Path) -> None:
        """A device file like /dev/null: Slurm takes no other file for a GPU."""
        try:
            os.mknod(path, 0o020666, os.makedev(1, 3))
        except PermissionError as error:
            raise UserError("gpus=: fake GPUs are device nodes, which only root may make; leave it out, or be root") from error

    def daemon(self, *command: str | Path) -> None:
        """Starts a daemon, which goes to the background by itself."""
        with (self.folder / "log" / f"{command[0]}.start").open("a") as output:
            subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder, timeout=60)

    def wait_for(self, daemon: str, up: Callable[[], bool], seconds: float = 60.0) -> None:
        """Until it is up. Raises RuntimeError with the ends of the logs."""
        end = time.monotonic() + seconds
        while not up():
            if time.monotonic() > end:
                logs = [f"{path}:\n{''.join(path.read_text().splitlines(True)[-10:])}" for path in sorted((self.folder / "log").iterdir())]
                self.stop()
                raise RuntimeError(f"{daemon} didn't come up in {seconds:.0f} s\n" + "\n".join(logs))
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends its jobs and daemons, and removes its folder."""
        if self.pids()[1]:
            for job in self.call("squeue", "-h", "-o", "%A").stdout.split():
                self.call("scancel", "--full", "--signal=KILL", job)
                self.call("scancel", job)
            end = time.monotonic() + 15
            while self.call("squeue", "-h").stdout.strip() and time.monotonic() < end:
                time.sleep(0.1)
        for pids in self.pids():
            end_processes(pids)
        for pid in self.left_over():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.remove()

    def left_over(self) -> list[int]:
        """Processes of jobs whose daemons are gone."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if f"SLURM_CONF={self.conf}".encode() in words and any(word.startswith(b"SLURM_JOB_ID=") for word in words):
                    found.append(int(path.parent.name))
        return [pid for pid in found if pid != os.getpid()]

    def remove(self) -> None:
        """Removes the folder, if it is a cluster's or empty. Raises UserError where there is something else in it."""
        if not self.folder.exists():
            return
        if self.conf.exists() or not any(self.folder.iterdir()):
            shutil.rmtree(self.folder)
        else:
            raise UserError(f"folder={self.folder}: has something in it that is no cluster; choose another")


def end_processes(pids: list[int]) -> None:
    """SIGTERM, and SIGKILL after ten seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + 10
        while (pids := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < end:
            time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for its exit code yet doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """So many ports in a row that nobody listens on, outside the range from which the system gives ports to clients."""
    for _ in range(100):
        first = random.SystemRandom().randrange(15000, 32000 - count)
        ports = list(range(first, first + count))
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in ports:
                sockets.enter_context(socket.socket()).bind(("", port))
            return ports
    raise RuntimeError(f"no {count} free ports in a row between 15000 and 32000")


def require_slurm() -> None:
    """Raises UserError, with the command that installs it, where Slurm isn't installed. Debian's daemons are in a folder of root's path."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    if missing := [name for name in (*DAEMONS, "sbatch", "munge") if not shutil.which(name)]:
        raise UserError(f"Slurm isn't installed here ({missing[0]} isn't found); install it with: {INSTALL}")


def default_folder() -> Path:
    """The folder of the cluster that is meant if none is said."""
    return Path(os.environ.get("LLM_JAX_SLURM_CLUSTER") or Path(tempfile.gettempdir()) / f"llm_jax_slurm_{os.getuid()}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(command, arguments)


def command(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    flags, pairs = read_arguments(arguments[1:] if arguments[:1] and arguments[0] in COMMANDS else arguments, ("--help", "-h"))
    if not arguments or flags:
        print(__doc__)
        return 0
    what, given = arguments[0], dict(pairs)
    if what not in COMMANDS:
        raise UserError(f"{what}: {one_of(what, COMMANDS)}")
    folder = Path(given.pop("folder", default_folder())).absolute()
    sizes = dict(SIZES)
    for key, value in given.items():
        if key not in SIZES or what != "start":
            raise UserError(f"{key}={value}: there is no such key for {what}; {nearest(key, ('folder', *(SIZES if what == 'start' else ())))}")
        least = 0 if key == "gpus" else 1
        require(value.isdigit() and int(value) >= least, key, value, f"a whole number, at least {least}")
        sizes[key] = int(value)
    require_slurm()
    return run(Cluster(folder), what, sizes)


def run(cluster: Cluster, what: str, sizes: dict[str, int]) -> int:
    """One of the commands, on a cluster."""
    if what == "start":
        try:
            cluster.start(**sizes)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"export SLURM_CONF={cluster.conf}")
        return 0
    if what == "stop":
        cluster.stop()
        return 0
    if not any(cluster.pids()):
        raise UserError(f"folder={cluster.folder}: no cluster is up in it; start one: python tools/slurm_cluster.py start")
    if what == "env":
        print(f"export SLURM_CONF={cluster.conf}")
        return 0
    print(cluster.call("sinfo", "-N", "-l").stdout + cluster.call("squeue").stdout, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
