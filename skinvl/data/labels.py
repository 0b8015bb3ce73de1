"""Diagnoses: one canonical name each, the spellings that datasets use for it, its malignancy; classes of benchmarks."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

from skinvl.data import clauses
from skinvl.data.clauses import SplitText

Malignancy = Literal["benign", "premalignant", "malignant"]

_MALIGNANCY: dict[str, Malignancy] = {
    "actinic keratosis": "premalignant",
    "basal cell carcinoma": "malignant",
    "dermatofibroma": "benign",
    "lentigo": "benign",
    "melanoma": "malignant",
    "melanoma metastasis": "malignant",
    "nevus": "benign",
    "scar": "benign",
    "seborrheic keratosis": "benign",
    "solar lentigo": "benign",
    "squamous cell carcinoma": "malignant",
    "squamous cell carcinoma in situ": "malignant",
    "vascular lesion": "benign",
}

# What else datasets and answers call a diagnosis; case, British spelling, plurals and a last "NOS" need no entry.
# HAM10000 and ISIC 2019 put solar lentigo and lichen-planus-like keratosis into their "benign keratosis" too; most of
# it is seborrheic keratosis, and the benchmarks compare the spellings as one class.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "actinic keratosis": ("AK", "AKIEC", "ACK", "solar keratosis", "solar or actinic keratosis", "senile keratosis"),
    "basal cell carcinoma": (
        *("BCC", "basalioma", "basal cell cancer", "basal cell epithelioma", "cutaneous basal cell carcinoma"),
        *("rodent ulcer", "basal cell carcinoma of skin", "basal cell carcinoma of the skin"),
    ),
    "dermatofibroma": ("DF", "fibrous histiocytoma", "benign fibrous histiocytoma"),
    "melanoma": (
        *("MEL", "malignant melanoma", "cutaneous melanoma", "malignant melanoma of skin", "melanoma of skin"),
        *("melanoma in situ", "malignant melanoma in situ", "melanoma invasive", "invasive melanoma"),
        *("melanoma of the skin", "cutaneous malignant melanoma"),
    ),
    "melanoma metastasis": (
        *("metastatic melanoma", "metastasis of melanoma", "melanoma metastatic", "metastatic malignant melanoma"),
    ),
    "nevus": (
        *("NV", "NEV", "mole", "melanocytic nevus", "nevocytic nevus", "nevocellular nevus", "nevus cell nevus"),
        *("nevomelanocytic nevus", "pigmented nevus", "benign nevus", "benign melanocytic nevus", "common nevus"),
    ),
    "scar": ("scar tissue", "cicatrix"),
    "seborrheic keratosis": (
        *("SK", "SEK", "BKL", "benign keratosis", "benign keratosis-like lesion", "pigmented benign keratosis"),
        *("seborrheic wart", "seborrheic verruca", "senile wart", "basal cell papilloma"),
    ),
    "solar lentigo": ("senile lentigo", "actinic lentigo", "lentigo senilis", "lentigo solaris"),
    "squamous cell carcinoma": (
        *("SCC", "squamous cell cancer", "squamous cell carcinoma, invasive", "invasive squamous cell carcinoma"),
        *(
            "cutaneous squamous cell carcinoma",
            "squamous cell carcinoma of skin",
            "squamous cell carcinoma of the skin",
        ),
    ),
    "squamous cell carcinoma in situ": (
        *("SCCIS", "SCC in situ", "Bowen disease", "morbus Bowen", "intraepidermal carcinoma"),
    ),
    "vascular lesion": ("VASC",),
}

PAD_CODES: dict[str, str] = {
    "ACK": "actinic keratosis",
    "BCC": "basal cell carcinoma",
    "MEL": "melanoma",
    "NEV": "nevus",
    "SCC": "squamous cell carcinoma",
    "SEK": "seborrheic keratosis",
}


# Codes stand for what the dataset calls the class: "benign keratosis" is canonical only through a synonym above.
HAM_CODES: dict[str, str] = {
    "akiec": "actinic keratosis",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "nevus",
    "vasc": "vascular lesion",
}

ISIC_2019_CODES: dict[str, str] = {
    "MEL": "melanoma",
    "NV": "nevus",
    "BCC": "basal cell carcinoma",
    "AK": "actinic keratosis",
    "BKL": "benign keratosis",
    "DF": "dermatofibroma",
    "VASC": "vascular lesion",
    "SCC": "squamous cell carcinoma",
}

# The subclasses of DERM12345 by its codes, in words; its files spell them as paths in a tree.
DERM12345_CODES: dict[str, str] = {
    "acb": "acral compound nevus",
    "acd": "acral dysplastic compound nevus",
    "ajb": "acral junctional nevus",
    "ajd": "acral dysplastic junctional nevus",
    "ak": "actinic keratosis",
    "alm": "acral lentiginous melanoma",
    "angk": "angiokeratoma",
    "anm": "acral nodular melanoma",
    "bcc": "basal cell carcinoma",
    "bd": "Bowen disease",
    "bdb": "blue nevus",
    "cb": "compound nevus",
    "ccb": "congenital compound nevus",
    "ccd": "congenital dysplastic compound nevus",
    "cd": "dysplastic compound nevus",
    "ch": "cutaneous horn",
    "cjb": "congenital junctional nevus",
    "db": "dermal nevus",
    "df": "dermatofibroma",
    "dfsp": "dermatofibrosarcoma protuberans",
    "ha": "hemangioma",
    "isl": "ink spot lentigo",
    "jb": "junctional nevus",
    "jd": "dysplastic junctional nevus",
    "ks": "Kaposi sarcoma",
    "la": "lymphangioma",
    "lk": "lichenoid keratosis",
    "lm": "lentigo maligna",
    "lmm": "lentigo maligna melanoma",
    "ls": "lentigo simplex",
    "mcb": "Miescher nevus",
    "mel": "melanoma",
    "mpd": "mammary Paget disease",
    "pg": "pyogenic granuloma",
    "rd": "recurrent nevus",
    "sa": "spider angioma",
    "scc": "squamous cell carcinoma",
    "sk": "seborrheic keratosis",
    "sl": "solar lentigo",
    "srjd": "Spitz or Reed nevus",
}

# The classes of MILK10k by its codes, in words; two of them name two diagnoses that it keeps together.
MILK10K_CODES: dict[str, str] = {
    "AKIEC": "actinic keratosis or intraepidermal carcinoma",
    "BCC": "basal cell carcinoma",
    "BEN_OTH": "other benign proliferation",
    "BKL": "benign keratinocytic lesion",
    "DF": "dermatofibroma",
    "INF": "inflammatory or infectious condition",
    "MAL_OTH": "other malignant proliferation",
    "MEL": "melanoma",
    "NV": "melanocytic nevus",
    "SCCKA": "squamous cell carcinoma or keratoacanthoma",
    "VASC": "vascular lesion or hemorrhage",
}

# The diagnoses of derm7pt as its files spell them → its classes; "miscellaneous" is none.
DERM7PT_NAMES: dict[str, str] = {
    **dict.fromkeys(
        (
            *("melanoma", "melanoma (in situ)", "melanoma (less than 0.76 mm)", "melanoma (0.76 to 1.5 mm)"),
            *("melanoma (more than 1.5 mm)", "melanoma metastasis"),
        ),
        "melanoma",
    ),
    **{
        name: name
        for name in (
            *("basal cell carcinoma", "blue nevus", "clark nevus", "combined nevus", "congenital nevus"),
            *("dermal nevus", "dermatofibroma", "lentigo", "melanosis", "recurrent nevus", "reed or spitz nevus"),
            *("seborrheic keratosis", "vascular lesion"),
        )
    },
}

# The criteria of the seven-point checklist, with what each may be.
DERM7PT_CRITERIA: dict[str, tuple[str, ...]] = {
    "pigment_network": ("absent", "typical", "atypical"),
    "blue_whitish_veil": ("absent", "present"),
    "vascular_structures": (
        *("absent", "arborizing", "comma", "hairpin", "within regression", "wreath", "dotted", "linear irregular"),
    ),
    "pigmentation": (*("absent", "diffuse regular", "localized regular", "diffuse irregular", "localized irregular"),),
    "streaks": ("absent", "regular", "irregular"),
    "dots_and_globules": ("absent", "regular", "irregular"),
    "regression_structures": ("absent", "blue areas", "white areas", "combinations"),
}

# The concepts of SkinCon that 50 images and more of Fitzpatrick17k show; of the others no number is stable.
SKINCON_CONCEPTS = (
    *("papule", "plaque", "pustule", "bulla", "patch", "nodule", "ulcer", "crust", "erosion", "atrophy", "exudate"),
    *("telangiectasia", "scale", "scar", "friable", "dome-shaped", "brown (hyperpigmentation)"),
    *("white (hypopigmentation)", "purple", "yellow", "black", "erythema"),
)

# The classes of the benchmarks, spelt as in their files, runs of spaces apart.
CLASSES: dict[str, tuple[str, ...]] = {
    "bcn20000": (
        *("nevus", "melanoma", "basal cell carcinoma", "seborrheic keratosis", "actinic keratosis", "other"),
        *("melanoma metastasis", "squamous cell carcinoma", "solar lentigo", "scar", "dermatofibroma"),
        "vascular lesion",
    ),
    "ddi": ("Non-Malignant", "Malignant"),
    "derm12345": tuple(DERM12345_CODES.values()),
    "derm7pt": tuple(sorted({*DERM7PT_NAMES.values()})),
    "derm7pt_5": ("basal cell carcinoma", "melanoma", "miscellaneous", "nevus", "seborrheic keratosis"),
    **{f"derm7pt_{name}": values for name, values in DERM7PT_CRITERIA.items()},
    "dermnet": (
        "Acne and Rosacea Photos",
        "Actinic Keratosis Basal Cell Carcinoma and other Malignant Lesions",
        "Atopic Dermatitis Photos",
        "Bullous Disease Photos",
        "Cellulitis Impetigo and other Bacterial Infections",
        "Eczema Photos",
        "Exanthems and Drug Eruptions",
        "Hair Loss Photos Alopecia and other Hair Diseases",
        "Herpes HPV and other STDs Photos",
        "Light Diseases and Disorders of Pigmentation",
        "Lupus and other Connective Tissue diseases",
        "Melanoma Skin Cancer Nevi and Moles",
        "Nail Fungus and other Nail Disease",
        "Poison Ivy Photos and other Contact Dermatitis",
        "Psoriasis pictures Lichen Planus and related diseases",
        "Scabies Lyme Disease and other Infestations and Bites",
        "Seborrheic Keratoses and other Benign Tumors",
        "Systemic Disease",
        "Tinea Ringworm Candidiasis and other Fungal Infections",
        "Urticaria Hives",
        "Vascular Tumors",
        "Vasculitis Photos",
        "Warts Molluscum and other Viral Infections",
    ),
    "fitzpatrick17k": ("non-neoplastic", "benign", "malignant"),
    "ham10000": (
        *("Nevus", "Benign Keratosis", "Melanoma", "Basal Cell Carcinoma", "Dermatofibroma", "Actinic Keratoses"),
        "Vascular lesions",
    ),
    "hiba": ("benign", "malignant"),
    "isic2019": (
        *("Nevus", "Melanoma", "Basal Cell Carcinoma", "Benign Keratosis-like Lesions", "Actinic Keratosis"),
        *("Squamous Cell Carcinoma", "Vascular Lesions", "Dermatofibroma"),
    ),
    "milk10k": tuple(MILK10K_CODES.values()),
    "pad_ufes_20": (
        *("Actinic Keratosis", "Basal Cell Carcinoma", "Melanoma", "Nevus", "Seborrheic Keratosis"),
        "Squamous Cell Carcinoma",
    ),
    "passion": ("eczema", "fungal infection", "scabies"),
    "patch16": ("nontumor", "tumor"),
}

# Of a list that is not known whole: its classes that are; the others are those that the data have.
BEGINNINGS: dict[str, tuple[str, ...]] = {"mskcc": ("nevus", "solar lentigo", "lentigo NOS", "melanoma")}

# What benchmarks and their files are called, beside the names above.
ALIASES: dict[str, str] = {
    **{name: name for name in (*CLASSES, *BEGINNINGS)},
    **{"bcn": "bcn20000", "fitzpatrick": "fitzpatrick17k", "fitz17k": "fitzpatrick17k", "ham": "ham10000"},
    **{"isic_2019": "isic2019", "msk": "mskcc", "pad": "pad_ufes_20", "pad_ufes": "pad_ufes_20"},
}

# Of benchmarks that grade: what Facts.malignancy says → the class. A grade that is not here has no class.
GRADES: dict[str, dict[str, str]] = {
    "ddi": {"benign": "Non-Malignant", "premalignant": "Non-Malignant", "malignant": "Malignant"},
    "hiba": {"benign": "benign", "malignant": "malignant"},
}

# Of benchmarks whose class is no fact of an Example: the name of the question whose answer says it. The converters name
# an Example after its image and its question.
ASKED: dict[str, str] = {
    "derm12345": "diagnosis",
    **dict.fromkeys(("derm7pt", "derm7pt_5"), "diagnosis"),
    **{f"derm7pt_{name}": name for name in DERM7PT_CRITERIA},
    "dermnet": "category",
    "fitzpatrick17k": "malignancy",
    "milk10k": "class",
    "patch16": "tumor",
}

# Benchmarks that ask each question of some of a case's images; what is asked of others is no sample of theirs.
BY_VIEW = {name for name in CLASSES if name.startswith("derm7pt")}

# Classes that are malignant and have no canonical name, and all others of the lists of which that is known; DERM12345
# calls actinic keratosis indeterminate, and "miscellaneous" of derm7pt holds benign lesions alone.
_MALIGNANT = {
    *("acral lentiginous melanoma", "acral nodular melanoma", "lentigo maligna", "lentigo maligna melanoma"),
    *("dermatofibrosarcoma protuberans", "kaposi sarcoma", "mammary paget disease"),
    *("other malignant proliferation", "squamous cell carcinoma or keratoacanthoma"),
}
_GRADED = ("derm12345", "derm7pt", "derm7pt_5", "milk10k")
_OTHERS = {name.casefold() for benchmark in _GRADED for name in CLASSES[benchmark]} - _MALIGNANT
_NAMED_GRADES = {"malignant": True} | dict.fromkeys(
    ("benign", "non-malignant", "non-neoplastic", "premalignant"), False
)

# What an answer may also say for a class, by its canonical name or by its own in lower case: narrower names, as a
# hemangioma is a vascular lesion, and those of classes that are no diagnosis. Datasets mean by them what they say.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "vascular lesion": ("hemangioma", "angioma", "angiokeratoma", "pyogenic granuloma"),
    "benign": ("benign lesion",),
    "malignant": ("malignancy", "cancerous"),
    "non-malignant": ("benign", "premalignant", "non-cancerous"),
    "non-neoplastic": ("non-neoplasm",),
    "miscellaneous": ("dermatofibroma", "lentigo", "melanosis", "vascular lesion"),  # of five classes of derm7pt
    "nontumor": ("non-tumorous", "non-tumoral", "tumor-free", "non-neoplastic"),
    "tumor": ("tumorous", "tumoral", "neoplasm", "neoplastic"),
    **dict.fromkeys(("spitz or reed nevus", "reed or spitz nevus"), ("Spitz nevus", "Reed nevus")),
    # Those of MILK10k keep together what others tell apart.
    "actinic keratosis or intraepidermal carcinoma": (
        *("AKIEC", "actinic keratosis", "intraepidermal carcinoma", "Bowen disease", "SCC in situ"),
        "squamous cell carcinoma in situ",
    ),
    "benign keratinocytic lesion": (
        *("BKL", "seborrheic keratosis", "solar lentigo", "lichen planus-like keratosis", "benign keratosis"),
    ),
    "squamous cell carcinoma or keratoacanthoma": ("SCCKA", "SCC", "squamous cell carcinoma", "keratoacanthoma"),
    "vascular lesion or hemorrhage": ("vascular lesion", "VASC", "hemangioma", "angioma", "hemorrhage"),
    # The classes of Dermnet list the diseases that they hold.
    "acne and rosacea photos": ("acne and rosacea", "acne", "rosacea"),
    "actinic keratosis basal cell carcinoma and other malignant lesions": (
        *("actinic keratosis", "basal cell carcinoma", "BCC", "malignant lesion"),
    ),
    "atopic dermatitis photos": ("atopic dermatitis",),
    "bullous disease photos": ("bullous disease",),
    "cellulitis impetigo and other bacterial infections": ("cellulitis", "impetigo", "bacterial infection"),
    "eczema photos": ("eczema",),
    "exanthems and drug eruptions": ("exanthem", "drug eruption"),
    "hair loss photos alopecia and other hair diseases": ("hair loss", "alopecia", "hair disease"),
    "herpes hpv and other stds photos": (
        *("herpes hpv and other STDs", "herpes", "HPV", "STD", "sexually transmitted disease"),
    ),
    "light diseases and disorders of pigmentation": ("light disease", "disorder of pigmentation"),
    "lupus and other connective tissue diseases": ("lupus", "connective tissue disease"),
    "melanoma skin cancer nevi and moles": ("melanoma", "nevus", "mole"),
    "nail fungus and other nail disease": ("nail fungus", "nail disease", "onychomycosis"),
    "poison ivy photos and other contact dermatitis": (
        *("poison ivy and other contact dermatitis", "poison ivy", "contact dermatitis"),
    ),
    "psoriasis pictures lichen planus and related diseases": (
        *("psoriasis lichen planus and related diseases", "psoriasis", "lichen planus"),
    ),
    "scabies lyme disease and other infestations and bites": ("scabies", "lyme disease", "infestation"),
    "seborrheic keratoses and other benign tumors": ("seborrheic keratosis", "benign tumor"),
    "tinea ringworm candidiasis and other fungal infections": ("tinea", "ringworm", "candidiasis", "fungal infection"),
    "urticaria hives": ("urticaria", "hives"),
    "vasculitis photos": ("vasculitis",),
    "warts molluscum and other viral infections": ("wart", "molluscum", "molluscum contagiosum", "viral infection"),
}


def canonical(name: str) -> str:
    """The canonical name of a diagnosis, however it is spelt; see `diagnosis`.

    >>> canonical("Benign  Keratosis-like Lesions")
    'seborrheic keratosis'

    Raises:
        ValueError: unknown; the message gives the nearest known names.
    """
    plain = diagnosis(name)
    if plain not in _MALIGNANCY:
        others = [other for synonyms in SYNONYMS.values() for other in synonyms]
        near = difflib.get_close_matches(plain, [*_MALIGNANCY, *others], n=3, cutoff=0.5) or sorted(_MALIGNANCY)
        raise ValueError(
            f"diagnosis {name!r}: unknown; the nearest known names are {', '.join(near)}. "
            "Correct it, or add the name or a synonym to skinvl/data/labels.py"
        )
    return plain


@lru_cache(maxsize=1 << 14)  # asked for every row, and the rows of a dataset share few names
def diagnosis(name: str) -> str:
    """The canonical name of a diagnosis where there is one, else the name itself in lower case with single spaces.

    >>> diagnosis("Melanoma, NOS"), diagnosis("Melanocytic naevi"), diagnosis("Pityriasis  rosea")
    ('melanoma', 'nevus', 'pityriasis rosea')
    """
    return _CANONICAL.get(_stems(name)) or " ".join(name.casefold().split())


def _stems(name: str) -> tuple[str, ...]:
    """The stems of a name, without a last "NOS" (not otherwise specified), which says nothing."""
    words = SplitText.of(clauses.plain(name))
    return tuple(words.stems[:-1] if words.lower[1:] and words.lower[-1] == "nos" else words.stems)


_CANONICAL = {_stems(spelling): name for name in _MALIGNANCY for spelling in (name, *SYNONYMS.get(name, ()))}


def key(name: str) -> str:
    """What all spellings of a diagnosis share, whether it has a canonical name or not.

    >>> key("Melanocytic naevi"), key("Haemangiomas") == key("hemangioma")
    ('nevus', True)
    """
    return _CANONICAL.get(_stems(name)) or " ".join(_stems(name))


def is_known(name: str) -> bool:
    """Whether a diagnosis has a canonical name."""
    return diagnosis(name) in _MALIGNANCY


def malignancy(diagnosis: str) -> Malignancy:
    """Benign, premalignant or malignant.

    Raises:
        ValueError: an unknown diagnosis.
    """
    return _MALIGNANCY[canonical(diagnosis)]


def malignant(classes: Sequence[str]) -> tuple[bool, ...] | None:
    """Which of these classes are malignant, not merely premalignant; None where it is not known of all of them.

    >>> malignant(CLASSES["ddi"]), malignant(CLASSES["patch16"])
    ((False, True), None)
    """
    grades = []
    for name in classes:
        plain = diagnosis(name)
        if plain in _NAMED_GRADES:
            grades.append(_NAMED_GRADES[plain])
        elif plain in _MALIGNANCY or plain in _MALIGNANT or plain in _OTHERS:
            grades.append(plain in _MALIGNANT or _MALIGNANCY.get(plain) == "malignant")
        else:
            return None
    return tuple(grades)


def spellings(name: str) -> list[str]:
    """What an answer may call a class: its name first, then synonyms, abbreviations and narrower names."""
    plain, raw = diagnosis(name), " ".join(name.casefold().split())
    more = (*SYNONYMS.get(plain, ()), *SPELLINGS.get(plain, ()), *SPELLINGS.get(raw, ()))
    return list(dict.fromkeys((name, plain, *more)))


def benchmark(name: str, begins: bool = False) -> str | None:
    """The benchmark of a name, whatever its case, separators and count of classes; None where there is none.

    Args:
        begins: whether the name may go on after that of a benchmark, as the name of a file does.

    >>> benchmark("PAD-6"), benchmark("DDI_2class_test", begins=True), benchmark("paddle", begins=True)
    ('pad_ufes_20', 'ddi', None)
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")
    for alias in sorted(ALIASES, key=len, reverse=True):
        rest = r"(?:_.*)?" if begins else r"(?:_\d{1,2}(?:class(?:es)?)?)?"
        if re.fullmatch(alias + rest, plain):
            return ALIASES[alias]
    return None


def ways(below: Mapping[str, Sequence[str]], root: str) -> dict[str, list[str]]:
    """The classes from the broadest to each class of an ontology that has one such way only, by its name.

    A class is found in lower case as well where no other is spelt like it but for case.

    Args:
        below: the name of a class → the classes right below it.
        root: what stands above the broadest classes; it is on no way.

    >>> ways({"root": ["inflammatory"], "inflammatory": ["infectious"], "infectious": ["Tinea"]}, "root")["tinea"]
    ['inflammatory', 'infectious', 'Tinea']
    """
    # What stands right above each class, and from there the way up, as long as it is the only one.
    above: dict[str, set[str]] = {}
    for name, children in below.items():
        for child in children:
            above.setdefault(child, set()).add(name)
    by_name: dict[str, list[str]] = {}
    names = {*below, *above} - {root}
    for name in names:
        way = [name]
        while len(parents := above.get(way[0], set()) - {root, way[0]}) == 1 and parents.isdisjoint(way):
            way[:0] = parents
        if not parents:
            by_name[name] = way

    spelt = Counter(map(str.casefold, names))
    return {name.casefold(): way for name, way in by_name.items() if spelt[name.casefold()] == 1} | by_name
