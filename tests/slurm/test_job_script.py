"""launch submit=slurm without Slurm: the script that it prints, a site's settings, and what can be wrong."""

from __future__ import annotations

import subprocess

import pytest

from llm_jax.slurm.config import read_site
from tests.scaling.tiny_grid import write_grid
from tests.tiny_run import launch


@pytest.fixture(autouse=True)
def no_site_of_the_user(tmp_path, monkeypatch):
    """Hides the user's own site file from these tests."""
    monkeypatch.delenv("LLM_JAX_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def script(capsys, *arguments: object) -> str:
    """The script that --dry-run prints."""
    assert launch(*arguments, "submit=slurm", "--dry-run") == 0
    return capsys.readouterr().out


def test_dry_run_prints_a_script_that_bash_takes_and_writes_nothing(tiny, tmp_path, capsys):
    run_dir = tmp_path / "a run; of 100%"
    keys = (
        "slurm.nodes=2",
        "slurm.gpus_per_node=4",
        "slurm.cpus_per_task=9",
        "slurm.time=24:00:00",
        "slurm.partition=gpu",
        "slurm.account=me",
    )
    printed = script(
        capsys,
        f"experiment={tiny}",
        f"run_dir={run_dir}",
        "layout=data_parallel",
        "train.batch_size=16",
        *keys,
    )
    assert not run_dir.exists()
    assert subprocess.run(["bash", "-n"], input=printed, text=True, capture_output=True).stderr == ""
    options = [line.removeprefix("#SBATCH ") for line in printed.splitlines() if line.startswith("#SBATCH")]
    assert {
        "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=9", "--time=24:00:00",
        "--partition=gpu", "--account=me",
        "--signal=USR1@180", "--requeue", "--open-mode=append", f'"--output={run_dir}%/slurm/job.log"',
    } <= set(options)  # fmt: skip
    assert f"run='{run_dir}'\n" in printed
    assert "srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task=9 \\\n" in printed
    assert "CONT" not in printed  # a trap of it loses the USR1 that comes with it


def test_a_task_per_node_has_all_of_its_gpus(tiny, capsys):
    keys = ("layout=data_parallel", "train.batch_size=16", "slurm.gpus_per_node=4", "slurm.tasks_per_node=1")
    printed = script(capsys, f"experiment={tiny}", *keys)
    assert "#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=4\n" in printed
    assert "gpus-per-task" not in printed


def test_settings_of_a_site_are_defaults_and_the_command_line_overrides_them(
    tiny, tmp_path, capsys, monkeypatch
):
    site = tmp_path / "config" / "llm_jax" / "site.yaml"
    site.parent.mkdir(parents=True)
    site.write_text(
        'slurm: {account: physics, partition: gpu, time: "12:00:00"}\n'
        "modules: [cuda/13.0, gcc]\n"
        "environment: {NCCL_SOCKET_IFNAME: ib0, NOTE: it's}\n"
        "setup: [ulimit -c 0]\n"
        "container: apptainer exec --nv image.sif\n"
        "python: python3\n"
        "sbatch: [--exclusive, '--comment=two words']\n"
        "srun: [--mpi=none]\n"
    )
    printed = script(capsys, f"experiment={tiny}", "slurm.partition=debug")
    for line in (
        "#SBATCH --account=physics", "#SBATCH --partition=debug", "#SBATCH --time=12:00:00",
        "#SBATCH --exclusive", '#SBATCH "--comment=two words"',
        "module load cuda/13.0 gcc", "export NCCL_SOCKET_IFNAME=ib0", "export NOTE='it'\"'\"'s'",
        "ulimit -c 0",
        "srun --kill-on-bad-exit=0 --wait=60 --mpi=none \\", f"# Site settings: {site}",
    ):  # fmt: skip
        assert line in printed.splitlines()
    assert "  apptainer exec --nv image.sif python3 -u -m llm_jax.launch experiment=" in printed
    (tmp_path / "other.yaml").write_text("slurm: {account: chemistry}\n")
    monkeypatch.setenv("LLM_JAX_SITE", str(tmp_path / "other.yaml"))
    assert "#SBATCH --account=chemistry" in script(capsys, f"experiment={tiny}")
    assert f"# Site settings: {site}" in script(capsys, f"experiment={tiny}", f"slurm.site={site}")


def test_grid_is_an_array_with_a_limit_and_without_what_comes_later(tiny, tmp_path, capsys):
    path = write_grid(tmp_path, "over('train.seed', range(6)), held_out=[{'train.seed': 9}]")
    run_dir = tmp_path / "run"
    printed = script(capsys, f"experiment={path}", f"run_dir={run_dir}", "slurm.at_once=3")
    assert "#SBATCH --array=0-5%3\n" in printed
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("limit", "early"), [("2", 30), ("00:20:00", 180), ("24:00:00", 180), ("2 slurm.signal_seconds=50", 50)]
)
def test_the_signal_leaves_a_short_job_most_of_its_time(tiny, tmp_path, capsys, limit, early):
    assert (
        launch(
            f"experiment={tiny}",
            f"run_dir={tmp_path / 'run'}",
            "submit=slurm",
            *f"slurm.time={limit}".split(),
            "--dry-run",
        )
        == 0
    )
    assert f"#SBATCH --signal=USR1@{early}\n" in capsys.readouterr().out


