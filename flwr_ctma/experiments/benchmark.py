"""A benchmark: rules in regimes, each with a learning rate chosen by one procedure."""

import json
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flwr_ctma.errors import did_you_mean, parameter_error
from flwr_ctma.experiments.app import App, merge_overrides
from flwr_ctma.experiments.intervals import bootstrap_interval
from flwr_ctma.experiments.sweep import Sweep, check_values, product
from flwr_ctma.experiments.sweep_results import FinishedRun, PlannedRun

__all__ = ["Suite", "chosen_rates", "summarize"]

SUITES = Path(__file__).parent / "suites"

_KEYS = {
    "rules": "a list of rules, such as `gm` or {aggregator = 'gm', memory = 0.9}",
    "attacks": "a list of attacks with `none` among them",
    "seeds": "a list of different whole numbers of at least 0",
    "regimes": "an array of tables of run-config keys, written `[[regimes]]`",
    "tuning": "a table with the lists learning-rate, attacks and seeds",
    "reference": "a rule that is not in `rules`",
    "run-config": "a table of run-config keys and values",
    "metric": "the name of a metric",
    "last": "a whole number of at least 1",
}
_OPTIONAL: Mapping[str, Any] = {
    **{"run-config": {}, "metric": "accuracy", "last": 3},
    "reference": None,
}
_SCALAR = (bool, int, float, str)
# Keys of the run-config that the suite itself sets in each run.
_SET_BY_SUITE = ("attack", "seed", "learning-rate", "evaluate-on")

Values = Mapping[str, Any]
Rates = Mapping[str, float]
"""Regime and rule, as `cell` spells them → learning rate."""


