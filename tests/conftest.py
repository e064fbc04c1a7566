"""Fixtures for every test. None of them lets anything be written or removed outside pytest's own directory."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.leash import BELOW, leash
from tests.support import STUB_WORKER, Project


@pytest.fixture(scope="session", autouse=True)
def _on_a_leash(tmp_path_factory):
    """Deleters work below pytest's directory only; the default state directory lies there too."""
    base = tmp_path_factory.getbasetemp()
    os.environ[BELOW] = str(base)
    os.environ["XDG_STATE_HOME"] = str(base / "xdg-state")
    for name in ("STATE_DIRECTORY", "CKPTWATCH_CONFIG"):
        os.environ.pop(name, None)
    leash()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture
def stub_workers(monkeypatch):
    """Workers that speak the protocol and know no torch, for daemons inside the test's process."""
    from ckptwatch.workers.supervisor import Pool

    monkeypatch.setitem(Pool.__init__.__kwdefaults__, "command", STUB_WORKER)
