"""Every question of an eval set is answered once: after kills, by several ranks, with images that cannot be read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import runs, sources, tiny
from skinvl.data import example
from skinvl.data.example import Example, Facts, Reference, text
from skinvl.data.mixture import Row
from skinvl.evaluate import engine, generate
from skinvl.evaluate.engine import Question, Transformers
from skinvl.model.adapter import AdapterError
from skinvl.recipe import recipe, run
from skinvl.recipe.recipe import Recipe, RecipeError
from skinvl.score import metrics, predictions, report, score
from skinvl.score.predictions import Answer, PredictionError, PredictionJournal
from skinvl.train import sft, trainer

ROOT = Path(__file__).parents[2]
FEW = {"evaluate__generation": {"max_new_tokens": 8}, "evaluate__batch_size": 4}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(tmp_path: Path, family: str = "qwen2_vl", **changes: Any) -> Recipe:
    return runs.make(tmp_path, family, **{**FEW, **changes})


def answers(out: Path, folder: str = "answers") -> list[Answer]:
    return predictions.read(out / "eval" / folder / "drawn.jsonl", Answer)[1]


def add(source: Path, *more: Example) -> None:
    """The test split with more conversations at its end."""
    example.write(source, "test", [*example.read(source, "test"), *more])
    sources.fingerprint(source, alike=False)


def test_what_an_example_says_of_its_answer_goes_with_its_last_question_alone() -> None:
    turns = (
        text("user", "What is shown?", 1),
        text("assistant", "Eczema."),
        text("user", "Where?", 1),
        text("assistant", "The back."),
    )
    several = (Reference("The back."), Reference("Its upper part.", 0.5, "md1"))
    plain = Example("1", "s", ("a.png", "b.png"), turns, "g", "test", "CC0-1.0")
    whole = replace(
        plain,
        facts=Facts(views=("clinical", "dermoscopic")),
        references=several,
        options=("face", "back"),
        right=(1,),
        schema="{}",
        thoughts=("Hm.", None),
    )
    first, last = engine.questions(Row(whole, Path("/folder")))
    assert last.row.example == whole
    beside = first.row.example
    assert (beside.references, beside.options, beside.right, beside.schema) == ((), (), (), None)
    assert (beside.thoughts, beside.facts.views) == (("Hm.",), ("clinical",))
    row = engine.answer(last, "Back", "stop", thought="So.")
    assert (row.references, row.options, row.right, row.schema) == (several, ("face", "back"), (1,), "{}")
    assert (row.thought, row.answer) == ("So.", "Back")
    assert engine.answer(first, None, "refused", "why").references == ()


def test_questions_about_several_images_are_asked_with_each_turn_reversed() -> None:
    turns = (
        text("user", "What is shown?", 2),
        text("assistant", "Eczema."),
        text("user", "And in these two?", 3),
        text("assistant", "The same."),
    )
    images, views = tuple(f"{letter}.png" for letter in "abcde"), ("clinical", "dermoscopic", "wide", "near", "far")
    whole = Row(Example("1", "s", images, turns, "g", "test", "CC0-1.0", Facts(views=views)), Path("/folder"))
    alone = replace(whole, example=replace(whole.example, messages=(text("user", "What?", 1), turns[1]), images=("a",)))
    asked = [*engine.questions(whole), *engine.questions(alone)]
    turned, placed = generate.reordered(asked)
    assert placed == 0
    assert [question.key for question in turned] == ["s/1", "s/1#2"]  # one image has no order
    assert [question.row.example.images for question in turned] == [
        ("b.png", "a.png"),
        ("b.png", "a.png", "e.png", "d.png", "c.png"),
    ]
    assert turned[1].row.example.facts.views == ("dermoscopic", "clinical", "far", "near", "wide")
    # Where the question or its answer means an image by its place, another order has another answer.
    for words, placed in (
        ("Which is larger, the first or the other?", 1),
        ("What does image 2 show?", 1),
        ("And photo B?", 1),
        ("When did you first notice it?", 0),
    ):
        placing = replace(whole.example, messages=(text("user", words, 2), turns[1]), images=images[:2])
        turned, left_out = generate.reordered(list(engine.questions(Row(placing, Path()))))
        assert (len(turned), left_out) == (1 - placed, placed)


def test_another_order_has_predictions_of_its_own_and_its_difference_an_interval(tmp_path: Path) -> None:
    one = made(tmp_path, evaluate__image_order="reversed", evaluate__control_rows=0, evaluate__metrics=["tokens"])
    source = tmp_path / "drawn"
    tests = example.read(source, "test")
    pairs = [
        replace(
            row,
            id=f"pair-{row.id}",
            images=(row.images[0], tests[(number + 3) % len(tests)].images[0]),
            messages=(text("user", example.words(row.messages[0]), 2), row.messages[1]),
        )
        for number, row in enumerate(tests[:4])
    ]
    add(source, *pairs)
    generate.generate_sets(one, tmp_path / "out")
    given = {row.id: row for row in answers(tmp_path / "out")}
    turned = answers(tmp_path / "out", "reversed")
    assert [row.id for row in turned] == [pair.id for pair in pairs]
    assert all(row.images == given[row.id].images[::-1] for row in turned)
    assert [row.reference for row in turned] == [given[row.id].reference for row in turned]
    (tmp_path / "out" / "recipe.yaml").write_text(recipe.dump(one))
    assert score.main([str(tmp_path / "out"), "--workers", "1", "--resamples", "100"]) == 0
    block = json.loads((tmp_path / "out" / "scores.json").read_text())["sets"]["drawn"]["reversed"]
    assert block["rows"] == block["metrics"]["token_f1"]["difference"]["n"] == len(pairs)
    same = sum(metrics.words(row.answer or "") == metrics.words(given[row.id].answer or "") for row in turned)
    assert block["same"]["value"] == pytest.approx(same / len(pairs))
    numbers = block["metrics"]["token_f1"]
    assert numbers["difference"]["value"] == pytest.approx(numbers["reversed"]["value"] - numbers["given"]["value"])
    assert "images reversed" in (tmp_path / "out" / "scores.md").read_text()
    assert report.main([str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "4 questions about several images, asked again" in page
    assert "every metric, images in either order" in page


@pytest.mark.parametrize("family", ["mllama", "qwen3_vl", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_every_question_is_answered_in_the_order_of_its_set(tmp_path: Path, family: str) -> None:
    one = made(tmp_path, family)
    first = example.read(tmp_path / "drawn", "test")[0]
    turns = (*first.messages, text("user", "And which site?"), text("assistant", "The back."))
    add(
        tmp_path / "drawn",
        replace(first, id="twice", messages=turns),
        replace(
            first, id="words", images=(), messages=(text("user", "What is a mole?"), text("assistant", "A nevus."))
        ),
    )
    generate.generate_sets(one, tmp_path / "out")
    found = answers(tmp_path / "out")
    asked = example.read(tmp_path / "drawn", "test")
    assert [row.id for row in found] == [*[one.id for one in asked[:-2]], "twice", "twice#2", "words"]
    assert found[0].question == "What is the colour?"
    assert found[0].reference == example.words(asked[0].messages[-1])
    assert [row.reference for row in found[-3:]] == [found[0].reference, "The back.", "A nevus."]
    assert found[-3].answer == found[0].answer  # the same question, whatever comes after it
    assert all(Path(row.images[0]).is_file() for row in found[:-1])
    assert found[-1].images == ()
    assert {row.finish_reason for row in found} <= {"stop", "length"}
    assert all(row.tokens <= 8 and row.answer is not None and row.seed == 0 for row in found)
    control = answers(tmp_path / "out", "permuted")
    own = {row.id: row for row in found}
    assert {row.id for row in control} == {row.id for row in found[:-1]}  # without an image there is none to permute
    assert all(row.images != own[row.id].images and row.reference == own[row.id].reference for row in control)
    settings = json.loads((tmp_path / "out" / "eval" / "answers" / "drawn.json").read_text())
    assert settings["generation"]["do_sample"] is False
    assert settings["base"]["model_type"] == family
    assert settings["adapter"] is None


class Cut(Exception):
    """Raised in place of a kill."""


def test_what_was_stopped_goes_on_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(tmp_path)
    generate.generate_sets(one, tmp_path / "whole")
    whole = (tmp_path / "whole" / "eval" / "answers" / "drawn.jsonl").read_bytes()
    asked = 0

    def stopping(self: Transformers, blocks: Any) -> Iterator[list[Answer]]:
        nonlocal asked
        for block in blocks:
            if asked >= 4:
                raise Cut
            asked += len(block)
            yield from _answers(self, [block])

    _answers = Transformers.answers
    with monkeypatch.context() as patched:
        patched.setattr(Transformers, "answers", stopping)
        with pytest.raises(Cut):
            generate.generate_sets(one, tmp_path / "cut")
    folder = tmp_path / "cut" / "eval" / "answers"
    part = folder / ".drawn.rank0.jsonl"
    assert len(part.read_bytes().splitlines()) == 4
    with part.open("ab") as file:  # as a kill in the middle of a line leaves it
        file.write(b'{"id": "test-2')
    (folder / ".drawn.rank1.jsonl").write_bytes(part.read_bytes().splitlines(keepends=True)[0])  # of a second rank
    told = []

    def counting(self: Transformers, blocks: Any) -> Iterator[list[Answer]]:
        told.extend(question.key for block in blocks for question in block)
        yield from _answers(self, blocks)

    monkeypatch.setattr(Transformers, "answers", counting)
    generate.generate_sets(one, tmp_path / "cut")
    assert (folder / "drawn.jsonl").read_bytes() == whole
    assert len(told[:5]) == len(set(told[:5])) == 5
    assert not list(folder.glob(".*"))
    told.clear()
    generate.generate_sets(one, tmp_path / "cut")
    assert told == []  # nothing is asked twice
    assert (folder / "drawn.jsonl").read_bytes() == whole


def test_answers_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    one = made(tmp_path)
    generate.generate_sets(one, tmp_path / "out")
    other = one.model_copy(
        update={"evaluate": one.evaluate.model_copy(update={"generation": recipe.Generation(max_new_tokens=9)})}
    )
    with pytest.raises(PredictionError, match=r"generation differ .*\"max_new_tokens\": 8.* and is .*remove"):
        generate.generate_sets(other, tmp_path / "out")


def test_what_cannot_be_asked_is_refused_by_name_and_nothing_else(tmp_path: Path) -> None:
    one = made(tmp_path)
    source = tmp_path / "drawn"
    first = example.read(source, "test")[0]
    add(source, replace(first, id="control", messages=(text("user", "<|im_end|>?", 1), first.messages[1])))
    cut, gone = source / "images" / "test-1.png", source / "images" / "test-2.png"
    cut.write_bytes(cut.read_bytes()[:-200])  # its header is whole
    gone.unlink()
    generate.generate_sets(one, tmp_path / "out")
    found = answers(tmp_path / "out")
    assert len(found) == 10
    why = {row.id: row.detail.partition(":")[0] for row in found if row.finish_reason == "refused"}
    assert why == {
        **{f"test-1-{number}": "unreadable-image" for number in range(3)},
        **{f"test-2-{number}": "missing-image" for number in range(3)},
        "control": "control-token",
    }
    assert all(row.answer is None for row in found if row.id in why)
    assert all(row.answer is not None for row in found if row.id not in why)


def test_what_is_drawn_is_the_same_again_and_in_other_batches(tmp_path: Path) -> None:
    drawing = {"max_new_tokens": 8, "do_sample": True, "temperature": 2.0, "seed": 3}
    said = []
    for name, size in (("a", 4), ("b", 9)):
        one = made(tmp_path, evaluate__generation=drawing, evaluate__batch_size=size)
        generate.generate_sets(one, tmp_path / name)
        said.append([(row.answer, row.seed) for row in answers(tmp_path / name)])
    assert said[0] == said[1]
    assert len({seed for _, seed in said[0]}) == 9
    other = made(tmp_path, evaluate__generation={**drawing, "seed": 4})
    generate.generate_sets(other, tmp_path / "c")
    assert [(row.answer, row.seed) for row in answers(tmp_path / "c")] != said[0]


def test_settings_that_change_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.generation.*change nothing in greedy decoding"):
        made(tmp_path, evaluate__generation={"temperature": 0.2})
    with pytest.raises(RecipeError, match=r"evaluate\.during: the training evaluates nothing"):
        made(tmp_path, evaluate__during=4)


def trained(tmp_path: Path, **changes: Any) -> Path:
    one = made(tmp_path, **changes)
    sft.train(one)
    return run.folder(one)


def test_a_run_is_asked_with_its_own_adapter_and_template(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny.base("qwen2_vl"), base)
    path = trained(tmp_path, base=str(base))
    one, out = run.evaluated(str(path), ["evaluate.batch_size=3"])
    assert out == path
    assert one.init_adapter == str(path / "adapter")
    assert one.evaluate.batch_size == 3
    generate.generate_sets(one, out)
    first = answers(path)
    (alone, folder) = run.evaluated("small.yaml", [])
    assert folder == path.with_name(f"{path.name}--untrained")
    generate.generate_sets(alone, folder)
    assert [row.answer for row in answers(folder)] != [row.answer for row in first]
    again, same = run.evaluated(str(folder), [])  # by its folder as well
    assert same == folder
    assert again.init_adapter is None
    # The base's template changes after training, as a hub's may: the run keeps what it was trained with.
    template = base / "chat_template.jinja"
    template.write_text("{{- 'Speak like a pirate.' -}}\n" + template.read_text())
    shutil.rmtree(path / "eval")
    generate.generate_sets(one, out)
    assert [row.answer for row in answers(path)] == [row.answer for row in first]
    with pytest.raises(PredictionError, match="template"):  # and answers of the base by another are not mixed in
        generate.generate_sets(alone, folder)


def test_how_a_run_was_trained_cannot_be_changed_when_it_is_asked(tmp_path: Path) -> None:
    path = trained(tmp_path)
    for override in ("lora.r=2", "data.image_tokens=4", "base=other", "train.bf16=true"):
        with pytest.raises(run.RunError, match=r"was trained otherwise, and is evaluated as it was"):
            run.evaluated(str(path), [override])
    weights = path / "adapter" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    kept = {key: value for key, value in load_file(weights).items() if "merger" not in key}
    save_file(kept, weights)
    with pytest.raises(AdapterError, match=r"6 of 62 trained weights are not in the adapter \(first: .*merger"):
        generate.generate_sets(*run.evaluated(str(path), []))
    shutil.rmtree(path / "adapter")
    with pytest.raises(run.RunError, match="no adapter yet"):
        run.evaluated(str(path), [])
    with pytest.raises(run.RunError, match="a training lies there"):
        run.evaluated("small.yaml", [f"run={path.name}"])
    with pytest.raises(run.RunError, match=r"no run, it has no recipe\.yaml"):
        run.evaluated(str(tmp_path / "drawn"), [])


def test_a_run_without_an_eval_set_says_what_to_do(tmp_path: Path) -> None:
    one = made(tmp_path)
    with pytest.raises(generate.GenerateError, match=r"data\.eval: names no source"):
        generate.generate_sets(
            one.model_copy(update={"data": one.data.model_copy(update={"eval": []})}), tmp_path / "out"
        )


def test_metrics_of_answers_are_logged_while_training_and_choose_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[set[str]] = []

    def measuring(rows: list[Answer], chosen: Any) -> dict[str, float]:
        scored.append({row.id for row in rows})
        return metrics.measure(rows, chosen)

    monkeypatch.setattr(trainer, "measure", measuring)
    settings = {
        "evaluate__during": 5,
        "evaluate__metrics": ["tokens", "closed_accuracy"],
        "train__eval_strategy": "steps",
        "train__eval_steps": 2,
        "train__save_strategy": "steps",
        "train__save_steps": 2,
        "train__max_steps": 4,
        "train__metric_for_best_model": "token_f1",
    }
    path = trained(tmp_path, **settings)
    entries = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    found = [entry for entry in entries if "eval_token_f1" in entry]
    assert [entry["step"] for entry in found] == [2, 4, 4]
    assert len(scored[0]) == 5
    assert scored == scored[:1] * 3  # the same questions each time
    assert all({"eval_closed_accuracy", "eval_token_recall", "eval_loss"} <= set(entry) for entry in found)
    state = json.loads(next((path / "checkpoints").glob("*-4/trainer_state.json")).read_text())
    assert state["best_metric"] == max(entry["eval_token_f1"] for entry in found[:2])
    assert json.loads((path / "summary.json").read_text())["eval_token_f1"] == state["best_metric"]
    with pytest.raises(ValueError, match=r"expected .*loss or token_recall or token_precision or token_f1 or closed"):
        sft.arguments(made(tmp_path, **{**settings, "train__metric_for_best_model": "bleu-4"}), tmp_path)


def test_metrics_while_training_are_refused_where_weights_are_sharded(tmp_path: Path) -> None:
    settings = {"evaluate__during": 5, "train__eval_strategy": "epoch", "train__deepspeed": "zero3"}
    with pytest.raises(ValueError, match=r"evaluate\.during: zero3\.json shards the weights \(ZeRO-3\).*use zero2"):
        sft.arguments(made(tmp_path, **settings), tmp_path)


def test_blocks_hold_whole_images_and_never_mix_them_with_words_alone(tmp_path: Path) -> None:
    made(tmp_path)
    some = example.read(tmp_path / "drawn", "test")
    words = replace(some[0], id="words", images=(), messages=(text("user", "What?"), text("assistant", "A nevus.")))
    asked = [Question(one.id, Row(one, tmp_path / "drawn")) for one in (some[0], words, *some[1:])]
    found = [[question.id for question in block] for block in engine.blocks(asked, 6)]
    assert [sorted({name.rpartition("-")[0] for name in block}) for block in found] == [
        ["test-0", "test-1"],
        ["test-2"],
        [""],
    ]
    assert sorted(name for block in found for name in block) == sorted(question.id for question in asked)


def test_a_journal_lacks_no_row(tmp_path: Path) -> None:
    journal = PredictionJournal(tmp_path / "a" / "drawn.jsonl", {"rows": 2}, Answer)
    journal.begin()
    with pytest.raises(PredictionError, match=r"2 of 2 rows were not predicted \(x/1\)"):
        journal.finish(["x/1", "x/2"])


def launch(tmp_path: Path, ranks: int, out: str) -> subprocess.Popen[bytes]:
    """`skinvl generate` of small.yaml on some ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "skinvl", "generate", "small.yaml", f"run={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / f"{out}.said").open("w") as said:
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said)


