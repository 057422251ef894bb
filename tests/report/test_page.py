"""The report says what the run folders hold, and needs nothing but itself."""

import csv
import html
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.metadata import version
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from flwr_ctma.cli import app
from flwr_ctma.experiments.curves import Curve
from flwr_ctma.report import write_report
from flwr_ctma.report.charts import line_charts
from flwr_ctma.report.colours import line_styles
from flwr_ctma.report.render import write_chart
from flwr_ctma.report.runs import find_runs
from flwr_ctma.tracking.run_folder import RunFolder

CONFIG = {"aggregator": "ctma(gm)", "attack": "alie", "num-server-rounds": 3, "seed": 1}
HOSTILE = "<script>alert(1)</script>'\"&"


class Page(HTMLParser):
    """The page as a browser sees it: rows of its tables, text, what it would fetch."""

    VOID = ("meta", "input")

    def __init__(self, path):
        super().__init__()
        self.rows, self.open, self.links, self.texts = [], [], [], []
        self.attributes = []
        self.feed(path.read_text())
        assert not self.open, self.open
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.attributes.append((tag, dict(attributes)))
        self.links += [v for k, v in attributes if k in ("src", "href", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"style", "script"} & set(self.open):
            return
        self.texts.append(data)
        if "tr" in self.open:
            self.rows[-1][-1] += data

    def row(self, *start):
        (row,) = [row for row in self.rows if row[: len(start)] == list(start)]
        return row


def write_run(folder, lines, **config):
    run = RunFolder(folder)
    run.begin({**CONFIG, **config})
    for i, line in enumerate(lines):
        run.append({"round": i, **line})
    return folder


def report(tmp_path, *folders, **options):
    return Page(write_report(folders or [tmp_path], tmp_path / "r.html", **options))


def accuracies(*values):
    return [{"accuracy": value, "loss": 1 - value} for value in values]


@pytest.fixture
def sweep(tmp_path):
    """Two rules, two attacks, two seeds; accuracy by hand."""
    ends = {
        ("fedavg", "alie"): (0.2, 0.4),
        ("fedavg", "none"): (0.9, 0.9),
        ("gm", "alie"): (0.7, 0.8),
        ("gm", "none"): (0.8, 0.9),
    }
    for (rule, attack), values in ends.items():
        for seed, value in enumerate(values):
            lines = accuracies(0.1, 0.3, 0.5, value)
            folder = tmp_path / f"{rule}-{attack}-{seed}"
            write_run(folder, lines, aggregator=rule, attack=attack, seed=seed)
    return tmp_path


def test_ends_of_runs_are_means_over_seeds(sweep):
    page = report(sweep)
    rows = [row for row in page.rows if row[0] in ("fedavg", "gm") and row[1] == "2"]
    assert rows == [
        ["fedavg", "2", "3", "30.0 ± 14.1", "0.700 ± 0.141"],
        ["gm", "2", "3", "75.0 ± 7.1", "0.250 ± 0.071"],
        ["fedavg", "2", "3", "90.0 ± 0.0", "0.100 ± 0.000"],
        ["gm", "2", "3", "85.0 ± 7.1", "0.150 ± 0.071"],
    ]
    best = [a for tag, a in page.attributes if a.get("class") == "best"]
    assert len(best) == 2
    assert "8 runs · 2 configurations · 2 scenarios" in page.text


def test_the_worst_attack_has_the_frame_and_the_best_rule_comes_first(sweep):
    page = report(sweep)
    assert page.row("Rule", "alie") == ["Rule", "alie", "none", "worst"]
    rows = [row for row in page.rows if len(row) == 4 and row[0] in ("gm", "fedavg")]
    first, second = rows
    assert first == ["gm", "75.0", "85.0", "75.0"]
    assert second == ["fedavg", "30.0", "90.0", "30.0"]
    html = (sweep / "r.html").read_text()
    assert re.findall(r"class='worst'>([\d.]+)<", html) == ["75.0", "30.0"]


def drawn(curve, share=True, y="Accuracy"):
    """Return the specification and the data of a chart with one line."""
    ((_, spec),) = line_charts({"": {"gm": curve}}, y, share)
    return spec, spec["data"]["values"]


def test_bands_go_from_the_least_to_the_greatest():
    curve = Curve([0, 1, 2], [0.2, 0.5, 0.9], [0.1, 0.4, 0.8], [0.3, 0.6, 1.0])
    spec, values = drawn(curve)
    assert [v["raw_least"] for v in values] == pytest.approx([10, 40, 80])
    assert [v["raw_greatest"] for v in values] == pytest.approx([30, 60, 100])
    band = spec["layer"][0]
    assert band["mark"]["type"] == "area"
    fields = band["encoding"]["y"]["field"], band["encoding"]["y2"]["field"]
    assert fields == ("least", "greatest")


def test_line_has_a_gap_where_there_is_no_number(tmp_path):
    curve = Curve(range(5), [0.1, 0.2, None, 0.4, 0.5], *2 * [[None] * 5])
    spec, values = drawn(curve)
    assert values[2]["raw_mean"] is None
    write_chart(spec | {"width": 300}, tmp_path / "chart.svg")
    svg = (tmp_path / "chart.svg").read_text()
    (path,) = re.findall(r'aria-roledescription="line mark"[^>]* d="([^"]*)"', svg)
    assert [part.count("L") for part in path.split("M")[1:]] == [1, 1]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e30])
