"""The state machine of a transfer, packet by packet, with a clock that the test moves."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable

import pytest

from netbootd.tftpd.options import Agreement
from netbootd.tftpd.packets import Opcode
from netbootd.tftpd.timing import PATIENCE, RoundTrip
from netbootd.tftpd.transfer import (
    MAX_BACK_OFF,
    OPEN_PATIENCE,
    OPEN_RETRIES,
    SILENT_RETRIES,
    Datagrams,
    Ending,
    Transfer,
)

ACK, ERROR = 4, 5


class Wire:
    """A transfer, the time, and what it has sent: block numbers (counted on, not rolled over), "oack" or "error"."""

    def __init__(
        self,
        size: int = 10_000,
        *,
        blksize: int = 512,
        windowsize: int = 1,
        timeout: int = 0,
        oack: bool = False,
        trip: RoundTrip | None = None,
        intact: Callable[[], bool] = lambda: True,
    ) -> None:
        self.data = random.Random(size).randbytes(size)
        accepted = {"tsize": str(size)} if oack else {}
        agreement = Agreement(blksize, windowsize, timeout, accepted)
        self.transfer = Transfer(self.data, size, agreement, trip or RoundTrip(), intact)
        self.now = 1000.0
        self.arrived = bytearray()
        self.octets = 0

    def begin(self) -> list[object]:
        return self._read(self.transfer.begin(self.now))

    def ack(self, block: int, after: float = 0.001) -> list[object]:
        return self.packet(struct.pack("!HH", ACK, block & 0xFFFF), after)

    def error(self, code: int = 0, text: str = "Early terminate") -> list[object]:
        return self.packet(struct.pack("!HH", ERROR, code) + text.encode() + b"\0")

    def packet(self, data: bytes, after: float = 0.001) -> list[object]:
        self.now += after
        return self._read(self.transfer.receive(data, len(data), self.now))

    def silence(self) -> tuple[float, list[object]]:
        """Nothing comes until the deadline: how long that was, and what is sent then."""
        waited = self.transfer.deadline - self.now
        self.now = self.transfer.deadline
        return waited, self._read(self.transfer.expire(self.now))

    def _read(self, out: Datagrams | None) -> list[object]:
        seen: list[object] = []
        for head, body in zip((out or [])[::2], (out or [])[1::2], strict=True):
            datagram = bytes(head) + bytes(body)
            self.octets += len(datagram)
            opcode, number = struct.unpack("!HH", datagram[:4])
            if opcode == Opcode.DATA:
                block = self.transfer.acked + (number - self.transfer.acked & 0xFFFF)
                at = (block - 1) * self.transfer.blksize
                assert datagram[4:] == self.data[at : at + self.transfer.blksize], block
                seen.append(block)
            else:
                seen.append({Opcode.OACK: "oack", Opcode.ERROR: "error"}[Opcode(opcode)])
        return seen


def test_lock_step_from_the_first_block_to_the_last() -> None:
    wire = Wire(1100)
    assert wire.begin() == [1]
    assert wire.ack(1) == [2]
    assert wire.ack(2) == [3]
    assert wire.transfer.ended is None
    assert wire.ack(3) == []
    assert (wire.transfer.ended, wire.transfer.sent_octets, wire.transfer.resent) == (Ending.SENT, 1100, 0)


@pytest.mark.parametrize(("size", "blocks"), [(0, 1), (1, 1), (511, 1), (512, 2), (513, 2), (1024, 3)])
def test_a_file_ends_with_a_short_block_be_it_empty(size: int, blocks: int) -> None:
    wire = Wire(size)
    sent = wire.begin()
    for block in range(1, blocks + 1):
        assert sent == [block]
        sent = wire.ack(block)
    assert wire.transfer.ended is Ending.SENT


def test_the_oack_stands_for_block_0() -> None:
    wire = Wire(600, oack=True)
    assert wire.begin() == ["oack"]
    assert wire.ack(1) == []
    assert wire.ack(0) == [1]
    assert wire.ack(0) == []
    assert wire.ack(1) == [2]


def test_windows_go_out_whole_and_the_last_may_be_short() -> None:
    wire = Wire(512 * 9 + 1, windowsize=4, oack=True)
    wire.begin()
    assert wire.ack(0) == [1, 2, 3, 4]
    assert wire.ack(4) == [5, 6, 7, 8]
    assert wire.ack(8) == [9, 10]
    assert wire.ack(10) == []
    assert wire.transfer.ended is Ending.SENT


@pytest.mark.parametrize("got", [1, 2, 3])
def test_an_ack_inside_the_window_resumes_after_it(got: int) -> None:
    wire = Wire(windowsize=4, oack=True)
    wire.begin()
    wire.ack(0)
    assert wire.ack(got) == [got + 1, got + 2, got + 3, got + 4]
    assert wire.ack(got + 4) == [got + 5, got + 6, got + 7, got + 8]
    assert wire.transfer.resent == 4 - got


def test_no_ack_draws_its_block_twice() -> None:
    """The Sorcerer's Apprentice: RFC 1123 section 4.2.3.1."""
    wire = Wire(512 * 20)
    wire.begin()
    for block in range(1, 20):
        assert wire.ack(block) == [block + 1]
        assert wire.ack(block) == []
        assert wire.ack(block, after=0.05) == []


