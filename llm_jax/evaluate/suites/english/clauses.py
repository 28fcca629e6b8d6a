"""Forms that depend on an auxiliary, a verb, a time or a question word, and the word order of questions."""

from __future__ import annotations

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, crossed
from llm_jax.evaluate.suites.english.lexicon import (
    ACTS,
    FUTURE,
    HOW_OFTEN,
    NAMES,
    PAST,
    PERSONS,
    THINGS,
    WHERE,
)
from llm_jax.evaluate.suites.words import phrases, rows

MODALS = phrases("will, can, should, must, may, might, would, could, did not, cannot, does not, will not")
HAVE = phrases("has, had, has never, has already, had never, has often")
LIKES_DOING = phrases("enjoys, avoids, finished, keeps, dislikes, denied, admitted, enjoyed, avoided, kept")
WANTS_TO = phrases("wants, hopes, decided, plans, promised, refused, agreed, expects, wished, hoped, planned")
KNOWS = phrases("""knows, remembers, forgot, noticed, found out, guessed, saw, discovered, explained,
learned, realized, mentioned""")
BOUGHT = phrases(
    "bought, found, built, repaired, brought, fixed, made, destroyed, carried, received, damaged"
)
COMPARED = tuple(
    (adjective, comparative)
    for adjective, comparative in rows("""
    tall taller
    old older
    small smaller
    fast faster
    clever cleverer
    strong stronger
    young younger
    friendly friendlier
    rich richer
    brave braver
    nice nicer
    quiet quieter
    happy happier
    polite politer
    poor poorer
    loud louder
    kind kinder
    lazy lazier
    """)
)
MANNERS = tuple(
    (adjective, adverb)
    for adjective, adverb in rows("""
    careful carefully
    quiet quietly
    beautiful beautifully
    polite politely
    wise wisely
    clear clearly
    rude rudely
    cautious cautiously
    patient patiently
    honest honestly
    brave bravely
    clever cleverly
    skillful skillfully
    correct correctly
    generous generously
    serious seriously
    cheerful cheerfully
    gentle gently
    foolish foolishly
    """)
)
SPOKE = phrases(
    "answered, sang, spoke, wrote, worked, talked, behaved, played, listened, replied, painted, moved"
)
WAS = phrases("was, seemed, became, is, remained")
DOINGS = phrases("""laughing, waiting, sleeping, working so hard, crying, shouting, singing, running,
hiding, so tired, so angry, late, unhappy, smiling""")
FOUND = phrases(
    "found, needed, took, brought, carried, repaired, destroyed, made, fixed, held, received, mentioned"
)
SLEPT = phrases(
    "slept, waited, laughed, smiled, cried, sneezed, coughed, hesitated, shivered, yawned, arrived"
)


def subject_of(draws: Draws) -> str:
    """A name, or "the teacher"."""
    owner = draws.one_of(("the", "my", "our"))
    return draws.one_of((draws.one_of(NAMES), f"{owner} {draws.one_of(PERSONS).singular}"))


def auxiliary_and_verb_form(draws: Draws) -> Crossed:
    """The participle after have, the base form after a modal verb."""
    subject, act = subject_of(draws), draws.one_of(ACTS)
    return crossed(
        f"{subject} {draws.one_of(HAVE)} _ {act.object}.",
        f"{subject} {draws.one_of(MODALS)} _ {act.object}.",
        act.participle,
        act.base,
    )


def past_or_participle(draws: Draws) -> Crossed:
    """The past of an irregular verb by itself, its participle after have."""
    subject, act, when = subject_of(draws), draws.one_of(ACTS), draws.one_of(PAST)
    return crossed(
        f"{when} {subject} _ {act.object}.", f"{subject} {draws.one_of(HAVE)} _ {act.object}.", *act[1:3]
    )


def infinitive_or_gerund(draws: Draws) -> Crossed:
    """Reading after enjoy and avoid, to read after hope and plan."""
    subject, act = subject_of(draws), draws.one_of(ACTS)
    return crossed(
        f"{subject} {draws.one_of(LIKES_DOING)} _ {act.object}.",
        f"{subject} {draws.one_of(WANTS_TO)} _ {act.object}.",
        act.gerund,
        f"to {act.base}",
    )


def tense_with_time(draws: Draws) -> Crossed:
    """The past with yesterday, the future with tomorrow."""
    subject, act = subject_of(draws), draws.one_of(ACTS)
    return crossed(
        f"{draws.one_of(PAST)} {subject} _ {act.object}.",
        f"{draws.one_of(FUTURE)} {subject} _ {act.object}.",
        act.past,
        f"will {act.base}",
    )


def filler_gap(draws: Draws) -> Crossed:
    """What where an object is missing, that where none is."""
    start = f"{subject_of(draws)} {draws.one_of(KNOWS)} _ {subject_of(draws)} {draws.one_of(BOUGHT)}"
    when = draws.one_of(PAST)
    return crossed(f"{start} {when}.", f"{start} the {draws.one_of(THINGS).singular} {when}.", "what", "that")


def embedded_question_order(draws: Draws) -> Crossed:
    """The auxiliary comes before the subject in a question, and after it in an embedded one."""
    asker, asked = draws.one_of(NAMES), draws.one_of(("asked", "wanted to know", "wondered", "asked again"))
    noun, owner = draws.one_of(PERSONS).singular, draws.one_of(("the", "my", "our", "his", "her"))
    why, doing = draws.one_of(("why", "when", "how often", "why")), draws.one_of(DOINGS)
    direct = draws.one_of(("tell me, please:", "now I ask you:", "one more question:", f"{asker} asked:"))
    return crossed(
        f"{asker} {asked} {why} _ {doing}.",
        f"{direct} {why} _ {doing}?",
        f"{owner} {noun} was",
        f"was {owner} {noun}",
    )


def comparison_words(draws: Draws) -> Crossed:
    """Than after a comparative, as after as and the adjective."""
    adjective, comparative = draws.one_of(COMPARED)
    subject, standard = subject_of(draws), subject_of(draws)
    more, same = (
        draws.one_of(("much ", "even ", "a little ", "", "not ")),
        draws.one_of(("as", "just as", "not as")),
    )
    return crossed(
        f"{subject} is {more}{comparative} _ {standard}.", f"{subject} is {same} {adjective} _ {standard}.",
        "than", "as",
    )  # fmt: skip


def adjective_or_adverb(draws: Draws) -> Crossed:
    """An adjective after be and seem, an adverb after other verbs."""
    subject, very = subject_of(draws), draws.one_of(("very", "so", "rather", "quite", "too"))
    where = draws.one_of(WHERE)
    return crossed(
        f"{subject} {draws.one_of(WAS)} {very} _ {where}.",
        f"{subject} {draws.one_of(SPOKE)} {very} _ {where}.",
        *draws.one_of(MANNERS),
    )  # fmt: skip


def transitivity(draws: Draws) -> Crossed:
    """Some verbs need an object, others take none."""
    subject = subject_of(draws)
    return crossed(
        f"{subject} _ {draws.one_of(('the', 'a', 'another', 'this'))} {draws.one_of(THINGS).singular}.",
        f"{subject} _ {draws.one_of((*WHERE, *HOW_OFTEN))}.",
        draws.one_of(FOUND),
        draws.one_of(SLEPT),
    )
