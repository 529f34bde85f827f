"""Add the median of a recipe's RUNs to the package's weights: scripts/bundle_weights.py RUN RUN RUN --tag TAG."""

from affnorm_zoo.cli.bundle import bundle_weights

if __name__ == "__main__":
    bundle_weights()
