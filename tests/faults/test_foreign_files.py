"""Files from elsewhere: whatever they name is read inside of their folder only, nothing in them runs, and no
number in them makes us allocate before it is checked."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import DataConfig, TokenizerConfig, load_tokenizer
from llm_jax.data.chat_template import ChatTemplate, find_template
from llm_jax.data.sources import resolve
from llm_jax.experiment import read_yaml
from llm_jax.huggingface.folder import open_folder
from llm_jax.huggingface.safetensors import HEADER_BYTES, read_folder
from llm_jax.layout.compilation_cache import use_compilation_cache
from llm_jax.pretrained.source import open_source
from llm_jax.slurm import job
from llm_jax.slurm.submit import quoted
from tests.data.test_huggingface_tokenizer import make_folder
from tests.tiny_run import launch

FIXTURES = Path(__file__).parents[1] / "huggingface/fixtures"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(tmp_path) -> Path:
    """A model folder with three files and their index, beside the same files, which are private."""
    shutil.copytree(FIXTURES / "llama", tmp_path / "private")
    return Path(shutil.copytree(FIXTURES / "llama", tmp_path / "model"))


def link_out(file: Path) -> None:
    """Makes a file a link to the private one of its name."""
    file.unlink()
    file.symlink_to(file.parent.parent / "private" / file.name)


@pytest.mark.parametrize(
    "name", ["../private/{}", "{root}/private/{}", "sub/../../private/{}", "..", "", "."]
)
def test_an_index_names_files_of_its_folder(model, tmp_path, name):
    tree = json.loads((model / INDEX).read_text())
    first = min(tree["weight_map"].values())
    (model / "sub").mkdir()
    tree["weight_map"] = {
        tensor: name.format(file, root=tmp_path) if file == first else file
        for tensor, file in tree["weight_map"].items()
    }
    (model / INDEX).write_text(json.dumps(tree))
    for read in (read_folder, open_folder, open_source):
        with pytest.raises(UserError, match=r"weight_map: names the file .*; only files inside of"):
            read(model)


@pytest.mark.parametrize("name", ["config.json", INDEX, "model-00002-of-00003.safetensors"])
def test_no_file_of_a_model_is_a_link_that_leaves_it(model, name):
    link_out(model / name)
    with pytest.raises(UserError, match=f"{name}: is a symbolic link to .*, outside of its folder"):
        open_source(model)


def test_a_single_file_of_weights_is_no_link_either(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "gpt2", tmp_path / "model"))
    (tmp_path / "private").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "private/model.safetensors")
    (folder / "model.safetensors").symlink_to("../private/model.safetensors")
    with pytest.raises(UserError, match="is a symbolic link"):
        open_source(folder)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "vocab.json",
        "about.json",
        "config.json",
    ],
)
def test_no_file_of_a_tokenizer_is_a_link_that_leaves_it(tmp_path, name):
    """They are copied, into run folders and exports, whatever is in them."""
    folder = make_folder("gpt2", tmp_path / "tokenizer")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / name).write_text("{}")
    if not (folder / name).exists():
        (folder / name).touch()
    link_out(folder / name)
    with pytest.raises(UserError, match=f"{name}: is a symbolic link"):
        load_tokenizer(folder)


def test_a_tokenizer_that_the_user_names_may_be_a_link(tmp_path):
    folder = make_folder("gpt2", tmp_path / "real")
    (tmp_path / "folder").symlink_to(folder)
    for path in (tmp_path / "folder", tmp_path / "folder/tokenizer.json"):
        assert load_tokenizer(path).vocab_size == load_tokenizer(folder).vocab_size


CONFIGS = {
    "a call": ("name: !!python/object/apply:os.system [echo]", "not a configuration"),
    "an alias": ("data: &a {source: x}\nevaluate: *a", "an alias"),
    "too deep": ("name: " + "[" * 100_000, "nested too deeply"),
    "a kernel that is a module": ("model: {attention: ../../os}", None),
    "an objective that is a module": ("objective: {name: os.path}", None),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_yaml_makes_nothing_but_values(tmp_path, case, capsys):
    """What it may name is in docs/huggingface.md; whatever it names is looked up in tables, never
    imported."""
    text, why = CONFIGS[case]
    (tmp_path / "config.yaml").write_text(text)
    if why:
        with pytest.raises(UserError, match=why):
            read_yaml(tmp_path / "config.yaml")
    assert launch(f"experiment={tmp_path / 'config.yaml'}", f"run_dir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_token_id_makes_no_table_of_that_size(tmp_path):
    folder = make_folder("gpt2", tmp_path / "tokenizer")
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["vocab"]["far away"] = 4_000_000_000
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="has a token 4,000,000,000; ids must be below 10,000,000"):
        load_tokenizer(folder)


@pytest.mark.parametrize("text", ["a\nscancel --me", "a\r", "a\x00", "a\u2028b"])
def test_no_name_adds_lines_to_a_job_script(text):
    with pytest.raises(UserError, match="can't be printed"):
        quoted(f"--job-name={text}")


@pytest.mark.parametrize("number", ["--me", "1 --me", "1,2", "1;2", None, ["1"]])
def test_a_job_number_is_a_number(tmp_path, number):
    """It is an argument of scancel."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/job.json").write_text(json.dumps({"job": number}))
    assert job.job_number(tmp_path) == ""
    (tmp_path / "slurm/job.json").write_text('{"job": "12_3"}')
    assert job.job_number(tmp_path) == "12_3"


