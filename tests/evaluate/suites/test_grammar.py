"""The generated sentences: nothing but grammar tells right from wrong."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_jax.evaluate.suites import REVISED, SUITES
from llm_jax.evaluate.suites.crossed import Crossed, crossings, sentence_items, version_of
from llm_jax.evaluate.tasks.task import Item, check_items
from tests.conftest import ROOT

GRAMMAR = {name: suite for name, suite in SUITES.items() if suite.group in ("german", "english")}
ITEMS: dict[str, list[Item]] = {}
TEXTS = {
    "de": ("de_ud_gsd_sentences.txt", "de_kafka_die_verwandlung.txt"),
    "en": ("wikitext2_valid.txt", "tinystories_238.txt"),
}


def items_of(name: str) -> list[Item]:
    """The items of a suite, made once."""
    if name not in ITEMS:
        ITEMS[name] = SUITES[name].items()
    return ITEMS[name]


def words(text: str) -> list[str]:
    """Words and signs, whatever their case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def score(items: list[Item], of: Callable[[str], float]) -> float:
    """The share of pairs whose right sentence scores higher; ties count as half."""
    right = 0.0
    for item in items:
        good, bad = of(item.choices[item.gold]), of(item.choices[1 - item.gold])
        right += 0.5 if math.isclose(good, bad, abs_tol=1e-9) else float(good > bad)
    return right / len(items)


def unigram(text: list[str]) -> Callable[[str], float]:
    """The log-probability of a sentence by the frequencies of its words, smoothed by one."""
    counts = Counter(text)
    total = len(text) + len(counts) + 1
    return lambda sentence: sum(math.log((counts[word] + 1) / total) for word in words(sentence))


def test_there_are_ten_phenomena_of_each_language_with_500_pairs():
    for group in ("german", "english"):
        names = [name for name, suite in SUITES.items() if suite.group == group]
        assert len(names) >= 10
        for name in names:
            assert len(check_items(SUITES[name].task(), items_of(name))) == 500


@pytest.mark.parametrize("name", GRAMMAR)
def test_every_word_is_as_often_in_right_as_in_wrong_sentences(name):
    right = Counter(word for item in items_of(name) for word in words(item.choices[item.gold]))
    wrong = Counter(word for item in items_of(name) for word in words(item.choices[1 - item.gold]))
    assert right == wrong


@pytest.mark.parametrize("name", GRAMMAR)
def test_a_unigram_model_and_the_length_know_nothing(name):
    items = items_of(name)
    own = [word for item in items for choice in item.choices for word in words(choice)]
    for of in (unigram(own), lambda sentence: len(words(sentence)), len, lambda s: len(s.encode())):
        assert score(items, of) == 0.5


@pytest.mark.parametrize("language", TEXTS)
def test_a_unigram_model_of_real_text_knows_nothing(language):
    folder = Path(os.environ.get("LLM_JAX_SHARED_DATA", ROOT.parent / "shared" / "data")) / "text"
    if not folder.exists():
        pytest.skip(f"no real texts: {folder} is not there (LLM_JAX_SHARED_DATA names the folder above it)")
    of = unigram([word for file in TEXTS[language] for word in words((folder / file).read_text())])
    found = {name: score(items_of(name), of) for name, suite in GRAMMAR.items() if suite.language == language}
    assert set(found.values()) == {0.5}, found


def test_an_oracle_is_always_right():
    for name in GRAMMAR:
        right = {item.choices[item.gold] for item in items_of(name)}
        wrong = {item.choices[1 - item.gold] for item in items_of(name)}
        assert not right & wrong, name
        assert score(items_of(name), lambda sentence, right=right: sentence in right) == 1.0


def test_sentences_are_whole_and_their_slot_is_filled():
    for name in GRAMMAR:
        for item in items_of(name):
            for text in item.choices:
                assert re.fullmatch(r"[A-ZÄÖÜ][^_\n]*[.?]", text), text
                assert "  " not in text, text
                assert " ," not in text, text


