"""Explorers for notebooks: controls, a thread, and the pure views and figures beneath them.

    refinement   refine an answer live, then play its trace (`RefinementExplorer`, `TracePlayer`)
    noise        the schedule and the corruption under their controls
    attention    the three masks and what they do to the states

Each explorer has a `.widget`, which a notebook cell shows as its last line.
"""

from importlib import import_module

_ROOMS = {
    "AttentionExplorer": "attention",
    "CorruptionExplorer": "noise",
    "RefinementExplorer": "refinement",
    "ScheduleExplorer": "noise",
    "TracePlayer": "refinement",
}

__all__ = sorted(_ROOMS)


def __getattr__(name: str):
    """Import a room when one of its names is first asked for."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
