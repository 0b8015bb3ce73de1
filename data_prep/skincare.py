"""SkinCaRe: captions by dermatologists (SkinCAP), and reasoning that ends in a diagnosis (SkinCoT), in two languages.

Parts: `caption` and `caption-zh` are SkinCAP in English, polished and translated from the Chinese, and in Chinese;
`cot` and `cot-zh` are SkinCoT. Expected, at any depth: skincap*.csv with the columns skincap_file_path, disease,
caption_zh_polish_en (for `caption-zh` caption_zh_polish or caption_zh), `Do not consider this image` and the 48
concepts of SkinCon, and the photos; skin_tone or fitzpatrick_scale and the photo's name in the set that it comes from
(ori_file_path) where they are there. SkinCoT is a folder with images/<class>/<image>, EN/<class>/<image>.txt and
ZH/<class>/<image>.txt.

Captions stay as they are. One whose last two sentences name diseases of the table, and not that of its own row, breaks
the rule `contrary-diagnosis`; it is looked for in the English, and holds for both.

SkinCoT was written by those who knew the label: every row of it is `label-conditioned`. A text with a last line that
begins with "Diagnosis:", "Conclusion:" or their like is a thought, and the answer is what follows there; any other is
the answer to a question that asks for the reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from data_prep import (
    Card,
    Photos,
    PrepError,
    Shard,
    count_csv,
    find,
    header,
    in_archive,
    is_text,
    read_csv,
    refuse_pointer,
    seeded,
    split_of,
    taken,
    without,
)
from data_prep.derm1m import DESCRIBE
from data_prep.skincon import IGNORED, concepts, ignored, refuse_columns, squeeze, squeezed
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts, text
from skinvl.data.labels import diagnosis, is_known, malignancy

CARD = Card(
    title="SkinCaRe (SkinCAP and SkinCoT)",
    address="https://huggingface.co/datasets/yuhos16/SkinCaRe",
    licence="CC-BY-NC-SA-4.0, CC-BY-4.0, no derivatives by its gate",
    terms="Its metadata, its text and its gate contradict one another: together they permit research use alone, and "
    "neither redistribution nor derivatives without the authors' permission. DDI's agreement holds for its photos too.",
    citation="Shen et al., SkinCaRe: A Multimodal Dermatology Dataset Annotated with Medical Caption and "
    "Chain-of-Thought Reasoning, 2025, arXiv 2405.18004",
    obtain="accept the terms at the address and download it; RAW holds skincap*.csv and the photos that it names, and "
    "the folder SkinCoT with images/<class>/<image>, and EN and ZH with <class>/<image>.txt (such as a.jpg.txt).",
    splits=("train", "test"),
    parts=("caption", "caption-zh", "cot", "cot-zh"),
    by_name=True,
    published="7,041",
    use="research",
)

FILE = "skincap*.csv"
IMAGE, DISEASE = "skincap_file_path", "disease"
CAPTIONS = {"caption": ("caption_zh_polish_en",), "caption-zh": ("caption_zh_polish", "caption_zh")}
ORIGIN = ("ori_file_path", "imageid", "ddi_file", "md5hash")  # any of them names the photo in the set that it is from
SKIN_TYPES = {"12": "I-II", "34": "III-IV", "56": "V-VI"}
SKIN_TYPES |= {str(number): name for number, name in enumerate(("I", "II", "III", "IV", "V", "VI"), 1)}
TONES = ("skin_tone", "fitzpatrick_scale")
MD5 = re.compile(r"[0-9a-f]{32}")
DDI_NUMBER = re.compile(r"\d{6}")
# What parts sentences, and what stands before a disease that a caption does not claim.
SENTENCE = re.compile(r"(?<=[.!?;])\s+")
UNCLAIMED = re.compile(
    r"\b(?:rule[ds]? out|ruling out|exclu\w+|differentiat\w+|distinguish\w+|not|no|unlike|resembl\w+|versus)\b[^.]*$",
    re.IGNORECASE,
)
FOLDERS = {"cot": "EN", "cot-zh": "ZH"}
CONCLUSION = re.compile(
    r"^[\W\d_]*(?:(?:final|most likely|primary) )?(?:diagnosis|conclusion|answer|(?:最终|最后)?(?:诊断|结论|答案))"
    r"(?: (?:is|and conclusion))?\W*[:：][\W_]*(?=\w)",
    re.IGNORECASE | re.MULTILINE,
)
DESCRIBE_ZH = ("请描述这张图片。", "这张图片显示了什么?", "请写出这张图片的皮肤科描述。")
DIAGNOSE = questions.diagnosis().open
DIAGNOSE_ZH = ("最可能的诊断是什么?", "这张图片显示的是哪种皮肤病?")
REASON = (
    "Which condition is this, and which findings speak for it? Go step by step.",
    "Explain step by step how the findings lead to a diagnosis.",
)
REASON_ZH = ("请逐步说明哪些表现支持哪种诊断。", "这是什么皮肤病?请逐步说明依据。")


def rows(raw: Path, part: str) -> int:
    """The rows of the table, or the texts of the language."""
    if part in CAPTIONS:
        return count_csv(find(raw, FILE, CARD))
    return sum(1 for _ in _folder(raw, FOLDERS[part]).rglob("*.txt"))


def absent(raw: Path, part: str) -> list[str]:
    """What is said of columns that need not be there and are not."""
    if part not in CAPTIONS:
        return []
    path = find(raw, FILE, CARD)
    return without(path, map(squeeze, header(path)), (ORIGIN, TONES))


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One description per photo of SkinCAP, or one diagnosis or reasoning per text of SkinCoT.

    >>> import tempfile
    >>> from data_prep.skincon import CONCEPTS
    >>> row = {"skincap_file_path": "1.png", "disease": "psoriasis", "caption_zh_polish_en": "Scaly plaques on a knee."}
    >>> row |= {"ori_file_path": f"{7:032x}.jpg", "Do not consider this image": "0", **dict.fromkeys(CONCEPTS, "0")}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "skincap.csv").write_text(",".join(row) + "\\n" + ",".join(row.values()) + "\\n")
    ...     (caption,) = convert(Path(folder), "caption")
    ...     for name in ("SkinCoT/EN/Psoriasis", "SkinCoT/images"):
    ...         (Path(folder) / name).mkdir(parents=True)
    ...     words = "Silvery scale.\\nFinal diagnosis: psoriasis"
    ...     _ = (Path(folder) / "SkinCoT/EN/Psoriasis/a.jpg.txt").write_text(words)
    ...     (thought,) = convert(Path(folder), "cot")
    >>> caption.id, caption.group, caption.facts.diagnosis, caption.messages[1]["content"][0]["text"]
    ('1-caption', 'archive fitzpatrick17k: 00000000000000000000000000000007', 'psoriasis', 'Scaly plaques on a knee.')
    >>> thought.images, thought.thoughts, thought.messages[1]["content"][0]["text"], thought.tags
    (('SkinCoT/images/Psoriasis/a.jpg',), ('Silvery scale.',), 'psoriasis', ('label-conditioned',))
    """
    if part in CAPTIONS:
        return _captions(raw, part, shard)
    return _reasoning(raw, part, shard)


