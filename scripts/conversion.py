"""Measure what conversion keeps, for docs/conversion.md: scripts/conversion.py measure | report."""

from affnorm_zoo.cli.conversion import conversion

if __name__ == "__main__":
    conversion()
