"""Explorers for notebooks; each has a `.widget`, which a notebook cell shows as its last line.

controls       a control for every setting, presets, limits
player         what is shown of a run: its drafts while it goes on, then a player
recorded       runs behind menus, which stand for three explorers without a kernel
runner         a run in a thread, to watch and to stop
refinement     refine an answer live, play its trace, compare it with another
sharing        the settings as a command, as Python, as a link to the demo
editing        a corrupted text repaired, gaps filled
branching      a run stopped, its draft edited, and the run gone on with
sweep          one setting at several values
noise          the schedule and the corruption under their controls
attention      the masks and what they do to the states
race           left to right beside refinement, under one clock
lens           what every layer would predict in the place of a token
benchmark      questions, their options, and the run behind each answer
accessibility  names of controls for screen readers, keys, styles
demo           the explorers as a web page; demo_server: Voila, its kernels and their places
"""

from lad.widgets.attention import AttentionExplorer as AttentionExplorer
from lad.widgets.benchmark import Answered as Answered
from lad.widgets.benchmark import browse as browse
from lad.widgets.controls import Limits as Limits
from lad.widgets.editing import InfillExplorer as InfillExplorer
from lad.widgets.editing import RepairExplorer as RepairExplorer
from lad.widgets.lens import LensExplorer as LensExplorer
from lad.widgets.noise import CorruptionExplorer as CorruptionExplorer
from lad.widgets.noise import ScheduleExplorer as ScheduleExplorer
from lad.widgets.race import RaceExplorer as RaceExplorer
from lad.widgets.refinement import RefinementExplorer as RefinementExplorer
