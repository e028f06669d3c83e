"""Explorers for notebooks; each has a `.widget`, which a notebook cell shows as its last line.

controls       a control for every setting, presets, limits
player         a recorded trace, a gallery of them, two side by side: no model, no thread
runner         a run in a thread, to watch and to stop
refinement     refine an answer live, play its trace, compare it with another
editing        a corrupted text repaired, gaps filled
noise          the schedule and the corruption under their controls
attention      the masks and what they do to the states
benchmark      questions, their options, and the run behind each answer
accessibility  names of controls for screen readers
demo           the explorers as a web page
"""

from importlib import import_module

_MODULES = {
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

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    """Import a module when one of its names is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
