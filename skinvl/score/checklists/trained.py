"""What a run's files know of its model, its training and its data, as sentences; None where they do not know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skinvl.score.checklists.known import Known

RULES = 8  # of a ledger that a sentence has


def kind(known: Known) -> str | None:
    """What sort of model it is."""
    if not known.recipe:
        return None
    towers = "objective" in known.recipe
    return "Two towers, for images and texts." if towers else "A vision-language model that answers in words."


def base(known: Known) -> str | None:
    """What it was made of."""
    of = known.environment.get("base") or {}
    if not of.get("model"):
        return None
    at = f" at commit {of['commit']}" if of.get("commit") else f" with digest {of.get('fingerprint', 'unknown')}"
    return f"Weights began as {of['model']} ({of.get('model_type', 'type not known')}){at}."


def parts(known: Known) -> str | None:
    """What of it was trained, and how."""
    trained = known.recipe.get("parts")
    if not isinstance(trained, Mapping):
        return None
    how = {part: of.get("train") for part, of in trained.items() if isinstance(of, Mapping) and of.get("train")}
    lora = known.recipe.get("lora")
    more = f" LoRA: {_pairs(lora)}." if isinstance(lora, Mapping) and "lora" in how.values() else ""
    return f"Trained parts: {_pairs(how)}.{more}" if how else None


def adapter(known: Known) -> str | None:
    """Whether it went on from another."""
    if "init_adapter" not in known.environment:
        return None
    digest = known.environment["init_adapter"]
    return f"It went on from weights with digest {digest}." if digest else "It went on from no earlier training here."


def software(known: Known) -> str | None:
    """Versions."""
    libraries = known.environment.get("libraries")
    python = known.environment.get("python")
    return f"Python {python}; {_pairs(libraries, ' ')}." if libraries and python else None


def hyperparameters(known: Known) -> str | None:
    """How it was trained."""
    train = known.recipe.get("train")
    if not isinstance(train, Mapping) or not known.environment:
        return None
    names = ("seed", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay")
    chosen = {name: train[name] for name in names if train.get(name) is not None}
    batch, precision = (known.environment.get(name) for name in ("effective_batch", "precision"))
    return f"{_pairs(chosen)}; {batch} conversations or images a step, in {precision}."


def selection(known: Known) -> str | None:
    """Which checkpoint is the model."""
    train = known.recipe.get("train")
    if not isinstance(train, Mapping) or not known.environment:
        return None
    metric = train.get("metric_for_best_model")
    return f"The best checkpoint by {metric}." if metric else "The last checkpoint; none was chosen by a score."


def sources(known: Known) -> str | None:
    """Of what data."""
    data = known.recipe.get("data")
    if not isinstance(data, Mapping):
        return None
    return " ".join(f"{name}: {', '.join(of)}." for name in ("train", "eval") if (of := _sources(data, name))) or None


def preprocessing(known: Known) -> str | None:
    """What is done to images and conversations before the model."""
    data = known.recipe.get("data")
    names = ("image_tokens", "max_tokens", "too_long", "profiles")
    chosen = {name: data[name] for name in names if data.get(name) is not None} if isinstance(data, Mapping) else {}
    return f"{_pairs(chosen)}." if chosen else None


def sampling(known: Known) -> str | None:
    """Which of the data was taken."""
    data = known.recipe.get("data")
    train = data.get("train") if isinstance(data, Mapping) else None
    weights = [spec.get("weight") for spec in train or () if isinstance(spec, Mapping)]
    return f"Weights of the train sources: {', '.join(map(str, weights))}." if any(weights) else None


def left_out(known: Known) -> str | None:
    """What was left out by which rule."""
    if not known.ledger:
        return None
    own = list(known.ledger.items())
    rest = f", and {len(own) - RULES} rarer rules" if len(own) > RULES else ""
    named = ", ".join(f"{rule} {count:,}" for rule, count in own[:RULES])
    return f"{sum(known.ledger.values()):,} rows left out or moved by rule: {named}{rest}."


def partitions(known: Known) -> str | None:
    """How rows were assigned."""
    rows = known.environment.get("rows")
    return f"By the splits of the sources; conversations, or images with texts: {_pairs(rows, ' ')}." if rows else None


def disjoint(known: Known) -> str | None:
    """On which level sets are apart."""
    if "leaking" not in known.environment:
        return None
    leaking, moved = known.environment["leaking"], known.environment.get("moved", 0)
    kept = f"{leaking:,} eval rows that share one were kept all the same" if leaking else "none is shared"
    return (
        f"Groups (patient, lesion or figure) and images: {kept}; {moved:,} rows that shared one were moved or left out."
    )


def balance(known: Known) -> str | None:
    """Whether classes were weighed."""
    data = known.recipe.get("data")
    if not isinstance(data, Mapping) or "balance" not in data:
        return None
    of = data["balance"]
    return f"Values of {of} were made equally frequent in training." if of else "Train rows were taken as they are."


def _pairs(of: Mapping[str, Any], between: str = ": ") -> str:
    return ", ".join(f"{name}{between}{value}" for name, value in of.items())


def _sources(data: Mapping[str, Any], name: str) -> list[str]:
    specs = [spec for spec in data.get(name) or () if isinstance(spec, Mapping) and spec.get("source")]
    return [f"{Path(str(spec['source'])).name} ({spec.get('split', 'split not named')})" for spec in specs]
