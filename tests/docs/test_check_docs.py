"""Every command of README.md and docs/*.md is run by a test or by tools/check_docs.py, which names the one
that does.
"""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tools.check_docs import RULES, commands


def test_every_rule_is_for_a_command_and_names_a_test_that_there_is():
    for rule in RULES:
        assert any(re.search(rule.pattern, command.line) for command in commands()), rule
        assert not rule.test or (ROOT / rule.test).is_file(), rule
        assert rule.reason or not (rule.test or rule.add or rule.replace[0]), rule


def test_every_command_is_run_or_is_covered_by_a_test():
    found = commands()
    assert len(found) > 60
    for command in found:
        assert command.runs_as or (command.rule and command.rule.test), command


def test_a_shortened_command_gives_no_key_twice():
    for command in commands():
        words = command.runs_as.split()
        keys = [key for key, equals, _ in (word.partition("=") for word in words) if equals]
        assert len(keys) == len(set(keys)), command.runs_as