def _captions(raw: Path, part: str, shard: Shard | None) -> Iterator[Example | Dropped]:
    path = find(raw, FILE, CARD)
    refuse_columns(path, ((IMAGE,), (DISEASE,), CAPTIONS[part], (IGNORED,)))
    photos, diseases = Photos(raw, shard), _diseases(path)
    wordings = DESCRIBE if part == "caption" else DESCRIBE_ZH
    for where, row in read_csv(path, (), shard):
        fields = squeezed(row)
        name, disease = fields[IMAGE].strip(), diagnosis(fields[DISEASE])
        caption = next((fields[column].strip() for column in CAPTIONS[part] if fields.get(column, "").strip()), "")
        if missing := ignored(where, fields):
            yield Dropped(where, missing.rule, missing.detail)
            continue
        if not PurePosixPath(name).name or not caption:
            yield Dropped(where, "empty", "no name of the photo" if caption else "no caption")
            continue
        images, tags = photos.shown(name)
        if contrary(fields.get(CAPTIONS["caption"][0], ""), disease, diseases):
            tags = *tags, "contrary-diagnosis"
        origin = _origin(fields)
        identity = in_archive(*origin) if origin else name
        present, lacking = concepts(fields)
        facts = Facts(
            modality="clinical",
            diagnosis=disease or None,
            malignancy=malignancy(disease) if is_known(disease) else None,
            skin_type=next((SKIN_TYPES[fields[tone]] for tone in TONES if fields.get(tone) in SKIN_TYPES), None),
            kind="description",
            present=present,
            absent=lacking,
        )
        question = seeded("skincare", part, name).choice(wordings)
        messages = text("user", question, images=1), text("assistant", caption)
        known = f"{PurePosixPath(name).with_suffix('')}-{part}"
        split = split_of(origin[1] if origin else name)  # that of the set that the photo comes from
        yield Example(known, "skincare", images, messages, identity, split, CARD.licence, facts, tags, (identity, name))


