"""Joining a Ray cluster that is not there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from search.cluster import ClusterError, joined
from search.config import ResourcesConfig


def test_address_where_nobody_listens_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ClusterError, match=rf"no Ray cluster answers at {address} .*refused"),
            joined(ResourcesConfig(), tmp_path, address),
        ):
            pass


def test_rays_client_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ClusterError, match=r"from a node of its cluster.*received ray://head:10001"),
        joined(ResourcesConfig(), tmp_path, "ray://head:10001"),
    ):
        pass
