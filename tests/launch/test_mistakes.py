"""What a user can get wrong is one line that names the key, the value and what is right; exit 2, and nothing
is written.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from llm_jax.data import sentencepiece_tokenizer
from llm_jax.data.config import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from tests.tiny_run import ROOT, launch, launch_process, write_experiment

# arguments → what the line must say. "nan" and "1e400" are numbers to Python; neither is one to us.
MISTAKES = {
    "train.stepz=3": "did you mean 'train.steps'?",
    "steps=3": "did you mean 'train.steps'?",
    "batch_size=3": "did you mean 'train.batch_size'?",
    "zzz=3": "--show prints all keys",
    "=3": "there is no key ''",
    "train..steps=3": "did you mean 'train.steps'?",
    "train.steps.more=3": "train.steps is a single value",
    "train=3": "is a group; set one of its keys: steps, batch_size",
    "train.steps=abc": "train.steps=abc: must be a whole number",
    "train.steps=1.5": "must be a whole number",
    "train.steps=1e400": "must be a whole number",
    "train.steps=": "must be a whole number",
    "train.steps=???": "must be a whole number",
    "name=${oops}": "name=${oops}: ",
    "train.batch_sha=maybe": "must be true or false",
    "optimizer.learning_rate=fast": "must be a number",
    "optimizer.matrix_learning_rate=x": "must be a number, or null for none",
    "optimizer.schedule=cosin": "did you mean 'cosine'?",
    "model.attention=flash": "must be one of blocked, cudnn, xla",
    "sample.prompts=[a,b": "must be a list",
    "mesh=3": "must be a table",
    "mesh.data=x": "must be a whole number",
    "mesh.data.x=3": "no axis 'data.x'",
    "mesh.tensor=2": "layout single has no axis 'tensor'",
    "mesh.data=16": "needs 16 devices and there are 8",
    "mesh.data=0": "must be a number of devices",
    "layout=fsdpp": "did you mean 'fsdp'?",
    "layout.compute.batch=nonaxis": "the mesh has no axis 'nonaxis'",
    "layout.compute.btach=data": "did you mean 'batch'?",
    "layout.stored.batch=data": "this table places embed, heads,",
    "layout.attention.head_dim=data": "this table places batch, sequence, keys,",
    "layout=tensor layout.compute.head_dim=tensor": "products sum over head_dim, which must be whole; "
    "layout.stored.head_dim",
    "layout=tensor layout.compute.embed=tensor": "products sum over embed, which must be whole; "
    "layout.stored.embed",
    "layout=data_parallel mesh.data=3": "train.batch_size=8: layout data_parallel (compute) splits dim "
    "'batch' over data=3",
    "layout=data_parallel train.batch_size=9": "9 is not a multiple of 8",
    "layout=fsdp_tensor mesh.tensor=8": "model.heads=4: layout fsdp_tensor (compute) splits dim 'heads' "
    "over tensor=8",
    "layout=context_ring mesh.context=8 train.sequence_length=24": "each device has two chunks of it, and "
    "24 is not a multiple of 16",
    "layout=context_ring layout.attention.keys=data": "layout.attention.keys=data: the sequence is split "
    "over context=2 while it attends",
    "layout=context_ulysses mesh.context=8": "model.heads=4: layout context_ulysses (attention) splits "
    "dim 'heads' over context=8",
    "layout=tensor mesh.tensor=4 model.heads=12 model.kv_heads=6 model.head_dim=8": "4 must divide 6 or "
    "be a multiple of it, as with 1, 2, 4, 12",
    "layout=pipeline": "model.layers=2: layout pipeline (compute) splits dim 'layers' over stage=4",
    "layout=pipeline mesh.stage=2 layout.pipeline.microbatches=3": "has 2 stages (stage=2), and 3 is not "
    "a multiple of 2",
    "layout=pipeline mesh.stage=2 layout.pipeline.microbatches=4": "layout.pipeline.microbatches=4, each "
    "over data=4, and 8 is not a multiple of 16",
    "layout=pipeline mesh.stage=2 layout.pipeline.rounds=2": 'layout.stored.layers=stage: must be "" with '
    "layout.pipeline.rounds=2",
    "layout=pipeline mesh.stage=2 layout.pipeline.rounds=2 layout.stored.layers= layout.stored.embed=stage": "2 is not a multiple of 4",
    "layout=pipeline layout.pipeline.rounds=2 layout.pipeline.remat=false": "layout.pipeline.remat=False: "
    "must be true with rounds=2",
    "layout.pipeline.microbatches=4": "layout single has no pipeline; layout.compute.layers=AXIS makes one",
    "layout.compute.layers=data": "layout.compute.batch=: must be 'data'",
    "layout.stored.layers=data": "layout.stored.layers=data: must be split in layout.compute too",
    "layout=pipeline layout.compute.batch=data,stage": "layout.compute.batch=data, stage: must be 'stage, "
    "data'",
    "train.batch_size=8 train.microbatches=3": "must be a divisor of train.batch_size=8",
    "model.heads=3": "does not divide model.embed=32",
    "model.attention=cudnn": "needs an NVIDIA GPU, the devices here are cpu",
    "model.offload=attention": "with model.remat=none everything is kept on the device",
    "model.offload=atention model.remat=full": "did you mean 'attention'?",
    "model.offload=attention model.remat=attention": "model.remat keeps 'attention' on the device",
    "model.offload=attention model.remat=full": "the devices here are cpu, whose memory is the host's",
    "model.gradient_dtype=bfloat16": "is narrower than model.compute_dtype=float32",
    "model.position=learned model.positions=8": "more than the model's learned positions",
    "optimizer.name=adamv": "did you mean 'adamw'?",
    "model.parametrization=mup": "model.base_embed=null: model.parametrization=mup needs it",
    "model.parametrization=completep model.base_embed=32": "model.base_layers=null: "
    "model.parametrization=completep needs it",
    "model.parametrization=mup model.base_embed=32 optimizer.name=muon": "optimizer.name=muon: has one "
    "learning rate for all weights",
    "model.parametrization=mup model.base_embed=32 optimizer.name=adafactor": "use adamw or lion, or "
    "model.parametrization=standard",
    "objective.name=nexttoken": "did you mean 'next_token'?",
    "data.source=/no/such.txt": "/no/such.txt: no such file or folder",
    "tokenizer.vocab=100000": "too large for this text; at most",
    "model.vocab=5": "smaller than the tokenizer's 320 tokens",
    "data.mixture.a.txt=1 data.source=b.txt": "add data.mixture={}",
    "model.moe.experts=4 model.moe.top_k=5": "model.moe.top_k=5: must be at most model.moe.experts=4",
    "model.moe.experts=8 model.moe.groups=3": "model.moe.groups=3: must be a divisor of model.moe.experts=8",
    "model.moe.experts=8 model.moe.groups=8": "must be at most half of model.moe.experts=8",
    "model.moe.experts=8 model.moe.groups=4 model.moe.top_k=3": "at most 2, the experts of "
    "model.moe.top_groups=1 groups",
    "model.moe.experts=8 model.moe.dense_layers=[2]": "model.moe.dense_layers=(2,): must be layers from 0 "
    "to 1",
    "model.moe.experts=8 model.moe.dense_layers=[0,1]": "must be some layers, each once",
    "model.moe.experts=8 model.moe.dispatch=dropping": "must be one of dropless, capacity",
    "model.moe.experts=8 model.bias_mlp=true": "experts have no biases",
    "layout=expert model.moe.experts=6": "model.moe.experts=6: layout expert (compute) splits dim "
    "'experts' over expert=4",
    "layout=expert_tensor model.moe.experts=8 model.moe.mlp=15": "model.moe.mlp=15: layout expert_tensor "
    "(compute) splits dim 'mlp' over tensor=2",
    "layout=expert_tensor model.moe.experts=8 model.moe.shared_mlp=15": "model.moe.shared_mlp=15: layout "
    "expert_tensor",
    "layout=context_ring mesh.context=2 model.moe.experts=4 model.moe.dispatch=capacity": "use model.moe.dispatch=dropless",
    "data.mixture.a.txt=0": "weight 0.0 of 'a.txt' must be above 0",
}

OUT_OF_RANGE = {
    **{f"train.{k}": (0, -1) for k in ("steps", "batch_size", "sequence_length", "microbatches", "stop_after_bad_steps", "log_every")},
    "train.seed": (-1, 2**32), "train.ema_decay": (1, -0.1, "nan"), "train.progress_every": (-1, "inf"),
    "train.rollback.spike": (0.9, -1, "nan", "inf"), **{f"train.rollback.{k}": (-1,) for k in ("window", "before", "after", "most")},
    "checkpoint.every": (0, -1), "checkpoint.keep": (0, -1),
    "evaluate.every": (-1,), "evaluate.batches": (0, -3), "evaluate.final_batches": (0,), "evaluate.tasks_every": (-1,), "evaluate.tasks_limit": (0,),
    "optimizer.learning_rate": (0, -1, "nan", "inf", "1e400"), "optimizer.matrix_learning_rate": (0,), "optimizer.warmup_steps": (-1,),
    "optimizer.beta1": (1, -0.1), "optimizer.beta2": (1, "nan"), "optimizer.momentum": (1,), "optimizer.epsilon": (0, -1),
    "optimizer.weight_decay": (-1, "inf"), "optimizer.clip_norm": (-1, "nan"),
    "optimizer.decay_fraction": (-0.1, 1.1), "optimizer.final_fraction": (-0.1, 2),
    "objective.z_loss": (-1, "nan"), "objective.chunk": (0,),
    "layout.pipeline.microbatches": (0, -2), "layout.pipeline.rounds": (0,),
    "sample.held_out": (-1,), "evaluate.base_batches": (-1,), "adapter.rank": (-1,), "adapter.alpha": (0, "inf"),
    "sample.tokens": (-1,), "sample.temperature": (-1, "nan"), "sample.top_k": (-1,),
    **{f"model.{k}": (0, -1, 2**31, 10**30) for k in ("layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "window", "positions", "max_segments")},
    **{f"model.{k}": (0, -1, 2**31, 10**30) for k in ("base_embed", "base_layers", "base_head_dim", "vocab")},
    **{f"model.moe.{k}": (-1,) for k in ("experts", "top_k", "mlp", "shared_mlp", "groups", "top_groups", "balance_loss", "z_loss", "bias_rate")},
    "model.moe.scale": (0, "inf"), "model.moe.capacity_factor": (0, "nan"),
    "model.norm_epsilon": (0, "nan"), "model.rope_theta": (0,), "model.logit_softcap": (-1,), "model.init_std": (-1, "nan"),
    **{f"model.rope_scaling.{k}": (0,) for k in ("factor", "low_frequency_factor", "high_frequency_factor")},
    **{f"model.rope_scaling.{k}": (0,) for k in ("beta_fast", "beta_slow", "original_positions")},
    **{f"model.latent.{k}": (-1,) for k in ("query_rank", "kv_rank", "nope_dim", "rope_dim", "value_dim")},
    "model.attention_scale": (0, "inf"), "model.attention_softcap": (-1, "nan"), "model.embedding_scale": (0, "nan"),
    "model.rope_fraction": (0, 1.5), "model.rope_theta_window": (0, "inf"), "model.rope_scaling.attention_factor": (0,),
    "data.held_out_fraction": (0, 1), "data.document_bytes": (1,), "data.workers": (-1,),
    "tokenizer.vocab": (0, 260), "tokenizer.sample_bytes": (0,),
    **{f"cluster.{k}_seconds": (0, "inf") for k in ("start", "beat", "hang", "compile")}, "cluster.stop_before_end_seconds": (-1, "nan"),
}  # fmt: skip


def assert_refused(capsys, run_dir: Path, says: str, *arguments: object) -> None:
    assert launch(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error
    assert not run_dir.exists()


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistake_is_one_line_and_leaves_nothing(tiny, tmp_path, capsys, arguments):
    run_dir = tmp_path / "run"
    assert_refused(
        capsys, run_dir, MISTAKES[arguments], f"experiment={tiny}", f"run_dir={run_dir}", *arguments.split()
    )


@pytest.mark.parametrize("key", OUT_OF_RANGE)
def test_number_out_of_range_is_refused_by_its_key(tiny, tmp_path, capsys, key):
    for value in OUT_OF_RANGE[key]:
        assert_refused(
            capsys,
            tmp_path / "run",
            f"{key}=",
            f"experiment={tiny}",
            f"run_dir={tmp_path / 'run'}",
            f"{key}={value}",
        )


def numbers(config: object, prefix: str = "") -> set[str]:
    """The keys of all numbers in a tree of dataclasses."""
    found: set[str] = set()
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            found |= numbers(value, f"{prefix}{f.name}.")
        elif str(f.type).split(" ")[0] in ("int", "float"):
            found.add(prefix + f.name)
    return found


def test_every_number_of_the_tree_has_a_range():
    assert numbers(Experiment(data=DataConfig(), tokenizer=TokenizerConfig())) == set(OUT_OF_RANGE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["experiment=quikstart"], "did you mean 'quickstart'?"),
        (["experiment="], "no such experiment; valid: "),
        (["experiment=no/such.py"], "there is no such file"),
        (["train.steps=3"], "experiment=NAME is missing"),
        (["experiment=quickstart", "experiment=quickstart"], "given twice"),
        (["quickstart"], "write key=value, as in experiment=quickstart"),
        (["--shwo", "experiment=quickstart"], "did you mean '--show'?"),
        (["--train.steps=3", "experiment=quickstart"], "keys are key=value, without dashes"),
    ],
)
def test_mistake_on_the_command_line(tmp_path, capsys, arguments, says):
    assert_refused(capsys, tmp_path / "run", says, *arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def experiment(:\n", "broken.py:1: invalid syntax"),
        ("import not_there\n", "broken.py:1: ModuleNotFoundError: No module named 'not_there'"),
        ("\n\ndef experiment():\n    return 1 / 0\n", "broken.py:4: ZeroDivisionError: division by zero"),
        (
            "from llm_jax.experiment import Experiment\ndef experiment():\n    return Experiment(modle=3)\n",
            "broken.py:3: TypeError",
        ),
        ("def experiment():\n    return {}\n", "returns dict, not an Experiment"),
        ("def experimnet():\n    pass\n", "has no function experiment()"),
        (
            "from llm_jax.layout.presets import preset\ndef experiment():\n    return preset('fdsp')\n",
            "did you mean 'fsdp'?",
        ),
        (
            "from llm_jax.experiment import Experiment\nfrom llm_jax.train.config import TrainConfig\n"
            "def experiment():\n    return Experiment(train=TrainConfig(steps='many'))\n",
            "train.steps",
        ),
    ],
)
def test_mistake_in_an_experiment_file_names_its_line(tmp_path, capsys, text, says):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert_refused(capsys, tmp_path / "run", says, f"experiment={path}", f"run_dir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {stepz: 3}\n", "stepz"),
        ("train: [\n", "not a configuration"),
        ("- 1\n", "not a configuration"),
    ],
)
def test_mistake_in_a_config_yaml(tmp_path, capsys, text, says):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert_refused(capsys, tmp_path / "run", says, f"experiment={path}", f"run_dir={tmp_path / 'run'}")


def test_run_dir_that_cannot_be_is_told_before_the_corpus_is_read(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for run_dir, says in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file"),
        ("/proc/none", "can't be"),
    ):
        assert (
            launch(
                f"experiment={tiny}",
                f"run_dir={run_dir}",
                "data.source=/no/such.txt" if "proc" not in str(run_dir) else "train.steps=1",
            )
            == 2
        )
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_run_dir_that_is_not_writable_is_told_before_the_corpus_is_read(tiny, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert_refused(
        capsys,
        tmp_path / "closed" / "run",
        "can't be written to",
        f"experiment={tiny}",
        f"run_dir={tmp_path / 'closed' / 'run'}",
    )


def test_another_configuration_in_the_same_folder_is_refused_before_the_corpus_is_read(
    tiny, tmp_path, capsys
):
    run = (f"experiment={tiny}", f"run_dir={tmp_path / 'run'}")
    assert launch(*run, "train.steps=2") == 0
    before = (tmp_path / "run" / "config.yaml").read_text()
    capsys.readouterr()
    assert launch(*run, "train.steps=2", "optimizer.learning_rate=0.5", "data.source=/no/such.txt") == 2
    error = capsys.readouterr().err
    assert "optimizer.learning_rate: 0.003 → 0.5" in error
    assert "data.source:" in error
    assert error.count("\n") == 1
    assert launch(*run, "train.steps=4", "model.vocab=640") == 2
    assert "model.vocab: 320 → 640" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == before


@pytest.mark.parametrize("own", [True, False])
def test_a_run_that_has_begun_keeps_its_tokenizer(tiny, tmp_path, capsys, monkeypatch, own):
    """Also where training it anew gives another, as an empty cache and a later version of the trainer do."""
    run = (f"experiment={tiny}", f"run_dir={tmp_path / 'run'}")
    assert launch(*run, "train.steps=2") == 0
    before = (tmp_path / "run" / "tokenizer" / "tokenizer.model").read_bytes()
    monkeypatch.setattr("llm_jax.data.train_tokenizer.TRAINER_VERSION", 99)
    monkeypatch.setattr("llm_jax.data.train_tokenizer.train", trained_otherwise)
    if not own:
        (tmp_path / "run").rename(tmp_path / "before")
    assert launch(*run, "train.steps=3") == 0
    after = (tmp_path / "run" / "tokenizer" / "tokenizer.model").read_bytes()
    assert (after == before) == own


def trained_otherwise(texts, config):
    return sentencepiece_tokenizer.train([*texts, "zq" * 500], config)


def test_text_that_changed_under_the_same_name_is_refused_on_resuming(tiny, tmp_path, capsys):
    run = (f"experiment={tiny}", f"run_dir={tmp_path / 'run'}")
    assert launch(*run, "train.steps=2") == 0
    with (tmp_path / "small.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert launch(*run, "train.steps=4") == 2
    assert "is not what this run was trained on" in capsys.readouterr().err


def test_two_runs_never_share_a_folder(tiny, tmp_path, capsys):
    from llm_jax.core.files import locked

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with locked(run_dir, print):
        assert launch(f"experiment={tiny}", f"run_dir={run_dir}") == 2
    assert "another process is running in this folder" in capsys.readouterr().err
    assert not list(run_dir.iterdir())


def test_a_job_of_several_tasks_without_srun_is_refused(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert_refused(
        capsys,
        tmp_path / "run",
        "was started without srun",
        f"experiment={tiny}",
        f"run_dir={tmp_path / 'run'}",
    )


def test_the_process_itself_exits_with_2_and_one_line(tmp_path):
    path = write_experiment(tmp_path)
    done = launch_process(f"experiment={path}", "train.stepz=3", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr == "error: train.stepz=3: there is no key 'train.stepz'; did you mean 'train.steps'?\n"
    assert not done.stdout


@pytest.mark.parametrize(
    ("arguments", "need"),
    [
        (
            ["model.base_embed=16"],
            "model.base_embed=16: has an effect only with model.parametrization=mup or completep",
        ),
        (
            ["model.base_layers=1", "model.parametrization=mup", "model.base_embed=16"],
            "model.parametrization=completep",
        ),
        (["model.base_head_dim=4"], "model.parametrization=mup or completep"),
        (
            ["optimizer.decay_fraction=0.5"],
            "optimizer.decay_fraction=0.5: has an effect only with optimizer.schedule=wsd",
        ),
        (["optimizer.final_fraction=0.5", "optimizer.schedule=constant"], "a schedule that decays"),
        (["optimizer.momentum=0.5"], "optimizer.name=muon"),
        (["optimizer.matrix_learning_rate=0.5", "optimizer.name=lion"], "optimizer.name=muon"),
        (["model.moe.top_k=1"], "model.moe.experts=N"),
        (["train.rollback.window=7"], "train.rollback.spike=1.5"),
        (["chat.template=chatml"], "an objective that reads conversations, such as sft"),
        (["data.train_on=all"], "an objective that reads conversations, such as sft"),
    ],
)
def test_a_key_without_effect_is_refused_with_what_it_needs(tiny, tmp_path, arguments, need, capsys):
    assert launch(f"experiment={tiny}", f"run_dir={tmp_path / 'run'}", *arguments) == 2
    assert need in (error := capsys.readouterr().err)
    assert error.endswith(f"leave {arguments[0].partition('=')[0]} out\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["model.parametrization=mup", "model.base_embed=16"],
        ["optimizer.schedule=wsd", "optimizer.decay_fraction=0.5"],
        ["model.base_embed=null"],
        ["optimizer.momentum=0.95"],
        ["train.rollback.spike=1.5", "train.rollback.window=7"],
    ],
)
def test_a_key_with_effect_or_at_its_default_is_taken(tiny, arguments, capsys):
    assert launch(f"experiment={tiny}", *arguments, "--show") == 0


@pytest.mark.parametrize(
    "argument",
    [
        "optimizer.epsilon=1e-50", "optimizer.learning_rate=1e-40", "optimizer.weight_decay=1e-39",
        "optimizer.clip_norm=1e39", "model.norm_epsilon=1e-42", "model.rope_theta=1e39", "model.init_std=1e-45",
        "model.logit_softcap=1e-40", "sample.temperature=1e308", "train.rollback.spike=1e39",
    ],
)  # fmt: skip
def test_a_number_that_float32_does_not_hold_is_refused(tiny, tmp_path, argument, capsys):
    """It would be 0, or infinite, where it is multiplied with."""
    assert launch(f"experiment={tiny}", f"run_dir={tmp_path / 'run'}", argument) == 2
    key, _, value = argument.partition("=")
    assert f"error: {key}={float(value)}: must be 0, or from 1.2e-38 to 3.4e+38" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["from", "experiment", "tokenizer.file", "data.source", "run_dir"])
def test_a_name_that_no_file_can_have_is_refused(tiny, tmp_path, key, capsys):
    words = {"experiment": f"experiment={tiny}", "run_dir": f"run_dir={tmp_path / 'run'}"}
    words[key] = f"{key}={'9' * 5000}" + ".py" * (key == "experiment")
    assert launch(*words.values()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "bits"),
    [
        ("train.steps=1e30", 31), ("train.batch_size=1e12", 31), ("tokenizer.vocab=1e12", 31), ("checkpoint.also=5,1e30", 31),
        ("train.rollback.window=1e30", 31), ("model.moe.experts=1e10", 31), ("sample.top_k=1e30", 31), ("mesh.data=1e30", 31),
        ("data.document_bytes=1e30", 63), ("tokenizer.sample_bytes=1e19", 63),
    ],
)  # fmt: skip
def test_a_whole_number_that_no_size_can_be_is_refused(tiny, tmp_path, argument, bits, capsys):
    spike = ["train.rollback.spike=2"] if "rollback" in argument else []
    assert launch(f"experiment={tiny}", f"run_dir={tmp_path / 'run'}", argument, *spike) == 2
    error = capsys.readouterr().err
    assert re.search(rf"error: {argument.partition('=')[0]}=\d+: must be below 2\^{bits}\n$", error), error


@pytest.mark.parametrize(
    "key", ["data.source", "data.cache_dir", "tokenizer.file", "train.start_from", "from", "run_dir"]
)
def test_a_home_folder_that_is_unknown_is_refused(tiny, tmp_path, capsys, key):
    run = [f"run_dir={tmp_path / 'run'}"] if key != "run_dir" else []
    assert_refused(
        capsys,
        tmp_path / "run",
        "no home folder ~nobody-has-it",
        f"experiment={tiny}",
        *run,
        f"{key}=~nobody-has-it/x",
    )


def test_the_run_folder_may_begin_with_the_home_folder(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert launch(f"experiment={tiny}", "run_dir=~/runs/one", "--show") == 0
    assert f"run_dir: {tmp_path}/home/runs/one\n" in capsys.readouterr().out


def test_home_folders_are_read_by_one_function():
    found = [path.name for path in (ROOT / "llm_jax").rglob("*.py") if ".expanduser()" in path.read_text()]
    assert found == ["files.py"], "user_path of core/files.py makes an unknown home folder one line"
