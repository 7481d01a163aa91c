import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from safeclip.encoder.lora import AdaptedLinear, AdaptedPatches, Dropout

WIDTHS = (24, 40)
PATCHES = {"kernel_size": (2, 4), "stride": (2, 4)}
both_layers = pytest.mark.parametrize(
    ("kind", "patches", "shape"),
    [(AdaptedLinear, None, (8, 8, WIDTHS[0])), (AdaptedPatches, PATCHES, (5, 3, 8, 16))],
)


def adapted(kind, bias=True, scale=0.05, patches=None):
    """A layer of a kind, or peft's own, with an adapter that does something; of patches if they are given."""
    torch.manual_seed(0)
    plain = nn.Linear(*WIDTHS, bias=bias) if patches is None else nn.Conv2d(3, WIDTHS[1], bias=bias, **patches)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
    if kind:
        settings._register_custom_module({type(plain): kind})
    layer = get_peft_model(nn.Sequential(plain), settings).base_model.model[0]
    assert type(layer) is kind or kind is None
    nn.init.normal_(layer.lora_B["default"].weight, std=scale)
    return layer.train()


def course(layer, x, dtype=torch.float32, wanted=True):
    """What a layer gives, and the gradients of its input (if wanted) and its adapter."""
    x = x.clone().requires_grad_(wanted)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    trained = {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2
    return [y, x.grad, *trained.values()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (2, 5)])
def test_an_adapted_layer_is_pefts_and_so_are_its_gradients(shape, bias):
    x = torch.randn(*shape, WIDTHS[0], generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(course(adapted(AdaptedLinear, bias), x), course(adapted(None, bias), x), strict=True):
        assert found.dtype == wanted.dtype == torch.float32
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@both_layers
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_an_adapted_layer_in_autocast_is_near_the_exact_one(kind, patches, shape, weight):
    """The adapter is merged into a weight of float32, and adds to the output of one of bfloat16."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    layer = adapted(kind, patches=patches)
    exact = course(copy.deepcopy(layer), x)
    layer.get_base_layer().to(weight)
    found = course(layer, x, torch.bfloat16)
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert torch.nn.functional.cosine_similarity(one.float().flatten(), other.flatten(), dim=0) > 1 - 1e-4
        assert one.float().norm().item() == pytest.approx(other.norm().item(), rel=0.01)
    assert all(gradient.is_contiguous() for gradient in found[2:]), "as the parameters are, which DDP wants"


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_an_adapted_layer_is_traced_as_one_piece_and_is_the_same(weight):
    x = torch.randn(8, 8, WIDTHS[0], generator=torch.Generator().manual_seed(1))
    layer = adapted(AdaptedLinear)
    layer.get_base_layer().to(weight)
    plain = course(copy.deepcopy(layer), x, torch.bfloat16)
    layer.compile(backend="aot_eager", dynamic=True, fullgraph=True)
    for one, other in zip(course(layer, x, torch.bfloat16), plain, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=0.02, atol=0.02 * other.abs().max().item())


def test_an_adapter_that_is_small_beside_the_weight_is_not_lost_where_it_is_merged():
    """Each weight changes by less than half of what bfloat16 can tell, so that a sum in it would change little."""
    x = torch.randn(4096, WIDTHS[0], generator=torch.Generator().manual_seed(1))
    layer = adapted(AdaptedLinear, scale=1e-4)
    change = layer.get_delta_weight("default")
    assert (change.abs() < layer.get_base_layer().weight.abs() * 2**-9).float().mean() > 0.9
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with_it = layer(x).float()
        layer.lora_B["default"].weight.zero_()
        moved = with_it - layer(x).float()
    wanted = x @ change.detach().T
    assert ((moved * wanted).sum() / wanted.square().sum()).item() == pytest.approx(1, abs=0.3)


@both_layers
def test_an_adapter_that_is_switched_off_or_worked_in_is_not_added_again(kind, patches, shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    layer = adapted(kind, patches=patches)
    with torch.no_grad():
        wanted, base = layer(x), layer.get_base_layer()(x)
        assert (wanted - base).abs().max() > 0.01
        layer.enable_adapters(False)
        assert torch.equal(layer(x), base)
        layer.enable_adapters(True)
        layer.merge()
        assert torch.allclose(layer(x), wanted, atol=1e-6)


@pytest.mark.parametrize(
    "patches",
    [
        {**PATCHES, "padding": "valid"},
        {"kernel_size": 4, "stride": 2},  # overlapping
        {"kernel_size": 2, "stride": 4},  # with gaps
        {**PATCHES, "padding": (0, 2)},
        {"kernel_size": 3, "stride": 3},  # which do not fill the picture
        PATCHES,
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_adapted_patches_are_a_convolution_and_so_are_their_gradients(patches, bias):
    x = torch.randn(5, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    layer = adapted(AdaptedPatches, bias, patches=patches)
    for found, wanted in zip(course(layer, x), course(adapted(None, bias, patches=patches), x), strict=True):
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype == torch.float32
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_an_input_that_wants_no_gradient_costs_none(weight):
    x = torch.randn(6, WIDTHS[0], generator=torch.Generator().manual_seed(1))
    layer = adapted(AdaptedLinear)
    layer.get_base_layer().to(weight)
    found, counts = {}, {}
    for wanted in (True, False):
        layer.zero_grad()
        with FlopCounterMode(display=False) as counter:
            course(layer, x, torch.bfloat16, wanted)
        found[wanted], counts[wanted] = layer.lora_B["default"].weight.grad.clone(), counter.get_total_flops()
    assert torch.equal(found[True], found[False])
    assert counts[True] - counts[False] >= 2 * len(x) * WIDTHS[0] * WIDTHS[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(rate, dtype):
    dropout, count = Dropout(rate), 300_001  # not a multiple of four
    torch.manual_seed(0)
    x = torch.ones(count, dtype=dtype, requires_grad=True)
    y = dropout(x)
    left = y == 0
    # Within six standard errors, and whether one is left out says nothing of its neighbours.
    assert left.float().mean() == pytest.approx(rate, abs=6 * (rate * (1 - rate) / count) ** 0.5)
    for apart in (1, 2, 3, 4):
        both = (left[apart:] & left[:-apart]).float().mean()
        assert both == pytest.approx(rate**2, abs=6 * (rate**2 * (1 - rate**2) / count) ** 0.5)
    assert y[~left].unique().tolist() == [pytest.approx(1 / (1 - rate), rel=5e-3)]
    y.sum().backward()
    assert torch.equal(x.grad, y), "the gradient passes where the element does"
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)


def test_dropout_does_nothing_without_training_or_a_rate():
    x = torch.randn(10)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
