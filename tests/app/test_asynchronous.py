"""The app at every arrival: who is fast, what counts, and the virtual clock."""

from pathlib import Path

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file

from clients.config import RunConfig
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.processes import RunFailed
from flwr_ctma.experiments.runtimes import Ray
from flwr_ctma.simulation.arrivals import grid_of, parse_arrival_model
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.tracking.run_folder import RunFolder
from server.app import clock_of

ROOT = Path(__file__).parents[2]
APP = FlowerApp(ROOT)
SMALL = {
    "num-nodes": 5,
    "num-malicious-nodes": 2,
    "num-server-rounds": 3,
    "asynchronous": True,
    "steps-on": "server",
    "local-steps": 1,
    "learning-rate": 0.05,
    "arrivals": "id2",
    "malicious-share": 0.4,
}


def simulate(folder, **overrides):
    """Run the app in this process; give its rounds and its final model."""
    config = APP.run_config() | SMALL | {"output": str(folder)}
    config |= {key.replace("_", "-"): value for key, value in overrides.items()}
    APP.simulate(config["num-nodes"], config)
    model = load_file(folder / "model.safetensors")
    return RunFolder(folder).rounds(), np.concatenate(
        [a.ravel() for a in model.values()]
    )


def test_rounds_are_arrivals_on_a_virtual_clock_and_repeat(tmp_path) -> None:
    rounds, model = simulate(tmp_path / "a")
    assert [r["arrivals"] for r in rounds[1:]] == [5, 5, 5]
    assert all(0 < len(r["asked"]) <= 5 for r in rounds[1:])
    clock = [r["virtual-seconds"] for r in rounds]
    assert clock[0] == 0 and clock == sorted(clock)
    again, same = simulate(tmp_path / "b")
    assert [r["loss"] for r in rounds] == [r["loss"] for r in again]
    np.testing.assert_array_equal(model, same)


@pytest.mark.parametrize(
    "other",
    [
        {"client_weighting": "equal"},
        {"attack": "ipm(epsilon=5)"},
        {"attack": "optimalipm", "aggregator": "cwmed"},
        {"malicious_share": 0.0, "arrivals": "uniform", "num_server_rounds": 6},
        {"arrivals": "uniform"},
        {"arrivals": "real"},
        {"optimizer": "sgd"},
        {"steps_on": "clients", "client_weighting": "staleness"},
    ],
)
def test_every_setting_acts(other, tmp_path) -> None:
    _, usual = simulate(tmp_path / "usual")
    rounds, model = simulate(tmp_path / "other", **other)
    assert rounds[-1]["steps"] > 0 and np.isfinite(model).all()
    assert np.abs(usual - model).max() > 1e-6


def test_rounds_wait_for_stragglers_on_the_same_clock(tmp_path) -> None:
    sync = {"asynchronous": False, "malicious_share": 0.0}
    pace = {"arrivals": "straggler(slowdown=7)"}
    waited, _ = simulate(tmp_path / "rounds", **sync, **pace)
    assert [r["virtual-seconds"] for r in waited] == [0, 7, 14, 21]
    sync_free, _ = simulate(tmp_path / "free", **sync, arrivals="real")
    assert "virtual-seconds" not in sync_free[0]
    assert [r["loss"] for r in waited] == [r["loss"] for r in sync_free]
    rounds, _ = simulate(tmp_path / "arrivals", **pace)
    assert rounds[-1]["virtual-seconds"] < 7


@pytest.mark.parametrize("spelled", ["uniform", "id", "id2"])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_malicious_clients_make_their_share_of_arrivals(spelled, share) -> None:
    durations = parse_arrival_model(spelled).durations(17, 8, share)
    rates = np.array(durations.rates)
    powers = {"uniform": 0, "id": 1, "id2": 2}
    honest = np.arange(9, 18) ** float(powers[spelled])
    np.testing.assert_allclose(rates[8:], honest)
    alone = np.arange(1, 18) ** float(powers[spelled])
    expected = share or alone[:8].sum() / alone.sum()
    assert rates[:8].sum() / rates.sum() == pytest.approx(expected)
    rng = np.random.default_rng(0)
    mean = np.mean([durations(12, rng) for _ in range(4000)])
    assert mean == pytest.approx(1 / rates[12], rel=0.1)


def test_times_come_from_a_file(tmp_path) -> None:
    file = tmp_path / "times.csv"
    lines = "node,seconds\n0,1.5\n1,2\n0,2.5\n7,9\n"
    file.write_text(lines, encoding="utf-8-sig")  # as Excel does
    durations = parse_arrival_model(str(file)).durations(2)
    rng = np.random.default_rng(0)
    assert {durations(0, rng) for _ in range(50)} == {1.5, 2.5}
    assert {durations(1, rng) for _ in range(9)} == {2.0}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("node,seconds\n0,1\n", "It has none for 1"),
        ("node,seconds\n0,1\n1,0\n", "above 0"),
        ("node,seconds\n0,1\n1,soon\n", "could not convert"),
        ("client,seconds\n0,1\n", "columns `node` and `seconds`"),
        pytest.param("node,seconds\n" + "9" * 200_000, "field larger", id="long"),
        (None, "No such file"),
    ],
)
def test_wrong_file_is_one_sentence(text, sentence, tmp_path) -> None:
    file = tmp_path / "times.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        parse_arrival_model(str(file)).durations(2)


@pytest.mark.parametrize("config", [{"arrivals": 5}, {"malicious-share": 1.0}])
def test_the_keys_of_another_app_are_one_sentence(config) -> None:
    config = {"arrivals": "uniform", "num-malicious-nodes": 1, **config}
    with pytest.raises(ValueError, match=r"`(arrivals|malicious-share)` should be"):
        grid_of(ClientApp(), 4, config)


def test_a_virtual_pace_needs_a_virtual_clock() -> None:
    config = RunConfig.of(APP.run_config(SMALL))
    grid = InProcessGrid(ClientApp(), 5)
    with pytest.raises(ValueError, match=r"`arrivals` should be `real`.*simulate"):
        clock_of(grid, config)


@pytest.mark.long
def test_in_ray_clients_run_at_a_pace_of_their_own(tmp_path) -> None:
    config = SMALL | {"arrivals": "real", "malicious-share": 0.0}
    config |= {"num-malicious-nodes": 1, "learning-rate": 0.01}
    config |= {"batch-size": 16, "num-server-rounds": 20}
    with Ray(ROOT) as engine:
        for folder, overrides in (("good", {}), ("bad", {"arrivals": "id"})):
            (tmp_path / folder).mkdir()
            values = config | overrides | {"output": str(tmp_path / folder)}
            run = engine.run(values, 5, tmp_path / folder / "log.txt")
            if overrides:
                with pytest.raises(RunFailed, match="`arrivals` should be `real`"):
                    list(run)
            else:
                list(run)
    rounds = RunFolder(tmp_path / "good").rounds()
    assert len(rounds) == 21
    assert sum(r["arrivals"] for r in rounds[1:]) >= 100
    assert rounds[-1]["loss"] < rounds[0]["loss"]
