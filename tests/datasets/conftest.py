"""Configuration, miniature trees and a server of them for the data set tests."""

from __future__ import annotations

import http.server
from collections import defaultdict

import pytest
import yaml

import datasets
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from datasets import prepare
from tests.datasets.miniatures import BY_STEM, CONFIGS
from tests.datasets.mirror import FileHandler, publish
from tests.servers import running
from tests.support.test_download import Reply


@pytest.fixture
def dataset_cfg(tmp_path):
    """dataset_cfg(stem, *opts): the data set's config file, root at `tmp_path`, then options."""

    def make(stem, *opts, root=tmp_path):
        cfg = get_cfg_default()
        datasets.extend_cfg(cfg)
        cfg.merge_from_file(str(CONFIGS / f"{stem}.yaml"))
        cfg.merge_from_list(["DATASET.ROOT", str(root), "SEED", 1, "VERBOSE", False, *opts])
        return cfg

    return make


@pytest.fixture
def build(dataset_cfg):
    """build(stem, *opts): the data set of that name from the tree at `tmp_path`."""
    return lambda stem, *opts, **kwargs: build_dataset(dataset_cfg(stem, *opts, **kwargs))


@pytest.fixture
def tree(tmp_path):
    """tree(stem): write the miniature of that data set and return its folder."""
    return lambda stem: BY_STEM[stem].make(tmp_path)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server of the files below `tmp_path/mirror`; `faults` by path."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FileHandler)
    server.daemon_threads = True
    server.folder, server.faults = tmp_path / "mirror", defaultdict(lambda: [Reply()])
    server.paths, server.asked, server.on_request = [], [], None
    server.url = f"http://127.0.0.1:{server.server_port}"
    with running(server):
        yield server


@pytest.fixture
def published(tmp_path, mirror, build):
    """published(*stems): serve those data sets; returns the command's options for the server."""

    def make(*stems):
        table = {s: publish(s, mirror.folder, build, tmp_path / "original") for s in stems}
        path = tmp_path / "sources.yaml"
        path.write_text(yaml.safe_dump(table))
        root = tmp_path / "root"
        return ["--root", str(root), "--sources", str(path), "--mirror", mirror.url]

    return make


@pytest.fixture
def command(capsys):
    """command(words): exit status, standard output and standard error of the command."""

    def call(*words):
        capsys.readouterr()
        status = prepare.main(list(words))
        return status, *capsys.readouterr()

    return call
