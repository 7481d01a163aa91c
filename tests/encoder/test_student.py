import copy

import open_clip
import pytest
import torch
from peft import PeftModel
from timm.models.eva import Eva
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from safeclip.config import Lora
from safeclip.encoder.export import export_encoder, save_open_clip, to_huggingface
from safeclip.encoder.load import load_encoder
from safeclip.encoder.lora import AdaptedLinear, AdaptedPatches, Dropout
from safeclip.encoder.model import Encoder, encode_tokens
from safeclip.encoder.objectives.safe_clip import SafeClip
from safeclip.encoder.student import (
    load_trained_state,
    lower_frozen,
    make_student,
    merge_student,
    save_adapter,
    train_mode,
    trained_state,
)
from safeclip.errors import UserError
from tests.encoder.embeddings import embeddings_of


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("world:encoder")


@pytest.fixture(scope="module")
def inputs(encoder):
    tokens = encoder.tokenizer(
        ["a dog next to a cat on a blue background", "a picture of an axe and a tree on pink"] * 2
    )
    pixels = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return tokens, encoder.normalize_pixels(pixels)


def embed(clip, inputs):
    tokens, pixels = inputs
    return torch.stack([encode_tokens(clip, tokens), clip.encode_image(pixels, normalize=True)])


def train_a_little(student, inputs, steps=3):
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    student.train()
    for _ in range(steps):
        text, image = embed(student.get_base_model(), inputs)
        objective = SafeClip()
        batch = embeddings_of(
            safe_text=text, safe_image=image, unsafe_text=text.roll(1, 0), unsafe_image=image.roll(1, 0)
        )
        optimizer.zero_grad()
        objective.total(objective.losses(batch)).backward()
        optimizer.step()
    return student.eval()


@torch.no_grad()
def test_a_fresh_student_gives_the_base_embeddings(encoder, inputs):
    student = make_student(encoder.model, Lora()).eval()
    assert torch.allclose(embed(student.get_base_model(), inputs), embed(encoder.model, inputs), atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@torch.no_grad()
def test_lower_frozen_weights_are_those_that_autocast_would_use(encoder, inputs, dropout):
    student = make_student(encoder.model, Lora(alpha=16.0, dropout=dropout)).eval()
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    clip = student.get_base_model()
    with torch.autocast("cpu", torch.bfloat16):
        before = embed(clip, inputs).float()
        lower_frozen(student, torch.bfloat16)
        after = embed(clip, inputs).float()
    assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}
    frozen = {m.weight.dtype for m in student.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad}
    assert frozen == {torch.bfloat16}
    if dropout:
        assert torch.equal(before, after)
    else:  # adapters were merged, and now add
        assert torch.nn.functional.cosine_similarity(before, after, dim=-1).min() > 1 - 1e-3
    assert (before - embed(encoder.model, inputs)).abs().max() > 0.01, "adapters that do nothing would show nothing"


def test_training_a_student_leaves_the_teacher_bit_for_bit(encoder, inputs):
    with torch.no_grad():
        before, weights = embed(encoder.model, inputs), copy.deepcopy(encoder.model.state_dict())
    student = train_a_little(make_student(encoder.model, Lora(alpha=16.0)), inputs)
    with torch.no_grad():
        assert torch.equal(embed(encoder.model, inputs), before)
        assert (embed(student.get_base_model(), inputs) - before).abs().max() > 1e-3  # the student did move
    assert not encoder.model.training
    assert all(torch.equal(v, weights[k]) for k, v in encoder.model.state_dict().items())


def test_only_adapters_are_trained_on_the_papers_layers(encoder):
    student = make_student(encoder.model, Lora())
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
    assert layers == {"k_proj", "v_proj", "out_proj", "c_fc", "c_proj", "conv1"}


@pytest.mark.parametrize("targets", [None, r".*resblocks\.0\.mlp\.(c_fc|c_proj)|.*conv1"])
def test_merged_weights_and_the_saved_adapter_give_the_students_embeddings(encoder, inputs, tmp_path, targets):
    student = train_a_little(make_student(encoder.model, Lora(alpha=16.0, targets=targets)), inputs)
    with torch.no_grad():
        expected = embed(student.get_base_model(), inputs)
        merged = merge_student(student)
        assert torch.allclose(embed(merged, inputs), expected, atol=1e-5)
        assert merged.state_dict().keys() == encoder.model.state_dict().keys()
        save_adapter(student, tmp_path)
        hugging = PeftModel.from_pretrained(to_huggingface(encoder.model), tmp_path)
        pixels = hugging.get_image_features(inputs[1]).pooler_output
        tokens = inputs[0].masked_fill(inputs[0] == 0, 49407)
        texts = hugging.get_text_features(tokens).pooler_output
        found = torch.nn.functional.normalize(torch.stack([texts, pixels]), dim=-1)
        assert (found * expected).sum(-1).min() > 1 - 1e-4


