"""How a name becomes a plug-in, and what is said of a name that does not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from rlir_ray.config.load import load_config
from rlir_ray.registry import AXES, build, check_name, known, load


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `acme_plugins` that offers a reward under the name `acme`."""
    (tmp_path / "acme_plugins.py").write_text(
        "class Always:\n"
        "    def __init__(self, value=0.0):\n        self.value = value\n"
        "    def score(self, videos):\n        return []\n"
        "class Lacking:\n    pass\n"
        "a_value = 3\n",
        encoding="utf-8",
    )
    (tmp_path / "acme_broken.py").write_text("raise RuntimeError('no licence')\n", encoding="utf-8")
    (tmp_path / "acme_needy.py").write_text("import a_library_of_nobody\n", encoding="utf-8")
    info = tmp_path / "acme_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugins\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[rlir_ray.rewards]\nacme = acme_plugins:Always\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("acme_plugins", "acme_broken", "acme_needy"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("axis", AXES)
def test_every_built_in_member_can_be_loaded_by_its_name(axis: str) -> None:
    assert [load(axis, name) for name in AXES[axis].members]


def test_installed_package_offers_a_name(package: Path) -> None:
    assert known("rewards") == [*AXES["rewards"].members, "acme"]
    assert load("rewards", "acme").__name__ == "Always"
    assert load_config("", ["reward.name=acme"]).reward.name == "acme"
    assert load("rewards", "acme_plugins:Always") is load("rewards", "acme")


def test_name_that_two_packages_offer_is_refused_with_both(package: Path) -> None:
    info = package / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[rlir_ray.rewards]\nacme = other:Thing\n", encoding="utf-8")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"reward\.name=acme must be offered by one package, got acme_plugins:Always"):
        load("rewards", "acme")


@pytest.mark.parametrize("name", ["invers", "", "no module:X", "a:", ":B", "a..b:C"])
def test_unknown_name_lists_the_known_ones_and_the_nearest(name: str) -> None:
    names = ", ".join(AXES["rewards"].members)
    with pytest.raises(
        ValueError, match=rf"^reward\.name must be one of {names}, or package\.module:Name, got .*"
    ) as no:
        check_name("rewards", name)
    assert str(no.value).endswith("did you mean inverse?" if name == "invers" else "?")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nobodys_module:X",
            "must be importable, got no module 'nobodys_module'; install it, put its folder on PYTHON",
        ),
        ("acme_needy:X", "must be importable, got no module 'a_library_of_nobody'; install it"),
        ("acme_broken:X", "got RuntimeError in module 'acme_broken': no licence; correct that module"),
        ("acme_plugins:Alwys", "must be in module acme_plugins, got no 'Alwys' there; did you mean Always?"),
        ("acme_plugins:Lacking", "must have score, got none named score; add score"),
        ("acme_plugins:a_value", "must name a class, got a int; name the class itself"),
    ],
)
def test_member_that_cannot_be_used_is_refused_in_one_line(package: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^reward\.name={name} ") as no:
        load("rewards", name)
    assert message in str(no.value) and "\n" not in str(no.value)


def test_arguments_that_do_not_fit_are_refused_with_the_signature(package: Path) -> None:
    member = load("rewards", "acme")
    assert build("rewards", "acme", {"value": 2.0}, member).value == 2.0
    with pytest.raises(
        ValueError, match=r"reward\.name=acme must take .* got \{'valeu': 2\.0\}: .*Always\(value=0\.0\)"
    ):
        build("rewards", "acme", {"valeu": 2.0}, member)