def test_losses_of_any_size_fit_on_a_logarithmic_axis(tmp_path, scale):
    values = [float(v) for v in scale * np.geomspace(1, 1e6, 7)]
    spec, _ = drawn(Curve(range(7), values, values, values), share=False)
    write_chart(spec | {"width": 300}, tmp_path / "chart.svg")
    svg = (tmp_path / "chart.svg").read_text()
    (path,) = re.findall(r'aria-roledescription="line mark"[^>]* d="M([^"]*)"', svg)
    heights = [float(point.split(",")[1]) for point in path.split("L")]
    assert 260 >= heights[0] > heights[-1] >= 0
    steps = np.diff(heights)
    assert steps.max() < 0 and steps[0] > 1.5 * steps[-1]


def test_rule_has_the_same_colour_in_every_figure():
    few, many = line_styles(["gm", "caf"]), line_styles(["krum", "caf", "mean", "gm"])
    assert few["gm"] == many["gm"] and few["caf"] == many["caf"]
    labels = [f"rule {i}" for i in range(36)]
    styles = line_styles(labels)
    assert len(set(map(repr, styles.values()))) == 36
    assert styles["rule 7"] == line_styles(["rule 7"])["rule 7"] or len(labels) > 1


HOSTILE_LABELS = [
    "$\\frac{",
    "</script><b>",
    "a[0].b",
    "\u202e\x00\ud800",
    "=1+1",
    "x" * 500,
]


@pytest.mark.parametrize("label", HOSTILE_LABELS, ids=range(len(HOSTILE_LABELS)))
def test_page_and_figures_survive_any_label(tmp_path, label):
    lines = [{"accuracy": 0.1}, {"accuracy": 0.5, "asked": [1, 2], "trimmed": [2]}]
    for attack in ("none", label):
        folder = tmp_path / ("a" if attack == "none" else "b")
        write_run(folder, lines, aggregator=label, attack=attack)
    folder = tmp_path / "tournament"
    folder.mkdir()
    config = {"num_nodes": 10, "metric": label}
    (folder / "config.json").write_text(json.dumps(config))
    match = {"aggregator": label, "attack": label, "num_malicious": 1, "seed": 1}
    line = {**match, "value": -1e300, "seconds": 1.0}
    (folder / "matches.jsonl").write_text(json.dumps(line) + "\n")
    page = report(tmp_path, figures=["svg", "pdf", "png"])
    assert label.replace("\ud800", "?") in page.text
    for name in ("accuracy", "clients", "tournament"):
        ElementTree.parse(tmp_path / f"r-{name}.svg")


def test_runs_that_stopped_early_are_not_compared(sweep):
    lines = accuracies(0.1, 0.99)
    write_run(sweep / "gm-alie-1", lines, aggregator="gm", attack="alie", seed=1)
    page = report(sweep)
    assert ["gm", "2", "1 of 3"] in [row[:3] for row in page.rows]
    assert ["gm", "–", "85.0", "85.0"] in page.rows


