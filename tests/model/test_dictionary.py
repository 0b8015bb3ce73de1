"""The sparse dictionary: what its step computes beside autograd, what keeps it sparse, and its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from helpers import provenances
from skinvl.model import dictionary as dictionaries
from skinvl.model import dictionary_fit
from skinvl.model.dictionary import KINDS, Dictionary, DictionaryError, Kind
from skinvl.model.dictionary_fit import FitSettings
from skinvl.recipe import towers

WIDTH, PLANTED, MEAN_ACTIVE = 24, 32, 2.0
QUIET = Console(quiet=True)
SPARSE: tuple[Kind, ...] = ("batch-topk", "topk")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small are not worth the wait of several threads for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings float32[N, D] of length one, each a mean and a few of K directions, and these float32[K, D]."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(PLANTED, WIDTH, generator=generator), dim=1)
    chance = MEAN_ACTIVE / PLANTED * 2 * torch.rand(count, 1, generator=generator)
    active = (torch.rand(count, PLANTED, generator=generator) < chance) * (
        0.5 + torch.rand(count, PLANTED, generator=generator)
    )
    mean = 0.5 * torch.randn(WIDTH, generator=generator)
    noise = 0.01 * torch.randn(count, WIDTH, generator=generator)
    return torch.nn.functional.normalize(active @ directions + mean + noise, dim=1), directions


def begun(kind: Kind, units: int = 40, k: int = 3, count: int = 60) -> tuple[Dictionary, torch.Tensor]:
    """A dictionary as it starts, with biases that are not 0, and embeddings as its units see them."""
    embeddings, _ = planted(count)
    generator = torch.Generator().manual_seed(1)
    dictionary = dictionary_fit.start(embeddings, FitSettings(kind, units, k, 1, count), generator)
    with torch.no_grad():
        dictionary.encoder.add_(0.1 * torch.randn(dictionary.encoder.shape, generator=generator))
        dictionary.encoder_bias.normal_(0, 0.2, generator=generator)
        dictionary.bias.normal_(0, 0.2, generator=generator)
    return dictionary, dictionary.scaled(embeddings)


def dense(dictionary: Dictionary, scaled: torch.Tensor, k: int) -> torch.Tensor:
    """The loss with everything computed, and what is not among the largest multiplied by 0."""
    active = torch.relu(dictionary.preactivations(scaled))
    flat = active if dictionary.kind == "topk" else active.reshape(1, -1)
    count = k if dictionary.kind == "topk" else k * len(scaled)
    least = flat.topk(count, dim=1).values[:, -1:]
    kept = (flat * (flat >= least)).reshape(active.shape)
    return (scaled - kept @ dictionary.directions - dictionary.bias).square().mean()


def gradients(dictionary: Dictionary, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    own = torch.autograd.grad(loss, list(dictionary.parameters()))
    return dict(zip((name for name, _ in dictionary.named_parameters()), own, strict=True))


@pytest.mark.parametrize("kind", SPARSE)
def test_a_sparse_step_has_the_loss_and_every_gradient_of_a_dense_one(kind: Kind) -> None:
    dictionary, scaled = begun(kind)
    loss = dictionary_fit.forward(dictionary, scaled).loss
    assert loss.item() == pytest.approx(dense(dictionary, scaled, 3).item(), rel=1e-6)
    ours, theirs = gradients(dictionary, loss), gradients(dictionary, dense(dictionary, scaled, 3))
    other = gradients(dictionary, dense(dictionary, scaled, 4))
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(ours[name], other[name], rtol=1e-3, atol=1e-5), name


def test_the_loss_of_l1_is_that_of_the_released_code() -> None:
    dictionary, scaled = begun("l1")
    assert torch.equal(scaled, planted(60)[0])  # as they are
    z = (scaled - dictionary.bias) @ dictionary.encoder.T + dictionary.encoder_bias
    z = z.clamp(min=0)
    rebuilt = z @ dictionary.directions + dictionary.bias
    expected = ((scaled - rebuilt) ** 2).mean(1) + 3e-5 * z.abs().sum(1)
    assert dictionary_fit.forward(dictionary, scaled).loss.item() == pytest.approx(expected.mean().item(), rel=1e-6)
    torch.testing.assert_close(dictionary.units(scaled), z)


@pytest.mark.parametrize("kind", KINDS)
def test_directions_stay_of_length_one_and_no_gradient_runs_along_them(kind: Kind) -> None:
    dictionary, scaled = begun(kind)
    adam = torch.optim.Adam(dictionary.parameters(), 5e-4)
    dictionary_fit.forward(dictionary, scaled).loss.backward()  # type: ignore[no-untyped-call]
    gradient = dictionary.directions.grad
    assert gradient is not None
    along = (gradient * dictionary.directions).sum(1)
    across = gradient - along[:, None] * dictionary.directions
    assert along.abs().max() > 1e-5
    dictionary_fit.project_(dictionary)
    torch.testing.assert_close(gradient, across)
    assert (gradient * dictionary.directions).sum(1).abs().max() < 1e-7

    before = dictionary.directions.detach().clone()
    for _ in range(3):
        dictionary_fit.step(dictionary, adam, scaled)
    assert not torch.allclose(dictionary.directions, before, atol=1e-4)
    torch.testing.assert_close(dictionary.directions.norm(dim=1), torch.ones(40))


def test_top_k_keeps_k_of_each_image_and_batch_top_k_as_many_of_all() -> None:
    dictionary, scaled = begun("topk")
    counts = torch.bincount(torch.nonzero(dictionary.units(planted(60)[0]))[:, 0], minlength=60)
    assert counts.tolist() == [3] * 60
    assert len(dictionary_fit.forward(dictionary, scaled).units) == 180

    over_batch, scaled = begun("batch-topk")
    seen = dictionary_fit.forward(over_batch, scaled)
    assert len(seen.values) == 180
    active = torch.relu(over_batch.preactivations(scaled))
    assert seen.values.min() > active[active < seen.values.min()].max()
    over_batch.threshold.fill_(float(seen.values.min()) - 1e-6)
    units = over_batch.units(planted(60)[0])
    assert {*(units > 0).sum(1).tolist()} != {3}  # as many as an image needs
    assert (units > 0).sum() == 180


@pytest.mark.parametrize(("kind", "least"), [("batch-topk", 0.85), ("topk", 0.7)])
def test_a_planted_dictionary_is_recovered(kind: Kind, least: float) -> None:
    embeddings, directions = planted(2_500, seed=100)
    train, new = embeddings[:2_000], embeddings[2_000:]
    settings = FitSettings(kind, 2 * PLANTED, 2, 600, 256, learning_rate=2e-3)
    dictionary, _ = dictionary_fit.fit(train, settings, 0, QUIET)
    random = dictionary_fit.start(train, settings, torch.Generator().manual_seed(0))

    def recovered(fitted: Dictionary) -> float:
        return ((directions @ fitted.directions.T).max(1).values > 0.9).float().mean().item()

    assert recovered(dictionary) > 0.75
    assert recovered(random) < 0.1
    units = dictionary.units(new)
    assert (units > 0).sum(1).float().mean().item() == pytest.approx(2, abs=0.3)  # of batch-topk by its threshold
    lost = (new - dictionary.rebuilt(units)).square().sum() / (new - train.mean(0)).square().sum()
    assert 1 - lost > least


def test_dead_units_begin_anew_where_most_is_unexplained() -> None:
    dictionary, scaled = begun("topk")
    adam = torch.optim.Adam(dictionary.parameters(), 5e-4)
    with torch.no_grad():
        dictionary.encoder_bias[:8] = -100.0
    for _ in range(3):
        seen = dictionary_fit.step(dictionary, adam, scaled)
    dead = torch.arange(8)
    assert not torch.isin(seen.units, dead).any()
    living = dictionary.directions[8:].clone()
    lost = scaled - dictionary_fit.forward(dictionary, scaled).embeddings
    count = dictionary_fit.revive(dictionary, adam, scaled, dead, torch.Generator().manual_seed(0))
    assert 4 < count <= 8
    assert torch.equal(dictionary.directions[8:], living)
    revived = dictionary.directions[:count]
    cosines = revived @ torch.nn.functional.normalize(lost, dim=1).T
    torch.testing.assert_close(cosines.max(1).values, torch.ones(count))
    assert (revived @ revived.T - torch.eye(count)).max() < dictionary_fit.ALIKE
    torch.testing.assert_close(dictionary.encoder[:count], revived / 2)
    assert adam.state[dictionary.encoder]["exp_avg"][:count].abs().max() == 0
    assert torch.isin(dictionary_fit.forward(dictionary, scaled).units, dead).any()


def test_a_fit_revives_and_the_released_one_does_not() -> None:
    embeddings, _ = planted(200)
    settings = FitSettings("topk", 200, 2, 40, 50)
    _, revived = dictionary_fit.fit(embeddings, settings, 0, QUIET)
    assert revived > 0
    assert dictionary_fit.fit(embeddings, FitSettings("l1", 200, 2, 40, 50), 0, QUIET)[1] == 0


def test_the_same_seed_makes_the_same_dictionary() -> None:
    embeddings, _ = planted(100)
    settings = FitSettings("batch-topk", 40, 2, 10, 32)
    one, again, other = (dictionary_fit.fit(embeddings, settings, seed, QUIET)[0] for seed in (3, 3, 4))
    assert torch.equal(one.directions, again.directions)
    assert not torch.allclose(one.directions, other.directions, atol=0.1)


def test_without_units_an_embedding_loses_what_they_add_and_keeps_the_rest() -> None:
    dictionary, _ = begun("topk")
    embeddings, _ = planted(60)
    units = dictionary.units(embeddings)
    unit = int(units.sum(0).argmax())
    torch.testing.assert_close(dictionary.without(embeddings, []), embeddings)
    less = dictionary.without(embeddings, [unit])
    idle = units[:, unit] == 0
    assert idle.any()
    assert not idle.all()
    torch.testing.assert_close(less[idle], embeddings[idle])
    expected = embeddings - (dictionary.rebuilt(units) - dictionary.rebuilt(units.index_fill(1, torch.tensor(unit), 0)))
    torch.testing.assert_close(less, expected / expected.norm(dim=1, keepdim=True))
    assert (less[~idle] - embeddings[~idle]).abs().max() > 0.01


def trained(path: Path) -> Path:
    """A run of two towers that has ended, by hand, with weights of its own."""
    (path / "model").mkdir(parents=True)
    (path / "recipe.yaml").write_text(towers.dump(towers.load("tiny-clip")))
    provenances.made().write(path)
    (path / "model" / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(3)}, path / "model" / "model.safetensors")
    return path


def saved(run: Path) -> Dictionary:
    """A dictionary of the run's, in its folder."""
    dictionary, _ = begun("batch-topk")
    dictionary.threshold.fill_(0.25)
    record: dict[str, Any] = {"tower": {"adapter": dictionaries.fingerprint(run)}}
    dictionaries.save_dictionary(run, dictionary, record)
    return dictionary


