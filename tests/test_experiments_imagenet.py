"""ImageNet's rows and their stand-in: the paper's numbers, and the same policies in less time."""

import sys

import pytest
import torch

import imagenet
import paper
from cyclr.lab import TaskError
from imagenet import ROWS, SHRUNK, STAND_IN, TABLE, schedule_of

NAIVE = {
    ("AlexNet", "fixed"): lambda t: 0.01 / 10 ** (t // 100_000),
    ("AlexNet", "triangular2"): lambda t: paper.triangular2(t, 0.01, 0.015, 30_000),
    ("AlexNet", "exp"): lambda t: 0.01 * 0.999995**t,
    ("AlexNet", "exp_range"): lambda t: paper.triangular(t, 0.006, 0.014, 30_000) * 0.999995**t,
    ("GoogLeNet", "fixed"): lambda t: 0.01 if t < 320_000 else 0.0096,
    ("GoogLeNet", "triangular2"): lambda t: paper.triangular2(t, 0.01, 0.026, 30_000),
    ("GoogLeNet", "exp"): lambda t: 0.01 * 0.99998**t,
    ("GoogLeNet", "exp_range"): lambda t: paper.triangular(t, 0.01, 0.026, 30_000) * 0.99998**t,
}


@pytest.mark.parametrize(("net", "row"), NAIVE)
def test_policies_are_the_papers_and_the_stand_ins_are_faster(net, row):
    steps = range(0, 400_000, 9_200)
    wanted = [NAIVE[net, row](step) for step in steps]
    assert [schedule_of(net, row, 1)(step) for step in steps] == pytest.approx(wanted, rel=1e-9)
    faster = [schedule_of(net, row, SHRUNK)(step // SHRUNK) for step in steps]
    assert faster == pytest.approx(wanted, rel=1e-9)


def test_the_rows_have_the_papers_numbers():
    numbers = {(cell.row, cell.updates): cell.paper for cell in TABLE.cells if cell.paper}
    assert numbers == {
        ("AlexNet, fixed", 400_000): 58.0, ("AlexNet, triangular2", 400_000): 58.4,
        ("AlexNet, exp", 300_000): 56.0, ("AlexNet, exp", 460_000): 56.5, ("AlexNet, exp_range", 300_000): 56.5,
        ("GoogLeNet, fixed", 420_000): 63.0, ("GoogLeNet, triangular2", 420_000): 64.4,
        ("GoogLeNet, exp", 240_000): 58.2, ("GoogLeNet, exp_range", 240_000): 60.2,
    }  # fmt: skip


def test_the_stand_in_is_marked_and_apart():
    assert all(cell.scaled for cell in STAND_IN.cells)
    assert [cell.updates * SHRUNK for cell in STAND_IN.cells] == [cell.updates for cell in TABLE.cells]
    assert not set(STAND_IN.tasks) & set(TABLE.tasks)
    assert TABLE.gpu
    assert not STAND_IN.gpu
    assert sum(row[0] == "triangular2" for rows in ROWS.values() for row in rows) == 2


def test_helpers_count_in_the_loss_and_not_in_the_metric():
    own, aux = torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    target = torch.tensor([0, 1])
    alone, uniform = (torch.nn.functional.cross_entropy(each, target) for each in (own, aux))
    scores = torch.stack((own, aux, aux), 1)
    torch.testing.assert_close(imagenet.loss(scores, target), alone + 0.6 * uniform)
    torch.testing.assert_close(imagenet.loss(own, target), alone)
    assert imagenet.metric(scores, target) == imagenet.metric(own, target) == 1.0


def test_a_crop_is_a_part_of_the_image_and_half_of_them_are_mirrored():
    x = torch.arange(64 * 6 * 6).reshape(64, 1, 6, 6)
    cropped = imagenet.random_crop(4)(x, torch.Generator().manual_seed(0))
    parts = [x[:, :, top : top + 4, left : left + 4] for top in range(3) for left in range(3)]
    (part,) = (part for part in parts if bool((part == cropped).flatten(1).all(1).any()))
    straight, mirrored = ((part == cropped).flatten(1).all(1), (part.flip(3) == cropped).flatten(1).all(1))
    assert (straight ^ mirrored).all()
    assert 16 < int(mirrored.sum()) < 48


def test_without_torchvision_or_data_there_is_a_sentence(monkeypatch, tmp_path):
    with pytest.raises(TaskError, match="imagenet/train/CLASS"):
        imagenet.pictures(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(TaskError, match=r"pip install 'cyclr\[vision\]'"):
        imagenet.build("AlexNet", 10, 64)


def test_googlenet_has_three_heads_in_training_and_one_in_evaluation():
    pytest.importorskip("torchvision")
    net = imagenet.build("GoogLeNet", 7, 64)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert net(images).shape == (2, 3, 7)
    assert net.eval()(images).shape == (2, 7)


def test_pictures_are_bytes_of_one_size(tmp_path):
    pytest.importorskip("torchvision")
    from PIL import Image

    for part in ("train", "val"):
        (tmp_path / "imagenet" / part / "cat").mkdir(parents=True)
        Image.new("L", (400, 300), 128).save(tmp_path / "imagenet" / part / "cat" / "a.png")
    train, validation = imagenet.pictures(str(tmp_path))
    x, y = train[0]
    assert (x.shape, x.dtype, y, len(train)) == ((3, 256, 256), torch.uint8, 0, 1)
    assert validation[0][0].shape == (3, 224, 224)