def test_no_ack_draws_its_window_twice() -> None:
    wire = Wire(512 * 40, windowsize=4, oack=True)
    wire.begin()
    wire.ack(0)
    for block in range(4, 36, 4):
        assert wire.ack(block) == [block + 1, block + 2, block + 3, block + 4]
        for old in (block, block, block - 1, block - 4):
            deadline = wire.transfer.deadline
            assert wire.ack(old) == []
            assert wire.transfer.deadline == deadline  # and none makes the timer early


def test_acks_of_what_was_never_sent_are_ignored() -> None:
    wire = Wire(512 * 10, windowsize=2, oack=True)
    assert wire.packet(struct.pack("!HH", ACK, 0)) == []  # before anything was sent
    wire.begin()
    wire.ack(0)
    for block in (3, 4, 100, 0x7FFF, 0x8000, 0xFFFF):
        assert wire.ack(block) == []
    assert wire.ack(2) == [3, 4]


@pytest.mark.parametrize(
    "packet", [b"", b"\0", b"\0\4", b"\0\4\0", b"\0\3\0\1data", b"\0\6\0\0", b"\0\1a\0octet\0", b"\xff" * 100]
)
def test_other_packets_change_nothing(packet: bytes) -> None:
    wire = Wire()
    wire.begin()
    deadline = wire.transfer.deadline
    assert wire.packet(packet) == []
    assert wire.transfer.deadline == deadline
    assert wire.ack(1) == [2]


def test_block_numbers_roll_over_in_lock_step_and_in_windows() -> None:
    for windowsize in (1, 7):
        wire = Wire(8 * 65_600, blksize=8, windowsize=windowsize, oack=True)
        wire.begin()
        sent = wire.ack(0)
        last = 0
        while sent:
            assert sent == list(range(last + 1, last + 1 + len(sent)))
            last += len(sent)
            if last > 65_530:
                assert wire.ack(last - len(sent)) == []  # a second ACK of the window before, across the roll-over
            sent = wire.ack(last)
        assert (last, wire.transfer.ended) == (65_601, Ending.SENT)


# Time


def test_nothing_is_sent_before_its_time() -> None:
    """Round trips of 50 ms on a quiet way: the timer stays behind every one of them."""
    wire = Wire(512 * 60)
    wire.begin()
    for block in range(1, 60):
        assert wire.transfer.deadline - wire.now >= PATIENCE
        assert wire.ack(block, after=0.05) == [block + 1]


@pytest.mark.parametrize("delay", [0.6, 0.7, 0.95])
def test_a_way_slower_than_the_first_guess_is_learnt_after_a_block_or_two(delay: float) -> None:
    """Each sending is acknowledged `delay` later, so needless ones show as second ACKs."""
    wire = Wire(512 * 30)
    arrivals = [(wire.now + delay, 1)]
    wire.begin()
    sendings = 1
    while wire.transfer.ended is None:
        when, block = arrivals[0]
        if wire.transfer.deadline < when:
            sent = wire.silence()[1]
        else:
            arrivals.pop(0)
            sent = wire.ack(block, after=when - wire.now)
        sendings += len(sent)
        arrivals += [(wire.now + delay, int(str(number))) for number in sent]
    assert sendings <= 31 + 3, "blocks go on being sent twice"


def test_back_off_doubles_and_stays_below_its_ceiling() -> None:
    wire = Wire()
    wire.begin()
    wire.ack(1)
    waits = []
    while wire.transfer.ended is None:
        waited, sent = wire.silence()
        waits.append(waited)
        assert sent == ([2] if len(waits) <= OPEN_RETRIES or sum(waits) < OPEN_PATIENCE else [])
    assert waits[0] == pytest.approx(PATIENCE)
    assert waits[0] < 1.0
    assert OPEN_PATIENCE <= sum(waits) < OPEN_PATIENCE + MAX_BACK_OFF
    for earlier, later in itertools.pairwise(waits):
        assert later == pytest.approx(min(2 * earlier, MAX_BACK_OFF))
    assert wire.transfer.ended is Ending.SILENT


