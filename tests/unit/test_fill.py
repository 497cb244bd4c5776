"""What ${file:…}, ${env:…} and ${node:…} become, and what stays as it is."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from netbootd.cloudinit.fill import Filler, has_references, has_secrets
from netbootd.cloudinit.merge import merge, read_part
from netbootd.cloudinit.template import make_template
from netbootd.cloudinit.tree import Place
from netbootd.errors import ConfigError

PLACE = Place("user-data", 3)


@pytest.fixture
def fill(tmp_path, monkeypatch):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("s3cret\n")
    (tmp_path / "two-lines").write_bytes(b"one\r\ntwo\r\n")
    (tmp_path / "bare").write_text("no line end")
    (tmp_path / "tricky").write_text("x: 1\nruncmd: [evil]\n${node:name} $${ {{ v1 }}\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    monkeypatch.setenv("NETBOOTD_TEST", "from env")
    monkeypatch.setenv("NETBOOTD_EMPTY", "")
    monkeypatch.delenv("NETBOOTD_NOBODY", raising=False)
    filler = Filler(tmp_path, {"name": "valar-0", "serial": "1a2b3c4d"})
    return lambda text: filler(text, PLACE)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${node:name}", "valar-0"),
        ("${node: name }", "valar-0"),
        ("a ${node:name}-${node:serial} b", "a valar-0-1a2b3c4d b"),
        ("${file:secrets/token}", "s3cret"),
        ("${file:two-lines}", "one\r\ntwo"),
        ("${file:bare}", "no line end"),
        ("${env:NETBOOTD_TEST}", "from env"),
        ("[${env:NETBOOTD_EMPTY}]", "[]"),
        ("$${node:name}", "${node:name}"),
        ("$${HOME}", "${HOME}"),
        ("$$${node:name}", "$${node:name}"),
        ("${HOME} $HOME $(id) $$ ${x:-y} ${#a} ${node}", None),
        ("${Node:name} ${ node:name} ${files:x}", None),
        ("${node:na\nme}", None),
        ("${node:name", None),
        ("${file:tricky}", "x: 1\nruncmd: [evil]\n${node:name} $${ {{ v1 }}"),  # what comes in is text, and stays
    ],
)
def test_what_is_filled_in(fill, text, result):
    assert fill(text) == (text if result is None else result)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("${node:serail}", "user-data:3: ${node:serail}: a node has no such field. Did you mean ${node:serial}?"),
        ("${node:x}", "A node has name, serial."),
        ("${env:NETBOOTD_NOBODY}", "not set"),
        ("${env:}", "not set"),
        ("${file:nosuch}", "is not there"),
        ("${file:secrets}", "is no file"),
        ("${file:binary}", "not UTF-8"),
        ("${file:large}", "larger than 1024 KiB"),
        ("${file:a\x00b}", "a\\x00b"),
        ("${file:" + "x" * 5000 + "}", "can't be read"),
        ("${file:~nobody-here/x}", "can't be read"),
    ],
)
def test_what_is_not_there_is_named(fill, text, says):
    with pytest.raises(ConfigError) as caught:
        fill(text)
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_all_that_is_missing_is_told_at_once(tmp_path):
    text = b"a: ${file:one} ${file:two}\nb: [{c: '${env:NETBOOTD_NOBODY}'}]\nd: ${node:nothing}\n"
    with pytest.raises(ConfigError) as caught:
        document(text, Filler(tmp_path, {"name": "x"}))
    lines = caught.value.details
    assert [line.split(":")[1] for line in lines] == ["1", "1", "2", "3"]
    assert [part in line for part, line in zip(("one", "two", "NOBODY", "nothing"), lines, strict=True)] == [True] * 4


def document(text, filler):
    template = make_template(merge([read_part(text, "user-data", cloud_config=True)]), cloud_config=True)
    return template.fill(filler).decode()


def test_what_is_filled_in_stays_inside_its_value(fill, tmp_path):
    text = b"a: ${file:tricky}\nb: ['${file:tricky}']\nc: '  ${node:name}'\n"
    values = yaml.safe_load(document(text, Filler(tmp_path, {"name": "true"})))
    tricky = (tmp_path / "tricky").read_text().rstrip("\n")
    assert values == {"a": tricky, "b": [tricky], "c": "  true"}


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029\ufeff"))
)
def test_any_text_filled_in_is_that_text_and_nothing_else(text):
    for written in (b"a: ${node:x}\n", b"a: '${node:x}'\n", b"a: |\n  ${node:x}\n"):
        values = yaml.safe_load(document(written, Filler(None, {"x": text})))
        assert list(values) == ["a"]
        assert values["a"] in (text, text + "\n")


def test_numbers_that_are_filled_in_stay_text():
    """A serial of digits only must not become a number on the node."""
    assert yaml.safe_load(document(b"a: ${node:x}\n", Filler(None, {"x": "00012345"}))) == {"a": "00012345"}
    assert yaml.safe_load(document(b"a: ${node:x}\n", Filler(None, {"x": "null"}))) == {"a": "null"}


def test_keys_and_comments_are_not_filled_in(tmp_path):
    assert document(b"'${file:nosuch}': 1 # ${file:nosuch}\n", Filler(tmp_path, {})).endswith("'${file:nosuch}': 1\n")


def test_what_holds_secrets():
    assert has_secrets("x ${file:a}")
    assert has_secrets("${env:A}")
    assert not has_secrets("${node:name} $${file:a} ${HOME}")
    assert has_references("${node:name}")
    assert has_references("$${")
    assert not has_references("${HOME} $x")


def test_what_is_filled_in_comes_out_of_jinja_as_it_is():
    text = b"## template: jinja\n#cloud-config\na: '{{ v1.region }} ${node:x}'\n"
    out = document(text, Filler(None, {"x": "{{ 7*7 }} {% raw %}"}))
    assert "{{ v1.region }}" in out
    assert "{{ 7*7 }}" not in out
    assert "{% raw" not in out
