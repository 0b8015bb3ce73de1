"""Metrics of free answers: the references' own numbers, cases by hand, and mistakes that cannot be made any more."""

from __future__ import annotations

import csv
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from skinvl.data.example import Facts, Reference
from skinvl.data.normal import unmarked
from skinvl.score import metrics
from skinvl.score.metrics import MetricError, rouge, words
from skinvl.score.predictions import Answer

ROOT = Path(__file__).parents[2]
SHORT = st.lists(st.sampled_from(["a", "b", "c", "d", ".", ",", "1.5"]), max_size=6)
ALL = ("bleu", "closed_accuracy", "exact_match", "rouge", "tokens")


def row(reference: str, answer: str | None) -> Answer:
    how = "stop" if answer is not None else "refused"
    return Answer("1", "s", "g", (), "What is it?", reference, Facts(), answer, how, "", 3, 0)  # type: ignore[arg-type]


def of(name: str, *pairs: tuple[str, str | None]) -> dict[str, float]:
    """The numbers of a metric over pairs of reference and answer."""
    return metrics.measure([row(*pair) for pair in pairs], [metrics.load(name)])


@pytest.fixture(scope="module")
def real(shared: Path) -> tuple[list[str], list[str]]:
    """1,500 references of MM-Skin, and beside each the reference of another question or most of its own words."""
    with (shared / "mm_skin" / "MM-Skin_test.csv").open(encoding="utf-8") as file:
        references = [line["answer"] for line in csv.DictReader(file)][:1_500]
    draw = random.Random(0)
    others = draw.sample(references, len(references))
    near = [" ".join(word for word in text.split() if draw.random() < 0.8) for text in references]
    return references, [draw.choice(pair) for pair in zip(others, near, strict=True)]


def test_a_metric_is_a_module_of_the_folder() -> None:
    assert {*ALL, "bertscore", "meteor"} <= set(metrics.names())
    with pytest.raises(MetricError, match=r"'blue': no such metric; did you mean bleu\?"):
        metrics.load("blue")
    with pytest.raises(MetricError, match="expected one of bertscore, bleu"):
        metrics.load("quality")
    with pytest.raises(MetricError, match="bleu takes no argument"):
        metrics.load("bleu:2")


def test_every_metric_keeps_the_contract() -> None:
    for name in (*ALL, "delta_bleu"):
        metric = metrics.load(name)
        table = metric.table([row("no", "no"), row("no", "")])
        assert table.shape[0] == 2
        assert metric.value(table.sum(axis=0)).shape == (len(metric.names),)
        many = np.stack([table[0], table[1], table.sum(axis=0), 0 * table[0]])
        values = metric.value(many.reshape(2, 2, -1)).reshape(4, -1)
        np.testing.assert_array_equal(values[2], metric.value(many[2]))
        assert np.isnan(values[3]).all(), name


def test_bleu_is_sacrebleus(real: tuple[list[str], list[str]]) -> None:
    references, answers = real
    found = of("bleu", *zip(references, answers, strict=True))
    for order in range(1, 5):
        theirs = BLEU(max_ngram_order=order).corpus_score(answers, [references]).score / 100
        assert found[f"bleu-{order}"] == pytest.approx(theirs, abs=1e-9)
        assert 0.01 < theirs < 0.99


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(SHORT, SHORT), min_size=1, max_size=4))
def test_bleu_of_short_texts_is_sacrebleus_where_orders_have_no_match(pairs: list[tuple[list[str], list[str]]]) -> None:
    texts = [("x " + " ".join(reference), " ".join(answer)) for reference, answer in pairs]
    found = of("bleu", *texts)
    for order in range(1, 5):
        scorer = BLEU(max_ngram_order=order)
        theirs = scorer.corpus_score([answer for _, answer in texts], [[reference for reference, _ in texts]])
        is_defined = any(len(answer) >= order for _, answer in pairs) or not any(answer for _, answer in pairs)
        expected = theirs.score / 100 if is_defined else math.nan
        assert found[f"bleu-{order}"] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_bleu_by_hand_weighs_orders_equally() -> None:
    found = of("bleu", ("a b c d e", "a b c x e"))
    shares = [4 / 5, 2 / 4, 1 / 3, 0.5 / 2]  # the last by smoothing: half a match
    for order in range(1, 5):
        assert found[f"bleu-{order}"] == pytest.approx(math.prod(shares[:order]) ** (1 / order))
    released = shares[0] ** 0.33 * shares[1] ** 0.33 * shares[2] ** 0.33
    assert abs(found["bleu-3"] - released) > 0.003


