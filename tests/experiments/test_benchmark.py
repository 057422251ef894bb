"""Suites: what is planned, which rate is chosen, what is measured, what is advised."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flwr_ctma.cli import app
from flwr_ctma.experiments import advice
from flwr_ctma.experiments.advice import advise, shipped_results
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.benchmark import Suite, chosen_rates, summarize
from flwr_ctma.experiments.sweep_results import FinishedRun
from flwr_ctma.report.benchmark import benchmark_table, loss_chart, share_chart
from flwr_ctma.report.render import can_render, write_chart

ROOT = Path(__file__).parents[2]
APP = FlowerApp(ROOT)
SUITES = Path(advice.__file__).parent / "suites"
FILES = sorted([*(ROOT / "docs/results").glob("*.json"), *SUITES.glob("*.json")])
SMALL = """
last = 1
seeds = [1, 2]
attacks = ["none", "ipm"]
rules = ["mean", { aggregator = "gm", memory = 0.5 }]

[run-config]
num-server-rounds = 2
batch-size = 4
local-steps = 1

[tuning]
learning-rate = [0.3, 0.1]
attacks = ["ipm"]
seeds = [9]

[[regimes]]
num-nodes = 5
num-malicious-nodes = [1, 2]
"""


@pytest.fixture
def suite(tmp_path):
    def write(text=SMALL):
        file = tmp_path / "suite.toml"
        file.write_text(text)
        return str(file)

    return write


def ended(runs, accuracy):
    """End each run with the accuracy that a function gives for its configuration."""
    return [
        FinishedRun(
            run,
            [
                {
                    **{"round": 1, "accuracy": accuracy(run.config), "seconds": 0.5},
                    **{"asked": [*range(4)], "bytes-received": 20},
                    "aggregation-seconds": 0.5 if run.config["attack"] == "none" else 9,
                }
            ],
        )
        for run in runs
    ]


def test_each_rule_has_equally_many_trials_on_validation_data(suite):
    plan = Suite.read(suite(), APP)
    trials = plan.tuning_runs()
    assert {run.config["evaluate-on"] for run in trials} == {"validation"}
    by_rule = [run.config["aggregator"] for run in trials]
    assert by_rule.count("mean") == by_rule.count("gm") == 2 * 2
    runs = plan.runs({})
    assert {run.config["evaluate-on"] for run in runs} == {"test"}
    assert len({run.name for run in runs}) == 2 * 2 * 2 * 2
    assert not {run.name for run in runs} & {run.name for run in trials}


def test_rate_with_the_best_validation_accuracy_is_chosen_for_each_rule(suite):
    plan = Suite.read(suite(), APP)

    def accuracy(config):
        best = 0.1 if config["aggregator"] == "gm" else 0.3
        return 0.9 if config["learning-rate"] == best else 0.5

    rates = chosen_rates(plan, ended(plan.tuning_runs(), accuracy))
    assert {(key.count('"gm"'), rate) for key, rate in rates.items()} == {
        (1, 0.1),
        (0, 0.3),
    }
    for run in plan.runs(rates):
        expected = 0.1 if run.config["aggregator"] == "gm" else 0.3
        assert run.config["learning-rate"] == expected


def test_losses_are_paired_by_seed_and_against_the_first_rule(suite):
    plan = Suite.read(suite(), APP)
    rates = chosen_rates(plan, [])

    def accuracy(config):
        lost = {"none": 0.0, "ipm": 0.2}[config["attack"]]
        own = 0.1 if config["aggregator"] == "gm" else 0.0
        return config["seed"] / 10 + 0.5 - own - lost

    entries = summarize(plan, rates, ended(plan.runs(rates), accuracy))
    assert [one["malicious"] for one in entries] == [1, 1, 2, 2]
    mean, gm = entries[:2]
    # The seeds differ by 0.1, the differences within a seed do not.
    assert gm["unattacked"] == {"mean": 0.55, "interval": [0.5, 0.6]}
    assert gm["cost"] == {"mean": 0.1, "interval": [0.1, 0.1]}
    assert gm["loss"] == {"mean": 0.3, "interval": [0.3, 0.3]}
    assert mean["loss"] == {"mean": 0.2, "interval": [0.2, 0.2]}
    assert gm["worst"] == {"attack": "ipm", "mean": 0.35, "interval": [0.3, 0.4]}
    assert gm["scores"]["ipm"]["values"] == [0.3, 0.4]
    # An attack takes time in the aggregation, which is none of the rule's.
    assert (gm["aggregation-seconds"], gm["upload-bytes"]) == (0.5, 5)
    assert gm["learning-rates"] == [0.1, 0.3]
    assert gm["memory"] == 0.5


def test_reference_runs_without_attack_alone_and_losses_are_against_it(suite):
    text = SMALL.replace('"mean", ', "", 1).replace(
        "last = 1", 'last = 1\nreference = "mean"', 1
    )
    plan = Suite.read(suite(text), APP)
    for runs in (plan.tuning_runs(), plan.runs({})):
        attacks = {r.config["attack"] for r in runs if r.point["aggregator"] == "mean"}
        assert attacks == {"none"}
    assert "none" not in {
        r.config["attack"]
        for r in plan.tuning_runs()
        if r.point["aggregator"] != "mean"
    }

    def accuracy(config):
        own = 0.1 if config["aggregator"] == "gm" else 0.0
        return 0.8 - own - (0.0 if config["attack"] == "none" else 0.2)

    rates = chosen_rates(plan, [])
    finished = ended(plan.runs(rates), accuracy)
    entries = summarize(plan, rates, finished)
    assert [one["rule"] for one in entries] == ["gm", "gm"]
    one = entries[0]
    assert one["reference"]["mean"] == 0.8
    assert (one["cost"]["mean"], one["loss"]["mean"]) == (0.1, 0.3)
    without = [r for r in finished if r.run.config["aggregator"] != "mean"]
    assert summarize(plan, rates, without) == []


def test_seed_that_has_not_ended_under_all_rules_does_not_count(suite):
    plan = Suite.read(suite(), APP)
    rates = chosen_rates(plan, [])
    finished = ended(plan.runs(rates), lambda config: 0.5)
    entries = summarize(plan, rates, finished[:-1])
    assert [one["seeds"] for one in entries] == [[1, 2], [1, 2], [1], [1]]
    assert summarize(plan, rates, []) == []


def test_run_that_failed_or_diverged_has_lost_everything(suite):
    plan = Suite.read(suite(), APP)
    rates = chosen_rates(plan, [])

    def accuracy(config):
        return float("nan") if config["attack"] == "ipm" else 0.9

    entries = summarize(plan, rates, ended(plan.runs(rates), accuracy))
    assert entries[0]["worst"]["mean"] == 0
    failed = [FinishedRun(run, [], error="no room") for run in plan.runs(rates)]
    assert summarize(plan, rates, failed)[0]["unattacked"]["mean"] == 0


def test_suite_runs_from_end_to_end_and_resumes(suite, tmp_path):
    out = tmp_path / "out"
    one_regime = SMALL.replace("[1, 2]\n", "1\n", 2).replace("seeds = 1", "seeds = [1]")
    words = ["benchmark", suite(one_regime), str(ROOT), "--batched", "--workers", "1"]
    words += ["--output", str(out), "--json"]
    plan = CliRunner().invoke(app, [*words, "--dry-run"])
    assert json.loads(plan.stdout)["runs"] == 2 * 2 + 2 * 2
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    content = json.loads((out / "results.json").read_text())
    assert json.loads(done.stdout) == content
    assert [one["rule"] for one in content["results"]] == ["mean", "gm"]
    one = content["results"][1]
    assert one["learning-rate"] in (0.3, 0.1)
    assert 0 < one["aggregation-seconds"] < 10
    assert one["upload-bytes"] == 4 * 6090 + 6 * 128  # parameters, headers
    assert (out / "results.md").read_text().count("\n") == 2 + 2
    log = (out / "log.txt").stat().st_mtime_ns
    again = CliRunner().invoke(app, words)
    assert json.loads(again.stdout) == content
    rest = CliRunner().invoke(app, [*words, "--dry-run"])
    assert json.loads(rest.stdout)["runs"] == 0
    assert (out / "log.txt").stat().st_mtime_ns == log


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("seeds = [1, 2]", "seads = [1]", "Did you mean `seeds`"),
        ("seeds = [1, 2]", "", "`seeds` should be a list of different whole numbers"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "different whole numbers"),
        ("seeds = [1, 2]", "seeds = [true]", "different whole numbers"),
        ("last = 1", "last = 0", "`last` should be a whole number of at least 1"),
        ('["none", "ipm"]', '["ipm"]', "attacks with `none` among them"),
        ('["none", "ipm"]', '["none", "imp"]', "Did you mean `ipm`"),
        ('"mean", ', '"maen", ', "Did you mean `mean`"),
        ('"mean", ', "{ memory = 0.5 }, ", "`rules` should be a list of rules"),
        ("last = 1", "reference = 1", "`reference` should be a rule"),
        ("last = 1", "reference = ''", "`aggregator` should be"),
        ("last = 1", "reference = 'mean'", "`rules` should be a list without dup"),
        ("num-nodes = 5", "num-nods = 5", "Did you mean `num-nodes`"),
        ("num-nodes = 5", "num-nodes = []", "`regimes` should be an array of tables"),
        ("learning-rate = [0.3, 0.1]", "learning-rate = [0]", "`tuning` should be"),
        ("[tuning]", "[turning]", "Did you mean `tuning`"),
        ("num-nodes = 5", "seed = 5", "a table without `seed`"),
        ("memory = 0.5", "learning-rate = 0.5", "without `learning-rate`"),
        ("batch-size = 4", "evaluate-on = 'validation'", "without `evaluate-on`"),
        ("last = 1", "last = ", "a TOML file, or one of data, digits, full"),
        ('"mean", ', '"mean", "mean", ', "`rules` should be a list without duplicates"),
        ("memory = 0.5 }", "memory = 0.0 }, 'gm'", "a list without duplicates"),
        ('"ipm"]\nrules', '"ipm", "ipm"]\nrules', "`attacks` should be a list without"),
        ("nodes = [1, 2]", "nodes = [1, 1]", "`regimes` should be a list without"),
        ("[0.3, 0.1]", "[0.3, 0.3]", "`tuning.learning-rate` should be a list without"),
    ],
)
def test_mistake_in_a_suite_is_told_before_any_run(suite, old, new, sentence):
    assert old in SMALL
    with pytest.raises(ValueError, match=re.compile(sentence, re.IGNORECASE)):
        Suite.read(suite(SMALL.replace(old, new, 1)), APP)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("learning-rate=0.05", "learning-rate"),
        ("seed=7", "seed"),
        ('attack="alie"', "attack"),
        ('evaluate-on="test"', "evaluate-on"),
        ("num-nodes=7", "num-nodes"),
        ("memory=0.9", "memory"),
        ('batch-size=8 aggregator="gm"', "aggregator"),
    ],
)
def test_override_that_the_suite_would_overwrite_is_refused(suite, override, key):
    with pytest.raises(ValueError, match=f"without `{key}`, which the suite sets"):
        Suite.read(suite(), APP, override)


def test_override_of_another_key_holds_in_all_runs(suite):
    plan = Suite.read(suite(), APP, "batch-size=8")
    assert {one.config["batch-size"] for one in plan.runs({})} == {8}


@pytest.mark.parametrize("name", sorted(file.stem for file in SUITES.glob("*.toml")))
def test_suites_of_the_package_fit_the_app(name):
    plan = Suite.read(name, APP)
    assert plan.runs({}) and plan.tuning_runs()


def entry(rule, loss, malicious=5, data="alike", **more):
    low, high = loss - 0.01, loss + 0.01
    summary = {"mean": loss, "interval": [low, high]}
    return {
        **{"regime": {}, "steps": "clients", "data": data, "num-nodes": 17},
        **{"malicious": malicious, "rule": rule, "memory": 0.0, "seeds": [1, 2]},
        **{"learning-rate": 0.1, "unattacked": summary, "cost": summary},
        **{"loss": summary, "worst": {"attack": "ipm", **summary}},
        **{"scores": {"none": summary, "ipm": summary}},
        **{"command": "flwr-ctma benchmark some.toml"},
        **more,
    }


MEASURED = [
    entry("gm", 0.02, malicious=3),
    entry("caf", 0.05, malicious=3),
    entry("caf", 0.05),
    entry("gm", 0.06),
    entry("krum", 0.2),
    entry("krum", 0.01, malicious=8),
    entry("caf", 0.3, malicious=8),
    entry("gm", 0.1, data="differ"),
]


@pytest.mark.parametrize(
    ("n", "f", "data", "rule", "others"),
    [
        (17, 5, "alike", "caf", ["gm"]),
        (17, 3, "alike", "gm", []),
        (100, 20, "alike", "caf", ["gm"]),  # between 3 and 5 of 17: the larger share
        (50, 1, "alike", "gm", []),
        (17, 8, "alike", "caf", []),  # krum is undefined for 8 of 17
        (10, 2, "differ", "gm", []),
    ],
)
def test_advice_is_the_smallest_loss_at_the_next_larger_share(n, f, data, rule, others):
    found = advise(MEASURED, n, f, data=data)
    assert (found.entry["rule"], list(found.others)) == (rule, others)
    assert found.entry["malicious"] / found.entry["num-nodes"] >= f / n
    assert found.line == (
        f'RobustStrategy(FedAvg(), "{rule}", num_malicious_nodes={f})'
    )
    assert found.run_config["num-nodes"] == n
    assert f < found.sampled <= n


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"malicious": 9}, "less than half of 17"),
        ({"malicious": 0}, "at least 1"),
        ({"steps": "servers"}, "`steps` should be one of clients, server"),
        ({"data": "iid"}, "`data` should be one of alike, differ"),
        ({"steps": "server"}, "flwr-ctma tournament"),
        ({"malicious": 6, "data": "differ"}, "at most 5 of 17, the largest share"),
    ],
)
def test_regime_that_was_not_measured_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        advise(MEASURED, **({"num_nodes": 17, "malicious": 5} | arguments))


def test_regime_whose_rules_are_all_undefined_is_a_sentence():
    results = [entry("krum", 0.1, malicious=8)]
    with pytest.raises(ValueError, match=r"a measured rule \(krum\) is defined for 17"):
        advise(results, 17, 8, data="alike")


def test_memory_is_part_of_the_line():
    results = [entry("nnm(gm)", 0.1, memory=0.9)]
    found = advise(results, 17, 5, data="alike")
    assert found.line.endswith("num_malicious_nodes=5, memory=0.9)")


def test_command_advises_from_the_results_of_the_package():
    told = CliRunner().invoke(app, ["advise", "--num-nodes", "17", "--malicious", "5"])
    assert told.exit_code == 0, told.output
    assert "RobustStrategy(FedAvg(), " in told.output
    assert "flwr-ctma benchmark digits --batched" in told.output
    words = ["advise", "--num-nodes", "20", "--malicious", "4", "--json"]
    found = json.loads(CliRunner().invoke(app, words).stdout)
    assert found["run-config"]["num-malicious-nodes"] == 4
    low, high = found["loss"]["interval"]
    assert low <= found["loss"]["mean"] <= high
    told = CliRunner().invoke(app, ["advise", "--steps", "server"])
    assert "flwr-ctma benchmark server-steps --batched" in told.output
    told = CliRunner().invoke(app, ["advise", "--malicious", "8"])
    assert told.exit_code == 1
    assert "at most 5 of 17, the largest share measured" in told.output


def test_shipped_means_are_those_of_the_shipped_values():
    for one in shipped_results():
        assert len(one["seeds"]) >= 2
        for score in one["scores"].values():
            assert len(score["values"]) == len(one["seeds"])
            assert score["mean"] == pytest.approx(np.mean(score["values"]), abs=2e-4)
        means = {name: score["mean"] for name, score in one["scores"].items()}
        assert one["worst"]["mean"] == min(means.values())
        assert one["unattacked"]["mean"] == means["none"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_page_shows_the_results_of_a_suite_with_its_command(file):
    content = json.loads(file.read_text(encoding="utf-8"))
    page = (ROOT / "docs/results/benchmark.md").read_text(encoding="utf-8")
    assert benchmark_table(content["results"]) in page
    assert content["command"] in page
    plan = Suite.read(content["suite"], APP)
    assert content["seeds"] == plan.seeds
    assert len(content["results"]) == len(plan.regimes) * len(plan.rules)
    for one in content["results"]:
        assert [*one["scores"]] == plan.attacks


@pytest.mark.skipif(not can_render(), reason="needs the extra `report`")
def test_figures_and_table_show_each_rule_of_each_regime(tmp_path):
    results = MEASURED
    tables = [one.splitlines() for one in benchmark_table(results).split("\n\n")]
    assert [len(table) - 2 for table in tables] == [2, 3, 2, 1]
    assert "| steps on the clients, data alike, 5 of 17 |" in tables[1][0]
    assert "`gm`" in tables[0][2] and "2.0 (1.0 to 3.0)" in tables[0][2]
    ended_at_an_edge = {**results[0], "learning-rates": [0.1, 0.3]}
    measured = {"aggregation-seconds": 0.0021, "upload-bytes": 24_000}
    table = benchmark_table([{**ended_at_an_edge, **measured}]).splitlines()
    assert "; upload 24.0 kB |" in table[0]
    assert "| 0.1, smallest |" in table[2]
    assert table[2].endswith("| 2.1 |")
    chart = loss_chart(results, "loss", "Loss")
    assert [len(one["data"]["values"]) for one in chart["concat"]] == [2, 3, 2, 1]
    by_share = share_chart(results, "Share")  # data that differ have one share
    assert [len(one["data"]["values"]) for one in by_share["concat"]] == [7]
    for spec in (chart, by_share):
        write_chart(spec, tmp_path / "chart.png")
        assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
