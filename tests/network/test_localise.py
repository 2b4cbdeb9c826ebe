"""Where modules are cut, that their blocks give the module's own bits, and what can't be cut."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support import torchvision_networks
from support.torchvision_networks import IMAGE, as_images
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.network.localise import localise

if TYPE_CHECKING:
    from collections.abc import Callable


class Functional(nn.Module):
    """As one wrote them before there was nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.tensor([2.0]))
        self.hidden = nn.Linear(4 * 4 * 4, 6)
        self.pop = nn.Linear(6, 5)

    def forward(self, x: Tensor, times: float = 1.0) -> Tensor:
        x = as_images(x)
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = x.view(x.size(0), -1) * (1.0 / self.scale)
        x = F.dropout(F.relu(self.hidden(x)), 0.5, training=self.training)
        return F.log_softmax(self.pop(x) * times, dim=1)


class Residual(nn.Module):
    """A block that looks at values, so that it can't be read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + self.two(self.one(x))
        return x - self.two(self.one(x))


class Tokens(nn.Module):
    """Tokens with places, a list of blocks, one that stands alone, and the mean of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 6)
        self.places = nn.Parameter(torch.randn(24, 6))
        self.blocks = nn.ModuleList(Residual(6) for _ in range(2))
        self.alone = Residual(6)
        self.norm = nn.LayerNorm(6)
        self.output = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x.reshape(-1, 24, 8))
        x = x + self.places
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(self.alone(x)).mean(dim=1))


class Language(nn.Module):
    """Tokens in whole numbers, of any length, and a mask that every block is given."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, 6), nn.Embedding(12, 6)
        self.blocks = nn.ModuleList(Attending(6) for _ in range(2))
        self.norm, self.output = nn.LayerNorm(6), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        n, length = x.shape
        x = self.tokens(x) + self.places(torch.arange(length, device=x.device))
        x = x + torch.zeros((n, 1, 1))
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x)).transpose(1, 2)


class Attending(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(1)
        h = self.norm(x)
        return x + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0]


class Made(nn.Module):
    """Layers of 192, 4, 4 and 5 units, and a forward of a test's own."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(192, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.act = nn.ReLU(inplace=True)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x.flatten(1))


SMALL = (3, 8, 8)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: (make, IMAGE) for name, make in torchvision_networks.NETWORKS.items()},
    "functional": (Functional, SMALL),
    "tokens": (Tokens, SMALL),
}


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    make, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    return make(), shape


def given(network: nn.Module, x: Tensor, *, training: bool) -> Tensor:
    torch.manual_seed(3)
    result: Tensor = network.train(training)(x.clone())
    return result


@pytest.mark.parametrize("training", [True, False])
def test_blocks_compute_what_the_module_does(
    case: tuple[nn.Module, tuple[int, ...]], training: bool
) -> None:
    module, shape = case
    before = copy.deepcopy(module)
    network = localise(module, torch.randn(2, *shape))
    others = [copy.deepcopy(network), pickle.loads(pickle.dumps(network)), network]
    for n in (2, 5):
        x = torch.randn(n, *shape)
        want = given(copy.deepcopy(before), x, training=training)
        for other in others:
            assert torch.equal(given(copy.deepcopy(other), x, training=training), want)


def test_state_has_the_modules_names_and_parameters(
    case: tuple[nn.Module, tuple[int, ...]],
) -> None:
    module, _ = case
    network = localise(module)
    assert {id(p) for p in network.parameters()} == {id(p) for p in module.parameters()}
    state = network.original_state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        next(iter(network.parameters())).add_(1)
    copy.deepcopy(module).load_state_dict(network.original_state_dict(), strict=True)


def test_localising_leaves_modes_and_generators_alone() -> None:
    module = torchvision_networks.vgg().train()
    frozen = module.features[1].eval()
    before = torch.get_rng_state()
    network = localise(module, torch.zeros(2, *IMAGE))
    assert (network.training, module.training, frozen.training) == (True, True, False)
    assert torch.equal(torch.get_rng_state(), before)


# --- where it cuts ------------------------------------------------------------------------


