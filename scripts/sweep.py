"""Compare recipes at an equal budget: scripts/sweep.py configs/sweeps/NAME.yaml [section.key=value ...]."""

from affnorm_zoo.cli.sweep import sweep

if __name__ == "__main__":
    sweep()