@dataclass(frozen=True)
class Suite:
    """Regimes, rules, attacks and seeds; every combination is a run.

    Learning rates are tried on validation data. For each rule in each regime, the rate
    with the best mean over the tuning's attacks and seeds is used in all other runs.

    Parameters
    ----------
    name : str
    app : App
        Its run-config has the keys `aggregator`, `attack`, `seed`, `learning-rate` and
        `evaluate-on`.
    regimes : sequence of Mapping[str, Any]
        Values of the run-config.
    rules : sequence of Mapping[str, Any]
        Values of the run-config: `aggregator`, and `memory` if there is one.
    attacks : sequence of str
    seeds : sequence of int
        The same for all rules, so that differences are paired.
    tuning : Mapping[str, Any]
        Lists of `learning-rate`, `attacks` and `seeds`.
    common : Mapping[str, Any]
        Run-config of all runs.
    metric : str (default: "accuracy")
        A share; larger is better.
    last : int (default: 3)
        A run's value is the mean of the last so many evaluations.
    reference : Mapping[str, Any] | None (default: None)
        A rule that runs without an attack alone, also in its trials. Losses are
        measured against it; if None, against the first of the rules.
    """

    name: str
    app: App
    regimes: Sequence[Values]
    rules: Sequence[Values]
    attacks: Sequence[str]
    seeds: Sequence[int]
    tuning: Mapping[str, Sequence[Any]]
    common: Values
    metric: str = "accuracy"
    last: int = 3
    reference: Values | None = None

    @classmethod
    def read(cls, file: str, app: App, *overrides: str) -> "Suite":
        """Read a suite from a TOML file, or a suite of the package by its name.

        Raises
        ------
        ValueError
            For a file that is no suite, a key that the app does not have, an unknown
            rule or attack, and an override of a key that the suite sets. The sentence
            names the file and the key.
        """
        path = Path(file)
        shipped = sorted(one.stem for one in SUITES.glob("*.toml"))
        if file in shipped:
            path = SUITES / f"{file}.toml"
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            expected = f"a TOML file, or one of {', '.join(shipped)}"
            raise parameter_error("suite", expected, file, f"{error}.") from error
        try:
            _check(content)
            found = {**_OPTIONAL, **content}
            config = app.run_config(found["run-config"], *overrides)
            suite = cls(
                path.stem,
                app,
                [point for one in found["regimes"] for point in product(one)],
                [_rule(one) for one in found["rules"]],
                *(found["attacks"], found["seeds"], found["tuning"], config),
                *(found["metric"], found["last"]),
                None if found["reference"] is None else _rule(found["reference"]),
            )
            suite._check_overrides(merge_overrides(*overrides))
            suite._check_duplicates()
            suite.tuning_runs()
            suite.runs({})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        return suite

    def _check_overrides(self, given: Values) -> None:
        """Refuse a key that the suite would silently overwrite."""
        points = [*self.regimes, *self._all_rules]
        own = {key for point in points for key in point}.union(_SET_BY_SUITE)
        for key in own.intersection(given):
            remedy = "Change the suite: copy its TOML file, and name the copy."
            expected = f"without `{key}`, which the suite sets in its runs"
            raise parameter_error("run-config", expected, {key: given[key]}, remedy)

    def _check_duplicates(self) -> None:
        """Refuse entries that are equal, also where their spelling differs."""
        rules = [self.app.run_config(self.common, rule) for rule in self._all_rules]
        regimes = [self.app.run_config(self.common, one) for one in self.regimes]
        for name, values in (
            ("rules", rules),
            ("regimes", regimes),
            ("attacks", self.attacks),
            *((f"tuning.{key}", values) for key, values in self.tuning.items()),
        ):
            own = {"rules": self._all_rules, "regimes": self.regimes}
            spelt = own.get(name, values)
            for i, value in enumerate(values):
                if value in values[:i]:
                    raise parameter_error(name, "a list without duplicates", spelt[i])

    def tuning_runs(self) -> list[PlannedRun]:
        """Return the runs on validation data, equally many for each rate."""
        return [
            self._planned(
                *(regime, rule, attack, seed),
                {"learning-rate": rate, "evaluate-on": "validation"},
            )
            for seed in self.tuning["seeds"]
            for regime in self.regimes
            for rule in self._all_rules
            for attack in self._attacks(rule, self.tuning["attacks"])
            for rate in self.tuning["learning-rate"]
        ]

    def runs(self, rates: Rates) -> list[PlannedRun]:
        """Return the runs on test data, one regime after the other."""
        first = self.tuning["learning-rate"][0]
        return [
            self._planned(
                *(regime, rule, attack, seed),
                {"learning-rate": rates.get(cell(regime, rule), first)},
            )
            for regime in self.regimes
            for seed in self.seeds
            for rule in self._all_rules
            for attack in self._attacks(rule, self.attacks)
        ]

    @property
    def _all_rules(self) -> list[Values]:
        """The rules; losses are measured against the first."""
        return (
            [*self.rules] if self.reference is None else [self.reference, *self.rules]
        )

    def _attacks(self, rule: Values, attacks: Sequence[str]) -> Sequence[str]:
        return ["none"] if rule is self.reference else attacks

    def _planned(
        self, regime: Values, rule: Values, attack: str, seed: int, more: Values
    ) -> PlannedRun:
        point = {**regime, **rule, "attack": attack, "seed": seed, **more}
        config = self.app.run_config(self.common, point)
        check_values(self.app, config)
        return PlannedRun(config, point)

    def sweep(self, runs: Sequence[PlannedRun]) -> Sweep:
        """Return the sweep that makes runs; it is resumed from its folder."""
        return Sweep(self.app, runs)


def cell(regime: Values, rule: Values) -> str:
    """Return a name for a rule in a regime."""
    return json.dumps([{**regime}, {**rule}], sort_keys=True)


def chosen_rates(suite: Suite, finished: Sequence[FinishedRun]) -> dict[str, float]:
    """Return the rate with the best mean on validation data, for each rule and regime.

    A run that failed or diverged counts as 0. The first rate wins a tie.
    """
    values: dict[str, dict[float, list[float]]] = {}
    by_name = {one.run.name: one for one in finished}
    for run in suite.tuning_runs():
        regime, rule = _split(suite, run.point)
        one = by_name.get(run.name)
        value = _value(one, suite) if one else 0.0
        rates = values.setdefault(cell(regime, rule), {})
        rates.setdefault(run.point["learning-rate"], []).append(value)
    return {
        key: max(rates, key=lambda rate: statistics.fmean(rates[rate]))
        for key, rates in values.items()
    }


