"""BERTScore: the means over rows of precision, recall and F1 by the similarity of contextual embeddings.

Zhang et al. 2020, arXiv:1904.09675, by the bert-score package, without idf weights and without a baseline. The model is
named in the recipe, `bertscore:MODEL`, a folder or an id of the hub that is already on this machine: numbers of two
models cannot be compared. Of several references precision, recall and F1 each take the one that is best for it, as the
package has it. The layer is that which the package's authors chose for a model of this name, else the last.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from skinvl.recipe.files import read_json
from skinvl.score.metrics import MetricError, right_answers
from skinvl.score.metrics import means as value
from skinvl.score.predictions import Answer
from skinvl.score.stats import Float

__all__ = ["NAMES", "table", "value"]

NAMES = ("bertscore_precision", "bertscore_recall", "bertscore_f1")


def table(rows: Sequence[Answer], model: str) -> Float:
    """float[n, 4]: precision, recall and F1 of each row, 0 for an empty answer; and 1, the row.

    Raises:
        MetricError: no model was named, or it or the package is absent.
    """
    if not model:
        raise MetricError(
            "evaluate.metrics: bertscore needs a model; write bertscore:MODEL, a folder or an id of the hub"
        )
    try:
        package = importlib.import_module("bert_score")
        layers = importlib.import_module("bert_score.utils").model2layers
    except ImportError as error:
        raise MetricError(
            f"evaluate.metrics: bertscore needs the package bert-score ({error}); install it with "
            "`pip install 'skinvl[bertscore]'`, or leave bertscore out"
        ) from error
    folder = _folder(model)
    config = read_json(folder / "config.json", "download the model again", MetricError)
    layer = layers.get(model, layers.get(folder.name, config.get("num_hidden_layers")))
    if "t5" in str(folder) and "t5" not in config.get("model_type", ""):
        raise MetricError(
            f"evaluate.metrics: {folder}: bert-score takes any path with t5 in it for a T5; move the model"
        )
    scorer = package.BERTScorer(model_type=str(folder), num_layers=layer, use_fast_tokenizer=True)
    statistics = np.zeros((len(rows), 4))
    statistics[:, 3] = 1.0
    answered = [index for index, row in enumerate(rows) if (row.answer or "").strip()]
    if answered:
        references = [list(right_answers(rows[index])) for index in answered]
        scores = scorer.score([rows[index].answer for index in answered], references)
        statistics[answered, :3] = np.stack([score.double().numpy() for score in scores], axis=1)
    return statistics


def _folder(model: str) -> Path:
    local = Path(model).expanduser()
    if (local / "config.json").is_file():
        return local.resolve()
    hub = importlib.import_module("huggingface_hub")
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return Path(hub.snapshot_download(model, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError) as error:
        raise MetricError(
            f"evaluate.metrics: bertscore:{model}: neither a folder with a config.json nor a model of the hub that "
            f"is on this machine; score downloads nothing: get it with `hf download {model}`, or name a folder"
        ) from error