def test_rouge_is_rouge_scores(real: tuple[list[str], list[str]]) -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    expected = []
    for reference, answer in zip(*real, strict=True):
        pair = unmarked(reference), unmarked(answer)  # rouge-score cuts words at their accents
        theirs = [score.fmeasure for score in scorer.score(*pair).values()]
        assert rouge.statistics(answer, row(reference, answer))[:3] == pytest.approx(theirs, abs=1e-12)
        expected.append(theirs)
    assert list(of("rouge", *zip(*real, strict=True)).values()) == pytest.approx(np.mean(expected, axis=0))


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_the_longest_common_subsequence(one: str, other: str) -> None:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    assert rouge.longest(one, other) == table[-1][-1]


def test_words_are_compared_without_case_form_and_punctuation() -> None:
    assert words("The  LESION, (flat).") == ("the", "lesion", "flat")
    assert words("Ｎｅｖｕｓ") == words("nevus")
    assert words("Bowen’s disease") == words("bowens disease") == words("Bowen's disease")
    assert words("2.5 cm") != words("25 cm")
    assert words("non-tumor") == words("Non tumor") != words("nontumor")
    assert words("<5 mm") != words(">5 mm")
    assert words("A") == ("a",)
    assert words("naevus\u00admole") == ("naevusmole",)
    assert words("…") == ()


CHINESE = "皮损为色素痣，边界清楚。"


def test_identical_text_of_any_script_has_the_full_score() -> None:
    texts = (CHINESE, "これは母斑です", "ไฝเป็นเนื้องอก", "родинка на коже лица", "यह एक तिल है", "점은 양성 병변 이다")
    for text in texts:
        for name in ("bleu", "rouge", "tokens", "exact_match"):
            numbers = [*of(name, (text, text)).values()]
            assert numbers == pytest.approx([1.0] * len(numbers)), (text, name)


def test_a_letter_is_a_word_where_no_blanks_are() -> None:
    assert words("色素痣 nevus") == ("色", "素", "痣", "nevus")
    assert words("ไฝดี") == ("ไ", "ฝ", "ดี")
    assert words("がん") != words("かん")
    overlap = of("tokens", ("色素痣", "色素"))
    assert overlap == pytest.approx({"token_recall": 2 / 3, "token_precision": 1, "token_f1": 0.8})
    assert of("rouge", ("色素痣", "色素"))["rouge-l"] == pytest.approx(0.8)
    counts = metrics.load("closed_accuracy").counts
    assert [counts(row(text, "")) for text in ("黑色素瘤", "基底细胞癌", CHINESE)] == [True, True, False]


def test_accents_case_and_forms_change_nothing() -> None:
    pairs = ("Behçet’s disease of the knee", "behcet's disease of the knee")
    for name in ("rouge", "tokens", "exact_match"):
        assert {*of(name, pairs).values()} == {1.0}, name
    of_bleu = of("bleu", ("Ménière and nævus, ﬁrst", "Meniere and naevus, first"))
    assert [*of_bleu.values()] == pytest.approx([1.0] * 4)
    assert words("≠5") != words("=5")


def test_tokens_by_hand() -> None:
    found = of("tokens", ("a raised red lesion", "Raised, red, red nodule."))
    assert found == pytest.approx({"token_recall": 2 / 4, "token_precision": 2 / 4, "token_f1": 0.5})
    uneven = of("tokens", ("no", "No, it is not."))
    assert uneven == pytest.approx({"token_recall": 1, "token_precision": 1 / 4, "token_f1": 0.4})
    both = of("tokens", ("no", "no"), ("yes", "no"))
    assert both == pytest.approx({"token_recall": 0.5, "token_precision": 0.5, "token_f1": 0.5})


def test_recall_is_not_that_of_raw_tokens_between_spaces() -> None:
    reference, answer = "It is a nevus.", "A Nevus, it is"
    raw = len(set(reference.split()) & set(answer.split())) / len(set(reference.split()))
    assert raw == 0.25
    assert of("tokens", (reference, answer))["token_recall"] == 1.0


