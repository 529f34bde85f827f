from pathlib import Path

import pytest

from affnorm_zoo.config import RunConfig, config_to_yaml, load_config
from affnorm_zoo.errors import UsageError
from affnorm_zoo.studies.lite0_study import load_lite0_config
from affnorm_zoo.studies.paper import load_paper_config
from affnorm_zoo.studies.sweep import load_sweep
from affnorm_zoo.studies.transfer_grid import load_transfer_config

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(file for file in FOLDER.rglob("*.yaml") if file.parent.name != "accelerate")


def test_files_and_overrides_win_in_order(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("optim: {lr: 3e-4, weight_decay: 0.1}\ntrain: {epochs: 5}")
    second.write_text("optim:\n  weight_decay: 0.2")
    config = load_config([first, second], ["train.epochs=7", "data.mean=[0.5]", "model.kwargs.drop_path_rate=0.1"])
    assert config.optim.lr == 3e-4  # YAML alone would read this as a string
    assert (config.optim.weight_decay, config.train.epochs) == (0.2, 7)
    assert config.data.mean == (0.5,)
    assert config.model.kwargs == {"drop_path_rate": 0.1}


def test_the_written_config_reads_back_the_same(tmp_path):
    config = load_config([], ["optim.lr=0.1", "data.path=/somewhere", "model.kwargs.norm_scale=unit", "data.std=[0.1]"])
    file = tmp_path / "config.yaml"
    file.write_text(config_to_yaml(config))
    assert load_config([file]) == config
    assert load_config() == RunConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"unknown key 'optim.lrr'; did you mean 'optim.lr'\?"),
        ("trian.epochs=3", r"unknown key 'trian.epochs'; did you mean 'train.epochs'\?"),
        ("epochs=3", r"unknown key 'epochs'; did you mean 'train.epochs'\?"),
        ("optim.lr=fast", "optim.lr: Value 'fast'"),
        ("data.crop=square", r"data.crop: Invalid value 'square', expected one of \['resized', 'padded', 'none'\]"),
        ("train=3", "section 'train' holds keys such as 'train.epochs'"),
        ("train.epochs", "must read section.key=value"),
        ("train.epochs=0", "train.epochs must be positive, got 0"),
        ("optim.lr=-1", "optim.lr must be positive"),
        ("optim.min_lr=1", r"optim.min_lr must lie in \[0, optim.lr\)"),
        ("optim.warmup_epochs=99", r"optim.warmup_epochs \(99.0\) must be below train.epochs"),
        ("data.hflip=2", r"data.hflip must lie in \[0, 1\]"),
        ("data.auto_augment=rand-m9", "needs data.crop=resized"),
        ("train.micro_batch_size=0", "train.micro_batch_size must be positive"),
        ("model.ema_decay=1", r"model.ema_decay must lie in \(0, 1\)"),
        ("data.mixup_off_epoch=3", "needs data.mixup or data.cutmix"),
        ("checkpoint.best_metric=val.acc", r"must be one of val.top1, .*, got 'val.acc'"),
        ("checkpoint.best_metric=ema.top1", "needs an average: set model.ema_decay"),
        ("checkpoint.milestones=[7,99]", r"must lie in 1 to train.epochs \(20\), got \[99\]"),
        ("runtime.precision=no", "Invalid value 'no', expected one of"),
        ("data.in_memory=yes", "Invalid value 'yes', expected one of"),
        ("checkpoint.keep_lasst=1", r"unknown key 'checkpoint.keep_lasst'; did you mean 'checkpoint.keep_last'\?"),
    ],
)
def test_a_bad_override_is_named(override, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_config(overrides=[override])
    assert "\n" not in str(caught.value)


def test_contradictions_are_named():
    for overrides, message in (
        (["optim.lr=0.1", "optim.lr_base=0.1"], "set optim.lr or optim.lr_base, not both"),
        (["data.mixup=0.2", "data.drop_last=false"], "need data.drop_last=true"),
        (["data.in_memory=always", "data.crop=resized"], "needs data.crop=padded or none"),
        (["data.cutmix=1", "data.mixup_off_epoch=20"], r"data.mixup_off_epoch \(20\) must be below train.epochs"),
    ):
        with pytest.raises(UsageError, match=message):
            load_config(overrides=overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: [1", "is not valid YAML"),
        ("- a\n- b", "must hold keys"),
        ("optim:\n  momentun: 1", "momentum"),
    ],
)
def test_a_bad_file_is_named(text, message, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_config([file])
    assert "bad.yaml" in str(caught.value)


def test_a_folder_is_no_config_file(tmp_path):
    with pytest.raises(UsageError, match=r"is a folder: give a YAML file"):
        load_config([tmp_path])


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "resnet20.yaml").write_text("")
    with pytest.raises(UsageError, match=r"does not exist; did you mean .*resnet20.yaml"):
        load_config([tmp_path / "resnet2.yaml"])


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_shipped_configs_load_and_fit_on_a_screen(file):
    if file.parent.name == "paper":
        assert load_paper_config(file) != load_paper_config(file, quick=True)
    elif file.parent.name == "sweeps":
        load_sweep(file)
    elif file.parent.name == "studies":
        {"transfer": load_transfer_config, "lite0": load_lite0_config}[file.stem](file)
    else:
        load_config([file])
    assert len(file.read_text().splitlines()) <= 40
