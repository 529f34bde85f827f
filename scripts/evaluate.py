"""Evaluate models: scripts/evaluate.py MODEL ... [section.key=value ...]."""

from affnorm_zoo.cli.evaluate import evaluate

if __name__ == "__main__":
    evaluate()
