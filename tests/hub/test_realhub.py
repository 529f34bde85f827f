"""The same against the real Hub: pytest -m realhub, with HF_TOKEN and AFFNORM_HUB_NAMESPACE set."""

import os
import uuid

import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file

from affnorm_zoo.hub import load, publish


@pytest.mark.realhub
@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_a_private_release_comes_back_as_it_was(family, finished_runs, tmp_path):
    repo = f"{os.environ['AFFNORM_HUB_NAMESPACE']}/affnorm-test-{uuid.uuid4().hex[:8]}"
    api = HfApi()
    try:
        commit = publish(finished_runs / family, repo, private=True, tag="v1").commit
        assert publish(finished_runs / family, repo, private=True, tag="v1").commit == commit
        model = load(repo, revision="v1", verify=True, cache_dir=tmp_path)
        for name, tensor in load_file(finished_runs / family / "model.safetensors").items():
            assert tensor.equal(model.state_dict()[name])
    finally:
        api.delete_repo(repo, missing_ok=True)
