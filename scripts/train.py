"""Train one model: accelerate launch scripts/train.py [CONFIG.yaml ...] [section.key=value ...] --output runs/NAME."""

from affnorm_zoo.cli.train import train

if __name__ == "__main__":
    train()