def test_no_question_comes_twice_and_the_first_choice_is_right_as_often_as_the_second():
    for name in GRAMMAR:
        items = items_of(name)
        assert len({item.choices[item.gold] for item in items}) == len(items)
        assert sum(item.gold == 0 for item in items) * 2 == len(items)
        assert Counter(Counter(item.source for item in items).values()) == {2: len(items) // 2}


def test_items_are_a_function_of_the_seed():
    suite = SUITES["german_verb_case"]
    assert suite.items(0) == suite.items(0)
    assert suite.version(0) != suite.version(1)


def test_a_phenomenon_with_too_few_sentences_is_an_error():
    drawn = crossings("few", lambda draws: Crossed((f"{draws.below(2)} _", "c _"), ("a", "b")), 0, 4)
    with pytest.raises(ValueError, match="few: has only 1 crossings, fewer than the 4"):
        list(sentence_items("few", drawn))


def test_versions_are_those_on_record():
    """A change of a generator changes its items, whose scores can't be compared with older ones any more: the
    version in the record, and `Task.version`, must change on purpose."""
    recorded = json.loads((Path(__file__).parent / "versions.json").read_text())
    found = {name: version_of(items_of(name)) for name in SUITES if name != "python_doctests"}
    assert found == recorded


def test_revised_tasks_have_a_new_version_and_the_others_dont():
    assert SUITES["german_verb_case"].task().version == 2
    assert SUITES["english_a_or_an"].task().version == 1
    assert set(REVISED) <= set(SUITES)


OTHER_READINGS = {
    # the object could be the subject: names show no case
    "german_verb_case": r" (die|das|eine|dieses|(dies|mein|dein|unser)e) [A-Z]| (Kind|Mädchen)\b",
    "german_verb_second": r", (aber|und|denn) \w+t ([A-Z]|die |das |\w+e |ein Kind|\w+ Mädchen)",
    "german_verb_last_in_subordinate_clauses": r" (im|am|an|auf|nach|zur|zum|in|aus \w+) \w+\.|obwohl|während|weil",
    "german_weak_nouns": r"Nachbar",
    "german_comparison_words": r" (so|ebenso) |(wie|als) (ein|eine) ",
    "german_perfect_auxiliary": r"gespielt",
    "german_participle_or_infinitive": r"\b(will|wollte|möchte)\b",
    "german_two_way_prepositions": r"(steht|gestanden) auf|auf .* gestanden",
    "german_agreement_across_prepositional_phrase": r" mit (der|dem|den) ",
    "german_agreement_in_coordination": r"\bhör(t|en)\b",
    "german_adjective_endings": r"Schinken",
    "german_article_gender": r"\b(Radio|Hut|Stift|Messer)\b",
    "english_adjective_or_adverb": r"\b(was|is|remained|clear|clearly|quiet|quietly|played) | (in|at|on|by) the ",
    "english_subject_verb_agreement": r"\breads?\b",  # the past has the form of the plural
    "english_agreement_in_coordination": r"and (paint|cough|laugh|shout|talk|play|work|swim|cry|cries|smile)s?\b",
    "english_agreement_across_relative_clause": r"\b(see|watch|help|read)(es|s)?\b",
    "english_past_or_participle": r"\b(sung|sang|drunk|drank)\b",
    "english_reflexive_number": r"[Ww]aiter",  # of either gender
    "english_reflexive_gender": r"[Ww]aiter",
    "english_tag_questions": r"(could|should|would)n't",
    "english_relative_animacy": r"the child |surprised everybody|made us laugh|changed everything",
    "english_pronoun_case": r"sold the car|worked hard",
    "english_infinitive_or_gerund": r"\b(finished|plans|planned|expects|dislikes|promised|agreed)\b",
    "english_filler_gap": r"\b(bought|brought|made|built)\b",
    "english_transitivity": r"(took|held|received|needed|waited|waits)",
    "english_embedded_question_order": r"\basked\b|tell me|I ask you",
    "english_comparison_words": r"(than|as) (?!the |my |our |\w+ as )\w+\.",
}
"""Task → what gave sentences that were meant to be wrong another reading, in which they are good ones."""


@pytest.mark.parametrize("name", OTHER_READINGS)
def test_no_wrong_sentence_has_a_reading_that_is_right(name):
    pattern = re.compile(OTHER_READINGS[name])
    found = [text for item in items_of(name) for text in item.choices if pattern.search(text)]
    assert not found, found[:5]


def test_beside_published_sets_of_pairs():
    """Sentences are about as long as those of BLiMP and CLAMS, whose pairs word frequencies do tell apart
    (docs/suites.md has the figures)."""
    folder = Path(os.environ.get("LLM_JAX_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "evaluation" / "blimp").exists():
        pytest.skip(
            f"no published pairs: {folder}/evaluation is not there (LLM_JAX_SHARED_DATA names {folder})"
        )
    of = unigram([word for file in TEXTS["en"] for word in words((folder / "text" / file).read_text())])
    shares, published = [], []
    for file in sorted((folder / "evaluation" / "blimp").glob("*.jsonl")):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        pairs = [
            Item(str(i), choices=(r["sentence_good"], r["sentence_bad"]), gold=0)
            for i, r in enumerate(records)
        ]
        shares.append(score(pairs, of))
        published += [len(words(item.choices[0])) for item in pairs]
    assert max(abs(share - 0.5) for share in shares) == 0.5
    german = (folder / "evaluation" / "clams_de" / "prep_anim.tsv").read_text().splitlines()
    for lengths, language in (
        (published, "en"),
        ([len(words(line.split("\t")[1])) for line in german], "de"),
    ):
        own = [
            len(words(item.choices[item.gold]))
            for name, suite in GRAMMAR.items() if suite.language == language
            for item in items_of(name)
        ]  # fmt: skip
        assert 0.7 < (sum(own) / len(own)) / (sum(lengths) / len(lengths)) < 1.4
