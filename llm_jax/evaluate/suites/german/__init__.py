"""German grammar: phenomena from templates and lexica of this project.

Sentences are everyday ones in the standard language; what only dialects or casual
speech allow (weil with the verb second, größer wie) is wrong here, as in school grammars, or left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_jax.evaluate.suites.crossed import Phenomenon
from llm_jax.evaluate.suites.german import agreement, case, clauses, noun_phrase, verbs

PHENOMENA: Mapping[str, Phenomenon] = {
    phenomenon.__name__: phenomenon
    for phenomenon in (
        agreement.subject_verb_agreement,
        agreement.agreement_across_prepositional_phrase,
        agreement.agreement_across_relative_clause,
        agreement.agreement_in_coordination,
        noun_phrase.article_gender,
        noun_phrase.adjective_endings,
        noun_phrase.relative_pronoun_gender,
        noun_phrase.comparison_words,
        case.preposition_case,
        case.two_way_prepositions,
        case.verb_case,
        case.question_word_case,
        case.relative_pronoun_case,
        case.dative_plural,
        case.genitive_ending,
        case.weak_nouns,
        clauses.verb_second,
        clauses.verb_last_in_subordinate_clauses,
        clauses.separable_verbs,
        verbs.participle_or_infinitive,
        verbs.infinitive_with_zu,
        verbs.perfect_auxiliary,
        verbs.reflexive_pronouns,
    )
}
"""Name → what draws its crossings."""