def test_trained_weights_can_be_put_back(encoder, inputs):
    student = train_a_little(make_student(encoder.model, Lora(alpha=16.0)), inputs)
    other = make_student(encoder.model, Lora(alpha=16.0), seed=7).eval()
    load_trained_state(other, trained_state(student))
    with torch.no_grad():
        assert torch.equal(embed(other.get_base_model(), inputs), embed(student.get_base_model(), inputs))


def test_adapters_have_the_fast_layers(encoder):
    def kinds(lora):
        return {type(module) for module in make_student(encoder.model, lora).modules()}

    assert {AdaptedLinear, AdaptedPatches} <= kinds(Lora())
    dropped = kinds(Lora(dropout=0.1))
    assert Dropout in dropped
    assert nn.Dropout not in dropped
    assert not {AdaptedLinear, AdaptedPatches} & dropped


def test_targets_that_name_nothing_are_refused(encoder):
    with pytest.raises(UserError, match=r"train\.lora\.targets"):
        make_student(encoder.model, Lora(targets="nothing"))


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
VISION = {"image_size": 64, "patch_size": 32, "width": 64, "layers": 1}


def test_batch_norms_keep_the_base_encoders_statistics():
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
    student = make_student(open_clip.CLIP(64, vision, TEXT), Lora())
    train_mode(student)
    before = {name: value.clone() for name, value in student.named_buffers()}
    pixels = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        together, alone = (student.get_base_model().encode_image(part) for part in (pixels, pixels[:1]))
    assert torch.allclose(together[:1], alone, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in student.named_buffers())


@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # the second has peft's own layers
def test_the_adapters_of_evas_attention_get_the_gradient_that_its_whole_weight_says(dropout):
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": None}
    model = open_clip.CustomTextCLIP(64, vision, TEXT)
    torch.manual_seed(0)
    size = {"img_size": 64, "patch_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 64}
    model.visual.trunk = Eva(**size, global_pool="token")
    for name, parameter in model.visual.named_parameters():
        if name.endswith((".q_bias", ".v_bias")):
            nn.init.normal_(parameter)
    student = make_student(model.eval(), Lora(alpha=16.0, dropout=dropout)).eval()
    clip, pixels, weight = student.get_base_model(), torch.randn(4, 3, 64, 64), torch.randn(4, 64)
    assert torch.allclose(
        clip.encode_image(pixels, normalize=True), model.encode_image(pixels, normalize=True), atol=1e-5
    )
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    whole = merge_student(student).requires_grad_()
    embedded, expected = clip.encode_image(pixels, normalize=True), whole.encode_image(pixels, normalize=True)
    assert torch.allclose(embedded, expected, atol=1e-4)
    assert (expected - model.encode_image(pixels, normalize=True)).abs().max() > 0.01
    (embedded * weight).sum().backward()
    (expected * weight).sum().backward()
    for name in ("visual.trunk.blocks.0.attn.qkv", "visual.trunk.blocks.1.attn.qkv", "visual.trunk.blocks.0.mlp.fc1"):
        layer, gradient = clip.get_submodule(name), whole.get_submodule(name).weight.grad
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        scale = layer.scaling["default"]
        assert torch.allclose(a.grad, scale * b.T @ gradient, rtol=1e-3, atol=1e-4 * float(a.grad.abs().max()))
        assert torch.allclose(b.grad, scale * gradient @ a.T, rtol=1e-3, atol=1e-4 * float(b.grad.abs().max()))


@pytest.fixture(scope="module")
def dropping(tmp_path_factory):
    """An encoder that was trained with stochastic depth, without some patches, and with dropout in its text tower."""
    folder = tmp_path_factory.mktemp("bert")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 32}
    BertConfig(vocab_size=49408, pad_token_id=0, **size).save_pretrained(folder)
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_drop_path": 0.3, "timm_pool": "avg"}
    text = {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler"}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(64, {**vision, "patch_dropout": 0.3}, {**text, "hf_proj_type": "linear"})
    return model.eval(), (torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]]), torch.randn(2, 3, 224, 224))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_adapters_dropout_is_all_that_a_student_with_adapters_has(dropping, checkpointing):
    model, inputs = dropping
    student = make_student(model, Lora(dropout=0.5, targets=r".*(self\.(query|value)|attn\.qkv|mlp\.fc1)"))
    if checkpointing:
        student.get_base_model().set_grad_checkpointing(True)
    train_mode(student)
    layers = [module for module in student.modules() if isinstance(module, BertLayer)]
    assert {layer.training for layer in layers} == {checkpointing}
    clip = student.get_base_model()
    expected = embed(model, inputs)
    assert torch.allclose(embed(clip, inputs), expected, atol=1e-5)  # fresh adapters add nothing
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    one, other = embed(clip, inputs), embed(clip, inputs)
    assert ((one - other).abs().amax(-1) > 1e-3).all()
    student.eval()
    assert torch.equal(embed(clip, inputs), embed(clip, inputs))


