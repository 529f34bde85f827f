"""What becomes of trained batch norms: scripts/study.py transfer|lite0|report."""

from affnorm_zoo.cli.study import study

if __name__ == "__main__":
    study()
