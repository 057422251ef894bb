"""Partitions have all examples once, and the classes that their definition gives."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from clients.partitions import Dirichlet, Iid, Shards, Similarity, parse_partitioner

CLASSES, EACH, CLIENTS = 5, 40, 10
ALL = [Iid(), Dirichlet(0.3), Shards(), Shards(3), Similarity(), Similarity(0.0)]


@pytest.fixture(scope="module")
def train() -> Dataset:
    labels = np.random.default_rng(0).permutation(np.repeat(range(CLASSES), EACH))
    features = Features({"label": ClassLabel(CLASSES), "number": Value("int64")})
    columns = {"label": labels, "number": range(CLASSES * EACH)}
    return Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("partitioner", ALL, ids=str)
def test_every_example_has_one_client(train, partitioner):
    deal = partitioner.deal(train, "label", CLIENTS, seed=1)
    numbers = [n for i in range(CLIENTS) for n in deal(i)["number"]]
    assert sorted(numbers) == list(range(CLASSES * EACH))


@pytest.mark.parametrize("partitioner", ALL, ids=str)
def test_the_same_seed_deals_the_same(train, partitioner):
    first, second = (partitioner.deal(train, "label", CLIENTS, 7) for _ in range(2))
    assert all(first(i)["number"] == second(i)["number"] for i in range(CLIENTS))


def test_shards_are_pieces_of_one_class_where_they_divide_it(train):
    deal = Shards(2).deal(train, "label", CLIENTS, seed=1)  # four pieces of each class
    for i in range(CLIENTS):
        _, counts = np.unique(deal(i)["label"], return_counts=True)
        assert set(counts) <= {10, 20}


def test_another_seed_deals_other_shards(train):
    first, second = (Shards().deal(train, "label", CLIENTS, seed) for seed in (1, 2))
    assert any(first(i)["label"] != second(i)["label"] for i in range(CLIENTS))


def test_gamma_is_the_share_that_is_alike(train):
    deal = Similarity(0.5).deal(train, "label", CLIENTS, seed=1)
    for i in range(CLIENTS):
        part = deal(i)
        assert part["number"][:10] == list(range(10 * i, 10 * i + 10))  # as they came
        assert len(set(part["label"][10:])) <= 2  # neighbours of the sorted rest


def test_too_many_shards_are_refused(train):
    with pytest.raises(ValueError, match="`per_client` should be at most 20 where 10"):
        Shards(21).deal(train, "label", CLIENTS, seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shards(per_client=0)", "`per_client` should be at least 1"),
        ("similarity(gamma=1)", "`gamma` should be in .0, 1.*`iid`"),
        ("dirichlet(alpha=1)", "Set the key `alpha`"),
        ("sharts", "one of dirichlet, iid, shards, similarity"),
    ],
)
def test_a_wrong_spelling_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_partitioner(text)
