"""German words with the forms that the templates need, written for this project."""

from __future__ import annotations

from typing import NamedTuple

from llm_jax.evaluate.suites.words import phrases, rows


class GermanNoun(NamedTuple):
    """A noun whose nominative, dative and accusative singular are the same."""

    gender: str
    """m, f or n"""
    singular: str
    genitive: str
    plural: str
    """Nominative, genitive and accusative."""
    dative_plural: str


class GermanVerb(NamedTuple):
    """The third person in the present."""

    singular: str
    plural: str


class Thing(NamedTuple):
    """A thing, and whether it stands or lies."""

    gender: str
    singular: str
    plural: str
    posture: str
    """steht or liegt"""
    small: bool
    """It can be put on a table."""


PERSONS = tuple(
    GermanNoun(*row)
    for row in rows("""
    m Lehrer Lehrers Lehrer Lehrern
    m Arzt Arztes Ärzte Ärzten
    m Freund Freundes Freunde Freunden
    m Bäcker Bäckers Bäcker Bäckern
    m Maler Malers Maler Malern
    m Richter Richters Richter Richtern
    m Gärtner Gärtners Gärtner Gärtnern
    m Koch Kochs Köche Köchen
    m Sohn Sohnes Söhne Söhnen
    m Bruder Bruders Brüder Brüdern
    m Onkel Onkels Onkel Onkeln
    m Sänger Sängers Sänger Sängern
    m Fahrer Fahrers Fahrer Fahrern
    m Schüler Schülers Schüler Schülern
    m Händler Händlers Händler Händlern
    m Gast Gastes Gäste Gästen
    m Vater Vaters Väter Vätern
    m Großvater Großvaters Großväter Großvätern
    m Spieler Spielers Spieler Spielern
    m Trainer Trainers Trainer Trainern
    m Wirt Wirtes Wirte Wirten
    f Lehrerin Lehrerin Lehrerinnen Lehrerinnen
    f Ärztin Ärztin Ärztinnen Ärztinnen
    f Freundin Freundin Freundinnen Freundinnen
    f Malerin Malerin Malerinnen Malerinnen
    f Richterin Richterin Richterinnen Richterinnen
    f Köchin Köchin Köchinnen Köchinnen
    f Sängerin Sängerin Sängerinnen Sängerinnen
    f Schülerin Schülerin Schülerinnen Schülerinnen
    f Nachbarin Nachbarin Nachbarinnen Nachbarinnen
    f Kollegin Kollegin Kolleginnen Kolleginnen
    f Tochter Tochter Töchter Töchtern
    f Mutter Mutter Mütter Müttern
    f Großmutter Großmutter Großmütter Großmüttern
    f Schwester Schwester Schwestern Schwestern
    f Tante Tante Tanten Tanten
    f Frau Frau Frauen Frauen
    n Kind Kindes Kinder Kindern
    n Mädchen Mädchens Mädchen Mädchen
    """)
)
MEN = tuple(noun for noun in PERSONS if noun.gender == "m")

WEAK_NOUNS = tuple(
    (nominative, oblique)
    for nominative, oblique in rows("""
    Student Studenten
    Psychologe Psychologen
    Junge Jungen
    Kollege Kollegen
    Kunde Kunden
    Präsident Präsidenten
    Polizist Polizisten
    Tourist Touristen
    Journalist Journalisten
    Soldat Soldaten
    Pilot Piloten
    Zeuge Zeugen
    Experte Experten
    Neffe Neffen
    Held Helden
    Prinz Prinzen
    Graf Grafen
    Franzose Franzosen
    Däne Dänen
    Philosoph Philosophen
    Architekt Architekten
    Patient Patienten
    Dirigent Dirigenten
    Kandidat Kandidaten
    Assistent Assistenten
    Fotograf Fotografen
    Biologe Biologen
    Matrose Matrosen
    Bote Boten
    """)
)
"""(nominative singular, every other case and the plural); no noun of which a dictionary has other forms too
(dem Nachbarn, dem Nachbar)"""

