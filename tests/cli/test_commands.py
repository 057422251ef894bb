"""The command line, run as users run it: as a process of its own."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from typer.testing import CliRunner

import flwr_ctma
from flwr_ctma.aggregators import RULES
from flwr_ctma.attacks import ATTACKS
from flwr_ctma.cli import app
from flwr_ctma.cli.progress import RunProgress
from flwr_ctma.cli.screen import Screen
from flwr_ctma.cli.tables import comparison_table
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.comparison import (
    comparison_runs,
    run_one_by_one,
    summarize_rules,
)
from flwr_ctma.experiments.processes import RunFailed, spell_config
from flwr_ctma.experiments.runtimes import Engine
from flwr_ctma.experiments.sweep import Sweep
from flwr_ctma.experiments.sweep_results import FinishedRun, PlannedRun
from flwr_ctma.tracking.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SMALL = "num-nodes=5 num-malicious-nodes=1 num-server-rounds=2 local-steps=1"
COMMAND = [sys.executable, "-m", "flwr_ctma"]


def compare(output, *options):
    return subprocess.run(
        [*COMMAND, "compare", ROOT, "--output", output, "-c", SMALL, *options],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )


def test_comparison_shows_a_table_and_leaves_a_folder(tmp_path):
    done = compare(
        tmp_path / "run",
        *("--engine", "in-process", "--partitioner", "iid", "--seed", "1"),
        *("--attack", "nonfinite"),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\[1/3\] \S+: accuracy 0\.\d+ after \d+ s", done.stdout, re.M)
    assert "[3/3] " in done.stdout
    assert "1 of 5 clients malicious: nonfinite, iid" in done.stdout
    assert (tmp_path / "run" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "run" / "rounds.csv").open()))
    assert len(rows) == 3 * 3
    assert {row["aggregator"] for row in rows} == {"fedavg", "ctma(gm)", "caf"}
    last = {row["aggregator"]: row for row in rows}
    assert last["fedavg"]["malicious-kept"] == "1"
    (robust,) = (tmp_path / "run").glob("ctma-gm_*/rounds.jsonl")
    assert json.loads(robust.read_text().splitlines()[-1])["rejected"] == [0]
    again = compare(
        tmp_path / "run",
        *("--engine", "in-process", "--partitioner", "iid", "--seed", "1"),
        *("--attack", "nonfinite"),
    )
    assert again.returncode == 0 and "[1/3]" not in again.stdout
    assert "1 of 5 clients malicious: nonfinite, iid" in again.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["run-config"]["num-nodes"] == 5
    assert set(config["runs"]) == {
        path.name for path in (tmp_path / "run").iterdir() if path.is_dir()
    }


def test_failed_run_is_named_and_the_others_are_shown(tmp_path):
    done = compare(
        tmp_path / "run",
        *("--engine", "in-process", "--attack", "malformed", "--partitioner", "iid"),
    )
    assert done.returncode == 1
    assert "Failed: fedavg_malformed_iid_1" in done.stderr
    assert done.stderr.count("could not be broadcast") == 1
    assert "ctma(gm)  " in done.stdout


class Failing(Engine):
    """Runs of one round, but for those whose rule is said to fail."""

    def __init__(self, *rules):
        self.rules, self.begun = rules, []

    def __exit__(self, *_):
        pass

    def run(self, config, num_nodes, log):
        self.begun.append(config["aggregator"])
        if config["aggregator"] in self.rules:
            raise RunFailed("no room")
        RunFolder(log.parent).append({"round": 1, "accuracy": 0.5})
        yield


def test_only_the_first_run_ends_the_others_if_it_cannot_begin(tmp_path):
    flower_app = FlowerApp(ROOT)
    settings = flower_app.run_config("num-server-rounds=1 num-nodes=5")
    rules = ["fedavg", "gm", "cwmed"]
    runs = comparison_runs(flower_app, settings, ["none"], ["iid"], rules, [1])
    plan = Sweep(flower_app, runs)
    engine = Failing("gm")
    states = run_one_by_one(plan, engine, tmp_path / "one")
    finished = [one for state in states for one in state.finished]
    errors = {one.run.config["aggregator"]: one.error for one in finished}
    assert errors == {"fedavg": "", "gm": "no room", "cwmed": ""}
    engine = Failing("fedavg")
    with pytest.raises(RunFailed, match="no room"):
        list(run_one_by_one(plan, engine, tmp_path / "other"))
    assert engine.begun == ["fedavg"]
    engine = Failing()
    list(run_one_by_one(plan, engine, tmp_path / "one"))
    assert engine.begun == ["gm"]  # the others are finished


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("-c", "sead=1"), "Did you mean `seed`"),
        (("--aggregator", "ctma(kurm)"), "Did you mean `krum`"),
        (("--attack", "sinflip"), "Did you mean `signflip`"),
        (("-c", "num-malicious-nodes=3"), "less than half of num-nodes = 5"),
        (("--aggregator", "krum", "-c", "num-malicious-nodes=2"), "at most 1 for krum"),
        (("-c", 'optimizer="adam"'), "one of mu2, momentum, sgd"),
        (("-c", "num-server-rounds=0"), "Found `num-server-rounds = 0`"),
        (("-c", "num-malicious-nodes='1'"), "`num-malicious-nodes` should be of type"),
        (("--partitioner", "foo"), "one of dirichlet, iid"),
        (("--seed", "-1"), "`seed` should be in [0, 2**32)"),
    ],
)
def test_mistake_is_one_sentence_and_nothing_is_written(tmp_path, options, sentence):
    done = compare(tmp_path / "run", *options)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "--engine", "in-process"),
        ("simulate",),
        ("tournament",),
        ("benchmark", "quick"),
        ("sweep", str(ROOT / "examples" / "wrong-f.toml")),
    ],
)
def test_the_check_of_the_app_comes_before_the_first_run(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    first, *others = words
    place = [str(ROOT), *others] if first == "compare" else [*others, str(ROOT)]
    line = [first, *place, "-c", "batch-size=0"]
    found = CliRunner().invoke(app, line)
    assert found.exit_code == 1, found.exception
    assert "Found `batch-size = 0`." in found.stderr
    assert found.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_check_that_is_not_there_is_a_sentence(tmp_path):
    project = (ROOT / "examples" / "quickstart-numpy" / "pyproject.toml").read_text()
    check = '[tool.flwr-ctma]\ncheck = "no_such_module:check"\n'
    (tmp_path / "pyproject.toml").write_text(project + check)
    with pytest.raises(ValueError, match="Found `check = 'no_such_module:check'`"):
        FlowerApp(tmp_path).check({})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("compare", str(ROOT), "-c", "partitioner='iid'"), ""),
        (("compare", str(ROOT), "-c", "seed=3", "--seed", "1"), "Write `--seed`"),
        (("sweep", "grid.toml", str(ROOT), "-c", "seed=3"), "Change `seed` in grid"),
        (("tournament", str(ROOT), "-c", "num-nodes=5"), "The options `--num-nodes`"),
        (("benchmark", "quick", str(ROOT), "-c", "seed=77"), "Change the suite"),
        (("simulate", str(ROOT), "--num-nodes", "4", "-c", "num-nodes=5"), "sets it"),
    ],
)
def test_value_that_no_run_has_is_refused(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text("axes = { seed = [1, 2] }")
    dry = () if words[0] == "simulate" or sentence else ("--dry-run",)
    found = CliRunner().invoke(app, [*words, *dry])
    assert found.exit_code == (1 if sentence else 0), found.exception
    assert sentence in found.stderr
    assert not Path("runs").exists()


def test_command_is_suggested_once():
    found = CliRunner().invoke(app, ["comapre"], env={"COLUMNS": "200"})
    assert found.exit_code == 2
    assert found.output.count("Did you mean `compare`?") == 1
    assert found.output.count("Did you mean") == 1


def test_dry_run_in_ray_makes_no_estimate(tmp_path):
    done = compare(tmp_path / "run", "--dry-run", "--json")
    planned = json.loads(done.stdout)
    assert (len(planned["runs"]), planned["seconds"]) == (6, None)
    assert "`--engine in-process` has an estimate" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_app_with_other_keys_is_not_compared():
    app = ROOT / "examples" / "quickstart-numpy"
    done = subprocess.run([*COMMAND, "compare", app], capture_output=True, text=True)
    assert done.returncode == 1
    assert "an app whose run-config has the keys aggregator" in done.stderr


def run(*words, **env):
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, env=os.environ | env
    )


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"flwr-ctma {flwr_ctma.__version__}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["comapre"], "No such command 'comapre'"),
        (["compare", "--atack", "alie"], "No such option"),
        (["compare", "--engine", "mpi"], "is not one of 'ray', 'in-process'"),
        (["simulate", "--num-nodes", "0"], "x>=1"),
        (["sweep"], "Missing argument 'FILE'"),
    ],
)
def test_line_that_cannot_be_read_exits_with_2(words, said):
    found = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert found.exit_code == 2
    assert said in found.output
    assert "Traceback" not in found.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "no/app"], "no/app"),
        (["simulate", "no/app"], "no/app"),
        (["tournament", "no/app"], "no/app"),
        (["sweep", "no.toml"], "no.toml"),
        (["report", "no/run"], "no/run"),
        (["verify", "no-trail"], "`file` should be an audit trail"),
        (["verify", "a-file", "--key", "zz"], "`key` should be 64 hexadecimal"),
        (["compare", str(ROOT), "-c", "num-malicious-nodes=9"], "num-nodes = 17"),
        (["compare", str(ROOT), "-c", 'aggregator="gm"'], "Write `--aggregator`"),
        (["compare", str(ROOT), "--output", "a-file/run"], "a-file/run"),
        (["tournament", str(ROOT), "--output", "a-file/run"], "a-file"),
        (["sweep", "grid.toml", str(ROOT), "--output", "a-file/run"], "a-file"),
        (["report", "runs", "--output", "a-file/page.html"], "a-file"),
    ],
)
def test_what_is_not_there_or_cannot_be_used_is_a_sentence(
    words, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    Path("grid.toml").write_text("axes = { seed = [1] }")
    Path("runs").mkdir()
    Path("runs", "rounds.jsonl").write_text('{"round": 0, "accuracy": 0.5}\n')
    Path("runs", "config.json").write_text("{}")
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 1, found.exception
    assert said in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--num-nodes", "4"], ["-c", "num-nodes=4"]])
def test_clients_that_are_simulated_are_those_that_the_app_waits_for(words, tmp_path):
    words = [str(ROOT), *words, "-c", f"num-malicious-nodes=1 output='{tmp_path}'"]
    words += ["-c", "num-server-rounds=1 local-steps=1"]
    found = CliRunner().invoke(app, ["simulate", *words])
    assert found.exit_code == 0, found.exception
    (*_, last) = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert len(json.loads(last)["asked"]) == 4


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("flwr-ctma com", "compare"),
        ("flwr-ctma compare --eng", "--engine"),
        ("flwr-ctma compare --engine ", "ray\nin-process"),
    ],
)
def test_shell_completes_commands_options_and_values(words, completed):
    """As the script asks that `flwr-ctma --install-completion` installs for bash."""
    env = {
        "_FLWR_CTMA_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    found = CliRunner().invoke(app, prog_name="flwr-ctma", env=env)
    assert found.output.strip() == completed


def processes_of(marker):
    """Find the processes that have the marker in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("value", ["/tmp/é 😀", "C:\\runs", 1e-30, 10**30, True, 0])
