"""What a concept is called in a prompt: its own name and other words for the same, none of them wider or narrower."""

from __future__ import annotations

from skinvl.evaluate.prompts import CLASS

REFERENCE = "skin"  # what a prompt is compared with: the same template around a word that every image shows
TEMPLATES = (
    CLASS,
    f"a photo that shows {CLASS}",
    f"clinical photograph: {CLASS}",
    f"a close view of {CLASS}",
    f"what is seen is {CLASS}",
    f"dermatology image of {CLASS}",
)

# By the names that sources state: those of SkinCon, of the seven-point checklist, and artefacts.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "macule": ("flat spot",),
    "patch": ("large flat area",),
    "papule": ("small raised bump",),
    "plaque": ("raised flat area",),
    "nodule": ("solid lump",),
    "wheal": ("hive", "welt"),
    "comedo": ("comedone", "blackhead or whitehead"),
    "vesicle": ("small blister",),
    "bulla": ("large blister",),
    "pustule": ("pus-filled bump",),
    "exudate": ("oozing", "weeping fluid"),
    "erosion": ("superficial loss of skin",),
    "ulcer": ("ulceration", "open sore"),
    "fissure": ("crack in the skin",),
    "excoriation": ("scratch marks",),
    "burrow": ("burrow of mites",),
    "scale": ("scaling", "flaking skin"),
    "crust": ("crusting", "scab"),
    "xerosis": ("dry skin",),
    "lichenification": ("thickened skin with marked lines",),
    "warty/papillomatous": ("warty", "papillomatous"),
    "friable": ("easily bleeding tissue",),
    "atrophy": ("thinned skin",),
    "scar": ("scarring",),
    "sclerosis": ("hardened skin",),
    "induration": ("firm thickening",),
    "poikiloderma": ("mottled pigment with thin skin and vessels",),
    "erythema": ("redness", "red skin"),
    "telangiectasia": ("dilated small vessels", "spider veins"),
    "purpura/petechiae": ("purpura", "petechiae"),
    "dome-shaped": ("dome-shaped lesion",),
    "flat topped": ("flat-topped lesion",),
    "pedunculated": ("lesion on a stalk",),
    "exophytic/fungating": ("exophytic growth", "fungating growth"),
    "umbilicated": ("lesion with a central dimple",),
    "acuminate": ("pointed lesion",),
    "brown (hyperpigmentation)": ("hyperpigmentation", "brown skin colour change"),
    "white (hypopigmentation)": ("hypopigmentation", "white skin colour change"),
    "purple": ("purple colour", "violaceous colour"),
    "yellow": ("yellow colour",),
    "black": ("black colour",),
    "blue": ("blue colour",),
    "salmon": ("salmon colour",),
    "gray": ("gray colour", "grey colour"),
    "pigmented": ("pigmentation",),
    "translucent": ("translucent lesion",),
    "atypical pigment network": ("irregular pigment network",),
    "blue-whitish veil": ("blue-white veil",),
    "atypical vessels": ("irregular vascular structures",),
    "irregular pigmentation": ("uneven pigmentation",),
    "irregular streaks": ("irregular radial lines",),
    "irregular dots and globules": ("irregularly spread dots and globules",),
    "regression structures": ("signs of regression",),
    "hair": ("hairs",),
    "ink": ("ink marking", "pen marking", "skin marker"),
    "ruler": ("calibration scale", "measuring scale"),
    "gel": ("immersion gel",),
}


def terms(concept: str) -> tuple[str, ...]:
    """The concept's own name, then its synonyms.

    >>> terms("ink"), terms("burned")
    (('ink', 'ink marking', 'pen marking', 'skin marker'), ('burned',))
    """
    return concept, *SYNONYMS.get(" ".join(concept.casefold().split()), ())