def test_what_became_of_every_reply(tmp_path):
    ids = {name: 2**62 + i for i, name in enumerate("abcd")}

    def nodes(names):
        return [ids[name] for name in names]

    lines = [
        {"accuracy": 0.1},
        {"asked": nodes("abcd"), "trimmed": nodes("b"), "rejected": nodes("c")},
        {"asked": nodes("abc"), "trimmed": nodes("b"), "missing": nodes("a")},
        {"asked": nodes("abd"), "rejected": [], "replies-accepted": 1},
    ]
    lines[2]["suspected"] = nodes("b")
    page = report(tmp_path, write_run(tmp_path / "run", lines))
    strips = [a for tag, a in page.attributes if tag == "svg" and "data-row" in a]
    strips = [a["data-row"] for a in strips if len(a["data-row"]) == 3]
    rows = [row for row in page.rows if row[0][:1].isdigit()]
    found = {row[0]: (row[1:5], strip) for row, strip in zip(rows, strips, strict=True)}
    assert found == {
        f"{ids['c']}": (["", "1", "", "2"], "rc."),
        f"{ids['b']} S": (["2", "", "", "3"], "ttk"),
        f"{ids['a']}": (["", "", "1", "3"], "cmk"),
        f"{ids['d']}": (["", "", "", "2"], "c.k"),
    }
    assert next(iter(found)) == str(ids["c"])


def test_malicious_partitions_of_a_simulation_are_marked(tmp_path):
    lines = [{}, {"asked": [0, 1, 2], "trimmed": [0], "malicious-kept": 0}]
    write_run(tmp_path / "run", lines, **{"num-malicious-nodes": 1})
    assert [row[0] for row in report(tmp_path).rows if row[0][:1].isdigit()] == [
        "0 M",
        "1",
        "2",
    ]


