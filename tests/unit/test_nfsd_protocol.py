"""What may be asked of the privileged part for NFS: every request has exactly its fields, or is refused unread."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbootd.errors import HostError, NotFoundError, UsageError
from netbootd.nfsd.kernel.protocol import (
    Clients,
    Handle,
    Register,
    Request,
    Start,
    Status,
    encode_answer,
    encode_error,
    encode_request,
    parse_answer,
    parse_request,
)

REQUESTS: list[Request] = [
    Start(("0.0.0.0", "::"), 2049),
    Handle("noble", "0123456789abcdef", (b"usr", b"\xff \n"), "192.0.2.5"),
    Register(20048),
    Status(),
    Clients(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_requests_come_back(request_: Request) -> None:
    assert parse_request(encode_request(request_)) == request_


HANDLE = {"do": "handle", "image": "noble", "generation": "0123456789abcdef", "below": [], "address": "192.0.2.5"}
START = {"do": "start", "addresses": ["0.0.0.0"], "port": 2049}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "start",
        {},
        {"do": "stop"},
        {"do": ["start"]},
        {"do": "status", "more": 1},
        {"do": "start", "port": 2049},
        {**START, "more": 1},
        {**START, "addresses": []},
        {**START, "addresses": "0.0.0.0"},
        {**START, "addresses": ["localhost"]},
        {**START, "addresses": ["fe80::1%eth0"]},
        {**START, "addresses": ["0.0.0.0"] * 33},
        {**START, "addresses": [0]},
        {**START, "port": 111},
        {**START, "port": 65536},
        {**START, "port": True},
        {**START, "port": "2049"},
        {"do": "register", "mount_port": 80},
        {**HANDLE, "image": "../noble"},
        {**HANDLE, "image": ".build-1"},
        {**HANDLE, "image": "noble\n"},
        {**HANDLE, "image": 1},
        {**HANDLE, "generation": "current"},
        {**HANDLE, "generation": "0123456789abcdef/../.."},
        {**HANDLE, "generation": "0123456789abcdef\n"},
        {**HANDLE, "below": ["usr"]},
        {**HANDLE, "below": [b"..".hex()]},
        {**HANDLE, "below": [b".".hex()]},
        {**HANDLE, "below": [b"a/b".hex()]},
        {**HANDLE, "below": [b"a\0b".hex()]},
        {**HANDLE, "below": [""]},
        {**HANDLE, "below": [bytes(256).hex()]},
        {**HANDLE, "below": [b"a".hex()] * 65},
        {**HANDLE, "address": "192.0.2.5/24"},
    ],
)
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(UsageError):
        parse_request(json.dumps(value).encode())


@pytest.mark.parametrize("packet", [b"", b"{", b"\xff", b"[" * 30000, b" " * 40000])
def test_what_is_no_json_is_refused(packet: bytes) -> None:
    with pytest.raises(UsageError):
        parse_request(packet)


@given(st.binary(max_size=300))
def test_rubbish_is_refused(packet: bytes) -> None:
    with pytest.raises(UsageError):
        parse_request(packet)


def test_answers_and_errors_come_back() -> None:
    assert parse_answer(encode_answer({"handle": "00ff"})) == {"handle": "00ff"}
    with pytest.raises(NotFoundError, match="no such") as caught:
        parse_answer(encode_error(NotFoundError("no such thing", hint="try another")))
    assert caught.value.hint == "try another"
    with pytest.raises(HostError, match="not understood"):
        parse_answer(b"")
    with pytest.raises(HostError, match="not understood"):
        parse_answer(b'{"error": "host"}')
