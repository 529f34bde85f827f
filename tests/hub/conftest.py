import json
import os
import subprocess
import sys
import urllib.request

import pytest
from forks import FORKS
from runs import ROOT, SMALL_VIT, train_here
from worker import serve
from xet import XET

SUPPORT = ROOT / "tests/support/hub"
VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "http_proxy",
    "https_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)


class Hub:
    """The loopback Hub."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, SUPPORT / "server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = self.process.stdout.readline().strip()

    def ask(self, what="state", content=None):
        data = json.dumps(content or {}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/test/{what}", data=data, timeout=10) as answer:
            return json.loads(answer.read())

    def faults(self, **names):
        self.ask("faults", {name.replace("_", " "): count for name, count in names.items()})

    def versions(self, repo_id):
        """Commits beside the one that made the repository."""
        repo = self.ask()["repos"].get(repo_id)
        return repo["order"][1:] if repo else []

    def environment(self, home, token="hf_writer", **extra):
        environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
        environment |= {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*", "OMP_NUM_THREADS": "1", **extra,
        }  # fmt: skip
        return environment | ({"HF_TOKEN": token} if token else {})


class Client:
    """A process that speaks to the Hub; every piece of code runs in it."""

    def __init__(self, environment):
        self.pipe, theirs = FORKS.Pipe()
        self.process = FORKS.Process(target=serve, args=(theirs, environment), daemon=True)
        self.process.start()
        theirs.close()
        self("import json, torch, timm, affnorm_zoo")
        self("from pathlib import Path; from affnorm_zoo.hub import publish, pull, load")

    def answer(self, code):
        self.pipe.send(code)
        return self.pipe.recv()

    def __call__(self, code, ok=True):
        answer = self.answer(code)
        assert ("error" not in answer) == ok, answer
        return answer.get("result") if ok else answer

    def fails(self, code):
        return self(code, ok=False)["error"]


@pytest.fixture(scope="session")
def hub():
    server = Hub()
    yield server
    server.process.kill()  # the end of its input would not reach it: workers of loaders inherit the pipe
    server.process.communicate()


@pytest.fixture(scope="session")
def clients(hub, tmp_path_factory):
    """Clients by role, token and settings, each with a home of its own."""
    made = {}

    def client(token="hf_writer", home=None, role="", **extra):
        key = (role, token, home, *sorted(extra.items()))
        if key not in made:
            made[key] = Client(hub.environment(home or tmp_path_factory.mktemp("home"), token, **extra))
        return made[key]

    yield client
    for one in made.values():
        one.process.kill()
        one.process.join()


@pytest.fixture(params=["lfs", "xet"])
def transport(request):
    """Settings of a client that sends and fetches large files on this way."""
    return {} if request.param == "lfs" else XET


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory):
    """A finished run of each family, and a second one of the first."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in {
        "resnet": (), "vit": SMALL_VIT, "ema": ("model.name=resnet20_cifar_patchnorm_ws", "model.ema_decay=0.9"),
        "second": ("train.seed=1",),
    }.items():  # fmt: skip
        train_here(folder / name, *overrides, "train.max_updates=2", curves=True)
    return folder


@pytest.fixture
def repo(request, hub):
    hub.faults()
    return f"zoo/{request.node.name.replace('[', '-').rstrip(']').replace(' ', '_')[:80]}"
