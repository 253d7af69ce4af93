"""Small image sets as tensors in memory: from a folder of Parquet files in the hub's layout, or from the hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclr.lab.task import TaskError

HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
Images = tuple[Tensor, Tensor]


def load_images(
    name: str, data_dir: str | None = None, splits: Sequence[str] = ("train", "test")
) -> tuple[Images, ...]:
    """Training and test images of a set, or other splits: uint8 of shape (n, channels, height, width), and labels.

    Args:
        name: "cifar10", "cifar100" or "pneumoniamnist" (which the hub does not have in this form).
        data_dir: a folder that holds `name/train-*.parquet` and `name/test-*.parquet` (or these files themselves).
            Without it, the environment variable CYCLR_DATA names it; without that, the Hugging Face hub is asked.
        splits: their names, as the files have them.

    Raises:
        TaskError: the folder is missing, empty or damaged; the hub cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise TaskError(f"{name} is read with Hugging Face datasets: pip install 'cyclr[datasets]'") from None
    datasets.disable_progress_bars()
    folder = data_dir or os.environ.get("CYCLR_DATA")
    if folder is None and name not in HUB:
        raise TaskError(f"{name} is read from Parquet files: give their folder, --data-dir DIR or CYCLR_DATA=DIR")
    source: dict[str, Any] = {"path": HUB.get(name)}
    if folder is not None:
        source = {"path": "parquet", "data_files": _files(Path(folder), name, splits)}
    log = logging.getLogger("datasets")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what goes wrong is raised as well, and told below in a sentence
    try:
        loaded = datasets.load_dataset(**source)
        return tuple(_tensors(loaded[split]) for split in splits)
    except Exception as error:  # datasets, pyarrow and pillow raise many kinds; each means: this cannot be read
        if folder is None:
            raise TaskError(
                f"{name} cannot be had from the hub ({type(error).__name__}); give a folder with its Parquet files: "
                "--data-dir DIR or CYCLR_DATA=DIR"
            ) from error
        reason = " ".join(str(error).split())  # one line
        raise TaskError(f"{name} in {folder} cannot be read, its files may be damaged ({reason})") from error
    finally:
        log.setLevel(level)


def _files(folder: Path, name: str, splits: Sequence[str]) -> dict[str, list[str]]:
    """The Parquet files of each split."""
    if not folder.is_dir():
        raise TaskError(f"there is no data folder {folder}; give one that holds {name}/train-*.parquet")
    inside = folder / name if (folder / name).is_dir() else folder
    files = {split: sorted(map(str, inside.glob(f"{split}-*.parquet"))) for split in splits}
    for split, found in files.items():
        if not found:
            raise TaskError(f"{inside} holds no {split}-*.parquet; give a folder that holds {name}/{split}-*.parquet")
    return files


def _tensors(split: Any) -> Images:
    """Decode every image once."""
    import datasets

    image = "img" if "img" in split.column_names else "image"
    label = "fine_label" if "fine_label" in split.column_names else "label"
    pictures = split.cast_column(image, datasets.Image())[image]  # a file need not say that these bytes are images
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    x = torch.from_numpy(pixels)
    x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
    return x.contiguous(), torch.tensor(split[label])
