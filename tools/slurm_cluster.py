"""Runs a real Slurm cluster on one machine, for tests and experiments: python tools/slurm_cluster.py
start|stop|env|status"""

from __future__ import annotations

import contextlib
import os
import pwd
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

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.command import run_command
from llm_jax.core.errors import UserError

INSTALL = "apt-get install -y --no-install-recommends slurm-wlm munge"
DAEMONS = ("slurmctld", "slurmd", "munged")
COMMANDS = ("start", "stop", "env", "status")
SIZES = {"nodes": 2, "cpus": 4, "gpus": 0, "memory": 4000}
RESERVED_PORTS = 20
"""How many ports `srun --resv-ports` can allocate to steps."""

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
    """The cluster whose state is in a folder, running or not."""

    folder: Path

    @property
    def conf(self) -> Path:
        """The configuration file, which SLURM_CONF has to name."""
        return self.folder / "slurm.conf"

    def call(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs one of Slurm's commands on this cluster."""
        return subprocess.run(
            list(map(str, command)),
            env={**os.environ, "SLURM_CONF": str(self.conf)},
            capture_output=True,
            text=True,
        )

    def pids(self) -> list[list[int]]:
        """The process ids of the running daemons, in the order in which to end them: nodes, controller,
        munged.

        A pid file may outlive its process, and another process may have its number then.
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
        """Starts the cluster. Raises UserError where the folder can't be used, and RuntimeError, with its
        log, where a daemon doesn't start."""
        if any(self.pids()):
            raise UserError(
                f"folder={self.folder}: a cluster is running in it. Stop it first, or choose another folder=."
            )
        if len(str(self.folder)) > 90:  # a socket's path has at most 107 characters
            raise UserError(
                f"folder={self.folder}: its path is too long for a socket in it. Choose a shorter one."
            )
        self.remove()
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)  # munge requires it
        self.configure(nodes, cpus, gpus, memory)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        files = {
            "key-file": key.name,
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "log/munged.log",
            "seed-file": "munge.seed",
        }
        self.daemon(
            "munged", "--force", *(f"--{option}={self.folder / name}" for option, name in files.items())
        )
        self.wait_for(
            "munged", lambda: self.call("munge", "-n", "-S", self.folder / "munge.socket").returncode == 0
        )
        self.daemon("slurmctld", "-f", self.conf)
        self.wait_for("slurmctld", lambda: self.call("scontrol", "ping").returncode == 0)
        names = [f"node{i + 1}" for i in range(nodes)]
        for name in names:
            self.daemon("slurmd", "-f", self.conf, "-N", name)
        self.wait_for(
            "slurmd",
            lambda: (
                set(self.call("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").stdout.split())
                == set(names)
            ),
        )

    def configure(self, nodes: int, cpus: int, gpus: int, memory: int) -> None:
        """Writes Slurm's configuration files."""
        host, ports = socket.gethostname().split(".")[0], free_ports(1 + nodes + RESERVED_PORTS)
        gres = f"Gres=gpu:{gpus} " if gpus else ""
        lines = [
            f"NodeName=node{i + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1 + i]} CPUs={cpus} "
            f"RealMemory={memory} {gres}State=UNKNOWN"
            for i in range(nodes)
        ]
        if gpus:
            lines.insert(0, "GresTypes=gpu")
            for i in range(gpus):
                self.fake_gpu(self.folder / f"gpu{i}")
            (self.folder / "gres.conf").write_text(
                f"NodeName=node[1-{nodes}] Name=gpu File={self.folder}/gpu[0-{gpus - 1}]\n"
            )
        # Slurm looks for cgroups even where they aren't used, and a container may have none; newer versions
        # have a setting for that.
        version = tuple(map(int, self.call("slurmctld", "-V").stdout.split()[-1].split(".")[:2]))
        (self.folder / "cgroup.conf").write_text(
            f"CgroupPlugin={'disabled' if version >= (24, 5) else 'cgroup/v1'}\n"
        )
        self.conf.write_text(
            SLURM_CONF.format(
                host=host, user=pwd.getpwuid(os.getuid()).pw_name, folder=self.folder, nodes="\n".join(lines),
                control_port=ports[0], reserved=f"{ports[1 + nodes]}-{ports[-1]}",
            )
        )  # fmt: skip

    def fake_gpu(self, path: Path) -> None:
        """Makes a device file like /dev/null: Slurm accepts no other file as a GPU. Raises UserError unless
        root."""
        try:
            os.mknod(path, 0o020666, os.makedev(1, 3))
        except PermissionError as error:
            raise UserError(
                "gpus=: fake GPUs are device nodes, which only root can make. Leave the key out, or run "
                "as root."
            ) from error

    def daemon(self, *command: str | Path) -> None:
        """Starts a daemon, which moves to the background by itself."""
        with (self.folder / "log" / f"{command[0]}.start").open("a") as output:
            subprocess.run(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                timeout=60,
            )

    def wait_for(self, daemon: str, up: Callable[[], bool], seconds: float = 60.0) -> None:
        """Waits until `up()` is true. Raises RuntimeError with the ends of the logs after `seconds`."""
        end = time.monotonic() + seconds
        while not up():
            if time.monotonic() > end:
                logs = [
                    f"{path}:\n{''.join(path.read_text().splitlines(True)[-10:])}"
                    for path in sorted((self.folder / "log").iterdir())
                ]
                self.stop()
                raise RuntimeError(f"{daemon} didn't start within {seconds:.0f} s\n" + "\n".join(logs))
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the jobs and daemons, and removes the folder."""
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
        """The ids of processes of jobs whose daemons have ended."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if f"SLURM_CONF={self.conf}".encode() in words and any(
                    word.startswith(b"SLURM_JOB_ID=") for word in words
                ):
                    found.append(int(path.parent.name))
        return [pid for pid in found if pid != os.getpid()]

    def remove(self) -> None:
        """Removes the folder if it belongs to a cluster or is empty. Raises UserError for any other
        folder."""
        if not self.folder.exists():
            return
        if self.conf.exists() or not any(self.folder.iterdir()):
            shutil.rmtree(self.folder)
        else:
            raise UserError(f"folder={self.folder}: is not empty, and no cluster's folder. Choose another.")