def test_a_dictionary_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = saved(trained(tmp_path / "run"))
    read = dictionaries.load(tmp_path / "run")
    assert (read.kind, read.k) == ("batch-topk", 3)
    embeddings, _ = planted(10)
    assert torch.equal(read.units(embeddings), written.units(embeddings))
    assert json.loads((tmp_path / "run" / "concepts" / "dictionary.json").read_text())["tower"]["adapter"]


def test_a_run_that_was_trained_anew_or_has_half_a_fit_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    with pytest.raises(DictionaryError, match=r"no such file.*skinvl concepts fit"):
        dictionaries.load(run)
    saved(run)
    save_file({"weight": torch.ones(3)}, run / "model" / "model.safetensors")
    with pytest.raises(DictionaryError, match=r"trained anew; fit it with: skinvl concepts fit"):
        dictionaries.load(run)
    saved(run)
    dictionaries.load(run)
    file = run / "concepts" / dictionaries.WEIGHTS
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DictionaryError, match=r"not the file that dictionary\.json"):
        dictionaries.load(run)


def test_a_base_alone_has_no_weights_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(towers.dump(towers.load("tiny-clip")))
    saved(tmp_path)
    assert dictionaries.read_settings(tmp_path)["tower"]["adapter"] is None
    assert dictionaries.load(tmp_path).kind == "batch-topk"
