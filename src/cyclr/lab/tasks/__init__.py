"""The built-in tasks, by name."""

from collections.abc import Callable

from cyclr.lab.task import Task
from cyclr.lab.tasks.cifar10_caffe import cifar10_caffe
from cyclr.lab.tasks.digits import digits
from cyclr.lab.tasks.googlenet_pneumonia import googlenet_pneumonia

BUILT_IN: dict[str, Callable[..., Task]] = {
    "digits": digits,
    "cifar10-caffe": cifar10_caffe,
    "googlenet-pneumonia": googlenet_pneumonia,
}
