"""Data of the app: the same as scikit-learn and `datasets` make of them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner
from sklearn.datasets import load_breast_cancer, load_digits

from clients import hub
from clients.bundled import BUNDLED, split
from clients.config import RunConfig
from clients.examples import Examples
from clients.task import load_held_out, load_train
from flwr_ctma.experiments.app import FlowerApp
from tests.helpers.datasets import write_images

APP = FlowerApp(Path(__file__).parents[2])
PARTITIONS = 13


def tagged(count, labels):
    """Return a Dataset of positions, which tell what became of the rows."""
    number = ClassLabel(num_classes=int(labels.max()) + 1)
    features = Features({"position": Value("int64"), "label": number})
    return Dataset.from_dict({"position": range(count), "label": labels}, features)


def deal(train, partitioner, seed):
    """Return positions by partition, as the packages deal them out."""
    if partitioner == "iid":
        dealer = IidPartitioner(PARTITIONS)
    else:
        dealer = DirichletPartitioner(
            PARTITIONS, "label", 1.0, min_partition_size=1, seed=seed
        )
    dealer.dataset = train.shuffle(seed=seed)
    return [dealer.load_partition(i)["position"][:] for i in range(PARTITIONS)]


@pytest.mark.parametrize("partitioner", ["iid", "dirichlet"])
@pytest.mark.parametrize("held_out", ["test", "validation"])
@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_examples_are_dealt_out_as_by_the_packages(name, held_out, partitioner):
    """Results of earlier versions stay comparable: not one example changes hands."""
    examples = BUNDLED[name]()
    splits = tagged(len(examples), examples.labels.numpy()).train_test_split(
        test_size=0.2, stratify_by_column="label", seed=0
    )
    if held_out == "validation":
        splits = splits["train"].train_test_split(test_size=0.1, seed=0)
    for seed in (1, 7):
        keys = {"dataset": name, "evaluate-on": held_out, "model": "mlp", "seed": seed}
        config = RunConfig.of(APP.run_config(keys, {"partitioner": partitioner}))
        for i, positions in enumerate(deal(splits["train"], partitioner, seed)):
            found = load_train(config, i, PARTITIONS)
            assert torch.equal(found.images, examples.images[positions])
            assert torch.equal(found.labels, examples.labels[positions])
        assert torch.equal(
            load_held_out(config).images, examples.images[splits["test"]["position"][:]]
        )


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("counts", [(7, 7, 7, 7), (5, 11, 23)])
def test_split_breaks_ties_as_datasets_does(counts, seed):
    labels = np.random.default_rng(1).permutation(np.repeat(range(len(counts)), counts))
    expected = tagged(len(labels), labels).train_test_split(
        test_size=0.2, stratify_by_column="label", seed=seed
    )
    positions = torch.arange(len(labels)).reshape(-1, 1, 1, 1)
    examples = Examples(positions, torch.from_numpy(labels), 4)
    for part, name in zip(split(examples, seed), ("train", "test"), strict=True):
        assert part.images.flatten().tolist() == expected[name]["position"][:]


def test_files_hold_what_scikit_learn_returns():
    digits, cancer = load_digits(), load_breast_cancer()
    found = BUNDLED["digits"]()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    expected = torch.from_numpy(pixels).float()[:, None] / 127.5 - 1
    assert torch.equal(found.images, expected)
    assert np.array_equal(found.labels, digits.target)
    found = BUNDLED["breast-cancer"]()
    assert np.array_equal(found.labels, cancer.target)
    # Columns keep their order under an increasing map of each.
    order = np.argsort(cancer.data, axis=0, kind="stable")
    rows = np.take_along_axis(found.images[:, 0, 0].numpy(), order, axis=0)
    assert (np.diff(rows, axis=0) >= 0).all()


def test_run_on_bundled_data_imports_no_package_of_data():
    """They would take longer to import than the run takes."""
    code = (
        "import sys; from pathlib import Path\n"
        "from flwr_ctma.experiments.app import FlowerApp\n"
        f"app = FlowerApp(Path({str(APP.path)!r}))\n"
        "app.simulate(3, app.run_config('num-server-rounds=1 num-nodes=3 '\n"
        "    'num-malicious-nodes=1 local-steps=1'))\n"
        "heavy = {'sklearn', 'datasets', 'flwr_datasets', 'pandas', 'scipy.stats',\n"
        "    'matplotlib', 'ray', 'torch._dynamo'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_check_of_a_run_config_needs_no_torch():
    """A command that starts processes checks the values, and trains nothing itself."""
    code = (
        "import sys; from pathlib import Path\n"
        "from flwr_ctma.experiments.app import FlowerApp\n"
        f"app = FlowerApp(Path({str(APP.path)!r}))\n"
        "app.check(app.run_config())\n"
        "sys.exit(' '.join({'torch', 'datasets'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_stored_example_is_decoded_once_whoever_selects_it(tmp_path, monkeypatch):
    pixels = write_images(tmp_path)
    train, _ = hub.load(str(tmp_path))
    decoded = []
    select = Dataset.select

    def counted(self, indices, **options):
        decoded.extend(indices)
        return select(self, indices, **options)

    monkeypatch.setattr(Dataset, "select", counted)
    for positions in ([3, 1, 4], [1, 5, 9, 2], [4, 3]):
        found = train[torch.tensor(positions)]
        expected = torch.from_numpy(pixels[positions]).permute(0, 3, 1, 2) / 127.5 - 1
        assert torch.equal(found.images, expected)
        assert found.labels.tolist() == [i % 3 for i in positions]
    assert sorted(decoded) == [1, 2, 3, 4, 5, 9]


@pytest.mark.parametrize(
    "others",
    [
        np.full((1, 1), 9, np.uint8),
        np.full((4, 4), 300, np.uint16),
        np.full((4, 4, 3), 9, np.uint8),
    ],
    ids=["size", "16 bits", "colour"],
)
def test_images_that_differ_are_refused(others):
    """NumPy would copy a pixel over an image, and drop the upper bits of others."""
    images = [np.zeros((4, 4), np.uint8)] * 2 + [others] * 2
    features = Features({"image": Image(), "label": ClassLabel(num_classes=2)})
    columns = {"image": [*map(PIL.Image.fromarray, images)], "label": [0, 1] * 2}
    train = hub.StoredExamples(Dataset.from_dict(columns, features=features))
    assert (train[torch.tensor([0, 1])].images == -1).all()
    for rows in ([2, 3], [1, 3]):
        with pytest.raises(ValueError, match="one of examples of one size"):
            train[torch.tensor(rows)]


@pytest.mark.parametrize("images", [np.ones((4, 4), bool), np.ones((4, 4), np.uint16)])
def test_images_of_other_than_8_bits_are_refused(images):
    features = Features({"image": Image(), "label": ClassLabel(num_classes=2)})
    columns = {"image": [PIL.Image.fromarray(images)] * 2, "label": [0, 1]}
    train = hub.StoredExamples(Dataset.from_dict(columns, features=features))
    with pytest.raises(ValueError, match="images with 8 bits in each channel"):
        train[torch.tensor([0, 1])]


@pytest.mark.parametrize("partitioner", ["iid", "similarity(gamma=0.5)"])
def test_client_without_examples_is_refused(partitioner):
    keys = {"dataset": "breast-cancer", "model": "mlp", "partitioner": partitioner}
    config = RunConfig.of(APP.run_config(keys))
    with pytest.raises(ValueError, match="deals out 455 of them"):
        load_train(config, 0, 456)


def test_seeds_that_take_turns_decode_nothing_anew(tmp_path, monkeypatch):
    """More seeds than deals are kept: a sweep whose last axis is the seed."""
    write_images(tmp_path)
    keys = {"dataset": str(tmp_path), "partitioner": "iid"}
    configs = [RunConfig.of(APP.run_config(keys, {"seed": i})) for i in range(6)]
    first = [load_train(config, 0, 3).images for config in configs]
    for config in configs:
        load_train(config, 1, 3), load_train(config, 2, 3)
    monkeypatch.setattr(Dataset, "select", None)
    again = [load_train(config, 0, 3).images for config in configs]
    assert all(map(torch.equal, first, again))
