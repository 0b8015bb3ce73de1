"""CLAIM, the checklist for artificial intelligence in medical imaging, as updated in 2024."""

from __future__ import annotations

TITLE = "CLAIM 2024"
CITATION = "Tejani et al., Radiology: Artificial Intelligence 6(4), 2024, doi:10.1148/ryai.240300"
_START, _DATA, _TRUTH, _SETS = (
    "Title, abstract, introduction, design",
    "Data",
    "Reference standard",
    "Partitions and size",
)
_MODEL, _EVALUATION, _RESULTS, _END = "Model and training", "Evaluation", "Results", "Discussion and the rest"
ITEMS = (
    ("1", _START, "say that it is about AI, and of which kind", ("kind", "base")),
    ("2", _START, "an abstract with its parts", ()),
    ("3", _START, "background, intended use and role of the model", ()),
    ("4", _START, "aims and hypotheses", ()),
    ("5", _START, "prospective or retrospective", ()),
    ("6", _START, "goal of the study", ()),
    ("7", _DATA, "sources of the data", ("sources",)),
    ("8", _DATA, "who or what was in, and who or what was not", ("left_out",)),
    ("9", _DATA, "preprocessing", ("preprocessing",)),
    ("10", _DATA, "choice of a part of the data", ("sampling",)),
    ("11", _DATA, "de-identification", ()),
    ("12", _DATA, "what was done about missing data", ("unscored",)),
    ("13", _DATA, "how images were taken", ("acquisition",)),
    ("14", _TRUTH, "how the truth was found", ("reference",)),
    ("15", _TRUTH, "why this truth", ()),
    ("16", _TRUTH, "who annotated", ()),
    ("17", _TRUTH, "how the test set was annotated", ()),
    ("18", _TRUTH, "variability between and within annotators", ("raters",)),
    ("19", _SETS, "how data came to their sets", ("partitions",)),
    ("20", _SETS, "the level on which sets share nothing", ("disjoint",)),
    ("21", _SETS, "intended size of the test set", ()),
    ("22", _MODEL, "the model, so that it could be built again", ("base", "parts")),
    ("23", _MODEL, "software", ("software",)),
    ("24", _MODEL, "how weights began", ("base", "adapter")),
    ("25", _MODEL, "how it was trained", ("hyperparameters", "balance")),
    ("26", _MODEL, "how the final model was chosen", ("selection",)),
    ("27", _MODEL, "ensembles", ()),
    ("28", _EVALUATION, "metrics", ("metrics",)),
    ("29", _EVALUATION, "uncertainty and significance", ("uncertainty",)),
    ("30", _EVALUATION, "robustness or sensitivity", ("robustness",)),
    ("31", _EVALUATION, "explainability", ()),
    ("32", _EVALUATION, "evaluation on internal data", ("internal",)),
    ("33", _EVALUATION, "evaluation on external data", ("external",)),
    ("34", _EVALUATION, "registration as a trial", ()),
    ("35", _RESULTS, "how many were in and out", ("counts", "left_out")),
    ("36", _RESULTS, "whom each set shows", ("patients",)),
    ("37", _RESULTS, "performance with its uncertainty", ("performance",)),
    ("38", _RESULTS, "diagnostic performance with its precision, by subgroup", ("performance", "subgroups")),
    ("39", _RESULTS, "where it is wrong", ("failures",)),
    ("40", _END, "limitations", ()),
    ("41", _END, "what it means in practice", ()),
    ("42", _END, "the protocol, or further technical details", ()),
    ("43", _END, "whether software, model and data can be had", ()),
    ("44", _END, "funding", ()),
)