@torch.no_grad()
def test_a_student_that_is_trained_as_a_whole_has_the_bases_own_dropout(dropping):
    model, inputs = dropping
    student = make_student(model, None)
    train_mode(student)
    assert ((embed(student, inputs) - embed(student, inputs)).abs().amax(-1) > 1e-3).all()


def test_a_tower_that_no_adapter_would_reach_is_named(tmp_path):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
    BertConfig(vocab_size=100, **size).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "hf_proj_type": "linear"}
    model = open_clip.CustomTextCLIP(64, VISION, {**text, "hf_pooler_type": "mean_pooler"})
    with pytest.raises(UserError, match=r"train\.lora\.targets: the text tower of this encoder"):
        make_student(model, Lora())
    make_student(model, Lora(targets=r".*(conv1|self\.query)"))
    make_student(model, None)


def test_an_encoder_with_a_decoder_is_refused():
    decoder = {**TEXT, "mlp_ratio": 1}
    model = open_clip.CoCa(64, {"width": 64, "heads": 1, "layers": 1, **decoder}, {**TEXT, "embed_cls": True}, VISION)
    with pytest.raises(UserError, match="CoCa has a decoder besides its towers"):
        make_student(model, Lora())


SIGLIP = {
    "model_cfg": {
        "embed_dim": 192, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {
            "image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False,
            "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 16, "width": 192, "heads": 3, "layers": 2, "no_causal_mask": True, "proj_bias": True,
            "pool_type": "last",
        },
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
}  # fmt: skip


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """An encoder of SigLIP's kind, with random weights: timm's image tower, a text tower that is not causal."""
    folder = tmp_path_factory.mktemp("siglip")
    settings = {k: v for k, v in SIGLIP["model_cfg"].items() if k != "custom_text"}
    torch.manual_seed(0)
    save_open_clip(open_clip.CustomTextCLIP(**copy.deepcopy(settings)), SIGLIP, folder)
    return load_encoder(str(folder))


def test_an_encoder_of_siglips_kind_is_adapted_in_both_towers_and_exported_for_open_clip(siglip, tmp_path, capsys):
    pixels = torch.randint(0, 256, (4, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    inputs = siglip.tokenizer(["a dog", "a cat", "a key", "a tree"]), siglip.normalize_pixels(pixels)
    student = train_a_little(make_student(siglip.model, Lora(alpha=16.0)), inputs)
    moved = {name for name, weight in trained_state(student).items() if ".lora_B." in name and weight.any()}
    assert {name.split(".")[2] for name in moved} == {"text", "visual"}
    merged = merge_student(student)
    with torch.no_grad():
        expected = embed(student.get_base_model(), inputs)
        assert (embed(siglip.model, inputs) - expected).abs().max() > 1e-3
        export_encoder(Encoder(merged, siglip.tokenizer, siglip.preprocess, siglip.config), tmp_path)
        assert "for open_clip only" in capsys.readouterr().out
        assert [path.name for path in tmp_path.iterdir()] == ["open_clip"]
        again = load_encoder(str(tmp_path / "open_clip")).model
        assert torch.allclose(embed(again, inputs), expected, atol=1e-5)


def test_weights_of_another_architecture_are_refused(encoder, siglip):
    state = trained_state(make_student(siglip.model, Lora()))
    with pytest.raises(UserError, match="of another architecture or other adapters: it differs in"):
        load_trained_state(make_student(encoder.model, Lora()), state)
    with pytest.raises(UserError, match="of another architecture"):
        load_trained_state(
            make_student(encoder.model, Lora(rank=4)), trained_state(make_student(encoder.model, Lora(rank=8)))
        )
