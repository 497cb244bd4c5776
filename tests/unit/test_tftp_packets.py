"""TFTP's packets, byte for byte as RFC 1350 and RFC 2347 draw them, and against fbtftp's numbers."""

from __future__ import annotations

import pytest
from fbtftp import constants
from hypothesis import given
from hypothesis import strategies as st

from netbootd.tftpd import packets
from netbootd.tftpd.packets import ErrorCode, Mode, Opcode, PacketError, Request


def test_the_numbers_are_those_of_fbtftp() -> None:
    for name in ("RRQ", "WRQ", "DATA", "ACK", "OACK"):
        assert getattr(constants, f"OPCODE_{name}") == Opcode[name]
    assert constants.OPCODE_ERROR == Opcode.ERROR
    assert constants.ERR_FILE_NOT_FOUND == ErrorCode.FILE_NOT_FOUND
    assert constants.ERR_ACCESS_VIOLATION == ErrorCode.ACCESS_VIOLATION
    assert constants.ERR_UNDEFINED == ErrorCode.UNDEFINED
    assert constants.ERR_ILLEGAL_OPERATION == ErrorCode.ILLEGAL_OPERATION


def test_a_pi_4_asks_like_this() -> None:
    data = b"\0\x011a2b3c4d/start4.elf\0octet\0tsize\x000\0blksize\x001468\0"
    wanted = Request(Opcode.RRQ, b"1a2b3c4d/start4.elf", Mode.OCTET, {"tsize": "0", "blksize": "1468"})
    assert packets.parse_request(data) == wanted
    assert list(packets.parse_request(data).options) == ["tsize", "blksize"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not a request"),
        (b"\0", "not a request"),
        (b"\0\3\0\1data\0", "not a request"),
        (b"\1\1a\0octet\0", "not a request"),
        (b"\0\1", "malformed"),
        (b"\0\1a\0octet", "malformed"),
        (b"\0\1a\0", "without a mode"),
        (b"\0\1a\0mail\0", "mode"),
        (b"\0\1a\0\xff\xfe\0", "mode"),
        (b"\0\1a\0octet\0tsize\0", "without a value"),
        (b"\0\1a\0octet\0a\0b\0c\0", "without a value"),
        (b"\0\1" + b"a" * packets.MAX_REQUEST + b"\0octet\0", "malformed"),
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(data: bytes, text: str) -> None:
    with pytest.raises(PacketError, match=text):
        packets.parse_request(data)


def test_a_request_may_be_padded_with_zeros() -> None:
    for padding in range(6):
        request = packets.parse_request(b"\0\1bootcode.bin\0octet\0" + bytes(padding))
        assert (request.filename, request.mode) == (b"bootcode.bin", Mode.OCTET)
        assert set(request.options) <= {""}


def test_of_equal_options_the_first_counts_in_its_own_spelling() -> None:
    request = packets.parse_request(b"\0\1a\0octet\0BlkSize\x001000\0blksize\x002000\0")
    assert request.options == {"BlkSize": "1000"}


def test_the_block_number_rolls_over_to_zero() -> None:
    assert packets.header(1) == b"\0\3\0\1"
    assert packets.header(65535) == b"\0\3\xff\xff"
    assert packets.header(65536) == b"\0\3\0\0"
    assert packets.header(65537) == b"\0\3\0\1"


def test_oack_and_error_look_as_the_standards_draw_them() -> None:
    assert packets.encode_oack({"blksize": "1468", "tsize": "7"}) == b"\0\6blksize\x001468\0tsize\x007\0"
    assert packets.encode_error(ErrorCode.FILE_NOT_FOUND, "file not found") == b"\0\5\0\1file not found\0"
    assert packets.encode_error(ErrorCode.UNDEFINED, "a\0b\u20ac") == b"\0\5\0\0a?b?\0"
    assert len(packets.encode_error(ErrorCode.UNDEFINED, "x" * 10_000)) == 5 + packets.MAX_MESSAGE


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"\0\5\0\0Early terminate\0", (0, "Early terminate")),
        (b"\0\5\0\3", (3, "")),
        (b"\0\5\0\3no end", (3, "no end")),
        (b"\0\5", (0, "")),
        (b"\0\5\0\0\x1b[31mred\n\0", (0, "?[31mred?")),
    ],
)
def test_errors_are_read_with_care(data: bytes, wanted: tuple[int, str]) -> None:
    assert packets.decode_error(data) == wanted


@given(st.binary(max_size=600))
def test_no_datagram_raises_anything_but_a_packet_error(data: bytes) -> None:
    for datagram in (data, b"\0\1" + data, b"\0\2" + data + b"\0", b"\0\1a\0octet\0" + data + b"\0"):
        try:
            request = packets.parse_request(datagram)
        except PacketError as error:
            assert str(error)
        else:
            assert b"\0" not in request.filename
            packets.encode_oack(request.options)
        packets.decode_error(datagram)
        packets.opcode_of(datagram)
