"""Which conversations should not be trained on as they are, judged by their words, and which ones say the same.

Most rows break nothing: one look at the set of a conversation's words decides which rules are tried at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from skinvl.data.example import Example
from skinvl.data.example import words as plain_text
from skinvl.sources.rules import find, patterns
from skinvl.sources.rules.find import BRACKET, COLON, CONTROL, FACTS, MISSING, Talk
from skinvl.sources.rules.find import CONTROL_TOKENS as CONTROL_TOKENS
from skinvl.sources.rules.words import CURLY, MARK, WordWeights, encoded, numbers, split

LONGEST = 100_000  # characters of one turn
LONGEST_DETAIL = 120  # characters
SHORT = 40  # characters; a placeholder has no more
TURN = 0x9E3779B97F4A7C15  # tells the turns of a key apart: 2⁶⁴ by the golden ratio


@dataclass(frozen=True, slots=True)
class Rule:
    """What can be wrong with a conversation, and what is done about it by default."""

    name: str
    drops: bool  # True drops the row, False keeps it and tags it
    reason: str  # what is found, and why the default is what it is
    find: Callable[[Talk], str] | None  # the found words after the turn that holds them, or nothing
    signs: frozenset[bytes] = frozenset()  # whatever `find` finds holds one of these


def broken(example: Example) -> list[tuple[str, str]]:
    """(rule, where and which words) of every rule that the conversation breaks, in the order of RULES.

    Detail has at most 120 characters. The words of an oversized conversation are not judged.
    """
    return judge(example)[0]


def sameness(example: Example) -> int:
    """64 bits, equal for conversations about the same images that differ only in what does not count.

    That is: case, punctuation, FUNCTION_WORDS, plural -s and the order of words within a turn. Questions and answers
    both count, since templated sources ask the same of an image again and again and are answered differently; images
    count by their paths, and rows of text alone are compared among themselves. The same in every process.
    """
    return judge(example)[1]


def judge(example: Example) -> tuple[list[tuple[str, str]], int]:
    """(`broken`, `sameness`) of a conversation, in less time than one after the other.

    Raises:
        UnicodeEncodeError: a text or path holds half of a surrogate pair, which no file can hold.
    """
    turns = list(map(plain_text, example.messages))
    key = 0
    signs: set[bytes] = set()
    for message, turn in zip(example.messages, turns, strict=True):
        weight, turn_signs = (_weighed_again if message["role"] == "user" else _weighed)(turn)
        key = key * TURN + weight
        if turn_signs:
            signs |= turn_signs
    if example.images:
        paths = "\0".join(example.images).encode()
        key += int.from_bytes(hashlib.blake2b(paths, digest_size=8).digest())
    facts = example.facts
    if facts.diagnosis is not None or facts.age is not None or facts.sex is not None:
        signs.add(FACTS)
    longest = max(map(len, turns), default=0)
    if longest > LONGEST:
        return [("oversized", f"a turn of {longest:,} characters")], key % 2**64
    return _broken_rules(example, turns, signs) if signs else [], key % 2**64


def _weighed(turn: str) -> tuple[int, frozenset[bytes]]:
    """The weight of a turn's words, and the signs in it."""
    raw = encoded(turn)
    words = split(raw)
    weight = sum(map(_WEIGHTS.__getitem__, words))
    signs: set[bytes] = set()
    if weight >= MARK:
        weight += sum(map(_WEIGHTS.__getitem__, numbers(raw)))
        signs |= _SIGNS.intersection(words)
    if ":" in turn:
        signs.add(COLON)
    if "<" in turn:
        signs.add(BRACKET)
    if not turn.isprintable() and patterns.CONTROL_CHARACTER.search(turn):  # the second look is dear
        signs.add(CONTROL)
    if len(turn) <= SHORT and turn.strip(patterns.EDGES).lower() in patterns.MISSING:
        signs.add(MISSING)
    return weight % MARK, frozenset(signs)


_weighed_again = lru_cache(maxsize=1 << 12)(_weighed)  # the same is asked of many images


def _broken_rules(example: Example, turns: list[str], signs: set[bytes]) -> list[tuple[str, str]]:
    plain = [turn.lower() if turn.isascii() else turn.lower().translate(CURLY) for turn in turns]
    roles = [message["role"] for message in example.messages]
    pairs = [(plain[at - 1], plain[at]) for at, role in enumerate(roles) if role == "assistant"]
    talk = Talk(example, turns, signs, pairs)
    tried = (rule for rule in RULES.values() if not rule.signs.isdisjoint(signs))
    return [(rule.name, detail[:LONGEST_DETAIL]) for rule in tried if rule.find and (detail := rule.find(talk))]


