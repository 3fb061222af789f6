"""Few-shot: a linear classifier on frozen embeddings, measured over draws of k examples a label."""

from bindsearch.probe.curve import Cell, Curve, few_shot, plot_curves
from bindsearch.probe.linear import INVERSE_PENALTY, LinearProbe, fit_probe, load_probe, save_probe
from bindsearch.probe.stored import Labelled, apply_probe, read_labelled

__all__ = [
    "INVERSE_PENALTY",
    "Cell",
    "Curve",
    "Labelled",
    "LinearProbe",
    "apply_probe",
    "few_shot",
    "fit_probe",
    "load_probe",
    "plot_curves",
    "read_labelled",
    "save_probe",
]
