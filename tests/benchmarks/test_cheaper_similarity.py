"""The variants that are measured are those that the referee's table has."""

from __future__ import annotations

from benchmarks.cheaper_similarity import NETWORKS, words
from launch.referee.table import read_table
from launch.referee.tasks import Request, Task, config_of


def test_it_asks_the_referee_for_every_key_of_cheaper_similarity() -> None:
    table = read_table()
    _, networks, _, names = words(bf16=True)
    rules = table.named_rules(names)
    request = Request(table, table.named_networks(networks), rules)
    assert [network.name for network in request.networks] == list(NETWORKS)
    vgg = table.networks["vgg8b_quarter"]
    found = {
        key for rule in rules for key in config_of(Task(vgg, rule, "train"), request).loss.cheaper
    }
    assert found == {
        "similarity_pool", "similarity_channels", "similarity_groups", "similarity_batches",
        "similarity_bf16",
    }  # fmt: skip
    assert [rule.name for rule in rules[:2]] == ["pred", "predsim"]
    assert all(rule.search_of == "predsim" for rule in rules[2:])
    without = [rule for rule in rules if rule.name != "predsim-bf16"]
    assert table.named_rules(words(bf16=False)[3]) == without
