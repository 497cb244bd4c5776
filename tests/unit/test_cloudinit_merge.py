"""Merging of cloud-init folders: pairs of what several folders say and what a node gets."""

import textwrap

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from netbootd.cloudinit.fill import Filler
from netbootd.cloudinit.merge import escape_jinja, merge, origins, read_part
from netbootd.cloudinit.template import make_template
from netbootd.errors import ConfigError


def merged(*texts, cloud_config=True):
    """The document that folders with these texts make."""
    parts = [
        read_part(
            text if isinstance(text, bytes) else textwrap.dedent(text).encode(),
            f"folder{n}/user-data",
            cloud_config=cloud_config,
        )
        for n, text in enumerate(texts, 1)
    ]
    return make_template(merge(parts), cloud_config=cloud_config).fill(Filler(None, {})).decode()


def values(*texts):
    return yaml.safe_load(merged(*texts))


PAIRS = {
    "mappings merge however deep": (
        ["a: {b: {c: 1, d: 2}}", "a: {b: {d: 3, e: 4}, f: 5}"],
        {"a": {"b": {"c": 1, "d": 3, "e": 4}, "f": 5}},
    ),
    "lists are joined in order": (
        ["runcmd: [one]", "runcmd: [two, three]", "runcmd: [one]"],
        {"runcmd": ["one", "two", "three", "one"]},
    ),
    "lists below mappings are joined": (["a: {b: [1]}", "a: {b: [2]}"], {"a": {"b": [1, 2]}}),
    "single values are replaced": (["hostname: a", "hostname: b"], {"hostname": "b"}),
    "another kind replaces": (["a: [1]", "a: {b: 1}", "a: x"], {"a": "x"}),
    "false is a value": (["a: true", "a: false"], {"a": False}),
    "nothing is a value": (["a: 1", "a:"], {"a": None}),
    "nothing gives way": (["a:", "a: [1]"], {"a": [1]}),
    "!replace takes the new list alone": (["runcmd: [one]", "runcmd: !replace [two]"], {"runcmd": ["two"]}),
    "!replace takes the new mapping alone": (["a: {b: 1}", "a: !replace {c: 2}"], {"a": {"c": 2}}),
    "!replace works deep inside": (
        ["a: {b: [1], c: [1]}", "a: {b: !replace [2], c: [2]}"],
        {"a": {"b": [2], "c": [1, 2]}},
    ),
    "!replace is for its folder only": (["a: [1]", "a: !replace [2]", "a: [3]"], {"a": [2, 3]}),
    "!replace with nothing takes the key out": (["a: 1\nb: 2", "a: !replace"], {"b": 2}),
    "!replace ~ takes the key out, too": (["a: {b: 1, c: 2}", "a: {b: !replace ~}"], {"a": {"c": 2}}),
    "!replace with an empty list": (["a: [1]", "a: !replace []"], {"a": []}),
    "!replace where nothing was": (["b: 1", "a: !replace [1]"], {"b": 1, "a": [1]}),
    "!replace keeps the type of a value": (["a: x", "a: !replace 5"], {"a": 5}),
    "!append joins lists": (["a: [1]", "a: !append [2]"], {"a": [1, 2]}),
    "!append adds one value to a list": (["a: [1]", "a: !append 2"], {"a": [1, 2]}),
    "!append adds a mapping to a list": (["a: [{b: 1}]", "a: !append {b: 2}"], {"a": [{"b": 1}, {"b": 2}]}),
    "!append makes a list of a value and a list": (["a: 1", "a: !append [2]"], {"a": [1, 2]}),
    "!append puts texts behind each other": (
        ["a: |\n  one\n", "a: !append |\n  two\n"],
        {"a": "one\ntwo\n"},
    ),
    "!append where nothing was": (["b: 1", "a: !append x"], {"b": 1, "a": "x"}),
    "!append merges mappings": (["a: {b: 1}", "a: !append {c: 2}"], {"a": {"b": 1, "c": 2}}),
    "the order of the keys is that of their first mention": (["b: 1\na: 1", "c: 1\na: 2"], {"b": 1, "a": 2, "c": 1}),
    "aliases and merge keys are resolved": (
        ["a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3"],
        {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}},
    ),
    "an empty document says nothing": (["a: 1", "", "# a comment\n", "#cloud-config\n"], {"a": 1}),
    "keys are told apart by type": (["1: a", "'1': b"], {1: "a", "1": "b"}),
    "text stays text": (["a: '0644'\nb: \"yes\"\nc: 0644\nd: yes"], {"a": "0644", "b": "yes", "c": 0o644, "d": True}),
    "line ends of Windows": (["#cloud-config\r\na: |\r\n  x\r\n  y\r\n"], {"a": "x\ny\n"}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    texts, expected = PAIRS[name]
    found = values(*texts)
    assert found == expected
    assert list(found) == list(expected)


def test_values_come_out_as_they_were_written():
    text = """\
        #cloud-config
        mode: 0644
        on: yes
        when: 2026-01-01
        hex: 0x1F
        big: 1_000
        quoted: "yes"
        """
    assert merged(text) == textwrap.dedent(text)


def test_long_lines_and_blocks_are_not_folded():
    line = "ssh-rsa " + "A" * 800 + " someone at somewhere"
    out = merged(f"keys:\n- {line}\nscript: |\n  #!/bin/sh\n\n  echo '  two spaces '\n")
    assert line in out
    assert "script: |\n  #!/bin/sh\n\n  echo '  two spaces '\n" in out


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["a: 1\na: 2"], "folder1/user-data:2: the key a is here twice; the first is in line 1"),
        (["a:\n  - !replace 1"], "folder1/user-data:2: !replace goes between a key and its value"),
        (["a: !repalce [1]"], "folder1/user-data:1: the tag !repalce is not known"),
        (["a: !!python/object/apply:os.system [x]"], "tag"),
        (["a: !!set {x}"], "tag"),
        (["? [1, 2]\n: 3"], "a key must be a plain word"),
        (["- a\n- b"], "a mapping is expected"),
        (["just text"], "a mapping is expected"),
        (["a: [1"], "folder1/user-data:1: not YAML"),
        (["a: 1\n---\nb: 2"], "single document"),
        (["a: ${x}\nb: [${node:name}]"], "Quote"),
        (["a: &a [*a]"], "alias within itself"),
        (["a: " + "[" * 200 + "]" * 200], "deeply"),
        (["a: " + "[" * 5000 + "]" * 5000], "deeply"),
        (["a: *nobody"], "undefined alias"),
        (["x: \x07"], "folder1/user-data:1: not YAML: the character #x07"),
        ([b"\xff"], "UTF-8"),
        (["a: {b: 1}", "a: !append 5"], "folder2/user-data:1: a single value can't be appended to a mapping"),
        (["a: 5", "a: !append x"], "can't be appended"),
        (["a: 1", "#!/bin/sh\necho"], "#!/bin/sh"),
        (["a: 1", "#include\nhttp://x"], "#include"),
        (["<<: 5"], "alias of a mapping"),
    ],
)
def test_faults_name_file_and_line(texts, says):
    with pytest.raises(ConfigError) as caught:
        merged(*texts)
    assert says in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.message.isprintable()