@pytest.mark.slow
def test_ranks_share_the_questions_and_a_killed_job_goes_on(tmp_path: Path) -> None:
    one = made(tmp_path, evaluate__batch_size=1, evaluate__generation={"max_new_tokens": 60})
    runs.source(tmp_path / "drawn", images=12, split="test")
    generate.generate_sets(one, tmp_path / "one")
    whole = answers(tmp_path / "one")
    job = launch(tmp_path, 2, "two")
    folder = tmp_path / "runs" / "two" / "eval" / "answers"
    deadline = time.monotonic() + 120
    while not all((folder / f".drawn.rank{rank}.jsonl").is_file() for rank in (0, 1)):
        assert job.poll() is None, (tmp_path / "two.said").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ranks = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()  # in sessions of their own
    for pid in (job.pid, *map(int, ranks)):
        os.kill(pid, signal.SIGKILL)
    job.wait()
    before = sum(len(part.read_bytes().splitlines()) for part in folder.glob(".drawn.rank*.jsonl"))
    assert 2 <= before < len(whole)
    job = launch(tmp_path, 2, "two")
    assert job.wait(240) == 0, (tmp_path / "two.said").read_text()[-3000:]
    assert "were answered before" in (tmp_path / "two.said").read_text()
    assert answers(tmp_path / "runs" / "two") == whole
    assert answers(tmp_path / "runs" / "two", "permuted") == answers(tmp_path / "one", "permuted")
