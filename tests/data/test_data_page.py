"""The YAML of docs/data.md is read as the recipe it is, and gives the views that the page promises."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import yaml

from anyres.data.views import make_views
from anyres.recipe import build_recipe, dump_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_every_recipe_of_the_page() -> None:
    recipes = [
        build_recipe(yaml.safe_load(text), "docs/data.md") for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    ]
    assert len(recipes) == 2
    image = torch.arange(3 * 120 * 130).remainder(251).to(torch.uint8).view(3, 120, 130)
    for recipe, told in zip(recipes, ("224", "2 x 224, 8 x 96"), strict=True):
        assert recipe.views.summary == told
        views = make_views(image, recipe.augment, recipe.views, 0, 0, 0)
        assert [view.shape[-1] for view in views] == [size.width for size in recipe.views.parsed]
        assert build_recipe(yaml.safe_load(dump_recipe(recipe)), "again") == recipe
