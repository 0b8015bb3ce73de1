"""A sparse autoencoder over the embeddings of images: each is the sum of a few of many directions, its units'.

An embedding x is centred and scaled, x̃ = (x − mean) / scale. Unit j is active by how much its encoder row finds in it,
z = S(ReLU(Wₑ (x̃ − b) + bₑ)), and x̃ is rebuilt as b + Σⱼ zⱼ dⱼ with directions dⱼ of length one. S is what makes it
sparse, by kind:

- topk: the k largest of an image (Makhzani & Frey 2013, arXiv:1312.5663; Gao et al. 2024, arXiv:2406.04093);
- batch-topk: the n·k largest of a batch of n images; at evaluation those above a threshold, the mean over training
  batches of the smallest that was kept (Bussmann et al. 2024, arXiv:2412.06410);
- l1: all, kept few by 3e-5 · Σⱼ zⱼ in the loss, on embeddings as they are: as DermFM-Zero's released code has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from skinvl.recipe import provenance
from skinvl.recipe.files import digest, read_json, write_bytes, write_json
from skinvl.recipe.run import TowersRun, adapter_digest, begun

Kind = Literal["batch-topk", "topk", "l1"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FOLDER = "concepts"  # in the folder of a run
WEIGHTS, SETTINGS = "dictionary.safetensors", "dictionary.json"


class DictionaryError(ValueError):
    """A dictionary that is not there, or of other embeddings."""


class Dictionary(nn.Module):
    """K units over embeddings of D numbers; all fp32."""

    mean: torch.Tensor  # float32[D], of the embeddings it was fitted on
    scale: torch.Tensor  # float32[]
    threshold: torch.Tensor  # float32[], above which a unit of batch-topk is active at evaluation

    def __init__(self, width: int, units: int, kind: Kind, k: int) -> None:
        super().__init__()
        self.kind, self.k = kind, k
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("threshold", torch.zeros(()))
        self.encoder = nn.Parameter(torch.zeros(units, width))
        self.encoder_bias = nn.Parameter(torch.zeros(units))
        self.directions = nn.Parameter(torch.zeros(units, width))  # each of length one: the decoder's columns
        self.bias = nn.Parameter(torch.zeros(width))

    def units(self, embeddings: torch.Tensor) -> torch.Tensor:
        """float32[N, K] ≥ 0, how active each unit is in embeddings float[N, D]; NaN where an embedding is."""
        active = torch.relu(self.preactivations(self.scaled(embeddings)))
        if self.kind == "topk":
            values, numbers = active.topk(self.k, dim=1)
            return torch.zeros_like(active).scatter_(1, numbers, values)
        return torch.where(active <= self.threshold, 0.0, active) if self.kind == "batch-topk" else active

    def rebuilt(self, units: torch.Tensor) -> torch.Tensor:
        """float32[N, D], the embeddings that units float32[N, K] explain, in the embeddings' own space."""
        return (units @ self.directions + self.bias) * self.scale + self.mean

    def without(self, embeddings: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """float32[N, D] of length one: embeddings float[N, D] less what the units of these numbers add to them.

        What the dictionary does not explain stays as it was.
        """
        chosen = list(numbers)
        added = self.units(embeddings)[:, chosen] @ self.directions[chosen] * self.scale
        return nn.functional.normalize(embeddings.float() - added, dim=-1)

    def scaled(self, embeddings: torch.Tensor) -> torch.Tensor:
        """float32[N, D], the embeddings float[N, D] as the units see them."""
        return (embeddings.float() - self.mean) / self.scale

    def preactivations(self, scaled: torch.Tensor) -> torch.Tensor:
        """float32[N, K], what the encoder finds of each unit in x̃ float32[N, D], of either sign."""
        return torch.addmm(self.encoder_bias, scaled - self.bias, self.encoder.T)


def save_dictionary(run: Path, dictionary: Dictionary, settings: dict[str, Any]) -> None:
    """Writes it into the run, and what it was made of and came to beside it."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in dictionary.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state, metadata={"kind": dictionary.kind, "k": str(dictionary.k)}))
    write_json(folder / SETTINGS, {**settings, "weights": digest(folder / WEIGHTS)})


def load(run: Path) -> Dictionary:
    """The dictionary of a run's embeddings, on the CPU.

    Raises:
        DictionaryError: none was fitted, its two files are not of one fit, or the run was trained anew since.
    """
    settings = read_settings(run)
    path = run / FOLDER / WEIGHTS
    if not path.is_file() or digest(path) != settings["weights"]:
        raise DictionaryError(f"{path}: not the file that {SETTINGS} beside it tells of; {_again(run)}")
    if (made := settings["tower"]["adapter"]) != (now := fingerprint(run)):
        raise DictionaryError(
            f"{path}: of the embeddings of the weights {made}, and those of the run are {now}: it was trained anew; "
            f"{_again(run)}"
        )
    with safe_open(path, "pt") as file:
        shape = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    units, width = state["encoder"].shape
    dictionary = Dictionary(width, units, shape["kind"], int(shape["k"]))
    dictionary.load_state_dict(state)
    return dictionary.requires_grad_(False)


def read_settings(run: Path) -> dict[str, Any]:
    """What the run's dictionary was made of and came to.

    Raises:
        DictionaryError: none was fitted.
    """
    return read_json(run / FOLDER / SETTINGS, _again(run), DictionaryError, ("tower", "weights"))


def _again(run: Path) -> str:
    return f"fit it with: skinvl concepts fit {run}"


def fingerprint(run: Path) -> str | None:
    """What tells the trained weights of a run from any other; None of a base alone."""
    if not (run / provenance.FILE).is_file():
        return None
    trained = begun(run)
    assert isinstance(trained, TowersRun)
    return adapter_digest(trained.trained)
