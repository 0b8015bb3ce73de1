"""What the rules look for in a text in lower case with straight apostrophes."""

from __future__ import annotations

import re
from typing import NamedTuple

from skinvl.data.reply_json import COMMANDS, NE, NU


class Look(NamedTuple):
    """A pattern, and words one of which stands in all that it finds: most texts have none and need no search."""

    pattern: re.Pattern[str]
    signs: frozenset[bytes]


def _look(signs: str, *choices: str) -> Look:
    return Look(re.compile("|".join(choices), re.DOTALL), frozenset(signs.encode().split()))


_IMAGE = r"(?:image|picture|photo|photograph|figure)s?\b"
_TOLD = r"(?:information|details|description|context|text|data)\b"
_UNSEEN = r"(?:text|passage|article|description|paragraph|excerpt|abstract|document|metadata|context|legend)s?\b"
_NAMED = r"(?:given |provided |accompanying |original |above |following |attached )*"
_BASED = r"(?:based (?:solely |only )?(?:up)?on|according to|from)"
_THE = r"th(?:e|is|at)"

# Words of which the model sees none. An order to write the caption is no reference to one.
CAPTION = _look(
    "caption captions legend legends text texts passage passages article articles description descriptions paragraph "
    "paragraphs excerpt excerpts abstract abstracts document documents metadata context contexts author authors book "
    "chapter study title information hospital institute university dr prof professor described mention mentions",
    rf"(?<!write )(?<!create )(?<!suggest )\b{_THE} {_NAMED}(?:figure |image )?captions?\b(?! for\b)",
    r"\b(?:in|from|per) captions?\b|\b(?:figure|image|photo) legends?\b",
    rf"\baccording to {_THE} {_NAMED}(?:information\b|authors?\b|book\b|{_UNSEEN})",
    r"\b(?:mentioned|described|stated|indicated|provided|given|noted|discussed|specified|reported|available|contained) "
    rf"(?:\w+ )?(?:in|by) {_THE} {_NAMED}(?:information\b|book\b|chapter\b|{_UNSEEN})(?! of\b)",
    rf"\bth(?:e|is) {_NAMED}{_UNSEEN} (?:(?:also|only|explicitly|specifically|does not|doesn't|did not) )*"
    r"(?:mention|describe|state|say|provide|indicate|discuss|highlight|suggest|specif|explain|refer)",
    rf"\b(?:{_BASED}|given|per) the {_NAMED}{_UNSEEN}(?! of\b)|\bin the (?:given|provided) {_UNSEEN}",
    r"\b(?:of|in) th(?:is|e) (?:article|passage|paragraph|excerpt|book|chapter)\b",
    r"\b(?:in|of) th(?:e|is) study\?|\bthe title of\b|\bthe authors? (?:of th|describe|mention|state|report|note)",
    r"\b(?:is|are|was|were|been) described as (?:having |being )?(?:an? )?\"",  # words that are quoted from somewhere
    rf"\b(?:no|any|a) (?:\w+ )?mention of\b|\b{_IMAGE} mentions?\b",
    r"\b(?:image|photograph|photo|picture)s? (?:was|were) (?:\w+ )?(?:taken|collected|provided) "
    r"(?:by (?:dr|prof|professor)\b|at (?:the )?(?:[\w']+ ){0,4}(?:institute|hospital|university)\b)",
)
# The same, unless a long question tells what the answer may refer to.
INFORMATION = _look(
    "information details description context text data",
    rf"\b{_BASED} the (?:given|provided|available) {_TOLD}",
    rf"\b{_BASED} the {_TOLD} (?:provided|given|available)(?! (?:in|by|from)\b)",
)
# What was said before the conversation began.
EARLIER = _look(
    "mentioned discussed covered earlier above previously previous last",
    r"\b(?:mentioned|discussed|noted|stated|described|covered) (?:earlier|above|previously)\b",
    r"\b(?:already|previously) (?:been )?(?:mentioned|discussed|covered)\b",
    r"\b(?:as|been|was|were|is|are|only \w+) (?:(?:also|already|only) )?mentioned\b(?! in (?:the )?literature)",
    r"\b(?:my|the|your|in) (?:previous|earlier|last) (?:question|answer|response|reply|replies)",
)

