"""The former name of `lad.evaluation.statistics` and `lad.evaluation.text_metrics`."""

from lad.evaluation.statistics import *  # noqa: F403
from lad.evaluation.text_metrics import *  # noqa: F403