@pytest.mark.parametrize(
    ("file", "tree"),
    [
        ("features.json", {"pythonClassName": "os.path.Feature"}),
        (
            "features.json",
            {"featuresDict": {"features": {"text": {"python_class_name": "antigravity.Text"}}}},
        ),
        ("features.json", {"type": "mine.Text", "content": {}}),
        ("dataset_info.json", {"splits": [{"name": "train", "filepathTemplate": "../../{SPLIT}"}]}),
        ("dataset_info.json", {"splits": [{"name": "train", "filepath_template": "/etc/{SPLIT}"}]}),
    ],
)
def test_a_prepared_dataset_imports_nothing_and_stays_in_its_folder(tmp_path, file, tree):
    (tmp_path / "dataset_info.json").write_text('{"name": "mine"}')
    named = {"name": "mine", **tree} if file == "dataset_info.json" else tree  # as TFDS writes it
    (tmp_path / file).write_text(json.dumps(named))
    with pytest.raises(UserError, match=f"{file}: .* neither a class of TFDS nor a file of this folder"):
        resolve(str(tmp_path), DataConfig(source=str(tmp_path)), print)


@pytest.mark.parametrize("length", [HEADER_BYTES + 1, 1 << 40, (1 << 64) - 1, 0])
def test_the_length_of_a_header_is_checked_before_it_is_read(tmp_path, length):
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little"))
    with file.open("r+b") as opened:
        opened.truncate(1 << 41)  # without blocks on the disk
    with pytest.raises(UserError, match="is not a safetensors file"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"num_hidden_layers": 2_000_000_000}, "2000000000 layers: must be at most 10,000"),
        ({"num_hidden_layers": 9_999}, "too few for the 9999 layers of its config.json"),
        ({"vocab_size": 10**30}, "must be below 2\\^31"),
        ({"head_dim": 2**31}, "must be below 2\\^31"),
        ({"rms_norm_eps": 1e-60}, "model.norm_epsilon=1e-60: must be 0, or from"),
    ],
)
def test_no_number_of_a_config_makes_a_table_of_that_size(model, changes, why):
    tree = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**tree, **changes}))
    with pytest.raises(UserError, match=why):
        open_source(model)


def test_compiled_programs_come_from_the_users_own_cache(tmp_path, monkeypatch):
    """They are machine code; a config.yaml may name any data.cache_dir."""
    import jax

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path / "own"))
    chosen = {}
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax.config, "update", lambda name, value: chosen.update({name: value}))
    use_compilation_cache()
    assert chosen["jax_compilation_cache_dir"] == str(tmp_path / "own/compiled")
    assert not inspect.signature(use_compilation_cache).parameters


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_no_link_that_leaves_its_folder(tmp_path, name):
    folder = make_folder("gpt2", tmp_path / "tokenizer")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / name).write_text("{}")
    (folder / name).touch()
    link_out(folder / name)
    with pytest.raises(UserError, match=f"{name}: is a symbolic link"):
        find_template("", TokenizerConfig(file=str(folder)), "template")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}", "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__.os.system('true') }}", "{{ 'a' * 10**20 }}",
        "{{ 1 / 0 }}", "{% for i in range(10**9) %}{% endfor %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)  # fmt: skip
def test_a_chat_template_reaches_nothing_and_its_faults_are_one_line(template):
    with pytest.raises(UserError, match="chat template mine: ") as error:
        ChatTemplate(template, "mine").render([{"role": "user", "content": "x"}])
    assert "\n" not in str(error.value)
