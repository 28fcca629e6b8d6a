"""The generated questions with answers: numbers, Python, recall, cloze."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from llm_jax.core.errors import UserError
from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites import SUITES, number_words, recall
from llm_jax.evaluate.suites.cloze import cloze_items
from llm_jax.evaluate.suites.python_doctests import examples
from llm_jax.evaluate.suites.recall import LIST_WORDS, RecallCell, between
from llm_jax.evaluate.tasks.task import check_items

ANSWERED = {name: suite for name, suite in SUITES.items() if suite.kind == "choice"}
ITEMS = {}


def items_of(name):
    """The items of a suite, made once."""
    if name not in ITEMS:
        ITEMS[name] = check_items(SUITES[name].task(), SUITES[name].items())
    return ITEMS[name]


@pytest.mark.parametrize("name", ANSWERED)
def test_every_answer_is_right_once_and_wrong_in_the_other_contexts(name):
    """So what knows only the answers is right in one of k contexts, exactly."""
    by_source = {}
    for item in items_of(name):
        by_source.setdefault(item.source, []).append(item)
    for together in by_source.values():
        assert len({item.choices for item in together}) == 1
        assert [item.gold for item in together] == list(range(len(together[0].choices)))
        assert len(set(together[0].choices)) == len(together)
        assert len({item.context for item in together}) == len(together)
    assert SUITES[name].chance == pytest.approx(
        sum(1 / len(i.choices) for i in items_of(name)) / len(items_of(name))
    )


@pytest.mark.parametrize("name", [name for name in ANSWERED if name.startswith("numbers")])
def test_numbers_have_500_items_in_each_language(name):
    assert len(items_of(name)) == 500


READ = {
    "de": {number_words.german_number(n): n for n in range(100_000)},
    "en": {number_words.english_number(n): n for n in range(100_000)},
}


def number_of(text, language):
    """A number in digits or words, whatever the case."""
    text = text.strip()
    return int(text) if text.isdigit() else READ[language][text[0].lower() + text[1:]]


@pytest.mark.parametrize("language", ["de", "en"])
def test_the_right_answers_to_questions_about_numbers_are_right(language):
    """An oracle of its own: it reads the question."""
    for name in ("words_to_digits", "digits_to_words"):
        for item in items_of(f"numbers_{language}_{name}"):
            asked = re.fullmatch(r"In \w+: (.*) =", item.context)[1]
            assert number_of(asked, language) == number_of(item.choices[item.gold], language)
    for item in items_of(f"numbers_{language}_comparison"):
        one, other = re.search(
            r"(?:oder kleiner als|or less than) (.*)\? (.*) (?:ist|is)$", item.context
        ).groups()
        larger = number_of(other, language) > number_of(one, language)
        assert (item.choices[item.gold] in (" größer", " greater")) == larger
    signs = {"+": int.__add__, "-": int.__sub__, "×": int.__mul__}
    names = {"plus": "+", "minus": "-", "mal": "×", "times": "×"}
    for name, sign in (("addition", "+"), ("subtraction", "-"), ("multiplication", "×")):
        for item in items_of(f"numbers_{language}_{name}"):
            if digits := re.findall(r"\d+", item.context):
                first, second = map(int, digits)
            else:
                said = re.fullmatch(r"(.*) (plus|minus|mal|times) (.*) (?:ist|is)", item.context)
                assert names[said[2]] == sign
                first, second = number_of(said[1], language), number_of(said[3], language)
            assert signs[sign](first, second) == int(item.choices[item.gold])
            assert int(item.choices[item.gold]) > 0
    for item in items_of(f"numbers_{language}_sequences"):
        terms = [number_of(term, language) for term in item.context.removesuffix(",").split(", ")]
        steps = {
            b - a
            for a, b in zip(terms, [*terms[1:], number_of(item.choices[item.gold], language)], strict=True)
        }
        assert len(steps) == 1


def test_python_prints_the_right_answer():
    """The interpreter itself, fed with what the model reads."""
    import contextlib
    import io
    from code import InteractiveInterpreter

    for item in items_of("python_expressions")[:300]:
        interpreter, printed = InteractiveInterpreter({}), io.StringIO()
        block: list[str] = []
        with contextlib.redirect_stdout(printed):
            for line in [*item.context.splitlines(), ">>> "]:
                if line.startswith(">>> ") and block:
                    assert not interpreter.runsource("\n".join([*block, ""]), symbol="single")
                    block = []
                block.append(line[4:])
        assert printed.getvalue() == item.choices[item.gold] + "\n", item.context


def test_the_first_items_are_of_all_kinds():
    groups = Counter(item.group for item in items_of("python_expressions"))
    assert Counter(item.group for item in items_of("python_expressions")[: 2 * len(groups)]) == dict.fromkeys(
        groups, 2
    )
    cells = len(recall.DISTANCES) * len(recall.LENGTHS)
    for name in ("copying", "recall_by_name"):
        assert set(Counter(item.group for item in items_of(name)).values()) == {50}
        assert len({item.group for item in items_of(name)[: 2 * cells]}) == cells


def test_doctests_are_those_of_the_installed_python():
    content = b'def f():\n    """\n    >>> x = 2\n    >>> x + 1\n    3\n    >>> x\n    2\n    """\n'
    assert [(e.context, e.output) for e in examples([("m.py", content)])] == [
        (">>> x = 2\n>>> x + 1\n", "3"),
        (">>> x = 2\n>>> x + 1\n3\n>>> x\n", "2"),
    ]
    assert len(items_of("python_doctests")) >= 100


def test_a_list_is_found_in_its_context_at_its_distance():
    """The oracle of recall: the right answer follows the first appearance of the question."""
    for name in ("copying", "recall_by_name"):
        for item in items_of(name):
            cue = item.context.splitlines()[-1]
            first = item.context.index(cue)
            assert item.context[first + len(cue) :].startswith(item.choices[item.gold])
            told = item.context.splitlines()
            assert sum(len(line) + 1 for line in told[2:-1]) >= item.more["distance"]
            assert len(item.choices[item.gold].split()) == item.more["length"]


def test_no_word_of_a_list_is_in_the_sentences_between():
    text = " ".join(between(Draws(f"{i}"), 2000) for i in range(50)).lower()
    assert not set(re.findall(r"\w+", text)) & set(LIST_WORDS)
    assert len(set(LIST_WORDS)) == len(LIST_WORDS)
    assert RecallCell(128, 4).name == "distance 128, length 4"


def test_cloze_asks_for_words_of_the_documents():
    documents = [
        " ".join(f"The {adjective} {animal} sleeps near the {place} and nobody hears its {thing} today." for
                 adjective in ("old", "young", "gray") for animal in ("tiger", "donkey", "pigeon", "rabbit")
                 for place, thing in (("river", "voice"), ("castle", "steps"))) + f" Number {i}."
        for i in range(6)
    ]  # fmt: skip
    items = cloze_items(documents, seed=0, count=40)
    assert items == cloze_items(documents, seed=0, count=40)
    assert 20 <= len(items) <= 40
    for item in items:
        document = documents[int(item.source.removeprefix("document "))]
        assert item.context + item.choices[item.gold] in document
        assert len(item.context) <= 600
    for first in range(0, len(items), 4):
        together = items[first : first + 4]
        assert {item.choices for item in together} == {together[0].choices}
        assert [item.gold for item in together] == [0, 1, 2, 3]
    assert cloze_items(["too short"], seed=0, count=8) == []


def test_shots_are_not_among_the_questions():
    suite = SUITES["numbers_de_addition"]
    asked = {item.context for item in items_of(suite.name)}
    shots = suite.examples()
    assert len(shots) == 16
    assert not asked & {item.context for item in shots}


def test_the_suites_are_found_by_name_and_group():
    from llm_jax.evaluate.tasks.registry import find_tasks

    assert {"german", "english", "numbers", "code", "recall"} <= {suite.group for suite in SUITES.values()}
    assert [task.name for task in find_tasks("german")] == [
        n for n, s in SUITES.items() if s.group == "german"
    ]
    assert {"copying", "recall_by_name"} == {task.name for task in find_tasks("recall")}
    (task,) = find_tasks("cloze")
    with pytest.raises(UserError, match="tasks=cloze: is made of the held-out documents of a run"):
        task.items()


@pytest.mark.parametrize("name", ["german_verb_case", "numbers_de_clock", "python_expressions"])
def test_a_written_file_is_read_as_the_same_items(name, tmp_path, capsys):
    from llm_jax.evaluate.suites.__main__ import main
    from llm_jax.evaluate.tasks.own_file import tasks_of_file

    file = tmp_path / "items.jsonl"
    assert main([name, "seed=1", "show=2", f"out={file}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    (task,) = tasks_of_file(str(file))
    assert (task.kind, task.metric) == (SUITES[name].kind, SUITES[name].task().metric)
    for read, made in zip(task.items(), SUITES[name].items(seed=1), strict=True):
        assert (read.id, read.context, read.source) == (made.id, made.context, made.source)
        assert read.choices[read.gold] == made.choices[made.gold]


def test_a_file_of_several_suites_has_a_group_for_each_and_one_kind(tmp_path, capsys):
    from llm_jax.evaluate.suites.__main__ import main
    from llm_jax.evaluate.tasks.registry import find_tasks

    assert main(["recall", f"out={tmp_path / 'both.jsonl'}"]) == 0
    assert main(["recall", f"out={tmp_path / 'each'}"]) == 0
    (both,) = find_tasks(str(tmp_path / "both.jsonl"))
    each = find_tasks(",".join(map(str, sorted((tmp_path / "each").iterdir()))))
    assert [(task.name, task.metric) for task in (both, *each)] == [
        ("both", "raw"), ("copying", "raw"), ("recall_by_name", "raw"),
    ]  # fmt: skip
    groups = {item.id: item.group for item in both.items()}
    assert groups == {item.id: f"{task.name} {item.group}" for task in each for item in task.items()}
    capsys.readouterr()
    assert main(["all", f"out={tmp_path / 'all.jsonl'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "all has suites of pair" in line
    assert "Give a folder, for a file of each suite" in line
    assert not (tmp_path / "all.jsonl").exists()


def test_an_unknown_suite_is_one_line(capsys):
    from llm_jax.evaluate.suites.__main__ import main

    assert main(["germann"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "NAME=germann" in line
    assert "german" in line