def test_a_word_counts_as_often_as_the_reference_has_it() -> None:
    assert of("tokens", ("red and red", "red and"))["token_recall"] == pytest.approx(2 / 3)
    assert of("tokens", ("red and red", "red red and"))["token_recall"] == 1.0
    assert of("tokens", ("red", "red red red"))["token_precision"] == pytest.approx(1 / 3)


def test_exact_match_and_closed_accuracy() -> None:
    pairs = [("Left arm", "left arm."), ("no", "No, it is not"), ("on the left arm", "on the left arm"), ("B", "b")]
    assert of("exact_match", *pairs)["exact_match"] == 3 / 4
    assert of("closed_accuracy", *pairs)["closed_accuracy"] == 2 / 3
    counts = metrics.load("closed_accuracy").counts
    assert [counts(row(text, "")) for text in ("a", "a b-c", "a b c d", "!")] == [True, True, False, False]


def test_an_answer_is_not_scored_by_its_first_character() -> None:
    assert of("closed_accuracy", ("T", "The answer is B"))["closed_accuracy"] == 0.0


def test_an_empty_answer_is_an_answer_and_scores_zero() -> None:
    for name in ALL:
        assert set(of(name, ("no", "")).values()) == {0.0}, name
        assert set(of(name, ("no", "  \n")).values()) == {0.0}, name
        halved = of(name, ("no", ""), ("no", "no"))
        assert name == "bleu" or set(halved.values()) <= {0.5, 0.0}, (name, halved)


def test_what_is_not_defined_is_no_number() -> None:
    pairs = ("no", "no"), ("yes", "no")
    nan = pytest.approx(math.nan, nan_ok=True)
    assert of("bleu", *pairs) == {"bleu-1": 0.5, "bleu-2": nan, "bleu-3": nan, "bleu-4": nan}
    assert of("rouge", *pairs) == {"rouge-1": 0.5, "rouge-2": nan, "rouge-l": 0.5}
    # One answer of more words, right or wrong, defines what it has words for.
    assert not math.isnan(of("bleu", *pairs, ("it is", "it was"))["bleu-2"])
    assert of("rouge", *pairs, ("it is", "it is"))["rouge-2"] == pytest.approx(1 / 3)
    assert of("rouge", ("+", "+")) == {"rouge-1": nan, "rouge-2": nan, "rouge-l": nan}  # rouge-score knows no signs


def test_what_was_not_answered_has_no_number() -> None:
    for name in ALL:
        assert all(math.isnan(value) for value in of(name, ("no", None)).values()), name
        assert of(name, ("no", None), ("yes", "yes")) == pytest.approx(of(name, ("yes", "yes")), nan_ok=True)


def test_meteor_says_how_to_get_wordnet(tmp_path: Path) -> None:
    done = meteor(tmp_path)
    assert done.returncode == 1
    assert "MetricError: evaluate.metrics: meteor needs WordNet" in done.stderr
    assert "python -m nltk.downloader wordnet" in done.stderr


def test_meteor_by_hand_with_a_synonym(tmp_path: Path) -> None:
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for name in ("adj", "adv", "noun", "verb"):
        (folder / f"{name}.exc").write_text("")
        (folder / f"index.{name}").write_text("")
        (folder / f"data.{name}").write_text("  1 WordNet 3.0 Copyright\n")
    (folder / "index.sense").write_text("mole%1:03:00:: 00000026 1 0\nspot%1:03:00:: 00000026 1 0\n")
    (folder / "lexnames").write_text("\n".join(f"{number:02d}\tnoun.{number}\t1" for number in range(45)))
    head = "  1 WordNet 3.0 Copyright\n"
    (folder / "data.noun").write_text(head + f"{len(head):08d} 03 n 02 mole 0 spot 0 000 | a mark  \n")
    index = "{} n 1 0 1 0 " + f"{len(head):08d}  \n"
    (folder / "index.noun").write_text(index.format("mole") + index.format("spot"))
    done = meteor(tmp_path)
    assert done.returncode == 0, done.stderr
    matched, wanted, said, chunks = 3, 3, 4, 2  # "mole" matches "spot" through WordNet, after a word too many
    precision, recall = matched / said, matched / wanted
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    expected = mean * (1 - 0.5 * (chunks / matched) ** 3)
    assert float(done.stdout) == pytest.approx(expected)


