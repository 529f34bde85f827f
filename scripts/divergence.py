"""Measure the divergence of models, layer by layer: scripts/divergence.py MODEL ... [section.key=value ...]."""

from affnorm_zoo.cli.divergence import divergence

if __name__ == "__main__":
    divergence()
