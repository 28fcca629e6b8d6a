"""Eight simulated devices and one compilation cache for all tests."""

from __future__ import annotations

import gc
import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_jax.core.xla_flags import enough_threads
from tests.xla_flags import simulated

# Tests send Ctrl-C to themselves and to processes of theirs, which would be born deaf to it where the tests
# run in the background of a script.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before jax is imported anywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {simulated(8)}"
enough_threads()
CACHE = Path(
    os.environ.get("LLM_JAX_TEST_CACHE", Path(tempfile.gettempdir()) / f"llm_jax_tests_{os.getuid()}")
)
os.environ.setdefault("LLM_JAX_CACHE", str(CACHE))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import pytest  # noqa: E402

if TYPE_CHECKING:
    from tests.slurm.cluster import SlurmCluster

ROOT = Path(__file__).parent.parent
STARTED = pytest.StashKey[float]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of tests/lanes.py that mostly wait: `pytest -m waits`."""
    from tests.lanes import waits

    for item in items:
        if waits(item.nodeid.split("::", 1)[0]):
            item.add_marker(pytest.mark.waits)


def pytest_collection_finish() -> None:
    """Tracing makes many objects and few circles: the collector, at Python's thresholds, takes a tenth of the
    tests' time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: the order and the lanes of tests/lanes.py, unless `--dist` asks for another."""
    from tests.lanes import Lanes

    return Lanes(config, log) if config.getvalue("dist") == "load" else None


def cpu_seconds() -> float:
    """User and system time of this process and of the children that it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Starts the count of a test's CPU seconds, which `--junitxml` records (tools/time_tests.py sums them
    up).
    """
    item.stash[STARTED] = cpu_seconds()
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Adds the property `cpu` before the report of the teardown is made."""
    item.user_properties.append(("cpu", round(cpu_seconds() - item.stash[STARTED], 3)))


@pytest.fixture(autouse=True)
def gpu_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips tests marked gpu_compile where XLA's GPU compiler is not installed, and for no other reason.

    They make no machine code.
    """
    if request.node.get_closest_marker("gpu_compile"):
        from llm_jax.core.errors import UserError
        from llm_jax.layout.gpu_compile import require_cuda
        from tests.no_ptxas import tools_without_ptxas

        try:
            require_cuda()
        except UserError as error:
            pytest.skip(str(error))
        monkeypatch.setattr("jax._src.lib.cuda_path", tools_without_ptxas(CACHE / "cuda"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference data and models that are not part of the project."""
    folder = Path(os.environ.get("LLM_JAX_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is not there (LLM_JAX_SHARED names the folder)")
    return folder


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the smallest experiment, beside its corpus; the machine's peak is given, since measuring it
    takes a second.
    """
    from llm_jax.run import run
    from tests.tiny_run import write_experiment

    monkeypatch.setattr(run, "device_peak", lambda mesh, dtype, processes=1: 1e11)
    return write_experiment(tmp_path)


@pytest.fixture(scope="session")
def slurm_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """One Slurm cluster for all tests of all workers."""
    from tests.slurm.cluster import shared_cluster

    folder = tmp_path_factory.getbasetemp()
    with shared_cluster(
        (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "slurm"
    ) as cluster:
        yield cluster


@pytest.fixture
def slurm_cluster(slurm_session: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The Slurm cluster, for one test at a time: some take nodes down. Nothing of it is left to the next."""
    from tests.slurm.cluster import locked

    with locked(slurm_session.folder.with_suffix(".busy")):
        for name in [
            name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
        ]:  # the tests may run in a job themselves
            monkeypatch.delenv(name)
        monkeypatch.setenv("SLURM_CONF", str(slurm_session.folder / "slurm.conf"))
        yield slurm_session
        slurm_session.clear()