def meteor(data: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import nltk; nltk.data.path[:] = [%r]\n"
        "from skinvl.score.predictions import Answer\nfrom skinvl.data.example import Facts, Reference\n"
        "from skinvl.score.metrics import load\n"
        "right = Reference('It is spot'), Reference('none of these', 0.5), Reference('it is a mole', -1.0)\n"
        "row = Answer('1', 's', 'g', (), '?', 'It is spot', Facts(), 'it is a mole', 'stop', '', 1, 0, right)\n"
        "print(load('meteor').table([row])[0, 0])"
    )
    return subprocess.run([sys.executable, "-c", code % str(data)], cwd=ROOT, capture_output=True, text=True)


def test_bertscore_downloads_nothing_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [row("no", "no")]
    with pytest.raises(MetricError, match="bertscore needs a model; write bertscore:MODEL"):
        metrics.load("bertscore").table(some)
    with pytest.raises(MetricError, match=r"score downloads nothing: get it with `hf download nobody/nothing`"):
        metrics.load("bertscore:nobody/nothing").table(some)
    asked: list[dict[str, object]] = []

    def download(model: str, **how: object) -> str:
        asked.append(how)
        raise LocalEntryNotFoundError(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(MetricError, match="score downloads nothing"):
        metrics.load("bertscore:nobody/nothing").table(some)
    assert asked == [{"local_files_only": True}]
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(MetricError, match=r"needs the package bert-score .*`pip install 'skinvl\[bertscore\]'"):
        metrics.load("bertscore:nobody/nothing").table(some)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tiny BERT with random weights and a vocabulary of whole words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "raised", "flat", "lesion", "nevus"]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder)
    return folder


def test_bertscore_is_the_packages_own(bert: Path) -> None:
    import bert_score

    pairs = [("a red lesion", "a raised red nevus"), ("nevus", "lesion"), ("a flat lesion", "a flat lesion")]
    scores = bert_score.score(
        [answer for _, answer in pairs],
        [reference for reference, _ in pairs],
        model_type=str(bert),
        num_layers=2,
        use_fast_tokenizer=True,
    )
    metric = metrics.load(f"bertscore:{bert}")
    table = metric.table([row(*pair) for pair in pairs])
    for column, theirs in enumerate(scores):
        assert table[:, column] == pytest.approx(theirs.numpy())
    assert table[2, :3] == pytest.approx([1, 1, 1], abs=1e-5)
    assert metric.value(table.sum(axis=0)) == pytest.approx([float(one.mean()) for one in scores])
    assert metric.table([row("no", ""), row("no", " ")])[:, :3].max() == 0.0


def test_bertscore_of_several_references_is_the_packages_own(bert: Path) -> None:
    import bert_score

    first, others = "a red lesion", ["a raised red nevus", "a flat lesion"]
    right = tuple(map(Reference, [first, *others]))
    several = replace(row(first, "a flat red lesion"), references=(*right, Reference("a flat red lesion", -1.0)))
    options = {"model_type": str(bert), "num_layers": 2, "use_fast_tokenizer": True}
    scores = bert_score.score([several.answer], [[first, *others]], **options)
    table = metrics.load(f"bertscore:{bert}").table([several, row(first, "a flat red lesion")])
    assert table[0, :3] == pytest.approx([float(score[0]) for score in scores], abs=1e-6)
    assert (table[0, :3] > table[1, :3]).any()
    assert (table[0, :3] < 1 - 1e-4).all()  # the wrong one, which it repeats, is none


def test_bertscore_does_not_take_a_path_for_a_t5(bert: Path) -> None:
    moved = bert.with_name("checkpoint5")
    bert.rename(moved)
    with pytest.raises(MetricError, match="with t5 in it for a T5"):
        metrics.load(f"bertscore:{moved}").table([row("no", "no")])


def test_the_folder_loads_no_torch() -> None:
    code = (
        "import sys\nfrom skinvl.score import metrics\nfor name in metrics.names(): metrics.load(name)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
