"""Body sites: what texts call them, which is part of which, and which of them a text states; English."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from skinvl.data import clauses

# A site → what it is part of, and how texts call it, as patterns in lower case; a plural s may follow.
_SITES: dict[str, tuple[tuple[str, ...], str]] = {
    "head": ((), r"head"),
    "face": (("head",), r"face|facial|perioral"),
    "scalp": (("head",), r"scalp|hairline"),
    "ear": (("head",), r"ear|earlobe|auricular|auricle|helix|pinna|concha|auditory canal"),
    "nose": (("face",), r"nose|nasal|nostril|nasolabial|perinasal|ala nasi"),
    "lip": (("face", "mouth"), r"lip|labial|vermilion"),
    "cheek": (("face",), r"cheek|malar"),
    "forehead": (("face",), r"forehead|eyebrow"),
    "temple": (("face",), r"temple"),
    "chin": (("face",), r"chin|jaw|jawline|mandible"),
    "eyelid": (("face",), r"eyelid|periorbital|periocular|(?:under|below|around|near) the (?:left |right )?eye"),
    "eye": (("face",), r"orbital region|conjunctiva|cornea|sclera|(?<!erythema )iris"),
    "mouth": (("head",), r"mouth|oral(?: cavity| mucosa)?|tongue|buccal|gingiva|palate|oropharynx|tonsillar region"),
    "neck": ((), r"neck|nape|cervical skin|supraclavicular"),
    "trunk": ((), r"trunk|torso|truncal"),
    "front": (("trunk",), r"(?:anterior|front of the) (?:torso|trunk)"),
    "chest": (("front",), r"chest|thoracic|sternum|presternal|decolletage|clavicle|infraclavicular"),
    "breast": (("front",), r"breast|nipple|areola|inframammary"),
    "abdomen": (("front",), r"abdomen|abdominal|belly|tummy|navel|umbilicus|periumbilical|hypogastric"),
    "back": (("trunk",), r"back|(?:posterior|back of the) (?:torso|trunk)|shoulder blade|scapula|scapular"),
    "flank": (("trunk",), r"flank|lateral torso|lateral trunk"),
    "axilla": (("trunk",), r"axilla|axillary|armpit"),
    "buttock": (("trunk",), r"buttock|gluteal|intergluteal"),
    "groin": (("genital",), r"groin|inguinal|inguinocrural"),
    "genital": (
        (),
        r"(?:ano|peri)?genital(?:ia)?|penis|penile|scrotum|vulva|vulvar|vulval|perineum|anus|perianal|vagina|vaginal|"
        r"clitoris|lab(?:ium|ia) (?:majus|minus|majora|minora)|suprapubic|mons pubis",
    ),
    "upper extremity": ((), r"upper extremit(?:y|ies)|upper limb"),
    "shoulder": (("upper extremity",), r"shoulder(?! blade)"),
    "arm": (("upper extremity",), r"arm|upper arm"),
    "forearm": (("arm",), r"forearm"),
    "elbow": (("arm",), r"elbow|antecubital"),
    "wrist": (("upper extremity",), r"wrist"),
    "hand": (("upper extremity", "acral"), r"hand|dorsum manus|knuckle"),
    "palm": (("hand",), r"palm|palmar|thenar|hypothenar"),
    "finger": (("hand",), r"finger|thumb|fingertip"),
    "fingernail": (("finger",), r"fingernail"),
    "lower extremity": ((), r"lower extremit(?:y|ies)|lower limb|hip"),
    "leg": (("lower extremity",), r"leg"),
    "thigh": (("leg",), r"thigh"),
    "knee": (("leg",), r"knee|popliteal|patellar"),
    "lower leg": (("leg",), r"lower leg|calf|calves|shin|pretibial"),
    "ankle": (("leg",), r"ankle|malleolus|achilles region"),
    "foot": (("lower extremity", "acral"), r"foot(?! sole)|feet|dorsum pedis|metatarsophalangeal"),
    "sole": (
        ("foot",),
        r"(?:foot )?sole of|soles|plantar|foot sole|heel|"
        r"(?:(?<=the )|(?<=left )|(?<=right )|^)sole(?= ?(?:[.,;:)]|and\b|or\b|$))",
    ),
    "toe": (("foot",), r"toe"),
    "toenail": (("toe",), r"toenail"),
    "acral": ((), r"acral"),
}
# Words of the body that are none there.
_IDIOMS = re.compile(
    r"""
    \b(?:com(?:e|es|ing)|came|go(?:es|ing)?|went|gr(?:ow|ows|ew|own|owing)|look(?:s|ed|ing)?|dat(?:e|es|ed|ing)|gets?|
    got|step|report|refer|turn|bring|brought|call|set|pull|cut|trac(?:e|ed|k)|fall|fell|give|gave|return(?:s|ed)?|
    mov(?:e|es|ed)|hold|held|fold|peel|scale|play|answer|feed|put)\s(?:it\s|them\s|you\s)?back\b(?!\sof)
    |\bback\sin\s(?:spring|summer|autumn|winter|child\w+|\d{4})\b
    |\bback(?:\sto|\sinto|\sin\stime|\sup|-up|\sthen|\sand\sforth|\swhen|\sat\sthe)\b
    |\bin\s(?:the\s)?face\sof\b|\bface[-\s]to[-\s]face\b|\bface\svalue\b|\bon\sthe\sface\sof\sit\b
    |\b(?:patients?|people|they|we|you|may|can|will|to|must|would)\sfaces?\b|\bfaces?\s(?:an?|challenges?|risks?|difficult\w*)\b
    |\bon\s(?:the\s)?(?:one|other)\shand\b|\bhand[-\s]?(?:in[-\s]hand|held|lens|hygiene|over|eczema)\b|\bhands[-\s]on\b
    |\b(?:at|by|first|second|close\sat|off)[-\s]?hand\b|\bhand,?\sfoot,?\s(?:and\s)?mouth\b|\bhand[-\s]foot\b
    |\bchest\s(?:x-?\s?rays?|radiograph\w*|cts?|films?|pain|tube|imaging|infection)\b
    |\b(?:white|black|pin|arrow|match)[-\s]heads?\b|\bhead[-\s]to[-\s]toe\b|\bheads?\s(?:up|start|of\sthe\s(?:clinic|department))\b
    |\bathletes?\sfoot\b|\bsquare\s(?:foot|feet)\b|\bfoot\scare\b|\blip\s(?:balm|service|care)\b|\barms?\slength\b
    |\b(?:treatment|study|control|placebo)\sarms?\b|\bnose\sjob\b|\bpalm[-\s](?:sized|oil)\b|\bear\s(?:drops|infections?)\b
    |\boral\s(?:medic\w+|antibiotics?|prednisone|treatments?|therap\w+|\w*steroids?|contracepti\w+|agents?|drugs?|intake)\b
    |\babdominal\spain\b|\bfruiting\sheads?\b
    |\bshoulders?\sof\sthe\scurve\b|\btongue\sdepressor\b|\b(?:neck|trunk)\sof\sthe\b|\bby\smouth\b|\bmouth\s?wash\b
    """,
    re.VERBOSE,
)
# The back of something, before that thing is looked for.
_BACK_OF = re.compile(
    r"\b(?:back|dorsum|top|side|front|top or side) of (?:the |his |her |your |their )?(?:left |right )?"
    r"(?=(?:hand|neck|head|knee|ear|leg|arm|forearm|thigh|foot|feet|finger|mouth|tongue|throat|eye)s?\b)"
)
# A clause with one of these tells where such things are in general, or what to do.
_GENERAL = re.compile(
    r"\b(?:usually|commonly|typically|often|frequently|mostly|generally|mainly|predominantly|most (?:cases|patients)|"
    r"common(?:est)? (?:\w+ )?(?:on|in|at|over|among|sites?|locations?|areas?)|tends?|predilection|favou?rs?|e g|"
    r"(?:condition|disorder|disease|cancer|infection|tumou?r|growth) (?:that|which|characteri[sz]ed)|refers? to|"
    r"(?:can|may|might|could) (?:also )?(?:occur|appear|arise|develop|spread|affect|involve|be (?:found|seen))|"
    r"people|patients|adults|men|women|everyone|anywhere|check|inspect|examine|cover|protect|sunscreen|apply|wear|avoid|"
    r"hats?|clothing|moisturi[sz]e|wash)\b"
)
# So does one with these, unless it speaks of this patient or image.
_FOR_EXAMPLE = re.compile(r"\b(?:such as|for example|including|especially|particularly)\b")
_HERE = re.compile(r"\b(?:this (?:patient|person|image|picture|photo\w*|case)|person|visible|located|seen)\b")
_DENIED = re.compile(r"\b(?:not|no|never|nor|without|away from|rather than|other than|instead of)\b[^.,;:]{0,25}$")
_PARTS = re.compile(r"[.!?;\n]|,? \b(?:which|whereas|while|although|though|but|however)\b")
_NAMES = "|".join(f"(?P<{name.replace(' ', '_')}>{words})" for name, (_, words) in _SITES.items())
_WORDS = re.compile(rf"\b(?:{_NAMES})s?(?!\w|-(?:like|shaped|sized))")


def named(text: str) -> frozenset[str]:
    """The sites that a text names, in whatever sense but idioms.

    >>> sorted(named("palms or soles")), sorted(named("back of the hand"))
    (['palm', 'sole'], ['hand'])
    """
    return frozenset(site for sentence in _clauses(text) for site, _, _ in _mentions(sentence))


def stated(text: str, known: frozenset[str]) -> str | None:
    """The first words that state one of the known sites, a part of it or what it is part of; None where there are none.

    What is said of such sites in general, or advised for them, states nothing, nor does a choice of several.

    >>> stated("A mole of the upper arm.", frozenset({"forearm"})), stated("It comes back.", frozenset({"back"}))
    ('upper arm', None)
    """
    for clause in _clauses(text) if known else ():
        mentions = list(_mentions(clause))
        others = any(not _known(site, known) for site, _, _ in mentions)
        example = _FOR_EXAMPLE.search(clause) and not _HERE.search(clause)
        if example or _GENERAL.search(clause) or (others and re.search(r"\b(?:or|versus|vs)\b", clause)):
            continue
        for site, start, words in mentions:
            if _known(site, known) and not _DENIED.search(clause, 0, start):
                return words
    return None


def _clauses(text: str) -> Iterator[str]:
    for clause in _PARTS.split(clauses.plain(text).casefold()):
        plain = _IDIOMS.sub(lambda idiom: " " * len(idiom[0]), clause)
        yield _BACK_OF.sub(lambda side: " " * len(side[0]), plain)


def _mentions(clause: str) -> Iterator[tuple[str, int, str]]:
    for match in _WORDS.finditer(clause):
        yield str(match.lastgroup).replace("_", " "), match.start(), match[0]


def _known(site: str, known: frozenset[str]) -> bool:
    return any(site in _wholes(name) or name in _wholes(site) for name in known)


@cache
def _wholes(site: str) -> frozenset[str]:
    """The site and all that it is part of."""
    return frozenset((site,)).union(*map(_wholes, _SITES[site][0]))