def _origin(fields: Mapping[str, str]) -> tuple[str, str] | None:
    """The archive that a photo comes from and its name there; None where no column tells."""
    names = [PurePosixPath(fields[column].strip()).name for column in ORIGIN if column in fields]
    for name in (*names, PurePosixPath(fields[IMAGE].strip()).name):
        if MD5.fullmatch(stem := PurePosixPath(name).stem.lower()):
            return "fitzpatrick17k", stem
        if DDI_NUMBER.fullmatch(stem) and name in names:  # six figures of SkinCAP's own may be any photo
            return "ddi", f"{stem}.png"
    return None


def _diseases(path: Path) -> re.Pattern[str]:
    """What finds any disease of the table in a text, the longest name first."""
    names = {" ".join(squeezed(row)[DISEASE].casefold().split()) for _, row in read_csv(path, ())}
    names = {name for name in names | set(map(diagnosis, names)) if len(name) > 2}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})\b(?!-?(?:like|form))", re.IGNORECASE)


def contrary(caption: str, disease: str, diseases: re.Pattern[str]) -> bool:
    """Whether the last two sentences of a caption name diseases, and none that is, holds or is part of its own.

    >>> diseases = re.compile("psoriasis|eczema")
    >>> [contrary(f"Scaly. It {rest}.", "psoriasis", diseases) for rest in ("is eczema", "is pustular psoriasis")]
    [True, False]
    >>> contrary("Rule out eczema.", "psoriasis", diseases), contrary("Eczema. A. B.", "psoriasis", diseases)
    (False, False)
    """
    named = set()
    for sentence in SENTENCE.split(caption.strip())[-2:]:
        for match in diseases.finditer(sentence):
            if not UNCLAIMED.search(sentence, 0, match.start()):
                named.add(diagnosis(match[0]))
    return bool(disease and named) and not any(name in disease or disease in name for name in named)


# SkinCoT.


def _folder(raw: Path, language: str) -> Path:
    """The folder of a language's texts, beside that of the images.

    Raises:
        PrepError: there is none, or there are several.
    """
    folders = sorted(path for path in raw.rglob(language) if path.is_dir() and (path.parent / "images").is_dir())
    if len(folders) != 1:
        listed = ", ".join(path.relative_to(raw).as_posix() for path in folders) or "none"
        raise PrepError(
            f"{raw}: expected one folder {language} beside a folder images; found {listed}. "
            f"How to get {CARD.title}: {CARD.obtain}"
        )
    return folders[0]


def _reasoning(raw: Path, part: str, shard: Shard | None) -> Iterator[Example | Dropped]:
    folder = _folder(raw, FOLDERS[part])
    chinese = part == "cot-zh"
    for path in taken(sorted(folder.rglob("*.txt")), shard):
        where, name = path.relative_to(raw).as_posix(), path.relative_to(folder).as_posix().removesuffix(".txt")
        if not path.resolve().is_relative_to(raw.resolve()):
            yield Dropped(where, "unsafe-path", "a link that leads out of RAW")
            continue
        refuse_pointer(path)
        try:
            words = path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            yield Dropped(where, "malformed", f"not UTF-8: {error.reason}")
            continue
        if not words or not is_text(name):
            yield Dropped(where, "empty", "no words" if not words else "a name that no file in UTF-8 can hold")
            continue
        thought, answer = _concluded(words)
        kind = "diagnosis" if thought else "reasoning"
        asked = ((DIAGNOSE, DIAGNOSE_ZH) if thought else (REASON, REASON_ZH))[chinese]
        origin = MD5.fullmatch(PurePosixPath(name).stem.lower())
        group = in_archive("fitzpatrick17k", origin[0]) if origin else name
        yield Example(
            id=f"{name}-{part}",
            source="skincare",
            images=((folder.parent / "images" / name).relative_to(raw).as_posix(),),
            messages=(
                text("user", seeded("skincare", part, name).choice(asked), images=1),
                text("assistant", answer),
            ),
            group=group,
            split=split_of(origin[0] if origin else name),
            licence=CARD.licence,
            facts=Facts(modality="clinical", kind=kind),
            tags=("label-conditioned",),
            thoughts=(thought,) if thought else (),
        )


def _concluded(words: str) -> tuple[str, str]:
    """(what goes before the conclusion, the conclusion) of a text whose last heading says that it is one.

    >>> _concluded("1. Findings: scale.\\n2. **Diagnosis**: psoriasis.")
    ('1. Findings: scale.', 'psoriasis.')
    >>> _concluded("表现:红斑。\\n诊断:银屑病。"), _concluded("Scale speaks for psoriasis.")
    (('表现:红斑。', '银屑病。'), ('', 'Scale speaks for psoriasis.'))
    """
    headings = list(CONCLUSION.finditer(words))
    if not headings or not re.search(r"\w", words[: headings[-1].start()]):
        return "", words
    return words[: headings[-1].start()].rstrip(), words[headings[-1].end() :].rstrip()
