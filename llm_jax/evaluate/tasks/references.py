"""Whether a generated text is the reference answer: as a text, a number, or a mathematical expression."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from llm_jax.evaluate.tasks.task import Item

NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?\d(?:[\d.,]*\d)?")
BOXED = "\\boxed{"


def same_text(item: Item, text: str) -> bool:
    """Whether a text equals the reference or another accepted answer, without the white space around it.

    >>> same_text(Item("1", text="Berlin"), " Berlin\\n")
    True
    """
    return text.strip() in {answer.strip() for answer in (item.text, *item.accepted) if answer.strip()}


def same_number(item: Item, text: str) -> bool:
    """Whether the last number in a text equals the reference or another accepted answer. The decimal comma
    and the points between thousands of German are read as such where the item's `more` says {"decimal": ","}.

    >>> same_number(Item("1", text="70000"), "So it is $70,000.00.")
    True
    """
    comma = item.more.get("decimal") == ","
    found = last_number(text, comma)
    wanted = [last_number(answer, comma) for answer in (item.text, *item.accepted) if answer.strip()]
    return found is not None and found in wanted


def last_number(text: str, decimal_comma: bool = False) -> Decimal | None:
    """The last number of a text; None where it has none.

    >>> last_number("3 x 4 = 12."), last_number("1.250,5 Euro", decimal_comma=True)
    (Decimal('12'), Decimal('1250.5'))
    """
    numbers = NUMBER.findall(text)
    if not numbers:
        return None
    digits = numbers[-1].replace("$", "")
    if decimal_comma and re.fullmatch(r"-?\d{1,3}(\.\d{3})*(,\d+)?|-?\d+,\d+", digits):
        digits = digits.replace(".", "").replace(",", ".")
    try:
        return Decimal(digits.replace(",", "")).normalize() + 0
    except InvalidOperation:
        return None


def same_expression(item: Item, text: str) -> bool:
    """Whether the final answer of a text (in \\boxed{}, or what follows "answer is") is the reference, both
    without LaTeX that changes only how they look.

    >>> same_expression(Item("1", text="\\\\frac{1}{2}"), "Thus it is $\\\\boxed{\\\\dfrac12}$.")
    True
    """
    return plain_latex(final_answer(text)) == plain_latex(item.text)


def final_answer(text: str) -> str:
    """What a worked solution gives as its answer: the last \\boxed{...}, else what follows the last "answer
    is", else its last line."""
    if (at := text.rfind(BOXED)) >= 0:
        depth, begin = 1, at + len(BOXED)
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if not depth:
                return text[begin:end]
    if found := re.findall(r"answer is:?\s*(.+)", text, re.IGNORECASE):
        return found[-1].split(". ")[0]
    return (text.strip().splitlines() or [""])[-1]


def plain_latex(text: str) -> str:
    """An expression without dollars, spaces, units in \\text{} and sizes of brackets; fractions as
    \\frac{a}{b}."""
    text = re.sub(r"\\(?:left|right|!|,|;| |displaystyle)|\$|\\%|%|\^\\circ|\^{\\circ}", "", text)
    text = re.sub(r"\\(?:text|mathrm|mbox){([^}]*)}", lambda m: "" if m[1][:1] == " " else m[1], text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(\d),(?=\d{3}\b)", r"\1", text)
    return re.sub(r"\s", "", text).rstrip(".")