def summarize(
    suite: Suite, rates: Rates, finished: Sequence[FinishedRun]
) -> list[dict[str, Any]]:
    """Return a JSON object for each rule in each regime.

    `scores` has the values by attack, in the order of the seeds; `unattacked` and
    `worst` have mean and 95 % bootstrap interval. `reference` is the value of the
    suite's reference, or of its first rule, without an attack. `cost` is the loss
    against it without an attack, `loss` that in the worst attack; both are paired by
    seed. `upload-bytes` is what a client
    sends in a round, and `aggregation-seconds` the CPU time of the aggregation without
    an attack. A seed of a regime counts once all
    its rules and attacks have ended. A run that failed or diverged has the value 0.
    """
    table: dict[str, dict[str, dict[int, FinishedRun]]] = {}
    by_name = {one.run.name: one for one in finished}
    for run in suite.runs(rates):
        if run.name in by_name:
            by_attack = table.setdefault(cell(*_split(suite, run.point)), {})
            by_seed = by_attack.setdefault(run.point["attack"], {})
            by_seed[run.point["seed"]] = by_name[run.name]
    return [
        entry
        for regime in suite.regimes
        for entry in _entries(suite, rates, regime, table)
    ]


def _entries(
    suite: Suite,
    rates: Rates,
    regime: Values,
    table: Mapping[str, Mapping[str, Mapping[int, FinishedRun]]],
) -> Iterator[dict[str, Any]]:
    rows = [table.get(cell(regime, rule), {}) for rule in suite.rules]
    base = table.get(cell(regime, suite._all_rules[0]), {})
    runs = [row.get(attack, {}) for row in rows for attack in suite.attacks]
    runs.append(base.get("none", {}))
    seeds = [s for s in suite.seeds if all(s in by_seed for by_seed in runs)]
    if not seeds:
        return
    values = np.array(
        [
            [[_value(row[attack][s], suite) for attack in suite.attacks] for s in seeds]
            for row in rows
        ]
    )
    unattacked = values[:, :, suite.attacks.index("none")]
    reference = np.array([_value(base["none"][s], suite) for s in seeds])
    for i, (rule, row) in enumerate(zip(suite.rules, rows, strict=True)):
        peaceful = [row["none"][s] for s in seeds]  # the rest aggregate and attack
        config = suite.app.run_config(suite.common, regime, rule)
        worst = suite.attacks[int(values[i].mean(axis=0).argmin())]
        yield {
            "regime": {**regime},
            "steps": str(config.get("steps-on", "clients")),
            "data": _data(config),
            "num-nodes": config.get("num-nodes", 17),
            "malicious": config.get("num-malicious-nodes", 0),
            "rule": rule["aggregator"],
            "memory": rule.get("memory", 0.0),
            "learning-rate": rates[cell(regime, rule)],
            "learning-rates": sorted(suite.tuning["learning-rate"]),
            "seeds": seeds,
            "reference": _summary(reference),
            "unattacked": _summary(unattacked[i]),
            "worst": {"attack": worst} | _summary(values[i], _lowest),
            "cost": _summary(reference - unattacked[i]),
            "loss": _summary(reference[:, None] - values[i], _highest),
            "upload-bytes": _upload(peaceful),
            "aggregation-seconds": _aggregation(peaceful),
            "scores": {
                attack: _summary(values[i, :, j])
                | {"values": [round(float(v), 4) for v in values[i, :, j]]}
                for j, attack in enumerate(suite.attacks)
            },
        }


def _lowest(rows: Any) -> float:
    return float(rows.mean(axis=0).min())


def _highest(rows: Any) -> float:
    return float(rows.mean(axis=0).max())


