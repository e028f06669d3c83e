"""Benchmarks of multiple-choice questions: their data, and how a question is put."""

from lad.benchmarks.data import fetch_benchmarks, load_items
from lad.benchmarks.prompts import format_choices
from lad.benchmarks.tasks import TASKS, Item, Task, get_task

__all__ = ["TASKS", "Item", "Task", "fetch_benchmarks", "format_choices", "get_task", "load_items"]