# A generator's talk of its own task, to the asker, or to the one who asks on.
TASK = _look(
    ": q pair pairs generated",
    r"\bquestion[- ](?:and[- ])?answer pairs?\b|\bq ?& ?as?\b|(?:^|\s)q\d?[:.] |^(?:question|answer)s?(?: ?\d+)?:",
    r"\b(?:the|this) generated (?:question|answer|conversation|caption|text)",
    r"^a\d?: (?!.*\bb\d?:)",  # but not the letter of a panel
    r"\bnote: ?[^.]{0,80}\b(?:questions?|answers?|captions?|responses?|conversation|generated|prompt)\b",
)
ASKED = _look(
    "thank thanks else",
    r"^thank(?:s| you)\b",
    r"\banything else (?:that )?(?:you(?:'d| would)? (?:like|want|wish|need)|i can (?:help|assist))\b",
)
REPLIED = _look(
    "sure certainly course absolutely okay ok here heres please feel let welcome happy hope thank satisfied covered "
    "covers thats",
    r"^(?:sure|certainly|of course|absolutely|okay|ok)[,!.]* (?:here|i'll|i will|let me|let's)\b",
    r"^here(?:'s| is| are) (?:[\w-]+ ){0,4}(?:questions?|answers?|captions?|pairs|conversation|json)\b",
    r"\bplease (?:provide|share|upload|attach|send|supply|give)\b(?: me)?(?: with)?(?: \w+){0,3}? "
    rf"(?:caption\b|question\b|{_IMAGE}|{_TOLD})",
    r"\bfeel free to (?:ask|let|reach|contact)\b|\blet me know\b|\byou(?:'re| are) (?:very |most )?welcome\b",
    r"\bhappy to (?:help|answer|assist|provide|explain)\b|\bi hope (?:this|that|it) (?:helps|answers)\b",
    r"\bthank you for (?:your|the|asking|sharing)\b|\bi(?:'m| am) satisfied\b",
    r"\b(?:i|we)(?:'ve| have)? covered (?:all|every)|\bth(?:at|is) covers (?:all|every)",
    r"\bthat's all (?:for now|i |we |you |the information )",
)

_AI = r"(?:ai|artificial intelligence|(?:large |text-based )?language model)\b"
REFUSED = _look(
    "sorry apologize apologise apologies ai artificial model cannot cant wont unable able qualified",
    r"\bi(?:'m| am) (?:so |very |truly )?sorry\b|^sorry\b|\bi apologi[sz]e\b|^(?:my )?apologies\b",
    rf"\b(?:as|i am|i'm) (?:just |only )?an? {_AI}",
    r"(?<!while )(?<!although )(?<!though )\bi (?:can't|cannot|won't|am unable to|am not able to|am not qualified to) "
    r"(?:\w+ )?(?:provide|answer|assist|help|give|offer|diagnose|view|process|analy[sz]e|interpret|comment|fulfill|"
    r"comply|think of|make an? (?:\w+ )?(?:diagnosis|statement))\b",
    r"\b(?:while|although|though) i (?:can't|cannot|am unable to|am not able to) [^,.]{0,60}\badvice\b[^,.]{0,60}, "
    r"(?:it is |i (?:recommend|suggest|advise)|please|you should)",
)

