import os

import pytest
import torch

if not torch.cuda.is_available():
    # the kernels then run under Triton's interpreter, which is chosen when Triton is first imported
    os.environ["TRITON_INTERPRET"] = "1"


# several test processes share the cores; threads beyond one then mostly wait for each other
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
