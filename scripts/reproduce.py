"""Repeat the paper's experiments: scripts/reproduce.py fc|batch-size|conv|scale-invariance|all [--quick]."""

from affnorm_zoo.cli.reproduce import reproduce

if __name__ == "__main__":
    reproduce()
