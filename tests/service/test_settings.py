import sys
from typing import Any

import pytest

from outlive_service.settings import PartnerSettings, Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name in PartnerSettings.model_fields:
        monkeypatch.delenv(f"PARTNER_{name}".upper(), raising=False)


def test_the_defaults_are_right_as_they_are() -> None:
    assert load_settings(Settings).database_url == "sqlite+aiosqlite:///outlive.db"
    assert load_settings(PartnerSettings).port == 8001


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAIN_TIMEOUT", "7.5")
    monkeypatch.setenv("UPSTREAM_URL", "https://api.example.org/")
    monkeypatch.setenv("GRACEFUL_TIMEOUT", "")
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("PARTNER_PORT", "9001")
    settings = load_settings(Settings)
    assert settings.drain_timeout == 7.5
    assert settings.upstream_url == "https://api.example.org"
    assert settings.graceful_timeout is None
    assert settings.log_level == "debug"
    assert load_settings(PartnerSettings).port == 9001


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("DRAIN_TIMEOUT", "soon", "number"),
        ("DRAIN_TIMEOUT", "0", "greater than 0"),
        ("CANCEL_GRACE", "inf", "finite"),
        ("SAVE_TIMEOUT", "nan", "finite"),
        ("MAX_RUNNING", "0", "greater than or equal to 1"),
        ("MAX_PENDING", "-1", "greater than or equal to 0"),
        ("PORT", "99999", "65535"),
        ("GRACEFUL_TIMEOUT", "1.5", "integer"),
        ("UPSTREAM_URL", "localhost:8001", "http://"),
        ("LOG_FORMAT", "xml", "'auto', 'json' or 'console'"),
    ],
)
def test_a_wrong_value_is_told_with_its_name_and_what_is_right(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, right: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refusal:
        load_settings(Settings)
    message = str(refusal.value)
    assert message.startswith(f'{name} is "{value}": ')
    assert right in message
    assert "\n" not in message
    assert message.endswith(str(Settings.model_fields[name.lower()].description))


@pytest.mark.parametrize(
    ("told", "terminal", "shown"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"host": "0.0.0.0"}, True, False),
        ({"host": "0.0.0.0", "pages_port": 9000}, True, True),
        ({"pages_port": 9000, "pages_host": "0.0.0.0"}, True, False),
        ({"live": True, "host": "0.0.0.0"}, False, True),
        ({"live": False}, True, False),
    ],
)
def test_the_live_page_is_on_in_development_and_off_otherwise(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], terminal: bool, shown: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert Settings.model_validate(told).shows_live is shown


@pytest.mark.parametrize("path", ["/", "outlive/", "/outlive", "//", "/a b/", "/a/../b", "/ä?/"])
def test_a_path_that_cannot_work_is_told(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("LIVE_PATH", path)
    with pytest.raises(SettingsError, match=r"LIVE_PATH is .* not a path such as /outlive/"):
        load_settings(Settings)


def test_the_partner_is_told_by_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTNER_CHARGES_ERROR_RATE", "2")
    with pytest.raises(SettingsError, match=r'^PARTNER_CHARGES_ERROR_RATE is "2": it should be less than'):
        load_settings(PartnerSettings)


def test_all_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_RUNNING", "0")
    monkeypatch.setenv("DRAIN_TIMEOUT", "-1")
    with pytest.raises(SettingsError) as refusal:
        load_settings(Settings)
    assert {line.split()[0] for line in str(refusal.value).splitlines()} == {"MAX_RUNNING", "DRAIN_TIMEOUT"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://ann:hunter2@db/x"),
        ("DATABASE_URL", "hunter2"),
        ("UPSTREAM_URL", "ftp://ann:hunter2@api.example.org"),
    ],
)
def test_no_secret_is_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as refusal:
        load_settings(Settings)
    error: BaseException | None = refusal.value
    while error is not None:
        assert "hunter2" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


def test_no_secret_is_in_the_settings_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://ann:hunter2@db/x")
    monkeypatch.setenv("UPSTREAM_API_KEY", "hunter2")
    settings = load_settings(Settings)
    assert "hunter2" not in f"{settings} {settings!r}"
    assert settings.upstream_api_key is not None
    assert settings.upstream_api_key.get_secret_value() == "hunter2"


@pytest.mark.parametrize("kind", [Settings, PartnerSettings])
def test_every_setting_is_described_and_every_number_has_its_unit_and_bounds(kind: Any) -> None:
    units = ("econds", "at most", "port", "seed", "0 to 1", "Rows", "Attempts")
    for name, field in kind.model_fields.items():
        assert field.description, name
        if field.annotation in (int, float):
            assert any(unit in field.description for unit in units), name
            assert field.metadata or name == "seed", name
