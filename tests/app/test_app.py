"""The repository's own app: the same model wherever it runs, and robust."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file
from sklearn.datasets import load_breast_cancer

from clients.config import RunConfig
from clients.models import build_model
from clients.task import Examples, evaluate, load_held_out, load_train
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.processes import RunFailed
from flwr_ctma.experiments.runtimes import Ray
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.tracking.run_folder import RunFolder
from server.app import query_partitions
from tests.helpers.datasets import write_dataset, write_images
from tests.helpers.stub_superlink import http_grid, raw, upload, upload_objects

ROOT = Path(__file__).parents[2]
APP = FlowerApp(ROOT)
SMALL = {
    "num-nodes": 5,
    "num-malicious-nodes": 1,
    "num-server-rounds": 2,
    "local-steps": 2,
}

CONFIG = RunConfig.of(APP.run_config())


def simulate(folder, **overrides):
    """Run the app in this process; give its rounds and its final model."""
    config = APP.run_config() | SMALL | {"output": str(folder)}
    config |= {key.replace("_", "-"): value for key, value in overrides.items()}
    APP.simulate(config["num-nodes"], config)
    return RunFolder(folder).rounds(), load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def ray():
    with Ray(ROOT) as engine:
        yield engine


def run(engine, folder, **overrides):
    folder.mkdir()
    config = SMALL | {"output": str(folder)} | overrides
    for _ in engine.run(config, config["num-nodes"], folder / "log.txt"):
        pass


def test_ray_and_one_process_give_the_same_model(ray, tmp_path):
    """To the bit: processes, node ids and the order of arrival do not show."""
    here, model = simulate(tmp_path / "here")
    run(ray, tmp_path / "ray")
    there = RunFolder(tmp_path / "ray").rounds()
    simulated = load_file(tmp_path / "ray" / "model.safetensors")
    assert model.keys() == simulated.keys()
    for name in model:
        np.testing.assert_array_equal(model[name], simulated[name])
    assert [r["trimmed"] for r in here[1:]] == [r["trimmed"] for r in there[1:]]


@pytest.mark.long
def test_replies_may_be_held_elsewhere(ray, tmp_path):
    _, model = simulate(tmp_path / "here")
    backend = "ray(cpus=0, workers=2, timeout=600)"
    run(ray, tmp_path / "ray", backend=backend)
    there = load_file(tmp_path / "ray" / "model.safetensors")
    for name in model:
        np.testing.assert_allclose(there[name], model[name], rtol=0, atol=1e-5)


def test_ray_and_one_process_take_the_same_steps_on_the_server(ray, tmp_path):
    """Exact double momentum, with batch normalisation: Ray keeps client state too."""
    exact = {"steps-on": "server", "optimizer": "mu2(floored)", "model": "paper"}
    config = APP.run_config(SMALL, exact, {"output": str(tmp_path / "here")})
    APP.simulate(config["num-nodes"], config)
    run(ray, tmp_path / "ray", **exact)
    model = load_file(tmp_path / "here" / "model.safetensors")
    simulated = load_file(tmp_path / "ray" / "model.safetensors")
    for name in model:
        np.testing.assert_allclose(model[name], simulated[name], rtol=0, atol=1e-5)


def test_wrong_value_ends_a_ray_run_with_its_sentence(ray, tmp_path):
    with pytest.raises(
        RunFailed, match=r"`optimizer` should be .* `optimizer = 'adam'`"
    ):
        run(ray, tmp_path / "run", optimizer="adam")


def test_a_rule_that_cannot_tell_so_many_says_so_before_any_client_starts(tmp_path):
    with pytest.raises(ValueError, match="at most 1 for krum among n = 5"):
        simulate(tmp_path / "run", aggregator="krum", **{"num-malicious-nodes": 2})
    assert not (tmp_path / "run").exists()


def test_same_seed_gives_the_same_bits(tmp_path):
    _, first = simulate(tmp_path / "1", attack="noise")
    _, second = simulate(tmp_path / "2", attack="noise")
    _, other = simulate(tmp_path / "3", attack="noise", seed=2)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert not np.array_equal(first[name], other[name])


def test_the_success_of_a_backdoor_is_a_metric(tmp_path):
    """Two of five clients poison half of their images: the model keeps working."""
    settings = {
        "attack": "backdoor(target=3)",
        "num-malicious-nodes": 2,
        "num-server-rounds": 12,
        "local-steps": 5,
    }
    fedavg, _ = simulate(tmp_path / "fedavg", aggregator="fedavg", **settings)
    robust, _ = simulate(tmp_path / "robust", aggregator="ctma(gm)", **settings)
    assert fedavg[0]["backdoor-success"] < 0.2
    assert fedavg[-1]["backdoor-success"] > 0.7 > 0.4 > robust[-1]["backdoor-success"]
    assert fedavg[-1]["accuracy"] > 0.7 and robust[-1]["accuracy"] > 0.7


@pytest.mark.parametrize("optimizer", ["mu2", "momentum", "sgd"])
def test_every_optimizer_learns(tmp_path, optimizer):
    rounds, _ = simulate(
        tmp_path / "run",
        optimizer=optimizer,
        num_malicious_nodes=0,
        num_server_rounds=4,
        local_steps=10,
    )
    assert rounds[0]["accuracy"] < 0.2
    assert rounds[-1]["accuracy"] > 0.6


def test_without_an_attack_no_malicious_client_is_counted(tmp_path):
    rounds, _ = simulate(tmp_path / "run", attack="none")
    assert not any("malicious-kept" in r for r in rounds)


@pytest.mark.parametrize("attack", ["nonfinite", "malformed"])
def test_broken_replies_are_rejected_and_the_run_goes_on(tmp_path, attack):
    rounds, model = simulate(tmp_path / "run", attack=attack)
    assert [r["rejected"] for r in rounds[1:]] == [[0], [0]]
    assert [r["malicious-kept"] for r in rounds[1:]] == [0, 0]
    assert all(np.isfinite(array).all() for array in model.values())


def test_broken_reply_ends_plain_fedavg_and_the_run_fails(tmp_path):
    with pytest.raises(ValueError, match="broadcast"):
        simulate(tmp_path / "run", attack="malformed", aggregator="fedavg")


@pytest.mark.accepts_nothing
def test_run_without_an_aggregated_round_raises_with_the_reasons(tmp_path):
    with pytest.raises(RuntimeError, match=r"No round of 2 was .*not-finite"):
        simulate(tmp_path / "run", learning_rate=1e30)


def test_omniscient_attack_is_mounted_on_the_server(tmp_path):
    """Plain averaging follows −ε·mean of the honest, blown up, away from them."""
    honest, _ = simulate(tmp_path / "1", aggregator="mean", attack="none")
    attacked, _ = simulate(tmp_path / "2", aggregator="mean", attack="ipm(epsilon=100)")
    assert attacked[-1]["loss"] > 2 * honest[-1]["loss"]


def test_strange_answer_names_no_partition():
    """Partitions are for the report alone, and any client may say anything."""
    answers = [
        {"metrics": MetricRecord({"partition-id": 0})},
        {"metrics": MetricRecord({"partition-id": [1, 2]})},
        {"metrics": MetricRecord({"partition": 2})},
        {"other": MetricRecord({"partition-id": 3})},
        {"metrics": ConfigRecord({"partition-id": 4})},
    ]
    client = ClientApp()

    @client.query()
    def introduce(message, context):
        partition = context.node_config["partition-id"]
        return Message(RecordDict(answers[partition]), reply_to=message)

    grid = InProcessGrid(client, len(answers))
    assert query_partitions(grid, len(answers)) == {grid.get_node_ids()[0]: 0}


def test_partition_belongs_to_the_node_that_was_asked():
    """Whatever the reply says of its source; a hostile upload costs its own answer."""

    def answer(node, key):
        if node == 0:
            name, content = raw("RecordDict", [], b"{")
            return upload_objects(key, node, name, {name: content})
        partition = {1: 1, 2: 3, 3: 3, 4: 7}[node]
        metrics = MetricRecord({"partition-id": partition})
        source = 6 if node == 1 else node
        return upload(key, source, RecordDict({"metrics": metrics}))

    grid, _ = http_grid(5, answer)
    assert query_partitions(grid, 5, 1) == {grid.get_node_ids()[1]: 1}


def test_clients_measure_too_if_asked(tmp_path):
    rounds, _ = simulate(tmp_path / "run", fraction_evaluate=1.0)
    assert 0 <= rounds[-1]["clients-accuracy"] <= 1


def test_part_of_the_clients_trains_if_asked(tmp_path):
    rounds, _ = simulate(tmp_path / "run", fraction_train=0.6)
    assert [len(r["asked"]) for r in rounds[1:]] == [3, 3]


def test_folder_tells_the_configuration(tmp_path):
    simulate(tmp_path / "run", seed=7)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written == APP.run_config() | SMALL | {
        "seed": 7,
        "output": str(tmp_path / "run"),
    }


@pytest.mark.parametrize("partitioner", ["iid", "dirichlet"])
def test_partitions_are_all_of_the_training_data(partitioner):
    config = RunConfig.of(APP.run_config(f'partitioner="{partitioner}"'))
    parts = [load_train(config, i, 17) for i in range(17)]
    test = load_held_out(CONFIG)
    assert sum(map(len, parts)) == 1797 - len(test)
    assert min(map(len, parts)) >= 1
    images = torch.cat([part.images for part in parts])
    assert images.shape[1:] == test.images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (-1, 1)


def test_partitions_are_decoded_once_however_many_there_are():
    config = RunConfig.of(APP.run_config(SMALL, {"seed": 11}))
    once, again = ([load_train(config, i, 90) for i in range(90)] for _ in range(2))
    assert all(one is other for one, other in zip(once, again, strict=True))


def test_dirichlet_partitions_differ_in_their_labels():
    config = RunConfig.of(APP.run_config('partitioner="dirichlet" alpha=0.1'))
    labels = [load_train(config, i, 17).labels for i in range(17)]
    counts = [torch.bincount(part, minlength=10).max() / len(part) for part in labels]
    assert max(counts) > 0.5


def test_local_folder_in_the_layout_of_the_hub_is_a_dataset(tmp_path):
    """Colour images, and columns under other names, as on the Hub."""
    pixels = write_images(tmp_path, "img", "fine")
    config = RunConfig.of(APP.run_config() | {"dataset": str(tmp_path)})
    parts = [load_train(config, i, 3) for i in range(3)]
    assert [part.images.shape for part in parts] == [(4, 3, 10, 10)] * 3
    test = load_held_out(config)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(test.images, expected)
    assert test.labels.tolist() == [0, 1, 2] * 4
    assert build_model(test, config)(test.images).shape == (12, 3)


def test_table_is_scaled_by_published_ranges_alone():
    config = RunConfig.of(APP.run_config('dataset="breast-cancer" model="mlp"'))
    held_out = load_held_out(config)
    parts = [load_train(config, i, 17) for i in range(17)]
    assert min(map(len, parts)) >= 26 and len(held_out) == 114
    rows = torch.cat([one.images for one in (*parts, held_out)])
    assert rows.shape == (569, 1, 1, 30) and rows.abs().max() < 1.1
    radius, dimension = rows[:, 0, 0, 0], rows[:, 0, 0, 29]  # first and last feature
    raw = load_breast_cancer().data
    low, high = 6.981, 28.11
    found = (radius.double() + 1) / 2 * (high - low) + low
    np.testing.assert_allclose(np.sort(found), np.sort(raw[:, 0]), atol=1e-4)
    found = (dimension.double() + 1) / 2 * (0.208 - 0.055) + 0.055
    np.testing.assert_allclose(np.sort(found), np.sort(raw[:, 29]), atol=1e-6)
    labels = torch.cat([one.labels for one in (*parts, held_out)])
    assert labels.bincount().tolist() == [212, 357]  # malignant, benign


def test_local_folder_with_rows_of_features_is_a_dataset(tmp_path):
    kinds = {"row": List(Value("float32"), length=3), "kind": ClassLabel(num_classes=2)}
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    data = Dataset.from_dict({"row": rows, "kind": [0, 1] * 3}, Features(kinds))
    write_dataset(tmp_path, data)
    config = RunConfig.of(APP.run_config({"dataset": str(tmp_path), "model": "mlp"}))
    test = load_held_out(config)
    assert np.array_equal(test.images[:, 0, 0], rows)
    assert build_model(test, config)(test.images).shape == (6, 2)


@pytest.mark.parametrize("model", ["small", "paper", "transformer"])
def test_network_of_images_is_refused_for_rows_of_features(model):
    config = RunConfig.of(APP.run_config({"dataset": "breast-cancer", "model": model}))
    with pytest.raises(ValueError, match=f"mlp for .* `model = '{model}'"):
        build_model(load_held_out(config), config)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("mlp", {"1.weight", "1.bias", "3.weight", "3.bias"}),
        ("transformer", {"position", "embed.bias", "block.norm1.bias", "head.weight"}),
    ],
)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 14)])
def test_network_maps_each_image_alone_to_its_logits(model, names, shape):
    config = RunConfig.of(APP.run_config({"model": model}))
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    like = Examples(images, torch.zeros(5, dtype=torch.int64), num_classes=7)
    network = build_model(like, config)
    assert names <= network.state_dict().keys()
    logits = network(images)
    assert logits.shape == (5, 7)
    torch.testing.assert_close(network(images[2:3]), logits[2:3])
    assert all((logits[0] != logits[i]).any() for i in range(1, 5))


def test_transformer_reads_the_place_of_a_patch():
    """Swapped patches are another image, and what lies in each of 16 counts."""
    config = RunConfig.of(APP.run_config({"model": "transformer"}))
    images = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = build_model(Examples(images, torch.zeros(1), 10), config)
    images.requires_grad_()
    network(images)[0, 0].backward()
    patches = images.grad.abs().unfold(2, 2, 2).unfold(3, 2, 2)
    assert patches.sum(dim=(4, 5)).min() > 0
    assert network.position.grad.abs().min() > 0
    swapped = images.detach().clone()
    swapped[..., :2, :2], swapped[..., 6:, 6:] = (
        images[..., 6:, 6:],
        images[..., :2, :2],
    )
    assert not torch.allclose(network(swapped), network(images))


def test_model_is_the_same_whatever_ran_before():
    test = load_held_out(CONFIG)
    first = build_model(test, CONFIG).state_dict()
    state = torch.random.get_rng_state()
    second = build_model(test, CONFIG).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluation_counts_every_example_once():
    test = load_held_out(CONFIG)
    model = build_model(test, CONFIG)
    loss, accuracy = evaluate(model, test)
    logits = model(test.images)
    assert accuracy == pytest.approx(
        (logits.argmax(1) == test.labels).double().mean().item()
    )
    assert loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, test.labels).item(), rel=1e-5
    )