def test_a_client_that_repeats_itself_after_five_seconds_finds_us_waiting() -> None:
    """Also on a way so quick and bad that the wait is at its shortest; it counts from the last packet that it got."""
    wire = Wire(512 * 100)
    wire.begin()
    for block in range(1, 6):
        wire.ack(block)
        wire.silence()
    begun = wire.now
    while wire.transfer.deadline - wire.now < 5.1:
        wire.silence()
    assert wire.transfer.ended is None
    assert wire.now - begun > 5
    assert wire.ack(6, after=5.05) == [7]


def test_an_agreed_timeout_is_obeyed_to_the_letter() -> None:
    for windowsize in (1, 4):
        wire = Wire(timeout=3, windowsize=windowsize, oack=True)
        wire.begin()
        assert wire.silence() == (pytest.approx(3.0), ["oack"])
        assert wire.silence() == (pytest.approx(3.0), ["oack"])
        window = wire.ack(0)
        assert wire.ack(0) == []  # nothing but silence makes it send again
        assert wire.transfer.deadline - wire.now == pytest.approx(3.0 - 0.001)
        assert wire.silence()[1] == window
        assert wire.silence() == (pytest.approx(3.0), window)


def test_who_never_answered_is_sent_little() -> None:
    """A forged request: few small packets to its victim, and less than 4 KiB."""
    for oack in (False, True):
        wire = Wire(100_000, oack=oack, blksize=1468 if oack else 512, windowsize=64 if oack else 1)
        sent = wire.begin()
        while wire.transfer.ended is None:
            sent += wire.silence()[1]
        assert sent == ["oack" if oack else 1] * (1 + SILENT_RETRIES)
        assert wire.octets + 48 * len(sent) < 4096
        assert wire.transfer.ended is Ending.SILENT
        assert not wire.transfer.answered


def test_who_never_answered_is_given_up_soon_even_with_a_long_timeout() -> None:
    wire = Wire(timeout=255, oack=True)
    wire.begin()
    begun = wire.now
    while wire.transfer.ended is None:
        wire.silence()
    assert wire.now - begun <= 2 * 255


def test_progress_resets_the_back_off() -> None:
    wire = Wire()
    wire.begin()
    wire.ack(1)
    for _ in range(3):
        wire.silence()
    assert wire.ack(2) == [3]
    assert wire.silence()[0] <= PATIENCE
    assert wire.transfer.ended is None


def test_only_unambiguous_answers_are_samples() -> None:
    """Karn: the answer to a block that was sent twice may belong to either sending."""
    trip = RoundTrip()
    wire = Wire(trip=trip)
    wire.begin()
    wire.silence()
    wire.ack(1, after=0.3)
    assert not trip.measured
    wire.ack(2, after=0.004)
    assert trip.smoothed == pytest.approx(0.004)


def test_a_loss_makes_the_next_one_cheaper_and_a_false_alarm_dearer() -> None:
    wire = Wire(512 * 100)
    wire.begin()
    wire.ack(1)
    wire.silence()
    wire.ack(2)
    assert wire.silence()[0] == pytest.approx(PATIENCE / 2)  # the first loss was real
    wire.ack(3)
    wire.ack(3)  # this one wasn't: both sendings were acknowledged
    assert wire.transfer.deadline - wire.now >= PATIENCE / 2
    wire.ack(4)
    assert wire.transfer.deadline - wire.now > PATIENCE / 2


def test_a_client_that_repeats_its_ack_for_want_of_the_next_block_is_no_false_alarm() -> None:
    """Block 2 was lost and came again; then block 3 is lost, and after half a second the client says 2 once more."""
    wire = Wire(512 * 100)
    wire.begin()
    wire.ack(1)
    assert wire.silence()[1] == [2]
    assert wire.ack(2) == [3]
    wait = wire.transfer.round_trip.wait
    assert wire.silence()[1] == [3]
    assert wire.ack(2, after=0.3) == []
    assert wire.transfer.round_trip.wait == wait == PATIENCE / 2


def test_it_waits_once_more_where_we_were_late_ourselves() -> None:
    wire = Wire()
    wire.begin()
    assert wire.transfer.postpone(wire.now, 0.03)
    assert wire.transfer.deadline == wire.now + 0.03
    assert not wire.transfer.postpone(wire.now, 0.03)
    assert wire.silence()[1] == [1]
    assert wire.transfer.postpone(wire.now, 0.03)


