"""No page of the documentation uses words of the old dialect: the field's terms, and plain verbs, are in
their place.
"""

from __future__ import annotations

import re

import pytest

from tools.check_docs import PAGES

DIALECT = {
    # terms of our own, where the field has one
    r"\b(fore|un)?(foretold|foretells?|foretelling)\b": "predicted, predict",
    r"\bpieces?\b(?! of (code|text|hardware))": "tokens (pieces are SentencePiece's only: allowed in "
    "docs/tokenizers.md)",
    r"\bhomes?\b(?!/)": "master parameters, or where arrays are stored",
    r"\bdoubts?\b": "caveats",
    r"(?-i:\bhubs?\b)": "coordinator (the Hub is Hugging Face's)",
    r"\bmeeting\b": "rendezvous",
    r"\blast words?\b": "final report, or summary",
    # verbs of speech for programs
    r"\b(says|said|say|saying)\b": "print, report, name, require; configured, given",
    r"\b(tells?|told|telling)\b(?! apart)": "report, show, inform; passed",
    r"\bspeaks?\b": "log, print",
    r"\basked for\b|\basks for\b|\bis asked\b|\bwhat was asked\b": "requested, required, given",
    r"\banswered\b|\banswers? to\b": "raises, follows",
    # turns of phrase that a reader must translate back
    r"\b(go|goes|going|gone|went) on\b": "resume, continue",
    r"\bof (theirs|ours|one's own|its own kind)\b": "name the owner",
    r"\bwithout a say\b|\b(has|have) no say\b": "has no effect",
    r"\bof Hugging Face's\b": "a Hugging Face folder, tokenizer, ...",
    r"\bas ever\b": "as before; or nothing",
    r"\bthere (is|are) none of\b|\bthat there is none\b": "does not exist",
    r"\bcame of it\b|\bcomes of it\b": "results",
    r"\bis to be\b|\bare to be\b": "must be, will be",
    r"\bwon't do\b|\bwill do\b": "suffices",
    r"\bwants?\b": "needs, requires",
    r"\bnobody (reads|waits|is|has)\b": "no process",
    r"\bin vain\b|\bforth\b": "without effect",
    r"\bgets? further\b": "makes progress",
}
"""A regex for each word, and what to write. Lines of code and of programs' output are searched too."""
ALLOWED = {
    "tokenizers.md": r"pieces?",
}
"""Words that are the field's on one page."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_word_of_the_old_dialect(page):
    found = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        for pattern, instead in DIALECT.items():
            for word in re.finditer(pattern, line, re.I):
                if not re.fullmatch(ALLOWED.get(page.name, "(?!)"), word[0], re.I):
                    found.append(
                        f"{page.name}:{number}: {word[0]!r} in {line.strip()[:100]!r}; write: {instead}"
                    )
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "Held out, at 5 TFLOP: foretold 2.373 nats a token",
        "a model of 512 pieces, whose weights are at their homes",
        "The report that it wrote has eleven doubts about this exponent",
        "`python -m llm_jax.evaluate` says the loss of a run",
        "the same command again goes on where it stopped",
        "what is misspelt is answered with the nearest valid name",
        "a folder of Hugging Face's in its place",
        "docs/reliability.md has what was done to runs, and what came of it",
        "summary.json is the last word",
    ],
)
def test_the_list_finds_the_old_dialect(line):
    assert any(re.search(pattern, line, re.I) for pattern in DIALECT)
