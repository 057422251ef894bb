"""Partitions have all examples once, and the classes that their definition gives."""

import numpy as np
import pytest

from clients.partitions import Dirichlet, Iid, Shards, Similarity, parse_partitioner

CLASSES, EACH, CLIENTS = 5, 40, 10
ALL = [Iid(), Dirichlet(0.3), Shards(), Shards(3), Similarity(), Similarity(0.0)]


LABELS = np.random.default_rng(0).permutation(np.repeat(range(CLASSES), EACH))


@pytest.mark.parametrize("partitioner", ALL, ids=str)
def test_every_example_has_one_client(partitioner):
    deal = partitioner.deal(LABELS, CLIENTS, seed=1)
    assert sorted(np.concatenate(deal)) == list(range(CLASSES * EACH))


@pytest.mark.parametrize("partitioner", ALL, ids=str)
def test_the_same_seed_deals_the_same(partitioner):
    first, second = (partitioner.deal(LABELS, CLIENTS, 7) for _ in range(2))
    assert all(map(np.array_equal, first, second))


def test_shards_are_pieces_of_one_class_where_they_divide_it():
    deal = Shards(2).deal(LABELS, CLIENTS, seed=1)  # four pieces of each class
    for positions in deal:
        _, counts = np.unique(LABELS[positions], return_counts=True)
        assert set(counts) <= {10, 20}


def test_another_seed_deals_other_shards():
    first, second = (Shards().deal(LABELS, CLIENTS, seed) for seed in (1, 2))
    assert any(
        LABELS[x].tolist() != LABELS[y].tolist()
        for x, y in zip(first, second, strict=True)
    )


def test_gamma_is_the_share_that_is_alike():
    deal = Similarity(0.5).deal(LABELS, CLIENTS, seed=1)
    for i, positions in enumerate(deal):
        assert list(positions[:10]) == list(range(10 * i, 10 * i + 10))  # as they came
        assert len(set(LABELS[positions[10:]])) <= 2  # neighbours of the sorted rest


def test_too_many_shards_are_refused():
    with pytest.raises(ValueError, match="`per_client` should be at most 20 where 10"):
        Shards(21).deal(LABELS, CLIENTS, seed=1)


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
