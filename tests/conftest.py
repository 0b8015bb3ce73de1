"""Fixtures of all tests, and the option that turns a hidden gap into a failure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

# Workers share the cores among them.
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network does not exist

# A shell starts its background jobs deaf to SIGINT, which tests send to themselves and to what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http, set_client_factory

from helpers import hubserver

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

_skipped: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forbid-skips", action="store_true", help="fail if any test but a gpu one is skipped")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "gpu" not in report.keywords:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--forbid-skips") and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nskipped, which --forbid-skips forbids: {', '.join(_skipped)}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real templates, tokenizers, configs and photos; its tests are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent")
    return SHARED


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hubserver.Hub]:
    """A stand-in of the hub, to which uploads of this process go."""
    with hubserver.running() as one:
        monkeypatch.setattr(constants, "ENDPOINT", one.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hubserver.TOKEN)
        # The library waits longer and longer before it tries again.
        monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda _: None}))
        yield one
        set_client_factory(_http.default_client_factory)  # connections to this stand-in are of no further use