_LISTED = (
    Rule(
        "oversized",
        True,
        f"A turn has more than {LONGEST:,} characters: a whole file in one field, which no context window holds.",
        None,
    ),
    Rule(
        "control-character",
        True,
        "A turn holds a control character other than a tab or line break, or one that an escape in LaTeX became, as "
        "the tab in front of 'imes': whoever wrote the file read or saved it wrongly, and what stood there is unknown.",
        find.control_character,
        frozenset((CONTROL,)),
    ),
    Rule(
        "sentinel",
        True,
        "The whole answer is a placeholder such as 'nan', 'n/a' or 'not specified'; 'none' and 'unknown' only where "
        "the question cannot be answered so. Training on it teaches to give no answer.",
        find.sentinel,
        frozenset((MISSING,)),
    ),
    Rule(
        "refusal",
        True,
        "The answer apologizes, says that it comes from a language model, or declines, and does not go on after all: "
        "the model would learn to decline what it can answer.",
        find.refusal,
        patterns.REFUSED.signs,
    ),
    Rule(
        "chatter",
        True,
        "The generator talks of its own task or takes leave: 'Sure, here is', 'let me know', 'please provide the "
        "caption', Q: and A: left over, thanks. It says nothing of the image.",
        find.chatter,
        patterns.ASKED.signs | patterns.REPLIED.signs | patterns.TASK.signs,
    ),
    Rule(
        "caption-leak",
        True,
        "About an image, a turn speaks of a caption, a text, given information or earlier talk that the model does not "
        "see: it would learn to quote what is not there.",
        find.caption_leak,
        patterns.CAPTION.signs | patterns.EARLIER.signs | patterns.INFORMATION.signs,
    ),
    Rule(
        "ungrounded",
        True,
        "About an image, the answer says first that this cannot be told or is not given, and does not go on: most "
        "generators saw only the caption, so this says nothing of what the image shows.",
        find.ungrounded,
        patterns.UNGROUNDED.signs,
    ),
    Rule(
        "special-token",
        False,
        "A text holds a control token of some base. Kept, because it depends on the base which tokens matter; "
        "training refuses those of its own base.",
        find.special_token,
        frozenset((BRACKET,)),
    ),
    Rule(
        "label-conditioned",
        False,
        "A question names the known diagnosis and the answer is neither chosen from the question nor of three words or "
        "fewer; or a turn states the known age or sex of the patient. Kept, because what is said is true, but metadata "
        "told it, not the image: leave such rows out where that matters.",
        find.label_conditioned,
        frozenset((FACTS,)),
    ),
    Rule(
        "near-duplicate",
        True,
        "Another row has the same images, and the same words in question and answer but for case, punctuation, "
        "function words, plural -s and order (`sameness`): it would count twice.",
        None,
    ),
    Rule(
        "missing-image",
        True,
        "An image is not there. A conversation that is kept goes without its images, as text alone, which is honest "
        "only where the text does not need them.",
        None,
    ),
    Rule(
        "fewer-images",
        False,
        "Of several images that a row shows together some are missing or cannot be read, and it stays with the others, "
        "since each shows the same case; lacking.jsonl names them. Images that stand apart, among the words, do not: "
        "such a row is dropped, as all are where this is dropped, by the rule that its image breaks.",
        None,
    ),
    Rule(
        "other-ending",
        False,
        "No file has the name that the table gives, and the one file of that stem, which ends otherwise, stands in. "
        "Kept, because collections are often saved anew in another format; look whether it is the same picture.",
        None,
    ),
    Rule(
        "unusable-profile",
        False,
        "An image is tagged with a colour profile that cannot be used, since it is damaged, for pixels of another kind "
        "or of high dynamic range. Kept, its colours read as they stand in the file.",
        None,
    ),
    Rule(
        "altered-image",
        False,
        "Its dataset says that an image was altered, as one is from which something was cut or painted over. Kept, "
        "because it shows the lesion; some classes have more of them than others, which is a shortcut.",
        None,
    ),
    *(
        Rule(
            name,
            False,
            f"A model of its dataset holds it for likely (0.5 or more) that an image shows {what}. Kept, because that "
            "is no fault; a model may learn to read the diagnosis from it: leave such rows out where that matters.",
            None,
        )
        for name, what in (("gel", "immersion fluid"), ("hair", "hair"), ("pen", "ink of a pen"))
    ),
    Rule(
        "text-grounded",
        False,
        "What is asked for stands in the words of the patient and in no image, as since when a rash itches. Kept with "
        "these words in the question; it says nothing of what a model sees.",
        None,
    ),
    Rule(
        "machine-translated",
        False,
        "Its dataset says that a machine translated the text. Kept, because the sense is right more often than not; "
        "its wording is no doctor's and no patient's.",
        None,
    ),
    Rule(
        "incomplete-answer",
        False,
        "The best answer that its dataset has was judged by it to answer the question in part. Kept, because a test "
        "set would not be whole without it: leave such rows out of what is trained on where that matters.",
        None,
    ),
    Rule(
        "dosage",
        False,
        "An answer that may be trained on advises a dose, or how often a medicine is taken: it was given to one "
        "person, by someone whom nobody can ask. Kept, because published sets are scored on such answers; leave the "
        "rows out of training where a model must not repeat it.",
        None,
    ),
    Rule(
        "contrary-diagnosis",
        False,
        "A caption ends in the name of a disease, and it is not the one that its dataset gives to the image. Kept as "
        "it stands, because nobody knows which of the two is right: leave such rows out where that matters.",
        None,
    ),
)
RULES = {rule.name: rule for rule in _LISTED}  # in the order in which they are judged
_SIGNS = frozenset().union(*(rule.signs for rule in _LISTED))
_WEIGHTS = WordWeights(_SIGNS)