def test_a_run_that_goes_on_is_read_while_it_is_written(tmp_path):
    folder = write_run(tmp_path / "run", accuracies(0.1, 0.2))
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 1, "accuracy": 0.25}\n{"round": 2, "accu')
    (run,) = find_runs(tmp_path)
    assert run.values("accuracy") == [0.1, 0.25]
    assert "1 of 3" in report(tmp_path).text


def test_metrics_of_other_apps_are_found(tmp_path):
    lines = [{"round": 0}] + 3 * [{"train_loss": 9.0, "clients-eval_loss": 0.5}]
    lines += [{"clients-eval_acc": 0.5, "clients-replies-accepted": 7}]
    folder = write_run(tmp_path / "run", lines)
    (run,) = find_runs(folder)
    assert run.key("accuracy") == "clients-eval_acc"
    assert run.key("loss") == "clients-eval_loss"


def test_costs_are_averages_of_a_round(tmp_path):
    lines = [{}] + [
        {"seconds": s, "bytes-sent": 4e6, "bytes-received": 2e6} for s in (1, 2, 6)
    ]
    page = report(tmp_path, write_run(tmp_path / "run", lines))
    columns = page.row("Configuration", "Runs")[-3:]
    assert columns == ["Seconds", "MB sent", "MB received"]
    assert page.row("ctma(gm)", "1")[-3:] == ["3.00", "4.00", "2.00"]


def test_nothing_is_fetched_and_nothing_runs_that_is_not_ours(tmp_path):
    lines = [{}, {"asked": [1], "accuracy": 0.5, HOSTILE: 1.0}]
    for rule in (HOSTILE, "gm"):
        folder = tmp_path / f"run {rule[:1]}"
        write_run(folder, lines, aggregator=rule, attack=HOSTILE, **{HOSTILE: HOSTILE})
    page = report(tmp_path)
    assert [tag for tag, _ in page.attributes].count("script") == 1
    outside = [link for link in page.links if not link.startswith("#")]
    assert outside and all((tmp_path / unquote(link)).exists() for link in outside)
    html, script = (tmp_path / "r.html").read_text().split("<script>")
    schema = "https://vega.github.io/schema/vega-lite/v5.json"  # a name, not fetched
    assert set(re.findall(r"https?://[^\"'& ]+", html)) == {schema}
    assert not re.search(r"url\(|@import", html)
    assert script.count("</script") == 1
    policy = next(a["content"] for _, a in page.attributes if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert HOSTILE in page.text


def test_configuration_and_environment_are_told(tmp_path):
    root = tmp_path / "compare"
    write_run(root / "b", accuracies(0.1, 0.2), aggregator="gm")
    write_run(root / "a", accuracies(0.1, 0.2), aggregator="cwmed")
    config = {"runs": {"b": {}, "a": {}}, "engine": "ray"}
    (root / "config.json").write_text(json.dumps(config))
    page = report(tmp_path)
    assert page.row("aggregator") == ["aggregator", "gm, cwmed"]  # as planned
    assert page.row("flwr") == ["flwr", version("flwr")]
    assert page.row("engine") == ["engine", "ray"]


def charts(page):
    """Return the specifications of the charts of a page."""
    specs = [a["data-spec"] for tag, a in page.attributes if "data-spec" in a]
    return [json.loads(spec) for spec in specs]


def test_a_line_that_ends_early_keeps_its_points_and_its_name(tmp_path):
    """As that of a loss that is no number from some round on."""
    lines = accuracies(0.1, 0.2, 0.3)
    write_run(tmp_path / "a", lines, aggregator="gm")
    lines = [*lines[:2], {"round": 2, "accuracy": None}]
    write_run(tmp_path / "b", lines, aggregator="mean")
    chart = charts(report(tmp_path))[0]
    means = [
        (v["x"], v["raw_mean"]) for v in chart["data"]["values"] if v["label"] == "mean"
    ]
    assert means == [(0, 10.0), (1, 20.0), (2, None)]
    domain = chart["layer"][1]["encoding"]["color"]["scale"]["domain"]
    assert domain == ["gm", "mean"]


def test_runs_of_the_same_seed_are_told_apart_by_their_folders(tmp_path):
    for name in ("monday", "tuesday"):
        write_run(tmp_path / name, accuracies(0.1, 0.5))
    text = report(tmp_path).text
    assert "ctma(gm) monday" in text and "ctma(gm) tuesday" in text


def status(value, otherwise="undefined"):
    return otherwise if value is None else "finished"


def test_tournaments_are_shown(tmp_path):
    cup = tmp_path / "cup"
    cup.mkdir()
    config = {"app": ".", "run_config": {}, "num_nodes": 10, "metric": "accuracy"}
    (cup / "config.json").write_text(json.dumps(config))
    lines = [
        {"aggregator": "krum", "attack": "alie", "num_malicious": 3, "seed": 1},
        {"aggregator": "krum", "attack": "none", "num_malicious": 3, "seed": 1},
        {"aggregator": "bulyan", "attack": "alie", "num_malicious": 3, "seed": 1},
        {"aggregator": "bulyan", "attack": "none", "num_malicious": 3, "seed": 1},
    ]
    values = [0.4, 0.9, None, None]
    (cup / "matches.jsonl").write_text(
        "".join(
            json.dumps(
                {**line, "value": value, "seconds": 1.0, "status": status(value)}
            )
            + "\n"
            for line, value in zip(lines, values, strict=True)
        )
    )
    page = report(tmp_path, figures=["pdf"])
    assert "cup: 3 of 10 clients malicious" in page.text
    assert page.row("krum") == ["krum", "40.0", "90.0", "40.0"]
    assert page.row("bulyan") == ["bulyan", "–", "–", "–"]
    assert (tmp_path / "r-tournament.pdf").read_bytes().startswith(b"%PDF")


def test_a_tournament_is_shown_before_its_end(tmp_path):
    """Before its first match, with gaps, and with a metric that became NaN."""
    config = {"app": ".", "run_config": {}, "num_nodes": 10, "metric": "accuracy"}
    line = {"num_malicious": 3, "seed": 1, "seconds": 1.0}
    met = [("krum", "alie", 0.4), ("krum", "none", 0.9), ("gm", "none", None)]
    lines = {
        "begun": [],
        "half": [
            {
                **line,
                "aggregator": a,
                "attack": b,
                "value": c,
                "status": status(c, "diverged"),
            }
            for a, b, c in met
        ],
    }
    for name, matches in lines.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        text = "".join(json.dumps(match) + "\n" for match in matches)
        (tmp_path / name / "matches.jsonl").write_text(text)
    page = report(tmp_path, figures=["svg"])
    assert page.row("krum") == ["krum", "40.0", "90.0", "40.0"]
    assert page.row("gm") == ["gm", "–", "failed", "failed"]
    assert "half" in page.text and "begun:" not in page.text
    assert (tmp_path / "r-tournament.svg").exists()


HOSTILE_LINES = [
    '{"accuracy": 0.5}',
    '{"round": "<script>alert(1)</script>", "asked": [1]}',
    '{"round": [1]}',
    "[" * 100_000,
    "\udcff",
]


@pytest.mark.parametrize("line", HOSTILE_LINES, ids=range(len(HOSTILE_LINES)))
def test_a_file_that_nobody_of_us_wrote_is_named(tmp_path, line):
    file = tmp_path / "rounds.jsonl"
    file.write_bytes((line + "\n").encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"Found `run = .*rounds\.jsonl"):
        report(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"attack": ...}, {"value": "0.5"}, {"seed": [1]}, {"aggregator": {}}]
)
def test_a_tournament_that_nobody_of_us_wrote_is_named(tmp_path, changes):
    match = {"aggregator": "gm", "attack": "none", "num_malicious": 3, "seed": 1}
    changed = {**match, "value": 0.5, "seconds": 1.0, **changes}
    kept = {key: value for key, value in changed.items() if value is not ...}
    (tmp_path / "matches.jsonl").write_text(json.dumps(kept) + "\n")
    (tmp_path / "config.json").write_text('{"num_nodes": 9, "metric": "accuracy"}')
    with pytest.raises(ValueError, match=r"Found `\w+ = .*matches\.jsonl"):
        report(tmp_path)


