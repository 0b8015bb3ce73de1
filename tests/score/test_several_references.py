"""Several references: the best of those that are right, each metric's own way, and deltaBLEU by their weights."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from skinvl.data.example import Facts, Reference
from skinvl.data.workers import Workers
from skinvl.score import answers, compare, metrics
from skinvl.score.compare import CompareError, Resampling
from skinvl.score.metrics import rouge, tokens
from skinvl.score.predictions import Answer

ROWWISE = ("bleu", "closed_accuracy", "exact_match", "multiple_choice", "rouge", "tokens")
SAID = ["a red scaly patch on the arm", "use a steroid cream twice a day", "no idea , see a doctor"]
REFERENCES = [
    [("a scaly red patch", 1.0), ("this is a red scaly patch of the arm", 0.5), ("a red scaly patch on the leg", -0.5)],
    [("use the cream", 0.7), ("a steroid cream once a day", 1.0)],
    [("see a doctor soon please", 1.0), ("no idea at all", -1.0)],
]


def row(said: str | None, references: list[tuple[str, float]], question: str = "What is it?", id: str = "1") -> Answer:
    several = tuple(Reference(*reference) for reference in references) if len(references) > 1 else ()
    how = "stop" if said is not None else "refused"
    return Answer(id, "s", id, (), question, references[0][0], Facts(), said, how, "", 3, 0, several)  # type: ignore[arg-type]


ROWS = [row(*pair, id=str(number)) for number, pair in enumerate(zip(SAID, REFERENCES, strict=True))]


def of(name: str, *rows: Answer) -> dict[str, float]:
    return metrics.measure(rows, [metrics.load(name)])


def test_what_weighs_nothing_is_not_right() -> None:
    both = row("leg", [("arm", 1.0), ("leg", 0.0)])
    for name in ("exact_match", "closed_accuracy"):
        assert [*of(name, both).values()] == [0.0]
        assert [*of(name, replace(both, answer="arm")).values()] == [1.0]
        assert [*of(name, row("leg", [("arm", 1.0), ("leg", 0.1)])).values()] == [1.0]
    assert of("tokens", both) == dict.fromkeys(tokens.NAMES, 0.0)


def test_a_reference_without_words_is_matched_by_no_empty_answer() -> None:
    assert of("exact_match", row("", [("arm", 1.0), ("…", 1.0)])) == {"exact_match": 0.0}
    assert of("exact_match", row("leg", [("…", 1.0), ("leg", 1.0)])) == {"exact_match": 1.0}  # and it is scored


def test_tokens_take_the_best_of_each_number() -> None:
    long, short = ("a red patch of the arm", 1.0), ("red", 0.5)
    together, first, second = (of("tokens", row("a red arm", each)) for each in ([long, short], [long], [short]))
    assert together == {name: max(first[name], second[name]) for name in tokens.NAMES}
    assert together["token_recall"] == second["token_recall"] > first["token_recall"]
    assert together["token_precision"] == first["token_precision"] > second["token_precision"]


def test_rouge_is_rouge_scores_over_several_references() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for each, references in zip(ROWS, REFERENCES, strict=True):
        right = [text for text, weight in references if weight > 0]
        theirs = [score.fmeasure for score in scorer.score_multi(right, each.answer).values()]
        assert rouge.statistics(each.answer or "", each)[:3] == pytest.approx(theirs)


def test_bleu_is_sacrebleus_over_several_references() -> None:
    right = [[text for text, weight in references if weight > 0] for references in REFERENCES]
    streams = [[texts[number] if number < len(texts) else None for texts in right] for number in range(2)]
    numbers = of("bleu", *ROWS)
    for order in range(1, 5):
        theirs = BLEU(max_ngram_order=order).corpus_score(SAID, streams).score / 100
        assert numbers[f"bleu-{order}"] == pytest.approx(theirs, abs=1e-9)
        assert 0.2 < theirs < 0.9
    first = of("bleu", *(replace(each, references=()) for each in ROWS))
    assert numbers["bleu-1"] > first["bleu-1"]


def test_closed_questions_have_short_references_alone() -> None:
    counts = metrics.load("closed_accuracy").counts
    assert counts(row("", [("arm", 1.0), ("left arm", 1.0)]))
    assert counts(row("", [("arm", 1.0), ("it is on the left arm", -1.0)]))
    assert not counts(row("", [("arm", 1.0), ("it is on the left arm", 1.0)]))


def test_any_right_option_of_multiple_choice_is_right() -> None:
    question = "Which is it?\nA. Nevus\nB. Scar\nC. Melanoma"
    references = [("A. Nevus", 1.0), ("B. Scar", 0.5), ("C. Melanoma", -1.0)]
    said = [of("multiple_choice", row(letter, references, question))["multiple_choice"] for letter in "ABC"]
    assert said == [1.0, 1.0, 0.0]


def test_one_reference_gives_the_numbers_of_before() -> None:
    """By what these metrics computed of answer and reference before there were several."""
    plain = [replace(each, references=()) for each in ROWS]
    alone = [replace(each, references=(Reference(each.reference),)) for each in ROWS]
    for name in (*ROWWISE, "delta_bleu"):
        assert of(name, *alone) == pytest.approx(of(name, *plain), abs=0, nan_ok=True), name
    assert [*of("delta_bleu", *plain).values()] == [*of("bleu", *plain).values()]
    for each in plain:
        score = BLEU(max_ngram_order=4, effective_order=True).sentence_score(each.answer or "", [each.reference])
        before = [score.sys_len, score.ref_len, *score.counts, *score.totals]
        assert [*metrics.load("bleu").table([each])[0]] == before


def delta_bleu(said: list[str], references: list[list[tuple[str, float]]], order: int) -> float:
    """Equation 2 of Galley et al. 2015 word for word, over texts whose tokens are their words, without smoothing."""
    logs = 0.0
    for n in range(1, order + 1):
        above = below = 0.0
        for answer, texts in zip(said, references, strict=True):
            grams = [tuple(answer.split()[start : start + n]) for start in range(len(answer.split()) - n + 1)]
            for gram in {*grams}:
                of_answer = sum(gram == other for other in grams)
                candidates = []
                for text, weight in texts:
                    split = text.split()
                    times = sum(gram == tuple(split[start : start + n]) for start in range(len(split) - n + 1))
                    if times:
                        candidates.append(weight * min(of_answer, times))
                above += max(candidates) if candidates else 0.0
                below += max(weight for _, weight in texts) * of_answer
        logs += math.log(above / below) / order
    eta = sum(len(answer.split()) for answer in said)
    rho = 0
    for answer, texts in zip(said, references, strict=True):
        rho += min((abs(len(text.split()) - len(answer.split())), len(text.split())) for text, _ in texts)[1]
    return min(1.0, math.exp(1 - rho / eta)) * math.exp(logs)


def test_delta_bleu_is_the_formula() -> None:
    numbers = of("delta_bleu", *ROWS)
    for order in range(1, 4):
        assert numbers[f"delta_bleu-{order}"] == pytest.approx(delta_bleu(SAID, REFERENCES, order), abs=1e-12)
    assert 0.2 < numbers["delta_bleu-3"] < of("bleu", *ROWS)["bleu-3"]


def test_delta_bleu_takes_what_a_reference_makes_of_an_ngram_not_its_weight_alone() -> None:
    """One "red" for certain is worth less than three of a reference that weighs half."""
    references = [[("red patch", 1.0), ("red red red", 0.5)]]
    assert delta_bleu(["red red red"], references, 1) == pytest.approx(0.5)
    assert of("delta_bleu", row("red red red", references[0]))["delta_bleu-1"] == pytest.approx(0.5)
    # Once in each, the greater weight counts.
    assert of("delta_bleu", row("red", references[0]))["delta_bleu-1"] == pytest.approx(math.exp(1 - 2))


def test_delta_bleu_counts_what_only_wrong_answers_say_against_it() -> None:
    right = row("a flat lesion", [("a flat lesion", 1.0), ("a raised lesion", -1.0)])
    wrong = replace(right, answer="a raised lesion")
    assert of("delta_bleu", right)["delta_bleu-1"] == 1.0
    assert of("delta_bleu", wrong)["delta_bleu-1"] == pytest.approx((1 - 1 + 1) / 3)
    alone = replace(wrong, answer="raised raised raised")
    assert of("delta_bleu", alone)["delta_bleu-1"] == 0.0  # less than nothing matched
    assert of("delta_bleu", right, alone)["delta_bleu-1"] == pytest.approx((3 - 1) / 6)  # sums go over the corpus


def test_delta_bleu_of_equal_weights_is_bleu() -> None:
    equal = [replace(each, references=tuple(Reference(r.text, 1.0) for r in each.references)) for each in ROWS]
    assert [*of("delta_bleu", *equal).values()] == pytest.approx([*of("bleu", *equal).values()], abs=1e-12)
    halved = [replace(each, references=tuple(Reference(r.text, 0.5) for r in each.references)) for each in ROWS]
    assert [*of("delta_bleu", *halved).values()] == pytest.approx([*of("bleu", *equal).values()], abs=1e-12)


def test_statistics_are_sums() -> None:
    for name in (*ROWWISE, "delta_bleu"):
        metric = metrics.load(name)
        counted = [each for each in ROWS if metric.counts(each)]
        if counted:
            whole = metric.table(counted)
            assert metric.table([counted[0]])[0] == pytest.approx(whole[0])
            assert [*of(name, *ROWS).values()] == pytest.approx([*metric.value(whole.sum(axis=0))], nan_ok=True)


def test_the_commonest_answer_is_right_where_any_reference_is_it() -> None:
    rows = [row("x", [("arm", 1.0)], id=str(number)) for number in range(3)]
    rows += [row("x", [("leg", 1.0), ("arm", 0.5)], id="3"), row("x", [("leg", 1.0)], id="4")]
    measured = answers.measure(rows, [metrics.load("closed_accuracy")], Workers(1))
    block = answers.block(measured, {}, answers.bootstrap(rows, 100, 0))
    assert block["majority"]["value"] == pytest.approx(4 / 5)


def test_runs_whose_references_differ_are_not_compared() -> None:
    bare = [replace(each, references=()) for each in ROWS]
    ours, theirs = (answers.measure(rows, [metrics.load("tokens")], Workers(1)) for rows in (ROWS, bare))
    with pytest.raises(CompareError, match="3 of 3 rows have another set of right answers"):
        compare.free("s", ours, theirs, Resampling(100, 0))
    assert compare.free("s", ours, ours, Resampling(100, 0))


def test_words_are_counted_once_for_every_reference() -> None:
    assert Counter(metrics.right_answers(ROWS[0])) == Counter(["a scaly red patch", REFERENCES[0][1][0]])
