"""English grammar: phenomena from templates and lexica of this project."""

from __future__ import annotations

from collections.abc import Mapping

from llm_jax.evaluate.suites.crossed import Phenomenon
from llm_jax.evaluate.suites.english import agreement, clauses

PHENOMENA: Mapping[str, Phenomenon] = {
    phenomenon.__name__: phenomenon
    for phenomenon in (
        agreement.subject_verb_agreement,
        agreement.agreement_across_prepositional_phrase,
        agreement.agreement_across_relative_clause,
        agreement.agreement_in_coordination,
        agreement.determiner_noun_number,
        agreement.demonstrative_agreement,
        agreement.a_or_an,
        agreement.much_or_many,
        agreement.reflexive_gender,
        agreement.reflexive_number,
        agreement.pronoun_case,
        agreement.relative_animacy,
        agreement.tag_questions,
        clauses.auxiliary_and_verb_form,
        clauses.past_or_participle,
        clauses.infinitive_or_gerund,
        clauses.tense_with_time,
        clauses.filler_gap,
        clauses.embedded_question_order,
        clauses.comparison_words,
        clauses.adjective_or_adverb,
        clauses.transitivity,
    )
}
"""Name → what draws its crossings."""
