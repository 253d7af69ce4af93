"""googlenet-pneumonia: a pretrained GoogLeNet fine-tuned on chest X-rays, the use that the method came from."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from cyclr import checks
from cyclr.lab.images import load_images
from cyclr.lab.task import Task, TaskError
from cyclr.torch import groups_by_depth

# From the input to the head, as the net's own figure groups them.
GROUPS = (
    ("conv1", "conv2", "conv3"),
    ("inception3a", "inception3b"),
    ("inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
    ("inception5a", "inception5b"),
    ("fc",),
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, to which torchvision's weights belong
SIZE = 32  # pixels; the X-rays of PneumoniaMNIST have 28


def googlenet(classes: int) -> nn.Module:
    """torchvision's GoogLeNet (with BatchNorm, without the auxiliary heads), its weights random."""
    try:
        from torchvision.models import GoogLeNet
    except ImportError:
        raise TaskError("GoogLeNet is torchvision's: pip install 'cyclr[vision]'") from None
    net = GoogLeNet(num_classes=classes, aux_logits=False, transform_input=False, init_weights=False)
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def pretrained(path: str | os.PathLike[str] | None, classes: int) -> nn.Module:
    """GoogLeNet with the weights in a safetensors file, and a new last layer for so many classes.

    Args:
        path: as experiments/pretrain_googlenet.py leaves it; or "IMAGENET1K_V1", torchvision's own weights, which it
            downloads; by default what the environment variable CYCLR_GOOGLENET names.
        classes: outputs of the new last layer.

    Raises:
        TaskError: no file is named, or it is missing, damaged or of another net.
    """
    path = path or os.environ.get("CYCLR_GOOGLENET")
    if path is None:
        raise TaskError(
            "googlenet-pneumonia starts from pretrained weights: name a safetensors file in CYCLR_GOOGLENET (made by "
            "experiments/pretrain_googlenet.py), or set it to IMAGENET1K_V1 for torchvision's own, with network"
        )
    net = googlenet(classes)
    tensors = _imagenet() if path == "IMAGENET1K_V1" else _read(Path(path))
    body = {name: each for name, each in tensors.items() if not name.startswith(("fc.", "aux1.", "aux2."))}
    own = {name: each for name, each in net.state_dict().items() if not name.startswith("fc.")}
    for name in [*own, *body]:
        if name not in own or name not in body or own[name].shape != body[name].shape:
            raise TaskError(f"{path} holds the weights of another net than GoogLeNet: {name} does not fit")
    net.load_state_dict(body, strict=False)
    # These were trained on pixels in -1 to 1; torchvision's own loader turns this on with them.
    net.transform_input = path == "IMAGENET1K_V1"  # type: ignore[assignment]
    return net


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise TaskError(f"there is no weights file {path}; make it with experiments/pretrain_googlenet.py")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise TaskError(f"{path} is damaged or no safetensors file ({error}); no other kind is read") from None


def _imagenet() -> dict[str, Tensor]:
    """Downloaded by torchvision and read with weights_only=True; never run yet, for want of a network."""
    from torchvision.models import GoogLeNet_Weights

    weights: dict[str, Tensor] = GoogLeNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    return weights


def googlenet_pneumonia(data_dir: str | None = None, *, layers: str = "depth", weights: str | None = None) -> Task:
    """GoogLeNet on PneumoniaMNIST: 4,708 chest X-rays to train, 524 to validate, 624 to test; pneumonia or not.

    Its training sets the rate by depth: a layer group's rate is 1/2.6 of the next one's, the head has the full one.

    Args:
        data_dir: a folder with pneumoniamnist's Parquet files; by default the one that CYCLR_DATA names.
        layers: "depth", or for comparison "all" with one rate, or "last": only the head is trained.
        weights: as in `pretrained`.

    Reference: Smith, arXiv 1506.01186, whose author fine-tuned GoogLeNet so; 2.6: Howard and Ruder, arXiv 1801.06146;
    data: Yang et al., MedMNIST v2; Kermany et al., Cell 172 (2018).
    """
    checks.choice("layers", layers, ("depth", "all", "last"))
    train, validation, test = (
        (_prepared(x), y) for x, y in load_images("pneumoniamnist", data_dir, ("train", "validation", "test"))
    )
    start = _checksum(pretrained(weights, 2))  # what is missing is told now
    return Task(
        name="googlenet-pneumonia" if layers == "depth" else f"googlenet-pneumonia-{layers}",
        model=partial(_net, weights, layers == "last"),
        optimizer=partial(_sgd, multiplier=1 / 2.6 if layers == "depth" else 1.0),
        loss=nn.functional.cross_entropy,
        train=train,
        validation=validation,
        test=test,
        batch_size=64,
        scores={"balanced accuracy": balanced_accuracy, "AUC": auc},
        start=start,
    )


def _checksum(net: nn.Module) -> str:
    """Of all weights but the new head's: runs that start from other ones are other runs."""
    digest = hashlib.sha256()
    for name, each in net.state_dict().items():
        if not name.startswith("fc."):
            digest.update(name.encode() + each.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _net(weights: str | None, head_only: bool) -> nn.Module:
    net: Any = pretrained(weights, 2)
    if head_only:
        net.requires_grad_(False)
        net.fc.requires_grad_(True)
    return net  # type: ignore[no-any-return]


def _sgd(model: nn.Module, multiplier: float) -> Optimizer:
    groups = groups_by_depth(model, GROUPS, multiplier=multiplier)
    trained = [group for group in groups if any(each.requires_grad for each in group["params"])]
    return SGD(trained, lr=0.01, momentum=0.9, weight_decay=1e-4)


def _prepared(x: Tensor) -> Tensor:
    """Grey images as bytes to three channels of SIZE pixels, normalised."""
    x = nn.functional.interpolate(x.float() / 255.0, (SIZE, SIZE), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return ((x.expand(-1, 3, -1, -1) - mean) / std).contiguous(memory_format=torch.channels_last)


def balanced_accuracy(output: Tensor, target: Tensor) -> float:
    """The mean of the classes' shares of right answers, in 0 to 1; 0.5 is chance for two classes."""
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(target.numpy(), output.argmax(-1).numpy()))


def auc(output: Tensor, target: Tensor) -> float:
    """The area under the ROC curve of the second class, in 0 to 1; 0.5 is chance."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(target.numpy(), output.float().softmax(-1)[:, 1].numpy()))
