"""The lab: a user's task, its range test, its training and the comparison of policies, on Accelerate."""

try:
    import accelerate as _accelerate  # noqa: F401
    import safetensors as _safetensors  # noqa: F401
except ImportError:
    raise ImportError("the lab needs Accelerate and safetensors: pip install 'cyclr[lab]'") from None

from cyclr.lab.comparing import Row, compare, table, verdict
from cyclr.lab.ensembling import Assessed, assess
from cyclr.lab.evaluation import evaluate
from cyclr.lab.finding import find
from cyclr.lab.records import read_records
from cyclr.lab.task import Task, TaskError, accuracy, load_task
from cyclr.lab.training import train

__all__ = [
    "Assessed",
    "Row",
    "Task",
    "TaskError",
    "accuracy",
    "assess",
    "compare",
    "evaluate",
    "find",
    "load_task",
    "read_records",
    "table",
    "train",
    "verdict",
]
