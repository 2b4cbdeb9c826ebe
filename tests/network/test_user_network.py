"""A user's own network: how it is cut into blocks, what is refused, and that it trains."""

from __future__ import annotations

import json
import random
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from support import user_networks
from support.user_networks import FACTORY, NETWORKS, stage_of
from torch import nn
from torch.nn import functional as F

from pipeline.config.config_file import config_tree
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.network.from_config import network_specs
from pipeline.network.localise import localise
from pipeline.network.user_network import build_parts
from pipeline.planning.cost import BlockCost, block_costs

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.sections import Config
    from pipeline.learning.stage import Stage
    from pipeline.network.specs import BlockSpec


def convolutional(width: int = 6, dropout: float = 0.5) -> nn.Sequential:
    return nn.Sequential(
        nn.Identity(),
        nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 8, 3, stride=2),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(8 * 3 * 3, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )


def drawing_after_batch_norm() -> nn.Sequential:
    """Within one module, where members of a team wait for each other in between."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), Noise(), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(6 * 14 * 14, 5),
    )


class Noise(nn.Module):
    """By numpy's and Python's numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * random.random() + float(np.random.random())


class Mixing(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.view(1, -1))


class Lone(nn.Linear):
    def __init__(self) -> None:
        super().__init__(768, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).squeeze(1)


class Twofold(nn.Linear):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


