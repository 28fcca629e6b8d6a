"""After a spike of the loss a run restores a checkpoint before it and skips the batches that caused it, as if
they had never existed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.errors import EXIT_DIVERGED, EXIT_STOPPED, UserError
from llm_jax.core.files import read_json_lines
from llm_jax.data.corpus import Corpus
from llm_jax.experiment import Experiment, override, resolved
from llm_jax.layout.presets import preset
from llm_jax.processes.group import alone
from llm_jax.run.run_folder import configuration_hash
from llm_jax.scaling.vmapped_runs import placement_for
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.config import CheckpointConfig, RollbackConfig, TrainConfig
from llm_jax.train.rollback import Rollback, Rollbacks, SpikeWatch
from tests.tiny_run import (
    checkpoint,
    launch,
    launch_process,
    launch_processes,
    shas,
    steps_saved,
    summary,
    write_experiment,
)

POISON = """
import numpy as np
from llm_jax.data.corpus import Corpus

whole = Corpus.batch


def poisoned(self, step, rows=None):
    batch = whole(self, step, rows)
    if step in (13, 14, 18):
        batch["targets"] = np.full_like(batch["targets"], 311)
    return batch


Corpus.batch = poisoned
"""
# A poisoned batch's loss is 1.13 times that of the steps before, and every other one's is lower than theirs.
SHORT = ("train.steps=16", "evaluate.every=4")
WATCHED = (
    *SHORT,
    "train.rollback.spike=1.08",
    "train.rollback.window=4",
    "train.rollback.before=2",
    "train.rollback.after=3",
)
# Step 14 has batch 13, the first poisoned one: steps 12 to 14 lose theirs, and three more go. Then step 13
# has batch 18, and so on.
SKIPPED = [[11, 12, 13, 14, 15, 16], [10, 17, 18, 19, 20, 21]]
LEFT = [*range(10), *range(22, 28)]


@pytest.fixture
def poisoned(monkeypatch):
    """Gives batches 13, 14 and 18 random targets, in this process."""
    monkeypatch.setattr(Corpus, "batch", Corpus.batch)  # restored at the end
    exec(POISON, {})  # the same text as in other processes


def last_losses(run_dir: Path) -> dict[int, float]:
    """The train loss of each step, the last time that it was done."""
    return {
        line["step"]: line["train_loss"]
        for line in read_json_lines(run_dir / "metrics.jsonl")
        if "train_loss" in line
    }


def recorded(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "rollbacks.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def without(tmp_path_factory) -> Path:
    """A run that has only the batches of `LEFT` from the start, without roll-backs."""
    folder = tmp_path_factory.mktemp("without")
    with pytest.MonkeyPatch.context() as patch:
        whole = Corpus.batch
        patch.setattr(Corpus, "batch", lambda self, step, rows=None: whole(self, LEFT[step], rows))
        assert launch(f"experiment={write_experiment(folder)}", f"run_dir={folder / 'run'}", *SHORT) == 0
    return folder / "run"


def assert_same_run(run_dir: Path, other: Path) -> None:
    assert last_losses(run_dir) == last_losses(other)
    assert sorted(last_losses(run_dir)) == list(range(1, 17))
    assert shas(run_dir) == shas(other)
    ours, theirs = checkpoint(run_dir, 16), checkpoint(other, 16)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    for key in ("step", "tokens", "unique_tokens", "train_loss", "eval_loss", "epochs", "state"):
        assert summary(run_dir)[key] == summary(other)[key], key


@pytest.mark.parametrize("every", [2, 1000])
def test_a_run_that_was_rolled_back_is_the_run_that_never_had_those_batches(
    tiny, tmp_path, poisoned, without, capsys, every
):
    run_dir = tmp_path / "run"
    assert (
        launch(
            f"experiment={tiny}",
            f"run_dir={run_dir}",
            *WATCHED,
            f"checkpoint.every={every}",
            "checkpoint.keep_best=false",
        )
        == 0
    )
    assert_same_run(run_dir, without)
    first, second = recorded(run_dir)
    assert [first["batches"], second["batches"]] == SKIPPED
    assert [first["spike_step"], second["spike_step"]] == [14, 13]
    assert [first["kept_steps"], second["kept_steps"]] == [11, 10]
    assert [first["restored_step"], second["restored_step"]] == ([10, 10] if every == 2 else [0, 0])
    assert first["loss"] > 1.08 * first["median"]
    # What was done again is in metrics.jsonl, with what led to it.
    lines = read_json_lines(run_dir / "metrics.jsonl")
    at = next(i for i, line in enumerate(lines) if "rolled_back_from" in line)
    assert lines[at] == {
        "step": first["restored_step"],
        "rolled_back_from": 14,
        "rollbacks": 1,
        "batches_skipped": 6,
    }
    trained = [line for line in lines if "train_loss" in line]
    assert trained[13]["batch_sha"] == first["batch_shas"][2]  # the spike's
    assert [line["step"] for line in trained[13:15]] == [14, first["restored_step"] + 1]
    assert not set(shas(run_dir).values()) & {*first["batch_shas"], *second["batch_shas"]}
    out = capsys.readouterr().out
    assert (
        f"with batch 13 ({first['batch_shas'][2][:12]}): back to step {first['restored_step']}; from step "
        "12 on 6 batches are skipped: 11 (" in " ".join(out.split())
    )
    assert "(roll-back 2 of at most 3)" in " ".join(out.split())
    found = summary(run_dir)
    assert (found["rollbacks"], found["batches_skipped"]) == (2, 12)
    assert found["seconds"]["lost"] > 0


DIE = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_AFTER_REMOVING = f"""
from llm_jax.train.checkpoint import Checkpoints
remove_after = Checkpoints.remove_after
def and_die(self, step):
    remove_after(self, step)
    {DIE}
