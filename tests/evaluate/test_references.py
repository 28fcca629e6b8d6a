"""Generated answers against their references; programs in their process."""

from __future__ import annotations

import time

import pytest

from llm_jax.evaluate.code_sandbox import apart, as_nobody, run_program, run_programs
from llm_jax.evaluate.tasks.references import last_number, same_expression, same_number, same_text
from llm_jax.evaluate.tasks.task import Item


@pytest.mark.parametrize(
    ("reference", "text", "right"),
    [
        ("18", " She makes 9 * 2 = $18 every day.\n#### 18", True),
        ("18", "18 eggs, so 20", False),
        ("70000", "The profit is 70,000.", True),
        ("5", "no number", False),
        ("-3", "x = -3", True),
        ("10", "It is 5-10", True),
    ],
)
def test_the_last_number_is_the_answer(reference: str, text: str, right: bool):
    assert same_number(Item("1", text=reference), text) is right


def test_german_numbers_have_a_decimal_comma():
    item = Item("1", text="1.250,50", more={"decimal": ","})
    assert same_number(item, "Das macht 1250,5 Euro.")
    assert last_number("1.250") == last_number("1.25")  # without the mark the point is a decimal one


@pytest.mark.parametrize(
    ("reference", "text", "right"),
    [
        (r"\frac{3}{4}", r"so $x = \boxed{\dfrac34}$", True),
        ("10", r"The final answer is $10$. I hope it is correct.", True),
        (r"(1, 2)", r"Final Answer: The final answer is $\left(1,2\right)$. I hope", True),
        ("7", r"\boxed{8}", False),
        (r"12\text{ cm}", "12", True),
    ],
)
def test_mathematical_answers_are_compared_without_what_changes_only_their_looks(
    reference: str, text: str, right: bool
):
    assert same_expression(Item("1", text=reference), text) is right


def test_any_accepted_answer_is_right():
    assert same_text(Item("1", text="Rom", accepted=("Roma",)), " Roma\n")
    assert not same_text(Item("1", text="Rom"), "Romeo")


BAD = {
    "import time\nwhile True: pass": "took more than",
    "x = bytearray(3 << 30)": "MemoryError",
    "open('big', 'wb').write(bytes(2 << 20))": "File too large",
    "import os\nassert not os.environ.get('HOME')\nassert os.listdir('.') == []\n1 / 0": "ZeroDivisionError",
    "import sys\nsys.exit(0)": "ended before its tests did",
    "import os\nfor _ in range(100): os.write(2, bytes(1 << 20))": "",
    "import os\nos._exit(0)": "ended before its tests did",
    "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)": "killed by SIGSEGV",
    "print('\\udc80' * 3)\ndef f(:": "SyntaxError",
    "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)": "Error",
}


def test_programs_are_restricted():
    loud = "import os, sys; sys.__stdout__.write('x'); os.write(1, b'y')"
    good, printing, *bad = run_programs(["print('x'); assert 1 + 1 == 2", loud, *BAD], seconds=2)
    assert good.passed, good
    assert printing.passed, printing
    for outcome, (program, problem) in zip(bad, BAD.items(), strict=True):
        assert not outcome.passed, program
        assert problem in outcome.problem, (program, outcome)


def test_a_daemon_that_a_program_started_ends_with_it(tmp_path):
    """It leaves the session, and its parent is gone."""
    if not apart():
        pytest.skip("this system allows no namespaces")
    tmp_path.chmod(0o777)
    mark = tmp_path / "mark"
    daemon = f"""
import os, time
if not os.fork():
    os.setsid()
    if not os.fork():
        time.sleep(1.5)
        open({str(mark)!r}, "w")
    os._exit(0)
"""
    run_program(daemon)
    time.sleep(2.5)
    assert not mark.exists()


@pytest.mark.skipif(not as_nobody(), reason="only root's programs run as another user")
def test_programs_of_root_are_those_of_nobody(tmp_path):
    file = tmp_path / "mine"
    file.write_text("x")
    assert "PermissionError" in run_program(f"open({str(file)!r}, 'w')").problem
    many = "import os\nfor _ in range(3):\n    if not os.fork(): os._exit(0)"
    assert "BlockingIOError" in run_program(many).problem


def test_what_a_program_started_ends_with_it():
    program = (
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    start = time.monotonic()
    run_program(program, seconds=3)
    assert time.monotonic() - start < 20


@pytest.mark.skipif(not apart(), reason="this system allows no `unshare -n`")
def test_programs_have_no_network():
    outcome = run_program("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)")
    assert "Network is unreachable" in outcome.problem
