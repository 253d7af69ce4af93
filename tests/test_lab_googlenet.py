"""googlenet-pneumonia: pretrained weights arrive to the bit, rates go by depth, scores are of the whole data."""

import dataclasses
import io
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import cyclr
import pneumonia
from cyclr.lab import TaskError, train
from cyclr.lab.evaluation import measure
from cyclr.lab.tasks.googlenet_pneumonia import GROUPS, googlenet, googlenet_pneumonia, pretrained
from pretrain_googlenet import googlenet_cifar100, pretrain
from tiny_task import make

RNG = np.random.default_rng(0)


def write_images(folder, name, counts, shape, classes, label):
    """Parquet files as the hub has them, with random images."""
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    (folder / name).mkdir(parents=True)
    for split, count in counts.items():
        images = []
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(buffer, format="PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        rows = {"img" if label == "fine_label" else "image": images, label: [i % classes for i in range(count)]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / name / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder, "cifar100", {"train": 128, "test": 10}, (32, 32, 3), 100, "fine_label")
    write_images(folder, "pneumoniamnist", {"train": 130, "validation": 20, "test": 24}, (28, 28), 2, "label")
    return folder


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory):
    """Made by the script that makes the real ones, in two updates."""
    out = tmp_path_factory.mktemp("googlenet")
    pretrain(googlenet_cifar100(str(data)), epochs=1, out=out)
    return out / "googlenet.safetensors"


def test_the_pretrained_weights_arrive_to_the_bit_and_the_head_is_new(data, weights):
    net, _ = googlenet_pneumonia(str(data), weights=str(weights)).build(seed=0)
    kept, own = load_file(weights), net.state_dict()
    assert own["fc.weight"].shape == (2, 1024)
    assert kept["fc.weight"].shape == (100, 1024)
    assert kept.keys() == own.keys()
    assert all(torch.equal(own[name], each) for name, each in kept.items() if not name.startswith("fc."))
    other, _ = googlenet_pneumonia(str(data), weights=str(weights)).build(seed=1)
    assert not torch.equal(other.fc.weight, net.fc.weight)


@pytest.mark.parametrize(
    ("layers", "multipliers"),
    [("depth", [2.6**-4, 2.6**-3, 2.6**-2, 2.6**-1, 1.0]), ("all", [1.0] * 5), ("last", [1.0])],
)
def test_the_groups_go_from_the_input_to_the_head(layers, multipliers, data, weights):
    net, optimizer = googlenet_pneumonia(str(data), layers=layers, weights=str(weights)).build(seed=0)
    assert [group["lr_multiplier"] for group in optimizer.param_groups] == pytest.approx(multipliers)
    assert [group["name"] for group in optimizer.param_groups] == [group[0] for group in GROUPS][-len(multipliers) :]
    trained = {name for name, each in net.named_parameters() if each.requires_grad}
    assert len(trained) == (2 if layers == "last" else len(list(net.parameters())))


def test_a_run_measures_balanced_accuracy_and_auc_of_all_examples(data, weights, tmp_path):
    task = googlenet_pneumonia(str(data), weights=str(weights))
    record = train(task, cyclr.triangular(0.001, 0.01, stepsize=1), 2, tmp_path)
    assert record["result"]["scores"].keys() == {"balanced accuracy", "AUC"}
    assert record["result"]["history"][-1].keys() >= {"validation", "validation balanced accuracy", "validation AUC"}


def test_scores_see_the_whole_source_and_not_the_mean_over_batches(monkeypatch):
    monkeypatch.setattr("cyclr.lab.evaluation.BATCH", 7)
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(61, generator=generator) < 0.2).long()
    x = torch.randn(61, 6, generator=generator)
    from cyclr.lab.tasks.googlenet_pneumonia import auc, balanced_accuracy

    task = make(test=(x, y), scores={"balanced accuracy": balanced_accuracy, "AUC": auc})
    model = task.model().eval()
    with torch.no_grad():
        output = model(x)
    found = measure(task, model, task.test, torch.device("cpu"))
    assert found["balanced accuracy"] == pytest.approx(balanced_accuracy_score(y, output.argmax(-1)))
    assert found["AUC"] == pytest.approx(roc_auc_score(y, output.softmax(-1)[:, 1]))
    assert found["metric"] == pytest.approx(float((output.argmax(-1) == y).float().mean()))