CUTS = {
    "resnet": [
        "block 0: conv1 (Conv2d), bn1 (BatchNorm2d), relu (ReLU), maxpool (MaxPool2d)",
        "block 1: layer1.0 (BasicBlock)",
        "block 2: layer1.1 (BasicBlock)",
        "block 3: layer2.0 (BasicBlock)",
        "block 4: layer3.0 (BasicBlock)",
        "block 5: layer4.0 (BasicBlock), avgpool (AdaptiveAvgPool2d), flatten",
        "block 6: fc (Linear)",
    ],
    "vgg": [
        "block 0: features.0 (Conv2d), features.1 (BatchNorm2d), features.2 (ReLU), "
        "features.3 (MaxPool2d)",
        "block 1: features.4 (Conv2d), features.5 (BatchNorm2d), features.6 (ReLU), "
        "features.7 (MaxPool2d)",
        "block 2: features.8 (Conv2d), features.9 (BatchNorm2d), features.10 (ReLU)",
        "block 3: features.11 (Conv2d), features.12 (BatchNorm2d), features.13 (ReLU), "
        "features.14 (MaxPool2d), avgpool (AdaptiveAvgPool2d), flatten",
        "block 4: classifier.0 (Linear), classifier.1 (ReLU), classifier.2 (Dropout)",
        "block 5: classifier.3 (Linear)",
    ],
    "mobilenet": [
        "block 0: features.0.0 (Conv2d), features.0.1 (BatchNorm2d), features.0.2 (Hardswish)",
        *(f"block {index}: features.{index} (InvertedResidual)" for index in range(1, 12)),
        "block 12: features.12.0 (Conv2d), features.12.1 (BatchNorm2d), features.12.2 (Hardswish), "
        "avgpool (AdaptiveAvgPool2d), flatten",
        "block 13: classifier.0 (Linear), classifier.1 (Hardswish), classifier.2 (Dropout)",
        "block 14: classifier.3 (Linear)",
    ],
    "transformer": [
        "block 0: conv_proj (Conv2d), reshape, class_token, encoder.pos_embedding, "
        "encoder.dropout (Dropout)",
        "block 1: encoder.layers.encoder_layer_0 (EncoderBlock)",
        "block 2: encoder.layers.encoder_layer_1 (EncoderBlock)",
        "block 3: encoder.layers.encoder_layer_2 (EncoderBlock), encoder.ln (LayerNorm), getitem",
        "block 4: heads.head (Linear)",
    ],
    "functional": [
        "block 0: conv (Conv2d), norm (BatchNorm2d), max_pool2d, view, scale",
        "block 1: hidden (Linear), dropout_0 (Dropout)",
        "block 2: pop (Linear)",
    ],
    "tokens": [
        "block 0: reshape, embedding (Linear), places",
        "block 1: blocks.0 (Residual)",
        "block 2: blocks.1 (Residual)",
        "block 3: alone (Residual), norm (LayerNorm), mean",
        "block 4: output (Linear)",
    ],
}


@pytest.mark.parametrize("network", CUTS)
def test_it_cuts_at_the_modules_own_blocks(network: str) -> None:
    make, shape = NETWORKS[network]
    assert list(localise(make(), torch.randn(2, *shape)).cuts) == CUTS[network]


@pytest.mark.parametrize(
    ("network", "children"),
    [
        (
            "functional",
            ["Block", "Pool", "Flatten", "Mul", "Block", "Dropout", "Block"],
        ),
        ("tokens", ["Flatten", "Block", "Residual", "Residual", "Sequential", "Pool", "Linear"]),
        (
            "transformer",
            ["Block", "Dropout", "EncoderBlock", "EncoderBlock", "Sequential", "Pool", "Linear"],
        ),
    ],
)
def test_what_only_passes_on_comes_in_children_of_its_own(
    network: str, children: list[str]
) -> None:
    found = localise(NETWORKS[network][0]()).children()
    assert [type(child).__name__ for child in found] == children


def test_sizes_of_whole_numbers_stay_free() -> None:
    module = Language()
    network = localise(module, torch.zeros(2, 7, dtype=torch.int64))
    assert [cut.partition(": ")[2] for cut in network.cuts] == [
        "tokens (Embedding), places (Embedding)",
        "blocks.0 (Attending)",
        "blocks.1 (Attending), norm (LayerNorm)",
        "output (Linear)",
    ]
    for shape in ((3, 7), (2, 12)):
        x = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(network(x), module(x))