THINGS = tuple(
    Thing(gender, singular, plural, posture, size == "small")
    for gender, singular, plural, posture, size in rows("""
    m Stuhl Stühle steht large
    m Koffer Koffer steht small
    m Korb Körbe steht small
    m Eimer Eimer steht small
    m Topf Töpfe steht small
    m Brief Briefe liegt small
    m Schlüssel Schlüssel liegt small
    m Mantel Mäntel liegt small
    m Schuh Schuhe liegt small
    m Ball Bälle liegt small
    m Ring Ringe liegt small
    m Löffel Löffel liegt small
    m Tisch Tische steht large
    f Lampe Lampen steht small
    f Flasche Flaschen steht small
    f Vase Vasen steht small
    f Tasse Tassen steht small
    f Kiste Kisten steht small
    f Zeitung Zeitungen liegt small
    f Jacke Jacken liegt small
    f Decke Decken liegt small
    f Karte Karten liegt small
    f Brille Brillen liegt small
    f Tasche Taschen steht small
    f Gabel Gabeln liegt small
    n Glas Gläser steht small
    n Fahrrad Fahrräder steht large
    n Regal Regale steht large
    n Buch Bücher liegt small
    n Tuch Tücher liegt small
    n Hemd Hemden liegt small
    n Kissen Kissen liegt small
    n Kleid Kleider liegt small
    n Paket Pakete liegt small
    n Telefon Telefone steht small
    n Heft Hefte liegt small
    """)
)
"""Nouns of one gender, in every sense and region: not der or das Radio, die Hut, das Stift, der Messer."""

PLACES = tuple(
    (gender, noun, tuple(prepositions))
    for gender, noun, *prepositions in rows("""
    m Tisch auf unter neben vor
    m Schrank auf neben vor
    m Ofen neben vor hinter
    m Spiegel vor neben
    m Teppich auf unter neben
    m Baum unter hinter neben vor
    f Bank auf unter neben hinter
    f Tür neben hinter vor
    f Kommode auf neben vor
    f Treppe auf neben unter vor
    f Heizung auf neben vor
    f Mauer auf hinter neben vor
    n Bett auf unter neben
    n Sofa auf hinter neben
    n Klavier auf neben hinter
    n Fenster neben vor unter
    n Haus vor hinter neben
    """)
)
"""(gender, noun, the prepositions with which a thing can be there)"""

INTRANSITIVE = tuple(
    GermanVerb(*row)
    for row in rows("""
    lacht lachen
    weint weinen
    schläft schlafen
    singt singen
    tanzt tanzen
    arbeitet arbeiten
    wartet warten
    träumt träumen
    lächelt lächeln
    hustet husten
    spielt spielen
    kocht kochen
    schreit schreien
    spricht sprechen
    steht stehen
    sitzt sitzen
    redet reden
    schweigt schweigen
    gähnt gähnen
    zittert zittern
    friert frieren
    zögert zögern
    liest lesen
    malt malen
    """)
)
TRANSITIVE = tuple(
    GermanVerb(*row)
    for row in rows("""
    kennt kennen
    mag mögen
    sieht sehen
    besucht besuchen
    sucht suchen
    liebt lieben
    fragt fragen
    lobt loben
    bewundert bewundern
    begrüßt begrüßen
    beobachtet beobachten
    vermisst vermissen
    versteht verstehen
    trifft treffen
    """)
)

WOMEN_NAMES = phrases("Anna, Lena, Maria, Clara, Julia, Sophie, Eva, Laura, Nina, Sarah, Emma, Martha")
MEN_NAMES = phrases("Paul, Max, Jan, Tim, Felix, Lukas, Karl, Otto, Jonas, Peter, Anton, Moritz")
NAMES = WOMEN_NAMES + MEN_NAMES

WHERE = phrases("""im Garten, in der Küche, auf der Straße, am Fenster, hinter dem Haus, vor der Schule,
im Park, am See, auf dem Markt, im Hof, neben der Kirche, im Zimmer, unter dem Baum, an der Tür, im
Bus""")
HOW_LONG = phrases("""heute, jeden Abend, am Morgen, seit Stunden, oft, schon wieder, den ganzen Tag,
nach dem Essen, meistens, noch immer, fast nie, seit Mittag""")
WHEN = phrases(
    "gestern, oft, lange, heute, nie, am Abend, letzte Woche, wieder, selten, am Montag, im Sommer"
)
TRULY = phrases("""trotzdem, auch, nie, wirklich, nicht, kaum, schon lange, leider, doch, seit Jahren,
nicht mehr, immer noch""")
"""Go with verbs of a state, too."""
SOMETIME = phrases("oft, heute, nie, wieder, selten, am Abend, am Montag, im Sommer, noch einmal, allein")
"""Times that go with the present and with the perfect."""

ADJECTIVES = phrases("""alt, neu, klein, groß, schön, rot, grün, blau, schwarz, weiß, rund, schwer,
leicht, breit, billig, sauber, bunt, hässlich, leer, lang, kurz, modern, seltsam, gelb, braun, weich,
einfach, schmutzig""")
"""Adjectives that take the endings without any change of the stem."""
