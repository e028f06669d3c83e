"""Benchmarks of multiple-choice questions: their data, how a question is put, and how it is scored.

tasks, data, sources     which there are, and how they reach the disk
prompts                  a question as text; what counts as its answer
likelihood, generation   two ways of scoring an answer
respondents              the same two of a denoiser and of its backbone
run, results             a run that can be killed; its summary; two of them compared
"""

from lad.evaluation.benchmark_data import fetch_benchmarks, load_items
from lad.evaluation.questions import format_choices
from lad.evaluation.tasks import TASKS, Item, Task, get_task

__all__ = ["TASKS", "Item", "Task", "fetch_benchmarks", "format_choices", "get_task", "load_items"]
