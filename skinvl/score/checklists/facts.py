"""What the folder of a run knows that a checklist asks for, as sentences; None where it does not know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skinvl.data import table1
from skinvl.data.table1 import Table1
from skinvl.recipe import strict
from skinvl.recipe.files import read_json, read_json_lines
from skinvl.score import samples, tables
from skinvl.score.predictions import PredictionError

AGAIN = "make it again with the verb that wrote it"
NUMBERS = 6  # of a set that a sentence has
RULES = 8  # of a ledger
CONFUSIONS = 3
DESCRIBED = ("sex", "age", "skin_type", "tone", "site", "diagnosis", "malignancy")


@dataclass(frozen=True, slots=True)
class Known:
    """The files of a run, empty where there is none."""

    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    scores: Mapping[str, Any]
    readers: Mapping[str, Any]
    ledger: Mapping[str, int]  # rule → rows that it left out
    rows: Mapping[str, Sequence[Any]]  # set → what was predicted of its rows
    table: Table1 | None  # of these rows by group


def read(run: Path, scores: Mapping[str, Any]) -> Known:
    """What lies in the folder of a run.

    Raises:
        PredictionError, RecipeError: a file cannot be read.
    """
    recipe, ledger = run / "recipe.yaml", run / "ledger.jsonl"
    rules: Counter[str] = Counter()
    if ledger.is_file():
        lines = read_json_lines(ledger, "mend or remove the line", PredictionError, ("rule",), unfinished=True)
        rules.update(str(line["rule"]) for line in lines)
    rows = {each.name: each.rows for each in samples.scored(run / "eval", scores["sets"])}
    return Known(
        strict.read(recipe).data if recipe.is_file() else {},
        _object(run / "env.json"),
        scores,
        _object(run / "readers.json"),
        dict(rules.most_common()),
        rows,
        table1.table(table1.columns(rows), "groups") if any(rows.values()) else None,
    )


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


def unscored(known: Known) -> str | None:
    """What could not be scored."""
    found = []
    for name, what, block in _blocks(known):
        why = ", ".join(f"{reason} {count:,}" for reason, count in (block.get("reasons") or {}).items())
        found.append(f"{name} ({what}): {block['unscored']:,} of {block['rows']:,} rows{f' ({why})' if why else ''}")
    return f"Not scored, counted with the reason: {'; '.join(found)}." if found else None


def acquisition(known: Known) -> str | None:
    """With what images were taken."""
    return _described(known, ("modality", "views", "institution"))


def institutions(known: Known) -> str | None:
    """Where images were taken."""
    return _described(known, ("institution",))


def reference(known: Known) -> str | None:
    """How diagnoses were confirmed."""
    return _described(known, ("confirmed",))


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


def counts(known: Known) -> str | None:
    """Rows and groups of each set."""
    found = [f"{name}: {len(rows):,} rows of {_groups(rows):,} groups" for name, rows in known.rows.items()]
    return f"Evaluated: {'; '.join(found)}." if found else None


def patients(known: Known) -> str | None:
    """Whom the evaluated rows show."""
    return _described(known, DESCRIBED)


def metrics(known: Known) -> str | None:
    """Which numbers there are."""
    found = [f"{name} ({what}): {', '.join(numbers)}" for name, what, numbers in _numbers(known)]
    return f"{'; '.join(found)}." if found else None


def uncertainty(known: Known) -> str | None:
    """What intervals are, and which tests were done."""
    tests = known.scores.get("comparison")
    of = f" Tested against {tests['against']}: McNemar, paired bootstrap, Holm's correction." if tests else ""
    return tables.about(known.scores) + of


def performance(known: Known) -> str | None:
    """The first numbers of each set with their intervals."""
    found = []
    for name, what, numbers in _numbers(known):
        first = [(metric, number) for metric, number in numbers.items() if number.get("value") is not None][:NUMBERS]
        told = ", ".join(f"{metric} {tables.number(number)} (n {number['n']:,})" for metric, number in first)
        found += [f"{name} ({what}): {told}"] if told else []
    return f"{'; '.join(found)}. All of them: scores.md." if found else None


def robustness(known: Known) -> str | None:
    """What was asked beside the questions themselves."""
    words = {"permuted": "with the images permuted", "reversed": "with the images in reverse order"}
    found = [f"{name} {words[what]}" for name, of in known.scores["sets"].items() for what in words if of.get(what)]
    found += [f"{name} over variations of its prompts" for name, _, block in _blocks(known) if block.get("spread")]
    return f"Asked again: {', '.join(found)}." if found else None


def subgroups(known: Known) -> str | None:
    """The worst of each slice."""
    found = []
    for name, _, block in _blocks(known):
        for field, of in (block.get("slices") or {}).items():
            if of["worst"] is not None:
                found.append(
                    f"{name} by {field.replace('_', ' ')}: worst {of['worst']}, gap {tables.number(of['gap'])}"
                )
    return f"{'; '.join(found)}." if found else None


def internal(known: Known) -> str | None:
    """Sets of sources that were trained on."""
    return _by_training(known, trained=True)


def external(known: Known) -> str | None:
    """Sets of sources that were not."""
    return _by_training(known, trained=False)


def failures(known: Known) -> str | None:
    """Which classes are taken for which."""
    found = []
    for name, _, block in _blocks(known):
        matrix = (block.get("confusion") or {}).get(block.get("headline"))
        classes = block.get("classes") or []
        wrong = [(row[said], true, said) for true, row in enumerate(matrix or ()) for said in range(len(classes))
                 if said != true and row[said]]  # fmt: skip
        for count, true, said in sorted(wrong, reverse=True)[:CONFUSIONS]:
            found.append(f"{name}: {classes[true]} taken for {classes[said]} {count:,} times")
    return f"Most often wrong: {'; '.join(found)}. Rows that are furthest off: report.html." if found else None


def raters(known: Known) -> str | None:
    """How far readers of a study say the same."""
    if not known.readers:
        return None
    pairs = [f"{' and '.join(pair['readers'])} {tables.number(pair['kappa'])}" for pair in known.readers["cohen"]]
    all_of = known.readers.get("fleiss")
    told = [*pairs, *([f"all (Fleiss) {tables.number(all_of)}"] if all_of else [])]
    return f"κ of readers who read {known.readers['cases']:,} cases: {'; '.join(told)}." if told else None


def balance(known: Known) -> str | None:
    """Whether classes were weighed."""
    data = known.recipe.get("data")
    if not isinstance(data, Mapping) or "balance" not in data:
        return None
    of = data["balance"]
    return f"Values of {of} were made equally frequent in training." if of else "Train rows were taken as they are."


def output(known: Known) -> str | None:
    """What the model gives."""
    found = []
    for name, what, block in _blocks(known):
        if what == "classes":
            found.append(f"{name}: one of {len(block['classes'])} classes, by {block['headline']}")
        else:
            found.append(f"{name}: an answer in words")
    return f"{'; '.join(found)}." if found else None


def _object(path: Path) -> dict[str, Any]:
    return read_json(path, AGAIN, PredictionError) if path.is_file() else {}


def _pairs(of: Mapping[str, Any], between: str = ": ") -> str:
    return ", ".join(f"{name}{between}{value}" for name, value in of.items())


def _sources(data: Mapping[str, Any], name: str) -> list[str]:
    specs = [spec for spec in data.get(name) or () if isinstance(spec, Mapping) and spec.get("source")]
    return [f"{Path(str(spec['source'])).name} ({spec.get('split', 'split not named')})" for spec in specs]


def _blocks(known: Known) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    for name, of in known.scores["sets"].items():
        for what in ("answers", "classes"):
            if of.get(what):
                yield name, what, of[what]


def _numbers(known: Known) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    for name, what, block in _blocks(known):
        if what == "answers":
            yield name, what, block["metrics"]
        elif block["headline"]:
            yield name, f"{what} by {block['headline']}", block["variants"][block["headline"]]
    for name, of in known.scores["sets"].items():
        for direction, block in (of.get("retrieval") or {"directions": {}})["directions"].items():
            yield name, direction, block["numbers"]


def _described(known: Known, names: Sequence[str]) -> str | None:
    """What Table 1 says of these facts, of all evaluated groups; None where none is known of any."""
    if known.table is None:
        return None
    told = []
    for fact in known.table.facts:
        if fact.name in names:
            spread = fact.spreads[-1] if fact.spreads else None
            values = [f"mean {spread.mean:.1f} years (SD {spread.sd:.1f})"] if spread else []
            values += [f"{line.value} {line.counts[-1]:,}" for line in fact.lines[:12] if line.counts[-1]]
            told.append(f"{fact.name.replace('_', ' ')}: {', '.join(values)}")
    return f"Of {known.table.totals[-1]:,} evaluated groups: {'; '.join(told)}." if told else None


def _groups(rows: Sequence[Any]) -> int:
    return len({(row.source, row.group) for row in rows})


def _by_training(known: Known, trained: bool) -> str | None:
    data = known.recipe.get("data")
    if not isinstance(data, Mapping) or not known.rows:
        return None
    own = {
        Path(str(spec["source"])).name
        for spec in data.get("train") or ()
        if isinstance(spec, Mapping) and spec.get("source")
    }
    found = [name for name, rows in known.rows.items() if rows and trained == all(row.source in own for row in rows)]
    which = "which training used too" if trained else "that training did not use, or not alone"
    more = "" if trained else "; whether these are of other institutions is not known here"
    return f"Sets of sources {which}: {', '.join(found)}{more}." if found else None
