import pytest
import timm
from batch_normed import pixels, settle


@pytest.fixture(scope="session")
def resnet():
    return settle(timm.create_model("resnet20_cifar_batchnorm", layers=[1, 1, 1]), pixels(seed=1))
