"""Publish a run: scripts/push_to_hub.py RUN --repo-id ORG/NAME [--private] [--tag TAG] [--dry-run]."""

from affnorm_zoo.cli.hub import push

if __name__ == "__main__":
    push()