def end_processes(pids: list[int]) -> None:
    """Sends SIGTERM to processes, and SIGKILL after ten seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + 10
        while (pids := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < end:
            time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs. A zombie doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """`count` free ports in a row, below the range from which the system allocates client ports."""
    for _ in range(100):
        first = random.SystemRandom().randrange(15000, 32000 - count)
        ports = list(range(first, first + count))
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in ports:
                sockets.enter_context(socket.socket()).bind(("", port))
            return ports
    raise RuntimeError(f"no {count} free ports in a row between 15000 and 32000")


def require_slurm() -> None:
    """Raises UserError, with the command that installs it, where Slurm isn't installed. Adds /usr/sbin, where
    Debian's daemons are, to PATH."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    if missing := [name for name in (*DAEMONS, "sbatch", "munge") if not shutil.which(name)]:
        raise UserError(f"Slurm isn't installed here ({missing[0]} isn't found). Install it with: {INSTALL}")


def default_folder() -> Path:
    """The folder of the cluster without folder=."""
    return Path(
        os.environ.get("LLM_JAX_SLURM_CLUSTER")
        or Path(tempfile.gettempdir()) / f"llm_jax_slurm_{os.getuid()}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(command, arguments)


@dataclass(frozen=True, kw_only=True)
class ClusterCommand:
    """Runs a real Slurm cluster on one machine, for tests and experiments: a controller and several nodes,
    without systemd, as root or not.

      python tools/slurm_cluster.py start nodes=2 cpus=4     starts it (about a second) and prints how to use it
      eval "$(python tools/slurm_cluster.py env)"            has srun, sbatch, squeue ... of this shell use it
      python tools/slurm_cluster.py status                   prints its nodes and jobs
      python tools/slurm_cluster.py stop                     ends its jobs and daemons, and removes its folder

    Partitions: main, and urgent, whose jobs preempt those of main (which receive SIGTERM, have a minute to
    end, and are requeued).

    Exit codes: 0 done, 1 a daemon didn't start (its log is printed), 2 a user error (one line on stderr).
    """

    what: str = positional("COMMAND", choices=lambda: COMMANDS)
    """What is done."""
    nodes: int | None = argument(None, least=1)
    """start: nodes node1 ... nodeN; each is a slurmd of its own (default: 2)."""
    cpus: int | None = argument(None, least=1)
    """start: CPUs that Slurm believes a node to have (default: 4)."""
    gpus: int | None = argument(None, least=0)
    """start: fake GPUs of a node: device files without function, which Slurm allocates and lists in
    CUDA_VISIBLE_DEVICES like real ones (only root can make them, since they are device nodes; default: 0)."""
    memory: int | None = argument(None, least=1, shown="MB")
    """start: memory that Slurm believes a node to have (default: 4000)."""
    folder: Path | None = argument(None, shown="FOLDER")
    """The folder of its state. Several clusters, each with its own folder and ports, can run at one time. If
    not given: the folder that LLM_JAX_SLURM_CLUSTER names, or llm_jax_slurm_<user id> in the temporary
    folder."""

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that are given."""
        return {key: value for key in SIZES if (value := getattr(self, key)) is not None}

    def check(self) -> None:
        """Raises UserError for sizes of a cluster that isn't started."""
        for key, value in self.sizes.items():
            if self.what != "start":
                raise UserError(f"{key}={value}: there is no such key for {self.what}; it is one of start")


def command(arguments: list[str]) -> int:
    """Runs the command line; raises UserError where it is wrong."""
    given = read_command(arguments, ClusterCommand)
    if given is None:
        return 0
    require_slurm()
    return run(Cluster((given.folder or default_folder()).absolute()), given.what, SIZES | given.sizes)


def run(cluster: Cluster, what: str, sizes: dict[str, int]) -> int:
    """Runs one of the commands on a cluster; returns the exit code."""
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
        raise UserError(
            f"folder={cluster.folder}: no cluster is running in it. Start one: python "
            "tools/slurm_cluster.py start"
        )
    if what == "env":
        print(f"export SLURM_CONF={cluster.conf}")
        return 0
    print(cluster.call("sinfo", "-N", "-l").stdout + cluster.call("squeue").stdout, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