class Masked(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.mask.softmax(0)[0]


class Scaled(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Plain(nn.Sequential):
    """As torchvision's are: it only says how its children are made."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(768, width), nn.BatchNorm1d(width), nn.Linear(width, 5)
        )


class NotSequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 16, 7)
        self.output = nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 4)
        x = F.relu(self.hidden(torch.flatten(x, 1)))
        return cast("torch.Tensor", self.output(x))


def flat(*children: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *children)


def without_norm() -> nn.Sequential:
    return flat(nn.Linear(768, 6), nn.ReLU(), nn.Linear(6, 5))


def tied() -> nn.Sequential:
    same = nn.Linear(6, 6)
    return flat(nn.Linear(768, 6), same, nn.ReLU(), same, nn.Linear(6, 5))


def shared_activation() -> nn.Sequential:
    act = nn.Tanh()
    return flat(nn.Linear(768, 6), act, nn.Linear(6, 7), act, nn.Linear(7, 5))


def leaves() -> nn.Sequential:
    raise SystemExit(0)


def replaced() -> nn.Sequential:
    network = without_norm()
    network.forward = lambda x: nn.Sequential.forward(network, x) / 3  # type: ignore[method-assign]
    return network


def hooked() -> nn.Sequential:
    network = without_norm()
    network.register_forward_hook(lambda module, given, result: result * 2)
    return network


def tempered() -> nn.Sequential:
    network = without_norm()
    network.register_parameter("temperature", nn.Parameter(torch.ones(())))
    network.register_buffer("shift", torch.zeros(5))
    return network


def spoilt() -> nn.Sequential:
    network = without_norm()
    nn.init.constant_(network[3].bias, float("inf"))
    return network


def ever_wider() -> nn.Sequential:
    width = next(WIDTHS)
    return flat(nn.Linear(768, width), nn.Linear(width, 5))


WIDTHS = iter(range(3, 99))
NETWORKS |= {
    "convolutional": convolutional,
    "enlarging": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64 * 64, 5)
    ),
    "without norm": without_norm,
    "dropout": lambda inplace: flat(
        nn.Linear(768, 6), nn.ReLU(), nn.Dropout(0.5, inplace), nn.Linear(6, 5)
    ),
    "shared activation": shared_activation,
    "own activations": lambda: flat(
        nn.Linear(768, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)
    ),
    "a class of its own": lambda: Plain(6),
    "masked": lambda: flat(Masked(768, 6), nn.ReLU(), nn.Linear(6, 5)),
    "lonely": lambda: flat(nn.Linear(768, 5)),
    "no module": list,
    "localised": lambda: localise(
        nn.Sequential(
            OrderedDict(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), act=nn.ReLU(True)),
        ).extend([nn.Flatten(), nn.Linear(1024, 5)])
    ),
    "a loose layer": lambda: nn.Linear(3, 3),
    "not sequential": NotSequential,
    "wrong classes": lambda: flat(nn.Linear(768, 4), nn.Linear(4, 4)),
    "wrong input": lambda: nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 5)),
    "like a sequence": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(256, 4), nn.Flatten(), nn.Linear(12, 5)
    ),
    "volumes": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2 * 14 * 14, 5)),
    ),
    "single numbers": lambda: flat(Lone(), nn.Unflatten(0, (-1, 1)), nn.Linear(1, 5)),
    "too many sides": lambda: flat(
        *(nn.Unflatten(1, (1, 1, 1, 1, 1, 1, 768, 1)), nn.Linear(1, 2)),
        *(nn.Flatten(), nn.Linear(1536, 5)),
    ),
    "scaled": lambda: Scaled(*without_norm()),
    "replaced": replaced,
    "hooked": hooked,
    "tempered": tempered,
    "spoilt": spoilt,
    "tied": tied,
    "lazy": lambda: flat(nn.LazyLinear(6), nn.Linear(6, 5)),
    "frozen end": lambda: flat(nn.Linear(768, 6), nn.ReLU(), nn.Linear(6, 5).requires_grad_(False)),
    "mixing": lambda: flat(Mixing(1536, 6), nn.Linear(6, 5)),
    "twofold": lambda: flat(Twofold(768, 6), nn.Linear(6, 5)),
    "leaves": leaves,
    "ever wider": ever_wider,
}


def config_of(network: str = "convolutional", **sections: Any) -> Config:
    """With images of 16 × 16."""
    sections["data"] = {"size": 16, **sections.get("data", {})}
    loss = {"name": "predsim", "dim_in_decoder": 64}
    return user_networks.config_of(network, **{"loss": loss, **sections})


def specs_of(config: Config) -> tuple[BlockSpec, ...]:
    return network_specs(config, data_facts(config.data))


def costs_of(network: str) -> tuple[BlockCost, ...]:
    specs = specs_of(config_of(network))
    return block_costs(specs, batch_size=1, element_bytes=4, optimizer_name="adam", backprop=False)


def test_every_child_with_parameters_becomes_a_block() -> None:
    specs = specs_of(config_of())
    assert [spec.in_shape for spec in specs] == [(3, 16, 16), (6, 8, 8), (72,), (12,)]
    assert [spec.shape for spec in specs] == [(6, 16, 16), (8, 3, 3), (12,), (5,)]
    assert [spec.out_shape for spec in specs] == [(6, 8, 8), (72,), (12,), (5,)]
    assert [spec.is_output for spec in specs] == [False, False, False, True]
    assert all(spec.pred and spec.sim for spec in specs[:-1])


def test_any_other_module_is_cut_at_its_own_blocks() -> None:
    specs = specs_of(config_of("not sequential"))
    assert [spec.name for spec in specs] == ["conv 3→6", "hidden 96→7", "output 7→5"]
    assert [spec.shape for spec in specs] == [(6, 16, 16), (7,), (5,)]
    assert [spec.out_shape for spec in specs] == [(96,), (7,), (5,)]


def test_a_function_may_localise_a_sequence_itself() -> None:
    specs = specs_of(config_of("localised"))
    assert [spec.name for spec in specs] == ["conv 3→4", "output 1024→5"]
    assert specs[0].custom
    assert specs[0].custom.normalises


def test_costs_are_those_of_its_layers() -> None:
    costs = costs_of("convolutional")
    assert [cost.parameters for cost in costs] == [
        sum(p.numel() for p in part.body.parameters()) for part in build_parts(config_of().model, 1)
    ]
    assert [cost.forward_macs for cost in costs] == [
        27 * 6 * 256 + 0, 54 * 8 * 9, 72 * 12, 12 * 5
    ]  # fmt: skip


def test_a_transposed_convolution_costs_what_it_does_for_each_pixel_it_reads() -> None:
    costs = costs_of("enlarging")
    assert costs[0].forward_macs == 3 * 8 * 4 * 4 * 16 * 16


def test_the_network_computes_what_the_users_own_would() -> None:
    stage = stage_of(config_of())
    network = convolutional().eval()
    parameters = [p for block in stage.blocks for p in block.encoder.parameters()]
    with torch.no_grad():
        for own, given in zip(network.parameters(), parameters, strict=True):
            own.copy_(given)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    h = x
    with torch.no_grad():
        for block in stage.blocks:
            h = block.transfer(block(h, batch_id=None), batch_id=None)
        torch.testing.assert_close(h, network(x))


def test_initial_weights_and_dropout_belong_to_the_seed() -> None:
    first, second = stage_of(config_of()), stage_of(config_of())
    other = stage_of(config_of(runtime={"seed": 2}))
    torch.rand(3)
    one, two = first.blocks[1], second.blocks[1]
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.encoder.parameters(), two.encoder.parameters(), strict=True)
    )
    assert not torch.equal(
        next(one.encoder.parameters()), next(other.blocks[1].encoder.parameters())
    )
    h = torch.ones(2, 8, 3, 3)
    dropped = one.transfer(h, batch_id=4)
    before = torch.get_rng_state()
    assert torch.equal(two.transfer(h, batch_id=4), dropped)
    assert not torch.equal(two.transfer(h, batch_id=5), dropped)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        ("lonely", "1 children with parameters; at least a hidden one and the output"),
        ("no module", r"gave a list; an nn\.Sequential .*, or another nn\.Module, which is cut"),
        ("a loose layer", r"Linear can't be cut into blocks: it is a single one"),
        ("wrong classes", r"its last child gives \(4,\) per example, the data has 5 classes"),
        ("wrong input", r"block 0, for inputs of shape \(3, 16, 16\): "),
        ("single numbers", r"block 0 gives \(\) per example; local losses need \(features,\)"),
        (
            "too many sides",
            r"block 0 gives \(1, 1, 1, 1, 1, 1, 768, 2\) per example; .* most 7 sides",
        ),
        ("scaled", r"its Scaled has a forward\(\) of its own, which would not be used"),
        ("replaced", r"its Sequential has a forward\(\) of its own"),
        ("hooked", "its Sequential has hooks, which would not be used"),
        ("tempered", r"has parameters or buffers of its own \(temperature, shift\)"),
        ("spoilt", r"block 1: a parameter of shape \(5,\) is not finite from the start"),
        ("tied", "blocks 1 and 2 share a tensor; every block learns alone"),
        ("lazy", "block 0 holds a lazy module; give its sizes"),
        ("frozen end", "1 children with parameters"),
        ("mixing", r"block 0, .*gives \(1, 6\) for 2 examples; one row for each"),
        ("twofold", "block 0, .*gives a tuple, a tensor is needed"),
        ("leaves", "SystemExit: 0"),
    ],
)
def test_a_network_that_does_not_fit_or_has_a_trap_is_refused(network: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"model.factory {FACTORY}: .*{complaint}"):
        specs_of(config_of(network))


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [("no.such.module:make", "No module"), (f"{__name__}:gone", "no gone")],
)
def test_a_function_that_is_not_there_is_named(factory: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"model.factory {factory}: .*{complaint}"):
        specs_of(config_of(model={"factory": factory}))


@pytest.mark.parametrize(
    ("module", "where"), [("queue", "/queue.py"), ("sys", "of Python itself"), ("yaml", "/yaml/")]
)
def test_an_installed_module_of_the_users_name_is_told(
    module: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{module}.py").write_text("raise AssertionError('it is looked for last')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    with pytest.raises(
        ConfigError, match=rf"{module} \(.*{where}.*\) has no make; .* needs a name"
    ):
        specs_of(config_of(model={"factory": f"{module}:make"}))


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ({"name": "vgg8b"}, "leave model.name out"),
        ({"dropout": 0.3}, "model.dropout: with model.factory the function decides"),
        ({"hidden": 99}, "model.hidden: with model.factory the function decides"),
        ({"factory": "os.system"}, "model.factory"),
    ],
)
def test_what_the_function_decides_can_not_be_set(model: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config_of(model=model)


def test_keyword_arguments_reach_the_function_and_survive_the_file() -> None:
    config = config_of(model={"kwargs": {"width": 10, "dropout": 0.25}})
    assert specs_of(config)[0].shape == (10, 16, 16)
    assert build_config(json.loads(json.dumps(config_tree(config))), "again") == config


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "pred", "pred_hidden": [3]},
        {"name": "predsim", "unsupervised": "sim", "alpha": 0.5},
        {"name": "predsim", "bio": True},
        {"name": "pred", "classifier": "fixed", "feedback": "random"},
    ],
)
@pytest.mark.parametrize(
    ("network", "shape"), [("like a sequence", (3, 4)), ("volumes", (2, 1, 14, 14))]
)
def test_local_losses_take_activations_of_any_shape(
    network: str, shape: tuple[int, ...], loss: dict[str, Any]
) -> None:
    config = config_of(network, loss={"dim_in_decoder": 8, **loss})
    assert specs_of(config)[0].shape == shape
    before = stage_of(config).blocks[0].module_state()
    after = trained(config).blocks[0].module_state()
    assert not torch.equal(before["encoder.1.weight"], after["encoder.1.weight"])


def test_groups_and_global_backprop_work_on_it_too() -> None:
    grouped = specs_of(config_of(model={"group": 2}))
    assert [spec.same_group for spec in grouped] == [False, True, False, False]
    stage = stage_of(config_of(loss={"name": "glob"}))
    x, labels = torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8) % 5
    stage.train(x, labels, batch_id=1, lr=0.01, send=lambda passed: None)


def test_rebuilding_the_input_is_refused() -> None:
    loss = {"name": "pred", "unsupervised": "recon", "alpha": 0.5}
    with pytest.raises(ConfigError, match="recon rebuilds a block's input"):
        specs_of(config_of(loss=loss))


# --- networks with traps ------------------------------------------------------------------


def test_a_class_of_its_own_that_only_makes_children_is_taken() -> None:
    assert [spec.shape for spec in specs_of(config_of("a class of its own"))] == [(6,), (6,), (5,)]


def test_a_mask_of_infinities_is_no_divergence() -> None:
    stage = trained(config_of("masked"))
    stage.check_state(1)
    stage.load({index: dict(tensors) for index, tensors in stage.state().items()})
    stage.check_state(2)  # what is excused does not depend on what was loaded


def trained(config: Config) -> Stage:
    stage = stage_of(config)
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=draws)
    for step in (1, 2, 3):
        stage.train(x, torch.arange(8) % 5, batch_id=step, lr=0.01, send=lambda passed: None)
    return stage


def same_weights(one: Stage, other: Stage) -> bool:
    pairs = zip(one.blocks, other.blocks, strict=True)
    return all(
        torch.equal(p, q)
        for first, second in pairs
        for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_a_module_may_occur_again_where_it_learns_nothing() -> None:
    one, other = trained(config_of("shared activation")), trained(config_of("own activations"))
    assert same_weights(one, other)


def test_modules_that_change_their_input_do_not_change_what_heads_see() -> None:
    one, other = (
        trained(config_of("dropout", model={"kwargs": {"inplace": inplace}}))
        for inplace in (True, False)
    )
    assert same_weights(one, other)


def test_a_function_that_gives_another_network_each_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="the function must give the same network each time"):
        stage_of(config_of("ever wider"))


def test_only_batch_norm_needs_several_images() -> None:
    one_image = config_of("without norm", data={"batch_size": 1})
    assert not any(spec.normalises for spec in specs_of(one_image))
    assert any(spec.normalises for spec in specs_of(config_of()))


def test_evaluation_sees_the_same_draws_whatever_came_before() -> None:
    block = stage_of(config_of()).blocks[1]
    noise = nn.Sequential(nn.Dropout(0.5))
    noise.train = lambda mode=True: noise  # type: ignore[method-assign]  # draws in evaluation too
    block.tail = noise
    h = torch.ones(2, 8, 3, 3)
    first = block.transfer(h, batch_id=None)
    torch.rand(5)
    assert torch.equal(block.transfer(h, batch_id=None), first)
