"""The command line, run as users run it: as a process of its own."""

import csv
import io
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
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

import flwr_ctma
from flwr_ctma.cli import app
from flwr_ctma.cli.compare import _run_all
from flwr_ctma.experiments.comparison import Job, Scenario, curves, jobs, table
from flwr_ctma.experiments.processes import RunFailed, spell_config
from flwr_ctma.experiments.progress import Watcher
from flwr_ctma.experiments.runtimes import Engine
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
    assert "[2/2] ctma(gm), nonfinite, iid" in done.stdout
    assert re.search(r"round 2 of 2, accuracy \S+%, rejected 1$", done.stdout, re.M)
    assert "1 of 5 clients malicious: nonfinite, iid" in done.stdout
    assert (tmp_path / "run" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "run" / "rounds.csv").open()))
    assert len(rows) == 2 * 3
    assert {row["aggregator"] for row in rows} == {"fedavg", "ctma(gm)"}
    last = {row["aggregator"]: row for row in rows}
    assert last["ctma(gm)"]["rejected"] == "[0]"
    assert last["fedavg"]["rejected"] == "[]"
    assert last["fedavg"]["malicious-kept"] == "1"
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
    assert "failed fedavg_malformed_iid_seed-1" in done.stdout
    assert "could not be broadcast" in done.stdout
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


def test_a_run_that_cannot_begin_takes_none_before_it_along(tmp_path):
    plan = jobs(["none"], ["iid"], ["fedavg", "gm", "cwmed"], [1])
    settings = {"num-server-rounds": 1, "num-nodes": 5}
    console = Console(file=io.StringIO())
    engine = Failing("gm")
    results, failed = _run_all(plan, engine, settings, tmp_path, console)
    assert [job.aggregator for job in results] == ["fedavg", "cwmed"]
    assert {job.aggregator: why for job, why in failed.items()} == {"gm": "no room"}
    engine = Failing("fedavg")
    with pytest.raises(RunFailed, match="no room"):
        _run_all(plan, engine, settings, tmp_path / "other", console)
    assert engine.begun == ["fedavg"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("-c", "sead=1"), "Did you mean `seed`"),
        (("--aggregator", "ctma(kurm)"), "did you mean `krum`"),
        (("--attack", "sinflip"), "did you mean `signflip`"),
        (("-c", "num-malicious-nodes=3"), "smaller than n/2 = 2.5"),
        (("--aggregator", "krum", "-c", "num-malicious-nodes=2"), "at most 1 for krum"),
        (("-c", 'optimizer="adam"'), "one of mu2, momentum, sgd"),
    ],
)
def test_mistake_is_one_sentence(tmp_path, options, sentence):
    done = compare(tmp_path / "run", "--engine", "in-process", *options)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_app_with_other_keys_is_not_compared():
    app = ROOT / "examples" / "quickstart-numpy"
    done = subprocess.run([*COMMAND, "compare", app], capture_output=True, text=True)
    assert done.returncode == 1
    assert "an app whose run-config has aggregator" in done.stderr


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
        (["compare", str(ROOT), "--output", "a-file/run"], "a-file/run"),
        (["tournament", str(ROOT), "--output", "a-file/run"], "a-file"),
        (
            ["sweep", "grid.toml", "--app", str(ROOT), "--output", "a-file/run"],
            "a-file",
        ),
        (["report", "runs", "--output", "a-file/page.html"], "a-file"),
    ],
)
def test_what_is_not_there_or_cannot_be_written_is_a_sentence(
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
        ("flwr-ctma compare --engine ", "ray\nin-process\nbatched"),
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


def test_a_terminal_shows_how_far_each_run_is():
    (job,) = jobs(["none"], ["iid"], ["gm"], [1])
    console = Console(width=120, force_terminal=True, file=io.StringIO())
    with Watcher(console, [job], 8) as watcher:
        watcher.see(job, [])
        line = {"round": 2, "accuracy": 0.5, "rejected": [1], "suspected": [1, 3]}
        watcher.see(job, [{"round": 0, "accuracy": 0.1}, {"round": 1}, line])
    shown = Text.from_ansi(console.file.getvalue()).plain
    assert "2/8 accuracy 50.0%, rejected 1, suspected 2" in shown
    assert re.search(r"\d:\d\d:\d\d left", shown)


def test_jobs_are_all_combinations_scenario_by_scenario():
    plan = jobs(["a", "b"], ["iid"], ["gm", "cwmed"], [1, 2])
    assert [str(job) for job in plan] == [
        *("gm_a_iid_seed-1", "cwmed_a_iid_seed-1", "gm_a_iid_seed-2"),
        *("cwmed_a_iid_seed-2", "gm_b_iid_seed-1", "cwmed_b_iid_seed-1"),
        *("gm_b_iid_seed-2", "cwmed_b_iid_seed-2"),
    ]


def test_curve_averages_over_seeds():
    scenario = Scenario("signflip", "iid")
    results = {
        Job(scenario, "gm", seed): [
            {"round": 0, "accuracy": 0.1},
            {"round": 1, "accuracy": accuracy, "malicious-kept": kept},
        ]
        for seed, accuracy, kept in [(1, 0.5, 2), (2, 0.7, 1)]
    }
    (curve,) = curves(results)[scenario]
    assert curve.rounds == [0, 1]
    assert curve.means == pytest.approx([0.1, 0.6])
    assert curve.final == "60.0 ± 14.1"
    assert curve.malicious_kept == 1.5
    assert curve.backdoor is None


def test_how_often_a_backdoor_opens_is_a_column():
    job = Job(Scenario("backdoor", "iid"), "cwmed", 1)
    line = {"round": 1, "accuracy": 0.5, "malicious-kept": 1, "backdoor-success": 0.25}
    ((curve,),) = curves({job: [{"round": 0, "accuracy": 0.1}, line]}).values()
    console = Console(width=100, record=True)
    console.print(table([curve]))
    assert console.export_text().split()[-4:] == ["cwmed", "50.0", "1.0", "25.0"]
