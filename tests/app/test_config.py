"""A wrong run-config is one sentence, before any client starts."""

from pathlib import Path

import pytest

from clients.config import RunConfig
from flwr_ctma.experiments.app import FlowerApp

APP = FlowerApp(Path(__file__).parents[2])


def test_defaults_of_the_app_are_a_valid_run_config():
    config = RunConfig.of(APP.run_config())
    assert config.keys() == APP.run_config()
    assert (config.num_nodes, config.num_malicious_nodes) == (17, 8)


def test_first_partitions_are_malicious():
    config = RunConfig.of(APP.run_config())
    assert [config.is_malicious(i) for i in (0, 7, 8, 16)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ('aggregator="ctma(kurm)"', "krum"),
        ('aggregator="ctma"', "base"),
        ('attack="sinflip"', "signflip"),
        ('partitioner="natural"', "dirichlet, iid"),
        ('model="resnet"', "small, paper, mlp, transformer"),
        ('optimizer="adam"', "mu2, momentum, sgd"),
        ('optimizer="mu2(flored)"', "floored"),
        ('optimizer="momentum(beta=1.0)"', "[0, 1)"),
        ('optimizer="mu2(radius=0.0)"', "greater than 0"),
        ('optimizer="fixed"', "mu2, momentum, sgd"),
        ('steps-on="phone"', "clients, server"),
        ('evaluate-on="train"', "test, validation"),
        ("evaluate-every=0", "at least 1"),
        ("weight-decay=-1.0", "at least 0"),
        ("clip-norm=nan", "finite"),
        ('device="tpu"', "auto, cpu, cuda"),
        ('dataset="./nowhere"', "an existing folder"),
        ("num-malicious-nodes=9", "less than half"),
        ("num-malicious-nodes=-1", "at least 0"),
        ("num-nodes=0", "at least 1"),
        ("local-steps=0", "at least 1"),
        ("batch-size=0", "at least 1"),
        ("num-server-rounds=0", "at least 1"),
        ("learning-rate=0.0", "greater than 0"),
        ("learning-rate=nan", "finite"),
        ("alpha=-1.0", "greater than 0"),
        ("fraction-train=0.0", "(0, 1]"),
        ("fraction-train=1.5", "(0, 1]"),
        ("fraction-evaluate=2.0", "[0, 1]"),
        ('backend="rai"', "Did you mean `ray`"),
        ('backend="ray(worker=2)"', "workers"),
        ('backend="ray(workers=0)"', "at least 1"),
        ('backend="ray" asynchronous=true', "there are no rounds"),
        ("memory=1.0", "[0, 1)"),
        ('memory=0.9 aggregator="fedavg"', "judges no client"),
        ('client-weighting="count"', "Did you mean `counts`"),
        ('client-weighting="staleness(power=-1)"', "at least 0"),
        ('arrivals="fast"', "real, uniform, id, id2, straggler"),
        ('arrivals="straggler(slowdown=0.5)"', "at least 1"),
        ("malicious-share=0.5", "[0, 0.5)"),
        ("malicious-share=0.2", "`asynchronous=true`"),
        ('client-weighting="equal"', "`asynchronous=true`"),
        ("asynchronous=1", "bool"),
        ('aggregator="krum" asynchronous=true', "weighted form"),
        ('aggregator="fedavg" asynchronous=true', "weighted form"),
        ("fraction-train=0.5 asynchronous=true", "all nodes only train"),
        ("fraction-evaluate=1.0 asynchronous=true", "all nodes only train"),
        ("seed=-1", "[0, 2**32)"),
        ("seed=1.5", "int"),
        ('batch-size="32"', "int"),
        ("batch-size=true", "int"),
        ("output=3", "str"),
    ],
)
def test_wrong_value_is_named_with_its_key_and_what_is_allowed(override, allowed):
    key, _, _ = override.partition("=")
    with pytest.raises(ValueError) as raised:
        RunConfig.of(APP.run_config(override))
    sentence = str(raised.value)
    assert f"`{key}`" in sentence
    assert repr(APP.run_config(override)[key]) in sentence
    assert allowed in sentence
    assert "\n" not in sentence


def test_integer_will_do_for_a_float():
    assert RunConfig.of(APP.run_config("learning-rate=1")).learning_rate == 1


def test_unknown_key_is_refused_with_the_nearest_one():
    known = APP.run_config()
    with pytest.raises(ValueError, match=r"agregator.*Did you mean `aggregator`"):
        RunConfig.of({**known, "agregator": "gm"})
    with pytest.raises(ValueError, match=r"agregator.*Did you mean `aggregator`"):
        APP.run_config('agregator="gm"')


def test_missing_key_is_named():
    known = APP.run_config()
    del known["seed"]
    with pytest.raises(ValueError, match=r"`seed` should be set.*int"):
        RunConfig.of(known)


def test_plain_averaging_may_be_outnumbered():
    """FedAvg has nothing to tolerate: it may be shown to fail at any f."""
    config = RunConfig.of(APP.run_config('aggregator="fedavg" num-malicious-nodes=9'))
    assert config.num_malicious_nodes == 9
    with pytest.raises(ValueError, match="num-nodes = 17"):
        RunConfig.of(APP.run_config('aggregator="fedavg" num-malicious-nodes=18'))


@pytest.mark.parametrize(
    ("n", "fraction", "sampled"), [(17, 1.0, 17), (20, 0.5, 10), (20, 0.01, 1)]
)
def test_fraction_of_the_nodes_is_sampled(n, fraction, sampled):
    config = RunConfig.of(APP.run_config(f"num-nodes={n} fraction-train={fraction}"))
    assert config.num_sampled == sampled


def test_folder_without_an_app_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder of a Flower app"):
        FlowerApp(tmp_path).run_config()
