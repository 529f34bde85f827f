"""The forms in which a CSV may give the labels of ``pictures.draw_labelled``."""

import csv
import shutil
import tarfile

from pictures import CLASSES

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import open_source


def opened(root, labels=None, **settings):
    labels = root / "labels.csv" if labels is None else labels
    return open_source(DataConfig(path=str(root), task="multilabel", labels=str(labels), **settings))


def rows_of(root):
    with (root / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def listed(rows):
    """Rows with the classes in one column."""
    kept = [{key: value for key, value in row.items() if key not in CLASSES} for row in rows]
    return [
        {**few, "labels": " | ".join(name for name in reversed(CLASSES) if row[name] == "1")}
        for few, row in zip(kept, rows, strict=True)
    ]


def moved(root, rows):
    """The images in one folder per split, and the rows of each split without that column."""
    parts = {}
    for row in rows:
        file = root / row["file_name"]
        name = f"below/{file.name}"
        target = root / row["split"] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
        parts.setdefault(row["split"], []).append({**row, "file_name": name})
    return parts


def without_split(rows):
    return [{key: value for key, value in row.items() if key != "split"} for row in rows]


def in_columns(root):
    return root / "labels.csv"


def in_a_list(root):
    write(root / "labels.csv", listed(rows_of(root)))
    return root / "labels.csv"


def in_two_files(root):
    rows = rows_of(root)
    for split in ("train", "val"):
        write(root / f"{split}.csv", without_split([row for row in rows if row["split"] == split]))
    return root / "{split}.csv"


def in_folders(root):
    parts = moved(root, rows_of(root))
    write(root / "labels.csv", [row for rows in parts.values() for row in rows])
    return root / "labels.csv"


def in_folders_with_their_files(root):
    for split, rows in moved(root, listed(rows_of(root))).items():
        write(root / split / "metadata.csv", without_split(rows))
    return root / "{split}/metadata.csv"


def in_tars(root):
    labels = in_folders(root)
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            tar.add(root / split, arcname=".")
        shutil.rmtree(root / split)
    return labels


FORMS = [in_columns, in_a_list, in_two_files, in_folders, in_folders_with_their_files, in_tars]