def test_a_run_that_diverges_has_no_scores_and_is_recorded(tmp_path):
    from cyclr.lab.tasks.googlenet_pneumonia import auc, balanced_accuracy

    task = make(scores={"balanced accuracy": balanced_accuracy, "AUC": auc})
    result = train(task, cyclr.fixed(1e30), 100, tmp_path)["result"]
    assert result["status"] == "diverged"
    assert result["scores"] == {"balanced accuracy": None, "AUC": None}
    record = {"result": result}
    assert math.isnan(pneumonia.score_of(record))
    assert pneumonia.validated(record) == []


def test_other_weights_and_other_scores_are_another_task(data, weights, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({name: each + 1 for name, each in load_file(weights).items()}, other)
    task = googlenet_pneumonia(str(data), weights=str(weights))
    assert task.fingerprint() == googlenet_pneumonia(str(data), weights=str(weights)).fingerprint()
    assert task.fingerprint() != googlenet_pneumonia(str(data), weights=str(other)).fingerprint()
    assert task.fingerprint() != dataclasses.replace(task, scores={}).fingerprint()


def test_a_task_without_a_start_or_scores_keeps_the_fingerprint_of_its_older_records():
    assert make().fingerprint() == "d155ede46ac57497"


def test_imagenets_weights_get_the_pixels_that_they_were_trained_on(weights, monkeypatch):
    """torchvision's were converted from a net for pixels in -1 to 1; its own loader turns transform_input on."""
    monkeypatch.setattr(sys.modules[pretrained.__module__], "_imagenet", lambda: load_file(weights))
    assert pretrained("IMAGENET1K_V1", 2).transform_input
    assert not pretrained(weights, 2).transform_input


def test_a_pretraining_that_diverged_leaves_no_weights(data, tmp_path):
    task = dataclasses.replace(googlenet_cifar100(str(data)), loss=lambda output, target: output.sum() * math.nan)
    with pytest.raises(SystemExit, match="diverged"):
        pretrain(task, epochs=1, out=tmp_path)
    assert not (tmp_path / "googlenet.safetensors").exists()


def damaged(path, weights):
    path.write_bytes(weights.read_bytes()[:1000])


def pickled(path, weights):
    path.write_bytes(pickle.dumps({"fc.weight": 1}))


def of_another_net(path, weights):
    save_file({"conv1.weight": torch.zeros(3)}, path)


def of_another_shape(path, weights):
    save_file({**load_file(weights), "conv1.conv.weight": torch.zeros(3, 3)}, path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (damaged, "is damaged or no safetensors file"),
        (pickled, "is damaged or no safetensors file"),
        (of_another_net, "holds the weights of another net than GoogLeNet: conv1.conv.weight does not fit"),
        (of_another_shape, "conv1.conv.weight does not fit"),
        (lambda path, weights: None, "there is no weights file"),
    ],
)
def test_weights_that_cannot_be_used_are_one_sentence(spoil, sentence, data, weights, tmp_path):
    path = tmp_path / "weights.safetensors"
    spoil(path, weights)
    with pytest.raises(TaskError, match=sentence) as told:
        googlenet_pneumonia(str(data), weights=str(path))
    assert "\n" not in str(told.value)


def test_without_weights_it_says_where_to_get_them(data, monkeypatch):
    monkeypatch.delenv("CYCLR_GOOGLENET", raising=False)
    with pytest.raises(TaskError, match=r"name a safetensors file in CYCLR_GOOGLENET .*IMAGENET1K_V1"):
        googlenet_pneumonia(str(data))


def test_without_a_folder_the_x_rays_are_asked_for(monkeypatch):
    monkeypatch.delenv("CYCLR_DATA", raising=False)
    with pytest.raises(TaskError, match="pneumoniamnist is read from Parquet files: give their folder"):
        googlenet_pneumonia()


def test_the_net_is_torchvisions_whole_one():
    assert sum(each.numel() for each in googlenet(1000).parameters()) == 6_624_904  # torchvision's page says so