USER_ERRORS = {
    "submit=pbs": "must be one of slurm",
    "slurm.node=2": "did you mean 'slurm.nodes'?",
    "slurm.nodes=0": "at least 1",
    "slurm.nodes=two": "a whole number",
    "slurm.gpus_per_node=-1": "at least 0",
    "slurm.time=1day": "must be a time as Slurm writes it",
    "slurm.time=2 slurm.signal_seconds=120": "less than slurm.time=2, which is 120 seconds",
    "slurm.memory=lots": "as 500G",
    "slurm.gpu_type=h100": "left out where slurm.gpus_per_node=0",
    "slurm.signal_seconds=0": "from 1 to 65535",
    "slurm.backoff_seconds=1": "0, or at least 5",
    "slurm.at_once=0": "at least 1",
    "slurm.max_restarts=-1": "at least 0",
    "slurm.site=/no/such.yaml": "there is no such file",
    "slurm.gpus_per_node=4 slurm.tasks_per_node=3": "a divisor of slurm.gpus_per_node=4",
    "slurm.gpus_per_node=4": "uses 1 of 4 GPUs",
    "slurm.gpus_per_node=4 layout=data_parallel mesh.data=8": "needs 8 devices and there are 4",
    "train.stepz=3": "did you mean 'train.steps'?",
    "--go-on": "is for a grid whose runs were submitted",
}


@pytest.mark.parametrize("arguments", USER_ERRORS)
def test_a_user_error_is_one_line_before_anything_is_written(tiny, tmp_path, capsys, arguments):
    run_dir = tmp_path / "run"
    submit = () if "submit=" in arguments else ("submit=slurm",)
    assert launch(f"experiment={tiny}", f"run_dir={run_dir}", *submit, *arguments.split()) == 2
    error = capsys.readouterr().err
    assert USER_ERRORS[arguments] in error
    assert error.count("\n") == 1
    assert not run_dir.exists()


def test_slurm_keys_without_submitting_are_a_user_error(tiny, capsys):
    assert launch(f"experiment={tiny}", "slurm.nodes=2") == 2
    assert "slurm.nodes=2: has an effect only with submit=slurm. Add submit=slurm." in capsys.readouterr().err


def test_runs_of_one_program_are_not_submitted_one_by_one(tiny, tmp_path, capsys):
    path = write_grid(tmp_path, "over('train.seed', [1, 2])")
    assert launch(f"experiment={path}", "submit=slurm", "grid.executor=vmap") == 2
    assert "submit=slurm gives each run its own job" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modulez: [a]\n", "did you mean 'modules'?"),
        ("slurm: {node: 2}\n", "did you mean 'slurm.nodes'?"),
        ("slurm: {nodes: many}\n", "slurm.nodes"),
        ("slurm: [\n", "not a site's settings"),
        ("- a\n", "not a site's settings"),
    ],
)
def test_a_user_error_in_the_site_file_names_it(tiny, tmp_path, capsys, text, says):
    (tmp_path / "site.yaml").write_text(text)
    assert launch(f"experiment={tiny}", "submit=slurm", f"slurm.site={tmp_path}/site.yaml", "--dry-run") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/site.yaml: ")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("time", ["24:00:00", '"24:00:00"', "90", "2-12"])
def test_a_time_in_the_site_file_is_text_however_it_is_written(tmp_path, time):
    (tmp_path / "site.yaml").write_text(
        f"slurm:\n  time: {time}\n  memory: 0\nenvironment: {{OMP_NUM_THREADS: 08}}\n"
    )
    site = read_site(tmp_path / "site.yaml")
    assert site.slurm.time == time.strip('"')
    assert site.slurm.memory == "0"
    assert site.environment == {"OMP_NUM_THREADS": "08"}


def test_without_slurm_a_submission_is_a_user_error(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for path in (tiny, write_grid(tmp_path, "over('train.seed', [1, 2])")):
        assert launch(f"experiment={path}", f"run_dir={tmp_path / 'run'}", "submit=slurm") == 2
        assert "sbatch isn't found. Submit from a login node of the cluster" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
