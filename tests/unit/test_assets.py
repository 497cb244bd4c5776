"""The files that ship beside the code are found in a checkout and in an installation."""

import pytest

from netbootd import assets
from netbootd.errors import NotFoundError


def test_a_checkout_has_them():
    for parts in (("vm",), ("systemd",), ("cloud-init", "base", "user-data"), ("cloud-init", "overlays", "netboot")):
        assert assets.find(*parts).exists()


def test_an_installation_has_them_under_share(tmp_path, monkeypatch):
    (tmp_path / "site-packages" / "systemd").mkdir(parents=True)  # somebody else's package of that name
    (tmp_path / "share" / "netbootd" / "systemd").mkdir(parents=True)
    monkeypatch.setattr(assets, "_BESIDE", tmp_path / "site-packages")
    monkeypatch.setattr(assets.sysconfig, "get_path", lambda name: str(tmp_path))
    assert assets.find("systemd") == tmp_path / "share" / "netbootd" / "systemd"


def test_an_installation_into_a_folder_has_them_beside_the_package(tmp_path, monkeypatch):
    (tmp_path / "target" / "share" / "netbootd" / "vm").mkdir(parents=True)
    monkeypatch.setattr(assets, "_BESIDE", tmp_path / "target")
    monkeypatch.setattr(assets.sysconfig, "get_path", lambda name: str(tmp_path / "nowhere"))
    monkeypatch.setattr(assets.sys, "prefix", str(tmp_path / "nowhere"))
    assert assets.find("vm") == tmp_path / "target" / "share" / "netbootd" / "vm"


def test_what_is_lacking_is_an_error_that_says_so():
    with pytest.raises(NotFoundError, match="lacks nosuch/thing") as caught:
        assets.find("nosuch", "thing")
    assert "again" in caught.value.hint
