"""Explorers for notebooks: controls, a thread, and the pure views and figures beneath them.

    panel        every control of a refinement, with presets and limits
    player       a recorded trace, a gallery of them, two side by side: no model, no thread
    runner       a run in a thread, to watch and to stop
    refinement   refine an answer live, play its trace, compare it with another
    mending      a damaged text mended, gaps filled
    noise        the schedule and the corruption under their controls
    attention    the masks and what they do to the states
    benchmark    questions, their options, and how each answer came about

Each explorer has a `.widget`, which a notebook cell shows as its last line.
"""

from importlib import import_module

_ROOMS = {
    "Answered": "benchmark",
    "AttentionExplorer": "attention",
    "Comparison": "player",
    "CorruptionExplorer": "noise",
    "Gallery": "player",
    "InfillExplorer": "editing",
    "ItemBrowser": "benchmark",
    "Limits": "controls",
    "RefinementExplorer": "refinement",
    "RepairExplorer": "editing",
    "ScheduleExplorer": "noise",
    "TracePlayer": "player",
}

__all__ = sorted(_ROOMS)


def __getattr__(name: str):
    """Import a room when one of its names is first asked for."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