def test_real_networks_are_cut_too() -> None:
    from torchvision.models import resnet18

    cuts = localise(resnet18(num_classes=5), torch.randn(2, *IMAGE)).cuts
    assert [cut.partition(": ")[2].split(" ")[0] for cut in cuts] == [
        *("conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1"),
        *("layer3.0", "layer3.1", "layer4.0", "layer4.1", "fc"),
    ]


def test_one_block_of_its_kind_is_taken_apart_where_it_can_be() -> None:
    cuts = localise(torchvision_networks.transformer(layers=1), torch.randn(2, *IMAGE)).cuts
    assert ["self_attention" in cut for cut in cuts] == [False, True, False, False]
    assert [cut.count("mlp") for cut in cuts] == [0, 0, 5, 0]


def test_a_sequence_is_cut_by_the_same_rule() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    assert localise(network, torch.randn(2, 3, 2, 2)).cuts == (
        "block 0: 0 (Conv2d), 1 (BatchNorm2d), 2 (Flatten)",
        "block 1: 3 (Linear)",
    )


# --- what can't be cut --------------------------------------------------------------------


CALLS = itertools.chain([1, 1], itertools.count(2))
"""Twice the same, as often as a forward is read, then others."""


def two_paths(own: Any, x: Tensor) -> Tensor:
    h = own.act(own.first(x))
    result: Tensor = own.last(h + own.second(h)) + x.mean()
    return result


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "two inputs": (
        lambda: nn.Bilinear(3, 4, 5),
        "Bilinear can't be cut into blocks: its forward needs input1, input2, and one tensor is",
    ),
    "control flow": (
        lambda: Made(lambda own, x: own.last(own.first(x)) if x.sum() > 0 else own.first(x)),
        r"Made can't be cut .*: test_localise\.py, line \d+: its forward decides by values",
    ),
    "two results": (
        lambda: Made(lambda own, x: (own.last(own.first(x)), x)),
        "its forward gives a tuple, a tensor is needed",
    ),
    "a layer in two blocks": (
        lambda: Made(lambda own, x: own.last(own.second(own.second(own.first(x))))),
        r"share a tensor \(second\.weight\): block 1: second \(Linear\); and block 2: second \(L",
    ),
    "a parameter in two blocks": (
        lambda: Made(lambda own, x: F.linear(own.second(own.first(x)), own.first.weight.T)),
        r"share a tensor \(first\.weight\): block 0: .*first \(L.*; and block 1: .*first\.weight",
    ),
    "one block": (
        lambda: Made(lambda own, x: own.last(x[:, :4])),
        r"it is a single one \(.*last \(Linear\)\); at least a hidden one and the output",
    ),
    "one path around all": (lambda: Made(two_paths), "it is a single one"),
    "no block": (lambda: Made(lambda own, x: own.act(x)), "it is a single one .without parameters"),
    "a loose layer": (lambda: nn.Linear(192, 5), r"it is a single one \(weight, bias\)"),
    "draws of its own": (
        lambda: Made(lambda own, x: own.last(own.first(x)) * float(torch.rand(()))),
        "its forward draws random numbers itself, once for all batches",
    ),
    "Python's draws": (
        lambda: Made(lambda own, x: own.last(own.first(x)) * random.random()),
        "its forward draws random numbers itself, once for all batches",
    ),
    "training alone": (
        lambda: Made(lambda own, x: own.last(own.first(x)) * (2 if own.training else 1)),
        "its forward does other things in training than in tests, outside of its modules",
    ),
    "other results each time": (
        lambda: Made(lambda own, x: own.last(own.first(x)) * next(CALLS)),
        "its blocks, one after the other, do not compute what its forward does",
    ),
    "another shape": (
        lambda: Made(lambda own, x: own.last(own.first(x[:, 1:]))),
        r"for inputs of shape \(3, 8, 8\): RuntimeError: mat1 and mat2",
    ),
}


@pytest.mark.parametrize("network", REFUSED)
def test_what_can_not_be_cut_is_refused_in_a_line(network: str) -> None:
    make, complaint = REFUSED[network]
    with pytest.raises(ConfigError, match=complaint) as caught:
        localise(make(), torch.randn(2, *SMALL))
    assert "\n" not in str(caught.value)