Checkpoints.remove_after = and_die
"""
KILL_WITHIN_THE_RECORD = f"""
import json
from llm_jax.train import rollback
class Half:
    @staticmethod
    def dumps(line):
        with open(sys.argv[2].partition("=")[2] + "/rollbacks.jsonl", "a") as file:
            file.write(json.dumps(line)[:60])
        {DIE}
rollback.json = Half
"""
KILL_AFTER_THE_RECORD = f"""
from llm_jax.train.run_state import RunState
RunState.go_back = lambda *arguments: {DIE}
"""
TERM_WITH_THE_SPIKE = """
from llm_jax.train.metrics import MetricsWriter
write = MetricsWriter.write
def and_stop(self, values):
    write(self, values)
    if values["step"] == 13:
        os.kill(os.getpid(), signal.SIGTERM)
MetricsWriter.write = and_stop
"""


def test_a_run_that_is_killed_or_stopped_anywhere_in_a_roll_back_ends_the_same(tmp_path, without):
    run_dir = tmp_path / "run"
    arguments = (
        f"experiment={write_experiment(tmp_path)}",
        f"run_dir={run_dir}",
        *WATCHED,
        "checkpoint.every=3",
    )
    for patch, code, count in (
        (KILL_AFTER_REMOVING, -9, 0),
        (KILL_WITHIN_THE_RECORD, -9, 0),
        (KILL_AFTER_THE_RECORD, -9, 1),  # of the first roll-back
        (TERM_WITH_THE_SPIKE, EXIT_STOPPED, 2),  # of the second one, which is still done
    ):
        done = launch_process(
            *arguments, patch=POISON + patch, devices=8
        )  # as in this process: else sums are taken in another order
        assert done.returncode == code, done.stdout + done.stderr
        if patch is not KILL_WITHIN_THE_RECORD:
            assert (len(recorded(run_dir)) if count else (run_dir / "rollbacks.jsonl").exists()) == count
    done = launch_process(*arguments, patch=POISON, devices=8)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; roll-backs before: 2" in done.stdout
    assert_same_run(run_dir, without)
    assert [line["batches"] for line in recorded(run_dir)] == SKIPPED


@pytest.mark.slow  # of two processes, what tests/parity/test_process_counts.py shows
def test_two_processes_roll_back_as_one_does(tmp_path, without):
    run_dir = tmp_path / "run"
    experiment = write_experiment(tmp_path, layout="preset('data_parallel')")
    patches = dict.fromkeys((0, 1), POISON)
    for done in launch_processes(
        2, f"experiment={experiment}", f"run_dir={run_dir}", *WATCHED, patches=patches, devices=1
    ):
        assert done.returncode == 0, done.stdout + done.stderr
    assert [line["batches"] for line in recorded(run_dir)] == SKIPPED
    assert shas(run_dir) == shas(without)
    ours, theirs = last_losses(run_dir), last_losses(without)
    # The order of sums over the batch differs: float32, 16 steps.
    np.testing.assert_allclose(
        [ours[step] for step in range(1, 17)], [theirs[step] for step in range(1, 17)], rtol=1e-4
    )


def test_one_spike_too_many_ends_the_run_with_its_reason(tiny, tmp_path, poisoned, capsys):
    run_dir = tmp_path / "run"
    assert (
        launch(f"experiment={tiny}", f"run_dir={run_dir}", *WATCHED, "train.rollback.most=1") == EXIT_DIVERGED
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "the run diverged: step 13: loss 5." in out
    assert (
        "after as many roll-backs as train.rollback.most=1 allows; try a smaller optimizer.learning_rate"
        in out
    )
    found = summary(run_dir)
    assert (found["state"], found["step"], found["rollbacks"]) == ("diverged", 13, 1)
    assert found["reason"].startswith("step 13: loss 5.")
    assert steps_saved(run_dir)[-1] == 12  # of before the spike
    info = json.loads((run_dir / "checkpoints" / "12" / "info" / "metadata").read_text())
    assert (
        info["losses"][-1] == last_losses(run_dir)[12]
    )  # saved anew after the roll-back, which removed the first one


def test_without_the_key_a_spike_changes_nothing(tiny, tmp_path, poisoned):
    run_dir = tmp_path / "run"
    assert launch(f"experiment={tiny}", f"run_dir={run_dir}", *SHORT) == 0
    lines = [line for line in read_json_lines(run_dir / "metrics.jsonl") if "train_loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert lines[13]["train_loss"] > 1.08 * lines[12]["train_loss"]
    assert not (run_dir / "rollbacks.jsonl").exists()
    assert "losses" not in json.loads((run_dir / "checkpoints" / "16" / "info" / "metadata").read_text())
    base = resolved(Experiment())
    assert configuration_hash(base) == configuration_hash(override(base, [("train.rollback.window", "7")]))
    assert configuration_hash(base) != configuration_hash(override(base, [("train.rollback.spike", "2")]))


def test_a_run_whose_roll_backs_cannot_be_read_does_not_resume(tiny, tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "rollbacks.jsonl").write_text("{no JSON}\n")
    assert launch(f"experiment={tiny}", f"run_dir={run_dir}", *WATCHED) == 2
    assert "rollbacks.jsonl: is damaged" in " ".join(capsys.readouterr().err.split())


def test_each_roll_back_skips_batches_of_the_order_that_earlier_ones_left(tmp_path):
    rng = np.random.default_rng(0)
    with alone() as group:
        rollbacks, left = Rollbacks(tmp_path, group), list(range(1000))
        for _ in range(5):
            kept, count = int(rng.integers(50)), int(rng.integers(1, 20))
            rollbacks.add(Rollback(60, 2.0, 1.0, 0, kept, left[kept : kept + count], []))
            del left[kept : kept + count]
            assert [rollbacks.batch(step) for step in range(100)] == left[:100]
        assert Rollbacks(tmp_path, group).list == rollbacks.list
        assert rollbacks.skipped == 1000 - len(left)


def test_a_spike_is_one_over_a_full_window_and_leaves_no_trace_in_it():
    config = RollbackConfig(spike=1.5, window=3)
    watch = SpikeWatch(config)
    assert [watch.add(step, loss) for step, loss in enumerate((1.0, 9.0, 2.0))] == [None] * 3  # no window yet
    assert watch.add(4, 3.0) is None
    spike = watch.add(5, 4.6)
    assert spike is not None
    assert str(spike) == "step 5: loss 4.6000 is 1.53 times the median before it (3.0000)"
    assert SpikeWatch(config, watch.losses).losses == watch.losses
    assert list(watch.losses) == [9.0, 2.0, 3.0]


def test_a_checkpoint_from_before_the_skipped_batches_is_always_kept(tmp_path):
    with alone() as group:
        checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=2, keep=1), group, reach=5)
        for step in range(2, 30, 2):
            checkpoints.scores[step] = None
            for old in checkpoints.replaced():
                del checkpoints.scores[old]
            assert checkpoints.steps() == [s for s in range(2, step + 1, 2) if s >= step - 6]
        checkpoints.close()


def test_user_errors_name_the_key():
    for values, said in (
        ({"spike": 0.9}, "train.rollback.spike=0.9: must be above 1"),
        ({"spike": float("nan")}, "train.rollback.spike=nan"),
        ({"window": 0}, "train.rollback.window=0"),
        ({"before": -1}, "train.rollback.before=-1"),
        ({"most": 0}, "train.rollback.most=0"),
    ):
        with pytest.raises(UserError, match=said):
            dataclasses.replace(TrainConfig(), rollback=RollbackConfig(**values)).check()
    experiment = Experiment(layout=preset("single"), train=TrainConfig(rollback=RollbackConfig(spike=1.5)))
    with pytest.raises(UserError, match=r"train\.rollback\.spike=1\.5: grid.executor=vmap can"):
        placement_for(experiment, 2)


def test_a_roll_back_without_fingerprints_names_batches_by_number(tiny, tmp_path, poisoned, capsys):
    run_dir = tmp_path / "run"
    assert launch(f"experiment={tiny}", f"run_dir={run_dir}", *WATCHED, "train.batch_sha=false") == 0
    assert [record["batches"] for record in recorded(run_dir)] == SKIPPED
    assert [record["batch_shas"] for record in recorded(run_dir)] == [[], []]
    assert "6 batches are skipped: 11, ..., 16" in capsys.readouterr().out
