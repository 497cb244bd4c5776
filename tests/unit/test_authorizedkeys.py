"""Files of public keys, compared with ssh-keygen."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbootd.formats.authorizedkeys import is_whole, parse


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A key of each type from ssh-keygen: (private, public) as bytes."""
    folder = tmp_path_factory.mktemp("keys")
    keys = {}
    for kind, bits in (("ed25519", "256"), ("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "521")):
        path = folder / f"{kind}{bits}"
        command = ["ssh-keygen", "-q", "-t", kind, "-b", bits, "-N", "", "-C", "me at home", "-f", str(path)]
        subprocess.run(command, check=True, timeout=60)
        keys[path.name] = (path.read_bytes(), path.with_suffix(".pub").read_bytes())
    return keys


def test_what_ssh_keygen_makes_is_read(made):
    for private, public in made.values():
        (key,) = parse(public)
        assert key == public.decode().strip()
        assert is_whole(key)
        with pytest.raises(ValueError, match="private key"):
            parse(private)


def test_a_key_that_was_cut_is_not_whole(made):
    for _, public in made.values():
        kind, data, comment = public.decode().split(" ", 2)
        for length in range(4, len(data) - 4, 4):
            assert not is_whole(f"{kind} {data[:length]} {comment}")
        assert not is_whole(f"{kind} {data}AAAA {comment}")
        assert not is_whole(f"ssh-rsa {made['ed25519256'][1].decode().split()[1]}")


def test_comments_options_and_line_ends(made):
    key = made["ed25519256"][1].decode().strip()
    text = f'\ufeff# mine\r\n\r\n{key}\r\nno-pty,command="echo hi" {key}\n'
    assert parse(text.encode()) == (key, f'no-pty,command="echo hi" {key}')


@pytest.mark.parametrize(
    "data", [b"", b"# nothing\n", b"hello\n", b"ssh-dss AAAA x\n", b"\x00\xff\n", b"ssh-ed25519\n"]
)
def test_what_holds_no_key_is_refused(data):
    with pytest.raises(ValueError, match="key"):
        parse(data)


@given(st.binary(max_size=100))
def test_anything_is_read_or_refused(data):
    try:
        assert all("\n" not in key for key in parse(data))
    except ValueError as error:
        assert "key" in str(error)
    is_whole("ssh-ed25519 " + data.decode("latin-1"))