def test_flower_reads_what_is_spelled_for_it(value):
    spelled = spell_config({"output": value, "seed": 1})
    assert parse_config_args([spelled]) == {"output": value, "seed": 1}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    "end", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_interrupted_comparison_leaves_no_process(tmp_path, end):
    marker = f"FLWR_CTMA_TEST={tmp_path}"
    output = tmp_path / "run"
    command = [*COMMAND, "compare", ROOT, "--output", output, "-c", SMALL]
    process = subprocess.Popen(
        [*command, "-c", "num-server-rounds=1000"],
        stdout=subprocess.DEVNULL,
        env=os.environ | dict([marker.split("=")]),
        # Who starts the tests in the background of a shell hands down a deaf SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not list(output.glob("*/rounds.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(end)
    assert process.wait(60) == 128 + end
    deadline = time.monotonic() + 30
    while processes_of(marker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(marker) == []


def test_progress_tells_the_time_left_for_all_runs(capsys):
    screen = Screen(quiet=False, as_json=False)
    with RunProgress(screen, num_runs=3, total=9, saved_runs=1, saved=3) as progress:
        progress.update(6)
        progress.finish_run("[bold]gm[/]: accuracy 0.5")
        progress.update(9)
        progress.finish_run("caf: accuracy 0.6")
    saved, *lines = capsys.readouterr().out.splitlines()
    assert saved == "1 of 3 runs are in the folder already: skipped."
    assert re.fullmatch(
        r"\[2/3\] \[bold\]gm\[/\]: accuracy 0.5, 0:00:0\d left", lines[0]
    )
    assert lines[1] == "[3/3] caf: accuracy 0.6"


def finished(aggregator, seed, *lines, attack="signflip"):
    config = {"aggregator": aggregator, "attack": attack, "partitioner": "iid"}
    config |= {"num-nodes": 5, "num-malicious-nodes": 1}
    return FinishedRun(PlannedRun({**config, "seed": seed}, config), lines)


def test_comparison_plans_all_combinations_scenario_by_scenario():
    flower_app = FlowerApp(ROOT)
    settings = flower_app.run_config()
    attacks, rules = ["alie", "ipm"], ["gm", "cwmed"]
    runs = comparison_runs(flower_app, settings, attacks, ["iid"], rules, [1, 2])
    assert [tuple(run.point.values()) for run in runs] == [
        *(("gm", "alie", "iid", 1), ("cwmed", "alie", "iid", 1)),
        *(("gm", "alie", "iid", 2), ("cwmed", "alie", "iid", 2)),
        *(("gm", "ipm", "iid", 1), ("cwmed", "ipm", "iid", 1)),
        *(("gm", "ipm", "iid", 2), ("cwmed", "ipm", "iid", 2)),
    ]


def test_summary_averages_over_seeds():
    runs = [
        finished(
            *("gm", seed, {"round": 0, "accuracy": 0.1}),
            {"round": 1, "accuracy": accuracy, "malicious-kept": kept},
        )
        for seed, accuracy, kept in [(1, 0.5, 2), (2, 0.7, 1)]
    ]
    ((summary,),) = summarize_rules(runs).values()
    assert summary.curve.rounds == [0, 1]
    assert summary.curve.mean == pytest.approx([0.1, 0.6])
    assert summary.final_text == "60.0 ± 14.1"
    assert summary.malicious_kept == 1.5
    assert summary.backdoor is None


def test_success_rate_of_a_backdoor_is_a_column(capsys):
    line = {"round": 1, "accuracy": 0.5, "malicious-kept": 1, "backdoor-success": 0.25}
    run = finished("cwmed", 1, {"round": 0, "accuracy": 0.1}, line, attack="backdoor")
    ((summary,),) = summarize_rules([run]).values()
    Screen(quiet=False, as_json=False).print(comparison_table([summary]))
    assert capsys.readouterr().out.split()[-4:] == ["cwmed", "50.0", "1.0", "25.0"]


def test_comparison_without_an_attack_names_no_malicious_client(capsys):
    line = {"round": 1, "accuracy": 0.5, "malicious-kept": 1}
    run = finished("cwmed", 1, {"round": 0, "accuracy": 0.1}, line, attack="none")
    ((title, (summary,)),) = summarize_rules([run]).items()
    assert title == "no client malicious, iid partitions"
    Screen(quiet=False, as_json=False).print(comparison_table([summary]))
    assert capsys.readouterr().out.split()[-3:] == ["cwmed", "50.0", "–"]


def test_simulate_quiet_json_prints_the_rounds_and_nothing_else():
    words = ["simulate", ROOT / "examples" / "quickstart-numpy", "--num-nodes", "10"]
    done = run(*words, "-c", "num-server-rounds=2", "--quiet", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rounds = json.loads(done.stdout)["rounds"]
    assert [line["round"] for line in rounds][-2:] == [1, 2]
    assert rounds[-1]["clients-accuracy"] > 0 and len(rounds[-1]["asked"]) > 0


@pytest.mark.parametrize("command", ["", *("compare", "sweep", "report", "rules")])
def test_short_option_shows_the_help(command):
    found = CliRunner().invoke(app, [*command.split(), "-h"])
    assert found.exit_code == 0 and "Usage: " in found.output


@pytest.mark.parametrize(
    ("command", "registry", "name", "paper"),
    [("rules", RULES, "krum", "Blanchard"), ("attacks", ATTACKS, "alie", "Baruch")],
)
def test_catalogue_lists_the_registry_with_papers(command, registry, name, paper):
    found = CliRunner().invoke(app, [command, "--json"])
    listed = json.loads(found.stdout)
    assert listed.keys() == registry.keys()
    assert all(entry["description"].endswith(".") for entry in listed.values())
    assert paper in listed[name]["paper"]
    shown = CliRunner().invoke(app, [command]).stdout
    assert all(f" {name} " in shown for name in registry)


GRID = """
[run-config]
num-server-rounds = 2
[axes]
learning-rate = [0.1, 0.5]
"""


def test_sweep_takes_an_app_without_our_keys(tmp_path, monkeypatch):
    """Flower's own metrics are recorded, though the app writes no run folder."""
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text(GRID)
    words = ["sweep", "grid.toml", str(ROOT / "examples" / "quickstart-numpy")]
    dry = CliRunner().invoke(app, [*words, "--dry-run", "--json"])
    assert dry.exit_code == 0, dry.stderr
    assert len(json.loads(dry.stdout)["runs"]) == 2
    assert re.search(r"2 runs left: about 0:\d\d:\d\d in", dry.stderr)
    assert not Path("runs").exists()
    found = CliRunner().invoke(app, [*words, "--json", "--quiet", "--workers", "1"])
    assert found.exit_code == 0, found.stderr
    assert found.stderr == ""
    runs = json.loads(found.stdout)["runs"]
    assert [run["learning-rate"] for run in runs] == [0.1, 0.5]
    assert all(0 < run["accuracy"] <= 1 for run in runs)
    table = Path("runs", "grid", "rounds.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert {row["round"] for row in rows} >= {"1", "2"}
    ending = next(Path("runs", "grid").glob("*/ended.json"))
    ending.write_text('{"seconds": 1')  # a killed process leaves this: one run again
    again = CliRunner().invoke(app, [*words, "--workers", "1"])
    assert again.exit_code == 0 and again.stdout.count("[2/2] ") == 1


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize("command", ["sweep", "tournament"])
def test_interrupt_ends_all_runs_within_two_seconds(tmp_path, command):
    marker = f"FLWR_CTMA_TEST={tmp_path}"
    (tmp_path / "grid.toml").write_text("axes = { seed = [1, 2, 3, 4, 5, 6] }")
    small = SMALL.replace("num-server-rounds=2", "num-server-rounds=1000")
    words = {
        "sweep": [tmp_path / "grid.toml", ROOT],
        "tournament": [ROOT, "--malicious", "1", "--num-nodes", "5", "--seed", "1"],
    }[command]
    if command == "tournament":
        small = small.replace("num-malicious-nodes=1", "")
        words += ["--aggregator", "gm", "--attack", "none", "--attack", "alie"]
    output = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, command, *words, "-c", small, "--output", output, "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict([marker.split("=")]),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while len(processes_of(marker)) < 3 or not (output / "log.txt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    began = time.monotonic()
    assert process.wait(30) == 128 + signal.SIGINT
    while processes_of(marker):
        assert time.monotonic() - began < 30
        time.sleep(0.05)
    assert "Traceback" not in process.stderr.read()
    assert not list(output.glob("*/ended.json"))