def test_what_is_no_number_and_names_no_nodes_is_passed_over(tmp_path):
    """Metrics of other apps may have the names that ours have for lists of nodes."""
    values = ["NaN", "Infinity", f"{10**400}", '"high"', "true", "0.5"]
    lines = [
        f'{{"round": {i}, "accuracy": {v}, "loss": {v}, "seconds": {v}, '
        '"asked": 3, "missing": [[1]], "suspected": "all"}'
        for i, v in enumerate(values)
    ]
    (tmp_path / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    page = report(tmp_path, figures=["svg"])
    assert page.row(tmp_path.name, "1")[-4:-1] == ["5", "50.0", "0.500"]


def test_figures_for_papers(sweep):
    report(sweep, figures=["pdf", "svg"])
    assert (sweep / "r-accuracy.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (sweep / "r-accuracy.svg").read_text()
    assert not (sweep / "r-clients.svg").exists()  # nobody stood out


def test_a_figure_of_what_every_client_did(tmp_path):
    """Node 0 is trimmed twice and node 2 is silent once, of three; 0 is suspected."""
    odd = {"trimmed": [0], "malicious-kept": 0, "suspected": [0]}
    lines = [{}, {"asked": [0, 1, 2], **odd}, {"asked": [0, 2], **odd, "missing": [2]}]
    write_run(tmp_path / "a", lines, **{"num-malicious-nodes": 1})
    write_run(tmp_path / "b", lines[:1], aggregator="fedavg")
    report(tmp_path, figures=["svg"])
    svg = ElementTree.parse(tmp_path / "r-clients.svg")
    texts = [
        "".join(e.itertext()) for e in svg.iter("{http://www.w3.org/2000/svg}text")
    ]
    assert [t for t in texts if t[:1] in ("0", "1", "2")][-3:] == ["0 ★", "2", "1"]
    assert {"trimmed", "silent", "counted", "not asked"} <= set(texts)
    assert not {"rejected", "round skipped"} & set(texts)


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="a folder with `rounds"):
        write_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(ValueError, match="at least one folder"):
        write_report([], tmp_path / "r.html")
    (tmp_path / "rounds.jsonl").write_text("no JSON\n")
    with pytest.raises(ValueError, match="one round in each line"):
        write_report([tmp_path], tmp_path / "r.html")


def test_the_command_line_makes_one_too(sweep):
    command = ["report", str(sweep), "--output", str(sweep / "out" / "page.html")]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "75.0 ± 7.1" in (sweep / "out" / "page.html").read_text()
    said = CliRunner().invoke(app, ["report", str(sweep / "none")])
    assert said.exit_code == 1
    assert "a folder with `rounds.jsonl`" in said.output


def large_run(folder, nodes=1000, rounds=200):
    rng = random.Random(0)
    ids = [rng.randrange(2**63) for _ in range(nodes)]
    lines = [{}] + [
        {"asked": ids, "trimmed": rng.sample(ids, nodes // 10), "accuracy": 0.5}
        for _ in range(rounds)
    ]
    return write_run(folder, lines)


def test_a_thousand_clients_fit_in_a_page(tmp_path):
    report(tmp_path, large_run(tmp_path / "run"))
    assert (tmp_path / "r.html").stat().st_size < 3e6
    assert "940 more nodes are not printed" in (tmp_path / "r.html").read_text()


# Steps of a user, each of which leaves a line in `seen`.
STEPS = r"""<script>(async () => {
  const seen = {}, saved = [];
  const all = s => [...document.querySelectorAll(s)], one = s => document.querySelector(s);
  const click = (e, type = "click", more = {}) => e.dispatchEvent(new MouseEvent(type, {bubbles: true, ...more}));
  HTMLAnchorElement.prototype.click = function () { saved.push([this.download, fetch ? this.href : ""]); };
  const blobs = [], create = URL.createObjectURL;
  URL.createObjectURL = blob => { blobs.push(blob); return create.call(URL, blob); };
  const wait = async test => { for (let i = 0; i < 4000 && !test(); i++) await new Promise(r => setTimeout(r, 25)); };
  await wait(() => all(".chart").every(c => c.view));

  const bars = one("[data-node='222'] td > .bars"), box = bars.getBoundingClientRect();
  click(bars, "mousemove", {clientX: box.left + .6 * box.width, clientY: box.top + 5});
  seen.hover = one("#tip").textContent;

  const column = t => [...t.tBodies[0].rows].map(r => r.cells[3].textContent);
  const table = one("#overview table"), heading = table.tHead.rows[0].cells[3];
  click(heading); seen.down = column(table); click(heading); seen.up = column(table);

  const select = one(".baseline");
  select.value = "gm"; select.onchange({target: select});
  await wait(() => one(".chart").view.signal("baseline") === "gm");
  await one(".chart").view.runAsync();
  const heights = d => [...new Set(d.replace(/[ML]/g, " ").trim().split(/\s+/).map(p => p.split(",")[1]))];
  seen.flat = all("#accuracy-by-round .chart path[aria-roledescription='line mark']").map(p => heights(p.getAttribute("d")).length === 1);
  select.value = ""; await select.onchange({target: select});

  const entry = all("#accuracy-by-round .chart .role-legend-entry .role-legend-label text").find(e => e.textContent === "mean");
  for (const type of ["pointerdown", "mousedown", "pointerup", "mouseup", "click"]) click(entry, type);
  await wait(() => all("#accuracy-by-round .chart path[aria-roledescription='line mark']").some(p => Number(p.getAttribute("opacity") ?? 1) < .5));
  seen.hidden = all("#accuracy-by-round .chart path[aria-roledescription='line mark']").map(p => Number(p.getAttribute("opacity") ?? 1) < .5);

  for (const button of [...all("#accuracy-by-round .downloads button"), one("#accuracy-by-round .csv"), one("#overview .csv-table")]) click(button);
  await wait(() => blobs.length >= 4);
  seen.saved = saved.map(([name]) => name).sort();
  for (const blob of blobs) {
    if (blob.type === "image/png") seen.png = blob.size;
    else if (blob.type === "image/svg+xml") seen.svg = (await blob.text()).slice(0, 4);
    else (seen.csv ??= []).push(await blob.text());
  }

  const node = one("#node"); node.value = "22"; node.oninput();
  seen.shown = all(".client-table tbody tr:not([hidden])").map(r => r.dataset.node);
  seen.wide = document.documentElement.scrollWidth - innerWidth;
  document.body.textContent = JSON.stringify(seen);
})().catch(e => { document.body.textContent = JSON.stringify({error: String(e.stack)}); });
</script></body>"""  # noqa: E501


def browse(tmp_path, width):
    """Open the page, take the steps, and return what they left."""
    page, _, end = (tmp_path / "r.html").read_text().rpartition("</body>")
    (tmp_path / "steps.html").write_text(page + STEPS + end)
    command = "chromium --headless --no-sandbox --disable-gpu --disable-quic "
    command += "--no-first-run --disable-background-networking --disable-sync "
    command += f"--disable-component-update --user-data-dir={tmp_path / 'profile'} "
    command += f"--virtual-time-budget=1000000 --window-size={width},900 "
    command += f"--dump-dom file://{tmp_path / 'steps.html'}"
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=120)
    (text,) = re.findall(r"<body>(.*)</body>", done.stdout, re.S)
    return json.loads(html.unescape(text))


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("width", [1200, 500])
def test_browser_sorts_searches_subtracts_toggles_and_downloads(tmp_path, width):
    ids = [111, 222, 223]
    for rule, value in (("gm", 0.5), ("mean", 0.25), ("=cmd()", 0.75)):
        line = {"asked": ids, "trimmed": [222]}
        lines = [{"accuracy": 0.1}] + [
            {**line, "accuracy": value * i / 4} for i in (1, 2, 3, 4)
        ]
        write_run(tmp_path / rule.strip("=()"), lines, aggregator=rule)
    write_report([tmp_path], tmp_path / "r.html")
    seen = browse(tmp_path, width)
    assert "error" not in seen, seen["error"]
    assert seen["hover"] == "Node 222, round 3: trimmed"
    assert seen["down"] == ["75.0", "50.0", "25.0"]
    assert seen["up"] == ["25.0", "50.0", "75.0"]
    assert sorted(seen["flat"]) == [False, False, True]  # the run itself
    assert sorted(seen["hidden"]) == [False, True, True]
    assert seen["saved"] == sorted(
        [
            *("accuracy-by-round-1.png", "accuracy-by-round-1.svg"),
            *("accuracy-by-round.csv", "overview-1.csv"),
        ]
    )
    assert seen["png"] > 5000 and seen["svg"] == "<svg"
    for text in seen["csv"]:
        cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
        assert "'=cmd()" in cells and "=cmd()" not in cells
    assert set(seen["shown"]) == {"222", "223"}
    assert seen["wide"] <= 0  # nothing sticks out of the window


def test_rounds_without_a_measurement_are_passed_over(tmp_path):
    """The line goes on over them; it is cut where a measurement is no number."""
    write_run(
        tmp_path / "run", [{"accuracy": 0.1}, {}, {"accuracy": 0.5}, {"accuracy": None}]
    )
    (chart,) = charts(report(tmp_path))
    means = [(v["x"], v["raw_mean"]) for v in chart["data"]["values"]]
    assert means == [(0, 10.0), (2, 50.0), (3, None)]


def test_settings_that_change_no_training_do_not_split_groups(tmp_path):
    for seed, backend in enumerate(("local", "ray")):
        config = {"seed": seed, "backend": backend, "evaluate-every": seed + 1}
        write_run(tmp_path / backend, accuracies(0.1, 0.5), **config)
    assert report(tmp_path).row("ctma(gm)", "2")


def test_attack_and_malicious_clients_are_named(tmp_path):
    config = {"num-nodes": 17, "num-malicious-nodes": 5}
    write_run(tmp_path / "run", accuracies(0.1, 0.5), **config)
    text = report(tmp_path).text
    assert "Attack: alie · 5 of 17 clients malicious" in text
    assert "alie, 5 of 17 clients malicious" in text  # at the chart


def test_worst_accuracy_of_the_second_half_is_a_column(tmp_path):
    lines = accuracies(0.1, 0.2, 0.7, 0.9, 0.4, 0.8)
    config = {"num-server-rounds": 5}
    page = report(tmp_path, write_run(tmp_path / "run", lines, **config))
    assert page.row("Configuration", "Runs")[4] == "Worst in second half (%)"
    assert page.row("ctma(gm)", "1")[4] == "40.0"


def test_number_of_a_round_beyond_floats_is_shown(tmp_path):
    write_run(tmp_path / "run", accuracies(0.1, 0.5))
    with (tmp_path / "run" / "rounds.jsonl").open("a") as file:
        file.write(f'{{"round": {10**400}, "accuracy": 0.5}}\n')
    assert report(tmp_path).rows


def test_folder_with_a_name_that_is_no_text_is_linked(tmp_path):
    try:
        write_run(tmp_path / "a\udcff", accuracies(0.1, 0.5))
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    assert any("a%FF" in str(link) for link in report(tmp_path).links)