def test_a_whole_window_is_sent_again_after_silence() -> None:
    wire = Wire(windowsize=4, oack=True)
    wire.begin()
    wire.ack(0)
    assert wire.silence()[1] == [1, 2, 3, 4]
    assert wire.transfer.resent == 4
    assert wire.ack(2) == [3, 4, 5, 6]


# Ends


def test_nothing_is_sent_after_an_error() -> None:
    for oack in (False, True):
        wire = Wire(oack=oack)
        wire.begin()
        wire.ack(0 if oack else 1)
        assert wire.error(3, "disk full") == []
        assert (wire.transfer.ended, wire.transfer.message) == (Ending.STOPPED, "disk full")
        assert wire.ack(1) == wire.ack(2) == wire.silence()[1] == wire.error() == []
        assert wire.transfer.fail("too late") is None


@pytest.mark.parametrize("code", [0, 8])
def test_an_error_in_answer_to_the_size_is_a_probe(code: int) -> None:
    wire = Wire(oack=True)
    wire.begin()
    assert wire.error(code) == []
    assert wire.transfer.ended is Ending.PROBED


def test_an_error_for_another_reason_or_later_is_no_probe() -> None:
    early = Wire(oack=True)
    early.begin()
    early.error(2)
    late = Wire(oack=True)
    late.begin()
    late.ack(0)
    late.ack(1)
    late.error(0)
    plain = Wire()
    plain.begin()
    plain.error(0)
    assert early.transfer.ended is late.transfer.ended is plain.transfer.ended is Ending.STOPPED


def test_who_closes_its_port_after_the_last_block_has_its_file() -> None:
    wire = Wire(600)
    wire.begin()
    wire.ack(1)
    wire.transfer.vanished()
    assert (wire.transfer.ended, wire.transfer.sent_octets) == (Ending.SENT, 600)
    early = Wire(6000)
    early.begin()
    early.ack(1)
    early.transfer.vanished()
    assert (early.transfer.ended, early.transfer.sent_octets) == (Ending.VANISHED, 512)


def test_a_file_that_changed_ends_with_an_error_in_place_of_the_last_block() -> None:
    wire = Wire(1100, intact=lambda: False)
    assert wire.begin() == [1]
    assert wire.ack(1) == [2]
    assert wire.ack(2) == ["error"]
    assert wire.transfer.ended is Ending.FAILED


def test_the_last_block_is_checked_once_and_may_be_sent_again() -> None:
    asked = []
    wire = Wire(600, intact=lambda: not asked.append(1))
    wire.begin()
    wire.ack(1)
    assert wire.silence()[1] == [2]
    assert wire.ack(2) == []
    assert (wire.transfer.ended, len(asked)) == (Ending.SENT, 1)


def test_our_own_failure_is_told_once() -> None:
    wire = Wire()
    wire.begin()
    assert wire._read(wire.transfer.fail("server is shutting down")) == ["error"]
    assert wire.transfer.fail("again") is None
    assert wire.ack(1) == []


def test_an_ended_transfer_lets_go_of_its_file() -> None:
    wire = Wire()
    wire.begin()
    wire.error()
    wire.transfer.release()
    assert wire.transfer._payload == b""


@pytest.mark.parametrize("windowsize", [1, 2, 8, 64])
@pytest.mark.parametrize("seed", range(5))
def test_a_bad_way_delivers_every_octet(windowsize: int, seed: int) -> None:
    """Loss of a tenth each way, doubling and reordering, and a client as RFC 7440 describes it."""
    dice = random.Random(seed)
    wire = Wire(512 * 150 + 7, windowsize=windowsize, oack=True)
    inbox: list[object] = wire.begin()
    expected, in_window, answer = 0, 0, 0
    for _ in range(20_000):
        if wire.transfer.ended is not None:
            break
        if not inbox:
            inbox = wire.silence()[1]
            continue
        if dice.random() < 0.05 and len(inbox) > 1:
            inbox[0], inbox[1] = inbox[1], inbox[0]
        got = inbox.pop(0)
        if dice.random() < 0.1:
            continue
        if dice.random() < 0.05:
            inbox.insert(0, got)
        number = 0 if got == "oack" else int(str(got))
        if number == expected:
            expected, in_window = expected + 1, in_window + 1
            if number not in (0, wire.transfer.blocks) and in_window < windowsize:
                continue
        answer, in_window = max(expected - 1, 0), 0
        if dice.random() >= 0.1:
            inbox += wire.ack(answer)
    assert wire.transfer.ended in (Ending.SENT, Ending.SILENT)
    assert expected == wire.transfer.blocks + 1
