"""The model card of a run: its front matter and its text, of nothing but what the run's files and its sources say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from skinvl.data import licences
from skinvl.data.licences import Licence
from skinvl.data.source import source_folder
from skinvl.recipe.recipe import Base
from skinvl.recipe.towers import PretrainRecipe
from skinvl.release.record import Record, Source
from skinvl.release.record import source as read_source
from skinvl.release.vetting import neutral
from skinvl.score import tables, untrained

TASKS = {"answers": "visual-question-answering", "classes": "image-classification", "retrieval": "retrieval"}
_ON_THE_HUB = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/?")
_LEAKS = ("moved-to-train", "left-out-of-eval")


def text(
    record: Record,
    repo: str,
    licence: Licence,
    base: Base | None,
    merge: Mapping[str, Any] | None,
    quantization: Mapping[str, Any] | None,
    rights: Mapping[str, str],
) -> str:
    """The README.md of what is published.

    Args:
        base: where others get the base; None where they cannot.
        merge: what merge.json says, for a merged model; None for what the run itself has made.
        quantization: arguments of BitsAndBytesConfig that the base was trained in.
        rights: what who publishes vouches for.
    """
    data = _front(record, repo, licence, base, merge)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters |= {"plain": plain, "number": tables.number, "code": _code, "neutral": neutral}
    scores = record.scores or {"sets": {}, "untrained": None}
    towers = isinstance(record.recipe, PretrainRecipe)
    body = environment.get_template("card_towers.md.j2" if towers else "card.md.j2").render(
        towers=towers,
        dtypes={"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"},
        whole=merge is not None or record.whole,
        worse=untrained.worse(scores),
        record=record,
        recipe=record.recipe,
        provenance=record.provenance,
        summary=record.summary,
        scores=record.scores,
        tables=tables.markdown(record.scores) if record.scores else "",
        slices=list(_slices(scores)),
        reasons=list(_reasons(scores)),
        leaks={rule: record.ledger[rule] for rule in _LEAKS if record.ledger[rule]},
        left_out={rule: count for rule, count in record.ledger.most_common() if rule not in _LEAKS},
        command=neutral(" ".join(map(_word, record.provenance.command))),
        evaluated=list(
            {source.name: source for name in scores["sets"] if (source := _evaluated(record, name))}.values()
        ),
        repo=repo,
        name=repo.rpartition("/")[2],
        licence=licence,
        base=base,
        merge=merge,
        quantization=quantization,
        rights=rights,
        llama=licences.LLAMA.get(record.base.id or ""),
        loss=(record.path / "loss.png").is_file(),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n"


def licence_text(record: Record, licence: Licence) -> str:
    """The file LICENSE where no licence of the hub's list holds: whose terms the model is under, each by name."""
    lines = [f"{licence.name}: no single licence covers this model. All of these terms hold together.", ""]
    lines.append(f"- the base, {neutral(record.recipe.base.location)}: {record.base.stated} ({record.base.words})")
    for name, terms in record.terms.items():
        lines.append(f"- trained on {name}: {terms.stated} ({terms.words})")
    links = [terms.link for terms in (record.base, *record.terms.values()) if terms.link]
    return "\n".join([*lines, *(f"\nThe licence of the base: {link}" for link in links)]) + "\n"


def plain(words: object) -> str:
    """The words as Markdown shows them literally, on one line; addresses stay addresses."""
    line = " ".join(str(words).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    pieces = re.split(r"(https?://[^\s|]+)", line)
    return "".join(
        piece.replace("|", "%7C") if number % 2 else re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", piece)
        for number, piece in enumerate(pieces)
    )


def _front(
    record: Record, repo: str, licence: Licence, base: Base | None, merge: Mapping[str, Any] | None
) -> ModelCardData:
    datasets = [match[1] for source in record.sources if (match := _ON_THE_HUB.fullmatch(source.address))]
    results = list(_results(record)) if record.scores else []
    whole, towers = merge is not None or record.whole, isinstance(record.recipe, PretrainRecipe)
    extra: dict[str, Any] = {"base_model_relation": "finetune" if whole else "adapter"} if base else {}
    return ModelCardData(
        base_model=base.model if base else None,
        datasets=datasets or None,
        # A file in LLaVA's form may be in any language; all other converters write or read English.
        language=["en"] if all(source.converter != "llava" for source in record.sources) else None,
        library_name="transformers" if whole else "peft",
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        pipeline_tag="zero-shot-image-classification" if towers else "image-text-to-text",
        tags=["dermatology", "medical", "contrastive" if towers else "vision-language"]
        + ([] if whole else ["lora"])
        + ["skinvl"],
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
        **extra,
    )


def _results(record: Record) -> Iterator[EvalResult]:
    """Every number that has an interval. The hub's form has no field for one: it stands in the name and in `args`."""
    assert record.scores is not None
    level = f"{record.scores['level']:.0%} CI"
    for name, block in record.scores["sets"].items():
        source = _evaluated(record, name)
        for what, variant, numbers in _numbers(block):
            for metric, number in numbers.items():
                if number is None or number["value"] is None or number["low"] is None:
                    continue
                yield EvalResult(
                    task_type=TASKS[what],
                    dataset_type=source.name if source else name,
                    dataset_name=source.title if source else name,
                    dataset_config=" ".join(filter(None, (name, variant))),
                    metric_type=metric,
                    metric_value=number["value"],
                    metric_name=f"{metric.replace('_', ' ')} ({level} {number['low']:.3f} to {number['high']:.3f})",
                    metric_args={key: number[key] for key in ("low", "high", "method", "n", "groups", "unscored")},
                )


def _numbers(block: Mapping[str, Any]) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    if "answers" in block:
        yield "answers", None, block["answers"]["metrics"]
    for variant, numbers in block.get("classes", {"variants": {}})["variants"].items():
        yield "classes", variant, numbers
    for direction, numbers in block.get("retrieval", {"directions": {}})["directions"].items():
        yield "retrieval", direction, numbers["numbers"]


def _slices(scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each slice of each set: a row with its worst and its gap, or without where too little is known."""
    for name, block in scores["sets"].items():
        directions = block.get("retrieval", {"directions": {}})["directions"]
        sliced = {name: [block.get("answers", {}), block.get("classes", {})]}
        sliced |= {f"{name}, {direction}": [numbers] for direction, numbers in directions.items()}
        for of_set, parts in sliced.items():
            for field, groups in (
                (field, groups) for part in parts for field, groups in part.get("slices", {}).items()
            ):
                worst = groups["values"][groups["worst"]] if groups["worst"] is not None else None
                yield {"set": of_set, "field": field, "metric": groups["metric"], **groups, "number": worst}


def _reasons(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    for name, block in scores["sets"].items():
        for what in ("answers", "classes"):
            for reason, count in block.get(what, {}).get("reasons", {}).items():
                yield name, reason, count


def _evaluated(record: Record, name: str) -> Source | None:
    """The source of an evaluated set, where it is still there."""
    assert record.scores is not None
    block = record.scores["sets"][name]
    stated = block.get("classes", {}).get("settings", {}).get("source") or name
    known = {Path(spec.source).name: spec.source for spec in (*record.recipe.data.eval, *record.recipe.data.train)}
    location = known.get(Path(stated).name, stated)
    return read_source(location) if (source_folder(location) / "card.json").is_file() else None


def _word(word: str) -> str:
    return f"'{word}'" if re.search(r"[\s{}\[\]*?$&|;<>]", word) else word


def _code(value: object) -> str:
    """The value as Python writes it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