def _summary(samples: Any, statistic: Any = np.mean) -> dict[str, Any]:
    rows = np.asarray(samples, dtype=float)
    interval = bootstrap_interval(rows, statistic)
    ends = [round(interval.low, 4), round(interval.high, 4)] if interval else None
    return {"mean": round(float(statistic(rows)), 4), "interval": ends}


def _upload(finished: Sequence[FinishedRun]) -> int:
    """Return the median bytes that a client sends in a round; 0 if unknown."""
    sizes = [
        line["bytes-received"] / len(line["asked"])
        for one in finished
        for line in one.lines
        if line.get("asked") and "bytes-received" in line
    ]
    return round(statistics.median(sizes)) if sizes else 0


def _aggregation(finished: Sequence[FinishedRun]) -> float:
    """Return the median CPU time of the aggregation of a round; 0 if unknown."""
    name = "aggregation-seconds"
    found = [line[name] for one in finished for line in one.lines if name in line]
    return round(statistics.median(found), 5) if found else 0.0


def _data(config: Values) -> str:
    return "alike" if config.get("partitioner", "iid") == "iid" else "differ"


def _value(one: FinishedRun, suite: Suite) -> float:
    value = one.value(suite.metric, suite.last)
    return value if value is not None and value == value else 0.0


def _split(suite: Suite, point: Values) -> tuple[Values, Values]:
    """Return the regime and the rule of a run."""
    for regime in suite.regimes:
        for rule in suite._all_rules:
            own = {**regime, **rule}
            size = len(point) - 3 - ("evaluate-on" in point)
            if own.items() <= point.items() and len(own) == size:
                return regime, rule
    raise AssertionError(point)


def _rule(spelt: str | Values) -> Values:
    return {"aggregator": spelt} if isinstance(spelt, str) else spelt


def _check(content: Values) -> None:
    for name in content:
        if name not in _KEYS:
            remedy = did_you_mean(name, _KEYS)
            raise parameter_error("key", f"one of {', '.join(_KEYS)}", name, remedy)
    for name, expected in _KEYS.items():
        if name not in content and name not in _OPTIONAL:
            raise parameter_error(name, expected, None)
        value = content.get(name, _OPTIONAL.get(name))
        if not _CHECKS[name](value):
            raise parameter_error(name, expected, value)
    tables = (*content["regimes"], *content["rules"])
    for table in (*tables, content.get("reference"), content.get("run-config")):
        for name in _SET_BY_SUITE:
            if isinstance(table, dict) and name in table:
                expected = f"a table without `{name}`, which the suite sets in each run"
                remedy = "Write it in the lists `attacks` and `seeds`, or in `tuning`."
                raise parameter_error("table", expected, table, remedy)


def _is_tuning(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"learning-rate", "attacks", "seeds"}
        and _is_list(value["learning-rate"], lambda one: _is_number(one) and one > 0)
        and _is_list(value["attacks"], lambda one: isinstance(one, str))
        and _is_seeds(value["seeds"])
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any, holds: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(holds, value))


def _is_seeds(value: Any) -> bool:
    whole = _is_list(value, lambda one: type(one) is int and one >= 0)
    return whole and len(set(value)) == len(value)


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(one, _SCALAR) for one in value.values()
    )


def _is_rule(value: Any) -> bool:
    return isinstance(value, str) or (
        _is_config(value) and isinstance(value.get("aggregator"), str)
    )


def _is_regime(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(
            isinstance(one, _SCALAR) or _is_list(one, lambda x: isinstance(x, _SCALAR))
            for one in value.values()
        )
        and bool(value)
    )


_CHECKS: Mapping[str, Any] = {
    "rules": lambda value: _is_list(value, _is_rule),
    "reference": lambda value: value is None or _is_rule(value),
    "attacks": lambda value: (
        _is_list(value, lambda one: isinstance(one, str)) and "none" in value
    ),
    "seeds": _is_seeds,
    "regimes": lambda value: _is_list(value, _is_regime),
    "tuning": _is_tuning,
    "run-config": _is_config,
    "metric": lambda value: isinstance(value, str),
    "last": lambda value: type(value) is int and value >= 1,
}
