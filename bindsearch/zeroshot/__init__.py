"""Zero-shot classification: labels become text vectors, an item takes the label whose vector is nearest."""

from bindsearch.zeroshot.calibration import Calibration, calibrate, load_calibration, save_calibration
from bindsearch.zeroshot.classifier import NONE, Classifier, build_classifier
from bindsearch.zeroshot.label import classify, classify_store, classify_terms
from bindsearch.zeroshot.prompts import Labels, Templates, list_templates, load_templates, read_labels
from bindsearch.zeroshot.verdict import Verdict, Verdicts

__all__ = [
    "NONE",
    "Calibration",
    "Classifier",
    "Labels",
    "Templates",
    "Verdict",
    "Verdicts",
    "build_classifier",
    "calibrate",
    "classify",
    "classify_store",
    "classify_terms",
    "list_templates",
    "load_calibration",
    "load_templates",
    "read_labels",
    "save_calibration",
]
