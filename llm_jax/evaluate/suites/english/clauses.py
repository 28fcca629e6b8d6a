"""Forms that depend on an auxiliary, a verb, a time or a question word, and the word order of questions."""

from __future__ import annotations

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, crossed
from llm_jax.evaluate.suites.english.lexicon import (
    ACTS,
    FUTURE,
    NAMES,
    PAST,
    PAST_OR_PARTICIPLE,
    PERSONS,
    THINGS,
    WHERE,
)
from llm_jax.evaluate.suites.words import phrases, rows

MODALS = phrases("will, can, should, must, may, might, would, could, did not, cannot, does not, will not")
HAVE = phrases("has, had, has never, has already, had never, has often")
LIKES_DOING = phrases("""enjoys, enjoyed, avoids, avoided, keeps, kept, denies, denied, considers,
considered, suggested, does not mind, did not mind""")
"""Not finish and give up, where "to read" may be the purpose, nor dislike and admit, where to is heard."""
WANTS_TO = phrases("""wants, wanted, hopes, hoped, decided, tends, tended, ought, is able, was able, is
unable, was unable""")
"""Not plan, expect and promise, which may have the gerund, nor agree and refuse, which need no object."""
KNOWS = phrases("""knows, remembers, forgot, noticed, found out, guessed, saw, discovered, explained,
learned, realized, mentioned""")
BROKE = phrases(
    "repaired, destroyed, received, damaged, mentioned, described, needed, wanted, ruined, examined, admired"
)
"""Verbs that need an object and never have two (what she bought the radio)."""
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
    beautiful beautifully
    polite politely
    wise wisely
    rude rudely
    cautious cautiously
    patient patiently
    honest honestly
    brave bravely
    clever cleverly
    skillful skillfully
    correct correctly
    generous generously
    cheerful cheerfully
    gentle gently
    foolish foolishly
    """)
)
"""Adjectives that are no adverbs in any dictionary, as quiet and clear are."""
SPOKE = phrases(
    "answered, sang, spoke, wrote, worked, talked, behaved, listened, replied, painted, moved, danced, argued"
)
"""Not play, with which an adjective says what is pretended."""
WAS = phrases("seemed, became, suddenly seemed, suddenly became, soon became")
"""Verbs that can't do without an adjective: "she was very quietly at the window" is good English."""
WONDERED = phrases("wanted to know, did not know, could not explain, found out, remembered, never learned")
"""Not asked, which may stand before a quotation."""
DOINGS = phrases("""laughing, waiting, sleeping, working so hard, crying, shouting, singing, running,
hiding, so tired, so angry, late, unhappy, smiling""")
NEEDS = phrases("needs, mentions, destroys, damages, describes, discovers, owns, fixes, possesses")
"""In the present: "our waiter needed in the park" is a headline."""
SLEEPS = phrases("sleeps, laughs, smiles, cries, sneezes, coughs, hesitates, shivers, yawns, arrives, kneels")


def subject_of(draws: Draws) -> str:
    """A name, or "the teacher"."""
    owner = draws.one_of(("the", "my", "our"))
    return draws.one_of((draws.one_of(NAMES), f"{owner} {draws.one_of(PERSONS).singular}"))


def two_subjects(draws: Draws) -> tuple[str, str]:
    """Different persons."""
    first = subject_of(draws)
    second = subject_of(draws)
    while second == first:
        second = subject_of(draws)
    return first, second


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
    subject, act, when = subject_of(draws), draws.one_of(PAST_OR_PARTICIPLE), draws.one_of(PAST)
    return crossed(
        f"{when} {subject} _ {act.object}.", f"{subject} {draws.one_of(HAVE)} _ {act.object}.", *act[1:3]
    )


def infinitive_or_gerund(draws: Draws) -> Crossed:
    """Reading after enjoy and avoid, to read after hope and decide."""
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
    one, other = two_subjects(draws)
    start = f"{one} {draws.one_of(KNOWS)} _ {other} {draws.one_of(BROKE)}"
    when = draws.one_of(PAST)
    return crossed(f"{start} {when}.", f"{start} the {draws.one_of(THINGS).singular} {when}.", "what", "that")


def embedded_question_order(draws: Draws) -> Crossed:
    """The auxiliary comes before the subject in a question, and after it in an embedded one."""
    asker, asked = draws.one_of(NAMES), draws.one_of(WONDERED)
    noun, owner = draws.one_of(PERSONS).singular, draws.one_of(("the", "my", "our", "his", "her"))
    why, doing = draws.one_of(("why", "when", "how often", "why")), draws.one_of(DOINGS)
    direct = draws.one_of(("excuse me,", "one more question:", "hello,", "sorry, but", f"{asker} shouted:"))
    return crossed(
        f"{asker} {asked} {why} _ {doing}.",
        f"{direct} {why} _ {doing}?",
        f"{owner} {noun} was",
        f"was {owner} {noun}",
    )


def comparison_words(draws: Draws) -> Crossed:
    """Than after a comparative, as after as and the adjective."""
    adjective, comparative = draws.one_of(COMPARED)
    # several, as one could be a role ("happier as our cook")
    subject, standard = (
        subject_of(draws),
        f"{draws.one_of(('the', 'my', 'our'))} {draws.one_of(PERSONS).plural}",
    )
    more, same = (
        draws.one_of(("much ", "even ", "a little ", "", "not ")),
        draws.one_of(("as", "just as", "not as")),
    )
    return crossed(
        f"{subject} is {more}{comparative} _ {standard}.", f"{subject} is {same} {adjective} _ {standard}.",
        "than", "as",
    )  # fmt: skip


def adjective_or_adverb(draws: Draws) -> Crossed:
    """An adjective after seem and become, an adverb after other verbs."""
    subject, very = subject_of(draws), draws.one_of(("very", "so", "rather", "quite", "too"))
    when = draws.one_of(PAST)
    return crossed(
        f"{subject} {draws.one_of(WAS)} {very} _ {when}.",
        f"{subject} {draws.one_of(SPOKE)} {very} _ {when}.",
        *draws.one_of(MANNERS),
    )  # fmt: skip


def transitivity(draws: Draws) -> Crossed:
    """Some verbs need an object, others take none."""
    subject = subject_of(draws)
    return crossed(
        f"{subject} _ {draws.one_of(('the', 'a', 'another', 'this'))} {draws.one_of(THINGS).singular}.",
        f"{subject} _ {draws.one_of(WHERE)}.",
        draws.one_of(NEEDS),
        draws.one_of(SLEEPS),
    )
