"""Evaluation: how well a space finds, names and orders things; the paper's benchmarks as recipes.

measure_pairs(rows)      -> matrix of recall over all pairs of modalities     matrix.py
measure_labels(rows)     -> the same by label: does the best answer share it  matrix.py
measure_zero_shot(...)   -> accuracy of class names written as prompts        zero_shot.py
run_recipe(...)          -> a benchmark's row beside the paper's              recipe.py, layouts.py
report                   -> text, JSON, a page, a heat map                    report.py
"""

from bindsearch.evaluate.matrix import measure_labels, measure_pairs
from bindsearch.evaluate.metrics import Figure, Judged, bootstrap, judge, wilson
from bindsearch.evaluate.recipe import Recipe, list_recipes, load_recipe, run_recipe
from bindsearch.evaluate.rows import Rows, embed_rows, read_rows
from bindsearch.evaluate.zero_shot import ClassName, load_prompts, measure_zero_shot, name_vectors

__all__ = [
    "ClassName",
    "Figure",
    "Judged",
    "Recipe",
    "Rows",
    "bootstrap",
    "embed_rows",
    "judge",
    "list_recipes",
    "load_prompts",
    "load_recipe",
    "measure_labels",
    "measure_pairs",
    "measure_zero_shot",
    "name_vectors",
    "read_rows",
    "run_recipe",
    "wilson",
]
