"""Write docs/recipes.md and the README's table of results from docs/recipes/NAME/results: scripts/recipes.py."""

from affnorm_zoo.cli.recipes import recipes

if __name__ == "__main__":
    recipes()