_NOT = r"(?:can't|cannot|can not|could not|couldn't) be"
_HARD = (
    r"(?:difficult|hard|impossible|challenging) to (?:say|determine|tell|know|ascertain|assess|judge|estimate|infer)\b"
)
_MORE = r"(?:(?:additional|further|other|more|explicit|specific|enough|sufficient|relevant|such|any|clear) )*"
UNGROUNDED = _look(
    "determined ascertained inferred answered assessed confirmed identified estimated difficult hard impossible "
    "challenging unknown unclear specified mentioned stated disclosed information details detail context",
    rf"\b{_NOT} (?:\w+ly )?(?:determined|ascertained|inferred|answered|assessed|confirmed|identified|estimated)"
    rf"(?: \w+){{0,4}}? (?:from|based on|by|without|in) (?:\w+ ){{0,4}}(?:caption\b|{_IMAGE}|{_TOLD})",
    rf"\b{_IMAGE} {_NOT} (?:determined|ascertained|inferred|answered)\b|\bof the {_IMAGE} is (?:unknown|unclear)\b",
    rf"\b{_HARD}[^.]{{0,200}}?\b(?:{_IMAGE}|{_TOLD}|further\b|more\b)",
    rf"\bbased (?:solely |only )?on (?:\w+ ){{0,3}}(?:{_IMAGE}|{_TOLD})(?: \w+)?, it(?:'s| is) {_HARD}",
    r"(?:\bnot|n't) (?:explicitly |specifically |directly |clearly )?(?:specified|mentioned|stated|disclosed)\b",
    rf"\bno {_MORE}(?:information|details?)\b(?: \w+){{0,8}} "
    r"(?:available|provided|given|mentioned|specified|found|included|needed)\b",
    r"\bth(?:is|at) is all the information\b",
    rf"\bthere (?:is|are|was|were) no {_MORE}(?:information|details)\b",
    rf"(?:\bnot|n't|n't have|\black of|\binsufficient) {_MORE}(?:information|details|context)\b",
)
# What makes the above no whole answer: words before it,
HEDGED = re.compile(r"[.!?]|\b(?:but|although|though|while|however|making|unless)\b")
# or words after it. To send the asker to a doctor is no going on.
GOES_ON = re.compile(
    r"\b(?:however|but|although|nevertheless|nonetheless|that said)\b(?!,? (?:if|please|further|consult|seek|"
    r"you should|cannot|i(?:'m| am| recommend| suggest| advise| cannot| can't| don't| do not)\b|"
    r"it(?:'s| is) (?:always )?(?:important|best|advisable|recommended|essential|crucial)))"
)

# What no text means to hold: a character that controls a device, or the break or tab that an escape of LaTeX became, as
# the tab in front of "imes". A rest that may be an item of a list or a word of English says nothing.
_UNSAID = {name: name[1:] for name in COMMANDS if len(name) > 3 and name not in (NE, NU, "rangle", "rbrace")}
_RESTS = {first: "|".join(rest for name, rest in _UNSAID.items() if name[0] == first) for first in "nrt"}
CONTROL_CHARACTER = re.compile(  # one class of characters comes first, so that a search is quick
    r"[\x00-\x1f\x7f-\x9f](?:(?<![\t\n\r])"
    rf"|(?:(?<=\n)(?:{_RESTS['n']})|(?<=\r)(?:{_RESTS['r']})|(?<=\t)(?:{_RESTS['t']}))(?![a-zA-Z]))"
)

# Whole answers that stand for a missing one, whatever was asked.
PLACEHOLDERS = frozenset(
    (
        *("nan", "n/a", "na", "null", "undefined", "missing", "tbd", "unspecified", "not specified", "not available"),
        *("not applicable", "not provided", "not mentioned", "not given", "not stated", "no answer", "no response"),
        *("no information", "no information available", "no data", "no caption", "no description"),
        *("no definitive diagnosis", "no visual concepts", "no body location information", "no age information"),
        *("no gender information", "no symptom information"),
    )
)
# And the questions to which such a word is no answer: to others it is.
AT_TIMES = {
    "none": re.compile(
        r"(?!.*\b(?:any|none|how many|number of)\b).*\b(?:diagnos|describe|caption|disease|where\b|who\b)"
    ),
    "unknown": re.compile(r"(?!.*\b(?:unknown|causes?|caused|why|a?etiology|origin|pathogenesis|primary)\b)"),
}
MISSING = frozenset(("", *PLACEHOLDERS, *AT_TIMES))
EDGES = " \t\r\n.!?-–—_*'\"“”()[]<>"  # what may stand around a whole answer
AGE = re.compile(r"\b(\d+)[- ](?:years?|yrs?)[- ]old\b|\baged? (?:of )?(\d+)\b")
PERSONS = {
    "female": re.compile(r"\b(?:an?|the|this|old) (?:female|woman|girl|lady)\b"),
    "male": re.compile(r"\b(?:an?|the|this|old) (?:male|man|boy|gentleman)\b"),
}