def test_aliases_that_multiply_are_refused_in_time():
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="too many"):
        merged("\n".join(lines))


@pytest.mark.parametrize(
    "text", ["#!/bin/sh\necho\n", "#include\nhttp://x/\n", "Content-Type: multipart/mixed\n\nx", "#cloud-boothook\nx\n"]
)
def test_what_is_not_cloud_config_passes_where_it_is_alone(text):
    assert merged(text) == text
    assert merged("", text) == text


# ---------------------------------------------------------------- Jinja


def test_jinja_passes_and_marks_the_result():
    out = merged("a: '{not jinja}'\nb: '{{ neither }}'", "## template: jinja\n#cloud-config\nc: '{{ v1.region }}'\n")
    assert out.startswith("## template: jinja\n#cloud-config\n")
    assert "c: '{{ v1.region }}'" in out
    assert "{{ neither }}" not in out  # it would be rendered: it must come out of Jinja as it is


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=40))
def test_other_folders_braces_come_out_of_jinja_as_they_are(text):
    """A tiny reading of Jinja: `{{ {}|string|first }}` is one brace, and nothing else may look like Jinja."""
    out = escape_jinja(text)
    rest = out.replace("{{ {}|string|first }}", "\0")
    assert not any(opening in rest for opening in ("{{", "{%", "{#"))
    assert rest.replace("\0", "{") == text


def test_jinja_that_yaml_can_not_read_is_alone_or_refused():
    text = "## template: jinja\n#cloud-config\n{% if v1.region %}\na: 1\n{% endif %}\n"
    assert merged(text) == text
    with pytest.raises(ConfigError, match="Jinja"):
        merged("b: 1", text)


# ---------------------------------------------------------------- where from


def test_each_value_tells_where_it_came_from():
    parts = [
        read_part(b"#cloud-config\na: 1\nb:\n- x\n", "base/user-data", cloud_config=True),
        read_part(b"c: {d: 2}\nb: [y]\na: 3\n", "node/user-data", cloud_config=True),
    ]
    assert [f"{origin.key} {origin.place}" for origin in origins(merge(parts).tree)] == [
        *("a node/user-data:3", "b[0] base/user-data:4", "b[1] node/user-data:2"),
        "c.d node/user-data:1",
    ]


# ---------------------------------------------------------------- anything

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(
        st.characters(codec="utf-8", exclude_characters="$\x85\u2028\u2029\ufeff", exclude_categories=["Cs", "Cc"]),
        max_size=12,
    )
)
_trees = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcdef"), inner, max_size=3),
    max_leaves=12,
)
_documents = st.dictionaries(st.sampled_from("abcdef"), _trees, max_size=4)


def _expected(lower, upper):
    """The contract's sentence, said again: dicts deep, lists joined, anything else replaced."""
    if isinstance(lower, dict) and isinstance(upper, dict):
        return {**lower, **{key: _expected(lower.get(key), value) for key, value in upper.items()}}
    return lower + upper if isinstance(lower, list) and isinstance(upper, list) else upper


@given(st.lists(_documents, min_size=1, max_size=3))
def test_any_documents_merge_as_the_contract_says(documents):
    wanted = {}
    for document in documents:
        wanted = _expected(wanted, document)
    assert (values(*map(yaml.safe_dump, documents)) or {}) == wanted


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    try:
        merged(data)
    except ConfigError as error:
        assert error.message.isprintable()
