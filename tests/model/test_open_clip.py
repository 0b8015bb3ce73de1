"""A checkpoint of open_clip becomes a DualEncoder exactly, or not at all; open_clip 3.3.0 and timm are the oracles."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip as oracle
import pytest
import torch
import yaml
from open_clip.tokenizer import default_bpe
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit
from torch import nn
from transformers import BertConfig, CLIPTokenizer

from helpers import two_towers
from helpers.sources import photo
from skinvl.data import example
from skinvl.data.example import Example, Facts
from skinvl.model import dual, open_clip, open_clip_fit, open_clip_forward, open_clip_names
from skinvl.model.dual import DualEncoder
from skinvl.model.dual_inputs import TextTokenizer
from skinvl.model.hub import Snapshot
from skinvl.model.open_clip import OpenClipError
from skinvl.model.towers import beit_bert, clip
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe.recipe import SourceSpec

WORDS = ("an annular scaly plaque on the arm", "a brown macule, sharp and symmetrical", "nodule", "red papules 2.5 cm")
KINDS = ("clip", "custom", "bert", "panderm")
QUICK = {"clip": True, "custom": False, "bert": True, "panderm": None}
VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}


class PanDermTower(Beit):
    """CAE-v2's image tower as PanDerm uses it: timm's BEiT of the same names, whose norm is applied twice."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """float[B, D]."""
        states = self.forward_features(pixels)
        return self.head(self.norm(states[:, 1:].mean(dim=1)))


@dataclass(frozen=True)
class Published:
    """A model of open_clip with random weights, and the folder it was saved in."""

    model: Any
    folder: Path
    quick_gelu: bool | None
    pixels: torch.Tensor
    ids: list[list[int]]
    pad: int

    def padded(self, fill: int) -> torch.Tensor:
        """int64[n, L], the texts filled up."""
        longest = max(map(len, self.ids))
        return torch.tensor([row + [fill] * (longest - len(row)) for row in self.ids])

    def features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What open_clip makes of the images and texts."""
        rows = torch.zeros(len(self.ids), self.model.context_length, dtype=torch.long)
        texts = self.padded(0)
        rows[:, : texts.shape[1]] = texts
        return self.model.encode_image(self.pixels, normalize=True), self.model.encode_text(rows, normalize=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Published]:
    """One model for each layout that is read."""
    root = tmp_path_factory.mktemp("published")
    tokenizers = {"clip": clip.FAMILY.tiny.tokenizer(WORDS), "bert": beit_bert.FAMILY.tiny.tokenizer(WORDS)}
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(root / name)
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160}
    BertConfig(vocab_size=len(tokenizers["bert"]), max_position_embeddings=48, **sizes).save_pretrained(root / "bert")
    causal = {"context_length": 24, "vocab_size": len(tokenizers["clip"]), "width": 48, "heads": 2, "layers": 2}
    masked = {"hf_model_name": str(root / "bert"), "hf_tokenizer_name": str(root / "bert"), "context_length": 40}
    masked |= {"hf_pooler_type": "mean_pooler"}
    configs = {
        "clip": {"embed_dim": 64, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": causal},
        "custom": {
            "embed_dim": 24,
            "custom_text": True,
            "init_logit_bias": -10,
            "vision_cfg": VISION,
            "text_cfg": causal,
        },
        "bert": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": masked},
        "panderm": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": masked},
    }
    (root / "configs").mkdir()
    for kind, config in configs.items():
        (root / "configs" / f"tiny-{kind}.json").write_text(json.dumps(config))
    oracle.add_model_config(root / "configs")

    models = {}
    for kind, config in configs.items():
        torch.manual_seed(3)
        model = oracle.create_model(f"tiny-{kind}", pretrained_hf=False)
        if kind == "panderm":
            sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
            model.visual = PanDermTower(
                **sizes, use_abs_pos_emb=True, init_values=0.1, use_fc_norm=False, num_classes=24
            )
            model.visual.pos_embed.requires_grad = False
        for parameter in model.parameters():  # no norm of ones and no bias of zeros hides a mistake
            parameter.data += 0.1 * torch.randn_like(parameter)
        folder, own = root / f"of-{kind}", "clip" if "width" in config["text_cfg"] else "bert"
        folder.mkdir()
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        (folder / open_clip.CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"size": [32, 32]}}))
        if own == "clip":
            tokenizers[own].save_pretrained(folder)
        ids = tokenizers[own](list(WORDS))["input_ids"]
        pad = tokenizers[own].pad_token_id
        models[kind] = Published(model.eval(), folder, QUICK[kind], torch.randn(4, 3, 32, 32), ids, pad)
    return models


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """bases/ in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    yield
    left = [path.name for path in (tmp_path / "bases").glob(".*")]
    assert not left, "half a folder was left"


def convert(one: Published, **settings: Any) -> Path:
    return open_clip.converted(Snapshot(one.folder, None), "tiny", **{"quick_gelu": one.quick_gelu, **settings})


def loaded(one: Published, **settings: Any) -> DualEncoder:
    return DualEncoder.from_pretrained(convert(one, **settings), dtype=torch.float32)


def ours(one: Published, model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.tensor([[1] * len(row) + [0] * (one.padded(0).shape[1] - len(row)) for row in one.ids])
    return model.encode_images(one.pixels).embeddings, model.encode_texts(one.padded(one.pad), mask)


def distance(left: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


def info_nce(images: torch.Tensor, texts: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    logits = log_scale.exp() * images @ texts.T
    own = torch.arange(len(logits))
    return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_open_clip(published: dict[str, Published], kind: str) -> None:
    one = published[kind]
    expected = one.features()
    assert distance((expected[0][:1],), (expected[0][1:2],)) > 1e-2, "the images make no difference"

    folder = convert(one)
    model = DualEncoder.from_pretrained(folder, dtype=torch.float32)
    assert distance(ours(one, model), expected) <= 1e-6
    facts = json.loads((folder / open_clip.FILE).read_text())
    assert 0 < max(facts["differences"].values()) <= 1e-6
    assert facts["tensors"] == len(one.model.state_dict())
    assert model.scale.log.item() == one.model.logit_scale.item()

    if kind != "panderm":  # the twin: the other activation
        assert distance(ours(one, loaded(one, quick_gelu=not one.quick_gelu)), expected) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_independent_forward_is_that_of_open_clip(published: dict[str, Published], kind: str) -> None:
    one = published[kind]
    tensors, image = one.model.state_dict(), {"heads": 2, "quick_gelu": bool(one.quick_gelu)}
    text = {"heads": 2 if kind in ("clip", "custom") else 4, "quick_gelu": bool(one.quick_gelu), "pad": 0}
    computed = (
        open_clip_forward.images(tensors, one.pixels, **image),
        open_clip_forward.texts(tensors, one.padded(0), **text),
    )
    assert distance(computed, one.features()) <= 1e-6

    # The twins: other heads, the other activation, and BERT's padding read as text.
    assert distance((open_clip_forward.images(tensors, one.pixels, **{**image, "heads": 4}),), computed[:1]) > 1e-4
    if kind != "panderm":
        other = open_clip_forward.images(tensors, one.pixels, **{**image, "quick_gelu": not one.quick_gelu})
        assert distance((other,), computed[:1]) > 1e-4
    if kind == "panderm":
        other = open_clip_forward.texts(tensors, one.padded(0), **{**text, "pad": -1})
        assert distance((other,), computed[1:]) > 1e-4


@pytest.mark.parametrize(
    "kind", ["clip", "panderm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("custom", "bert"))]
)
def test_it_trains_as_in_open_clip(published: dict[str, Published], kind: str) -> None:
    one = published[kind]
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    model = loaded(one)
    if kind == "panderm":
        model.image_tower.embeddings.position_embeddings.requires_grad = False
    optimizers = [decayed(one.model), decayed(model)]
    try:
        for step in range(3):
            losses = (
                oracle.ClipLoss()(*one.features(), one.model.logit_scale.exp()),
                info_nce(*ours(one, model), model.scale.log),
            )
            near = 1e-6 if step == 0 else 1e-4  # AdamW amplifies rounding
            assert losses[1].item() == pytest.approx(losses[0].item(), rel=near)
            for loss, optimizer in zip(losses, optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
            if step == 0:
                same_gradients(one.model, model)
            for optimizer in optimizers:
                optimizer.step()
        trained, _ = open_clip_names.converted(one.model.state_dict())
        started, _ = open_clip_names.converted(before)
        for name, weight in model.state_dict().items():
            if not name.endswith(("k_proj.bias", "key.bias")):  # softmax takes it out: its gradient is rounding
                assert (weight - trained[name]).norm() <= 1e-2 * (weight - started[name]).norm(), name
    finally:
        one.model.load_state_dict(before)
        one.model.zero_grad()


def decayed(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as open_clip groups it: no decay of vectors and of the scale."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)


def same_gradients(theirs: nn.Module, model: DualEncoder) -> None:
    """Each gradient of theirs is found at its place in ours, to 1e-5 of the largest of its tensor."""
    gradients = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    expected, left_over = open_clip_names.converted(gradients)
    assert not left_over
    computed = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert computed.keys() == expected.keys()
    for name, gradient in computed.items():
        assert (gradient - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max() + 1e-7, name


def swapped(left: str, right: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def swap(placed: dict[str, torch.Tensor]) -> None:
        placed[left], placed[right] = placed[right], placed[left]

    return swap


def transposed(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def transpose(placed: dict[str, torch.Tensor]) -> None:
        placed[name] = placed[name].T

    return transpose


QUERY, KEY = (f"image_tower.encoder.layers.1.self_attn.{part}_proj.weight" for part in "qk")
LAMBDA = ("image_tower.layers.0.lambda_1", "image_tower.layers.0.lambda_2")


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        ("clip", transposed("image_head.projection.weight")),  # which is square
        ("clip", swapped(QUERY, KEY)),
        ("custom", swapped("text_tower.final_layer_norm.weight", "text_tower.encoder.layers.0.layer_norm1.weight")),
        ("panderm", swapped(*LAMBDA)),
    ],
)
def test_a_mistake_that_fits_in_shape_is_refused(
    published: dict[str, Published], monkeypatch: pytest.MonkeyPatch, kind: str, mistake: Callable[[Any], None]
) -> None:
    real = open_clip_names.converted

    def wrong(tensors: Any) -> Any:
        placed, left_over = real(tensors)
        mistake(placed)
        return placed, left_over

    monkeypatch.setattr(open_clip_names, "converted", wrong)
    with pytest.raises(OpenClipError, match="differ from those"):
        convert(published[kind])
    assert not list(Path("bases").glob("*"))


@pytest.mark.parametrize("name", ["ln_final.bias", "visual.ln_post.bias"])
def test_weights_that_are_no_numbers_are_refused(published: dict[str, Published], tmp_path: Path, name: str) -> None:
    with pytest.raises(OpenClipError, match=r"by .*nan"):
        convert(changed(published["clip"], tmp_path, lambda tensors: tensors[name].fill_(math.nan)))


def test_one_norm_instead_of_two_is_refused(published: dict[str, Published], monkeypatch: pytest.MonkeyPatch) -> None:
    def once(head: dual.Head, features: torch.Tensor) -> torch.Tensor:
        return head.projection(features if head.norm is None else head.norm(features.mean(1)))

    monkeypatch.setattr(dual.Head, "forward", once)
    with pytest.raises(OpenClipError, match="differ from those"):
        convert(published["panderm"])


def changed(one: Published, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Published:
    """The same checkpoint with other tensors in its file."""
    folder = tmp_path / "changed"
    folder.mkdir()
    tensors = load_file(one.folder / "open_clip_model.safetensors")
    change(tensors)
    for file in one.folder.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "open_clip_model.safetensors"
    )
    return Published(one.model, folder, one.quick_gelu, one.pixels, one.ids, one.pad)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("clip", {"visual.extra": torch.ones(2)}, r"1 left over \(visual.extra\)"),
        ("clip", {"text.token_embedding.bias": torch.ones(2)}, r"1 left over \(text.token_embedding.bias\)"),
        ("clip", {"ln_final.bias": None}, r"1 missing \(text_tower.final_layer_norm.bias\)"),
        ("clip", {"ln_final.bias": torch.ones(9)}, r"1 of another shape \(text_tower.final_layer_norm.bias \[9\] for"),
        ("clip", {"visual.proj": torch.ones(9, 64)}, r"1 of another shape"),
        ("clip", {"visual.transformer.resblocks.1.attn.in_proj_bias": torch.ones(1)}, r"3 of another shape"),
        ("bert", {"text.transformer.pooler.dense.weight": torch.ones(4, 4)}, r"1 left over"),
        ("bert", {"text.transformer.embeddings.position_ids": torch.tensor([[0, 2]])}, r"1 left over"),
        ("panderm", {"visual.blocks.1.gamma_2": None}, r"1 missing \(image_tower.layers.1.lambda_2\)"),
        ("panderm", {"visual.blocks.1.attn.k_bias": torch.ones(64)}, r"1 left over"),
        ("panderm", {"visual.patch_embed.proj.weight": None}, r"no tensor visual.patch_embed.proj.weight"),
        ("clip", {"visual.trunk.pos_embed": torch.ones(2)}, r"an image tower of timm"),
        ("clip", {"visual.positional_embedding": torch.ones(16, 64)}, r"15 patches"),
    ],
)
def test_every_tensor_is_used_once_and_none_is_invented(
    published: dict[str, Published], tmp_path: Path, kind: str, change: dict[str, torch.Tensor | None], message: str
) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in change.items():
            tensors.pop(name, None)
            if tensor is not None:
                tensors[name] = tensor

    with pytest.raises(OpenClipError, match=message):
        convert(changed(published[kind], tmp_path, edit))
    assert not list(Path("bases").glob("*"))


def test_positions_that_only_count_are_no_weights(published: dict[str, Published], tmp_path: Path) -> None:
    one = published["bert"]
    counts = {"text.transformer.embeddings.position_ids": torch.arange(48)[None]}
    assert (
        distance(ours(one, loaded(changed(one, tmp_path, lambda tensors: tensors.update(counts)))), one.features())
        < 1e-6
    )


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_cfg", "pool_type", "avg"),
        ("text_cfg", "no_causal_mask", True),
        ("vision_cfg", "timm_model_name", "vit"),
    ],
)
def test_another_architecture_is_refused(
    published: dict[str, Published], tmp_path: Path, section: str, field: str, value: Any
) -> None:
    one = changed(published["clip"], tmp_path, lambda tensors: None)
    config = json.loads((one.folder / open_clip.CONFIG).read_text())
    config["model_cfg"][section][field] = value
    (one.folder / open_clip.CONFIG).write_text(json.dumps(config))
    with pytest.raises(OpenClipError, match=f"{section}.{field}: {value}, which makes it another architecture"):
        convert(one)


def test_sizes_in_a_config_are_not_believed(published: dict[str, Published], tmp_path: Path) -> None:
    one = changed(published["panderm"], tmp_path, lambda tensors: None)
    config = json.loads((one.folder / open_clip.CONFIG).read_text())
    config["model_cfg"]["vision_cfg"] |= {
        "layers": 12,
        "width": 768,
        "pretrain_path": None,
    }  # DermFM-Zero's own does it
    (one.folder / open_clip.CONFIG).write_text(json.dumps(config))
    assert distance(ours(one, loaded(one)), one.features()) < 1e-6


def test_quick_gelu_is_asked_for(published: dict[str, Published]) -> None:
    with pytest.raises(OpenClipError, match=r"base.quick_gelu is not set. Set it to true for weights that come"):
        convert(published["clip"], quick_gelu=None)
    with pytest.raises(OpenClipError, match="none of its towers is CLIP's"):
        convert(published["panderm"], quick_gelu=True)


@pytest.mark.slow
def test_a_few_pairs_say_which_activation_fits(
    published: dict[str, Published],
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_clip_fit, "CLEAR", 0)  # two layers differ by little
    one, pairs = published["clip"], []
    (tmp_path / "data" / "images").mkdir(parents=True)
    examples = []
    for number, text in enumerate([*WORDS, "no image", WORDS[1]]):
        path = f"images/{number}.png"
        photo(number, 48).save(tmp_path / "data" / path)
        messages = (example.text("user", "What is seen?", images=1), example.text("assistant", text))
        facts = Facts(kind="description" if number else "diagnosis")
        examples.append(Example(path, "data", (path,), messages, path, "train", "CC0", facts))
        pairs += [(tmp_path / "data" / path, text)] * (number in (1, 2, 3))
    (tmp_path / "data" / "images" / "4.png").write_bytes(b"half an image")
    example.write(tmp_path / "data", "train", examples)
    absent, here = (SourceSpec(source=str(tmp_path / name), split="train") for name in ("absent", "data"))
    assert open_clip_fit.pairs([absent, here]) == pairs

    # Trained on them, so that the activation it was trained with has less.
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    try:
        picked = open_clip._pixel_format({}, 32, one.folder)
        squares = np.stack([np.array(picked.square(Image.open(path))) for path, _ in pairs])
        pixels = picked.normalised(torch.from_numpy(squares).permute(0, 3, 1, 2))
        few = Published(one.model, one.folder, True, pixels, one.ids[1:], one.pad)
        for block in [*one.model.visual.transformer.resblocks, *one.model.transformer.resblocks]:
            block.mlp.c_fc.weight.data *= 4
        optimizer = torch.optim.AdamW(one.model.parameters(), lr=1e-3)
        for _ in range(12):
            optimizer.zero_grad()
            info_nce(*few.features(), one.model.logit_scale).backward()
            optimizer.step()
        trained = changed(one, tmp_path, lambda tensors: tensors.update(one.model.state_dict()))
        expected = info_nce(*few.features(), one.model.logit_scale).item()
    finally:
        one.model.load_state_dict(before)
        one.model.zero_grad()

    with pytest.raises(OpenClipError, match=r"not set; on 3 pairs InfoNCE is .* QuickGELU and .* GELU: QuickGELU fits"):
        convert(trained, quick_gelu=None, sources=[here])
    told = json.loads((convert(trained, sources=[here]) / open_clip.FILE).read_text())["pairs"]
    assert told["fits"] == "quick_gelu"
    assert told["quick_gelu"] == pytest.approx(expected, rel=1e-2)
    assert told["quick_gelu"] < told["gelu"]
    assert not [warning for warning in recwarn if "InfoNCE" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"base.quick_gelu is false, and on 3 pairs .*: QuickGELU fits"):
        convert(trained, quick_gelu=False, sources=[here])


def test_pairs_of_which_nothing_was_learnt_say_nothing() -> None:
    assert open_clip_fit.Fit(8, 2.081, 2.079).fits is None
    assert "neither is clearly less" in str(open_clip_fit.Fit(8, 2.081, 2.079))
    assert open_clip_fit.Fit(8, 2.0, 1.9).fits == "gelu"


def test_a_checkpoint_of_a_training_is_unwrapped(published: dict[str, Published], tmp_path: Path) -> None:
    one = changed(published["clip"], tmp_path, lambda tensors: None)
    (one.folder / "open_clip_model.safetensors").unlink()
    state = {f"module.{name}": tensor for name, tensor in one.model.state_dict().items()}
    optimizer = torch.optim.AdamW(one.model.parameters()).state_dict()
    torch.save({"epoch": 15, "name": "make", "state_dict": state, "optimizer": optimizer}, one.folder / "epoch_15.pt")
    assert open_clip.is_checkpoint(one.folder)
    assert distance(ours(one, loaded(one)), one.features()) < 1e-6


def test_nothing_but_tensors_is_read(published: dict[str, Published], tmp_path: Path) -> None:
    one = changed(published["clip"], tmp_path, lambda tensors: None)
    (one.folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": {"path": Path("x")}}, one.folder / "open_clip_pytorch_model.bin")
    with pytest.raises(OpenClipError, match="not read"):
        convert(one)
    (one.folder / "open_clip_pytorch_model.bin").write_bytes(b"half a file")
    with pytest.raises(OpenClipError, match="not read"):
        convert(one)
    torch.save({"epoch": 3}, one.folder / "open_clip_pytorch_model.bin")
    with pytest.raises(OpenClipError, match="epoch where tensors by name were expected"):
        convert(one)
    (one.folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(OpenClipError, match="files of weights: none"):
        convert(one)


def test_a_model_that_is_there_in_both_forms_is_read_as_transformers_has_it(
    published: dict[str, Published], tmp_path: Path
) -> None:
    one = changed(published["clip"], tmp_path, lambda tensors: None)
    assert open_clip.is_checkpoint(one.folder)
    (one.folder / "config.json").write_text(json.dumps({"architecture": "vit"}))  # of timm
    assert open_clip.is_checkpoint(one.folder)
    (one.folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert not open_clip.is_checkpoint(one.folder)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_recipe_opens_a_checkpoint_as_any_base(published: dict[str, Published], tmp_path: Path, file: str) -> None:
    one = changed(published["clip"], tmp_path, lambda tensors: None)
    if file.endswith(".bin"):
        (one.folder / "open_clip_model.safetensors").unlink()
        torch.save(one.model.state_dict(), one.folder / file)
    base = {"kind": "dual", "model": str(one.folder), "quick_gelu": True}
    (tmp_path / "published.yaml").write_text(yaml.safe_dump({"name": "published", **base}))
    recipe = two_towers.recipe(tmp_path, base=str(tmp_path / "published.yaml"))

    model = load_towers(recipe, torch.device("cpu"))
    assert distance(ours(one, model.model), one.features()) < 1e-6
    assert model.tokenizer(WORDS) == one.ids
    assert model.tokenizer(["a “ﬁrm” nodule &amp; scale"]) == model.tokenizer(['a "firm" nodule & scale'])
    assert model.pixels.side == 32

    # Another file, another base.
    fingerprint = Snapshot(one.folder, None).fingerprint()
    assert fingerprint == Snapshot(one.folder, None).fingerprint()
    (one.folder / file).write_bytes((one.folder / file).read_bytes() + b" ")
    assert fingerprint != Snapshot(one.folder, None).fingerprint()


def test_it_is_converted_once(published: dict[str, Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = convert(published["clip"])
    monkeypatch.setattr(open_clip, "read", lambda folder: pytest.fail("read again"))
    assert convert(published["clip"]) == first
    with pytest.raises(pytest.fail.Exception):
        convert(published["clip"], quick_gelu=False)  # another model
    other = changed(published["clip"], tmp_path, lambda tensors: None)
    with (other.folder / open_clip.CONFIG).open("a") as config:
        config.write(" ")
    with pytest.raises(pytest.fail.Exception):
        convert(other)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TextTokenizer]:
    """open_clip's own tokenizer, and ours of the same vocabulary and merges, from a folder that transformers wrote."""
    theirs = oracle.SimpleTokenizer()
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ends.get(token, token): number for token, number in theirs.encoder.items()}
    folder = tmp_path_factory.mktemp("vocabulary")
    CLIPTokenizer(vocab=vocabulary, merges=[tuple(line.split()) for line in lines]).save_pretrained(folder)
    return theirs, TextTokenizer.read(folder, 77, clip.FAMILY)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (open_clip.PROBES[1], True),
        (open_clip.PROBES[2], True),
        ("Fitzpatrick IV–V,  naïve café-au-lait\tmacules: 2.5×3 cm, µm, β… 皮膚 😀", True),
        ("They've Langerhans' cells; isn't it?", True),
        ("the patient’s “target” lesion, ‘wattles’", False),
        ("a dermatoﬁbroma with conﬂuent, stiﬀ, suﬃcient scale", False),
        ("p &lt; .05 &amp; &quot;benign&quot;", False),
        ("&amp;lt; 3&nbsp;mm, 37 &deg;C, &#176; &#x2019; &ldquo;target&rdquo;", False),
        ("size < 3 mm, &ldquo;target&rdquo; &amp;amp; 5", False),
        ("皮疹（红色），ＡＢＣ １２", False),
        ("\ufeffA macule", False),
    ],
)
def test_texts_are_the_tokens_that_clip_was_trained_on(
    tokenizers: tuple[Any, TextTokenizer], text: str, plain: bool
) -> None:
    theirs, ours = tokenizers
    expected = [number for number in theirs([text], 77)[0].tolist() if number]
    assert ours([text]) == [expected]
    assert ours.lengths([text]) == [len(theirs.encode(text)) + 2]
    assert (replace(ours, cleans=False)([text]) == [expected]) == plain


def test_bert_reads_the_tokens_that_open_clip_makes(published: dict[str, Published]) -> None:
    text = "A scaly “plaque” ﬁrm on the arm &amp; 2.5 cm"
    expected = oracle.get_tokenizer("tiny-bert")([text])[0].tolist()
    ours = TextTokenizer.read(convert(published["bert"]), 40, beit_bert.FAMILY)
    assert ours([text]) == [expected[: expected.index(0)]]
    assert replace(ours, cleans=False)([text]) != ours([text])


def test_a_tokenizer_that_is_not_the_checkpoints_is_refused(published: dict[str, Published], tmp_path: Path) -> None:
    one = changed(published["clip"], tmp_path, lambda tensors: None)
    clip.FAMILY.tiny.tokenizer(["other words"]).save_pretrained(one.folder)
    with pytest.raises(OpenClipError, match=r"the tokenizer has \d+ tokens and its EOS is \d+; expected"):
        convert(one)
