"""Reading the environment: what counts as absent, what is refused, and secrets that are made once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from gpucloud.env import (
    SECRET_NAMES,
    database_config,
    env_bool,
    env_choice,
    env_float,
    env_int,
    env_list,
    env_networks,
    env_origins,
    env_secret,
    env_str,
    env_url,
    host_of,
)
from tests.live import process_environment

NAME = "GPUCLOUD_TEST_VARIABLE"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data folder of the test's own, with no secret in the environment."""
    monkeypatch.setenv("GPUCLOUD_DATA_DIR", str(tmp_path))
    for name in SECRET_NAMES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), (" ON ", True), ("Yes", True), ("0", False), ("off", False), ("no", False)],
)
def test_a_switch_has_its_usual_words(monkeypatch, text, value):
    monkeypatch.setenv(NAME, text)

    assert env_bool(NAME, not value) is value


@pytest.mark.parametrize("text", ["", None])
def test_an_empty_variable_counts_as_absent(monkeypatch, text):
    monkeypatch.delenv(NAME, raising=False)
    if text is not None:
        monkeypatch.setenv(NAME, text)

    assert env_bool(NAME, True) is True
    assert env_float(NAME, 1.5) == 1.5
    assert env_int(NAME, 7) == 7
    assert env_str(NAME, "x") == "x"
    assert env_list(NAME, "a,b") == ["a", "b"]


@pytest.mark.parametrize("text", ["maybe", "2", "truely"])
def test_a_switch_that_is_neither_on_nor_off_is_refused_by_name(monkeypatch, text):
    monkeypatch.setenv(NAME, text)

    with pytest.raises(ImproperlyConfigured, match=rf"{NAME}='{text}'.*expected 1 or 0"):
        env_bool(NAME)


@pytest.mark.parametrize("text", ["five", "nan", "inf", "-1", "1e400"])
def test_a_number_that_cannot_be_meant_is_refused_by_name(monkeypatch, text):
    monkeypatch.setenv(NAME, text)

    with pytest.raises(ImproperlyConfigured, match=NAME):
        env_float(NAME, 1.0)
    with pytest.raises(ImproperlyConfigured, match=NAME):
        env_int(NAME, 1)


def test_a_number_below_its_minimum_is_refused_with_the_minimum(monkeypatch):
    monkeypatch.setenv(NAME, "3")

    with pytest.raises(ImproperlyConfigured, match="at least 4"):
        env_int(NAME, 10, minimum=4)
    assert env_int(NAME, 10, minimum=3) == 3


def test_a_whole_number_has_no_fraction(monkeypatch):
    monkeypatch.setenv(NAME, "1.5")

    with pytest.raises(ImproperlyConfigured, match="whole number"):
        env_int(NAME, 1)


def test_a_word_that_is_not_one_of_a_few_is_refused_with_all_of_them(monkeypatch):
    monkeypatch.setenv(NAME, "Gold")

    with pytest.raises(ImproperlyConfigured, match="'gold': expected a, b or c"):
        env_choice(NAME, ("a", "b", "c"), "a")
    assert env_choice(NAME, ("gold", "silver"), "silver") == "gold"


def test_a_list_drops_blanks(monkeypatch):
    monkeypatch.setenv(NAME, " a, ,b,, c ")

    assert env_list(NAME) == ["a", "b", "c"]


def test_a_secret_is_made_once_and_kept_from_others(folder):
    first = env_secret("GPUCLOUD_SECRET_KEY")

    assert len(first) >= 50
    assert env_secret("GPUCLOUD_SECRET_KEY") == first
    assert len({env_secret(name) for name in SECRET_NAMES}) == len(SECRET_NAMES)
    assert (folder / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_secret_from_the_environment_is_taken_and_not_written_down(folder, monkeypatch):
    monkeypatch.setenv("GPUCLOUD_SECRET_KEY", "from outside")

    assert env_secret("GPUCLOUD_SECRET_KEY") == "from outside"
    assert not (folder / "secrets.json").exists()


def test_an_older_file_is_completed_and_keeps_what_it_has(folder):
    (folder / "secrets.json").write_text('{"GPUCLOUD_SECRET_KEY": "old", "SOMEBODY_ELSES": "kept"}')

    pepper = env_secret("GPUCLOUD_KEY_PEPPER")

    kept = json.loads((folder / "secrets.json").read_text())
    assert kept["GPUCLOUD_SECRET_KEY"] == env_secret("GPUCLOUD_SECRET_KEY") == "old"
    assert kept["SOMEBODY_ELSES"] == "kept"
    assert kept["GPUCLOUD_KEY_PEPPER"] == pepper
    assert set(SECRET_NAMES) <= set(kept)


@pytest.mark.parametrize("text", ["{", "[1]", "null", '"x"'])
def test_a_broken_file_is_not_overwritten(folder, text):
    (folder / "secrets.json").write_text(text)

    with pytest.raises(ImproperlyConfigured, match=r"secrets\.json is not a JSON object"):
        env_secret("GPUCLOUD_SECRET_KEY")
    assert (folder / "secrets.json").read_text() == text


def test_commands_that_start_together_share_their_secrets(folder):
    ask = "from gpucloud.env import SECRET_NAMES, env_secret; print([env_secret(name) for name in SECRET_NAMES])"
    environment = process_environment(GPUCLOUD_DATA_DIR=str(folder))
    started = [
        subprocess.Popen([sys.executable, "-c", ask], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]

    answers = {process.communicate(timeout=30)[0] for process in started}

    assert len(answers) == 1
    assert str([env_secret(name) for name in SECRET_NAMES]) in answers.pop()


def test_the_data_folder_is_for_its_owner_only(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCLOUD_DATA_DIR", str(tmp_path / "new" / "state"))

    name = database_config("")["NAME"]

    assert name == str(tmp_path / "new" / "state" / "db.sqlite3")
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700


def test_a_database_url_is_taken_apart():
    config = database_config("postgresql://alice:p%40ss@db.example:5433/cloud%20one")

    assert config["ENGINE"] == "django.db.backends.postgresql"
    assert (config["USER"], config["PASSWORD"], config["HOST"], config["PORT"], config["NAME"]) == (
        "alice", "p@ss", "db.example", 5433, "cloud one",
    )  # fmt: skip
    assert database_config("sqlite:///var/lib/x.sqlite3")["NAME"] == "/var/lib/x.sqlite3"


def test_another_database_is_refused_by_name():
    with pytest.raises(ImproperlyConfigured, match="'mysql' is not sqlite or postgres"):
        database_config("mysql://localhost/x")


def test_origins_are_spelled_as_browsers_do(monkeypatch):
    monkeypatch.setenv(NAME, "https://App.example, http://localhost:3000,https://b.example:443")

    assert env_origins(NAME) == ["https://app.example", "http://localhost:3000", "https://b.example"]


@pytest.mark.parametrize(
    "text",
    ["*", "null", "app.example", "https://", "https://a.example/path", "ftp://a.example", "https://u@a.example",
     "https://*.example", "https://a.example:port", "https://a.example?x"],
)  # fmt: skip
def test_what_is_no_origin_is_refused_with_an_example(monkeypatch, text):
    monkeypatch.setenv(NAME, text)

    with pytest.raises(ImproperlyConfigured, match=r"expected http\(s\)://host\[:port\]"):
        env_origins(NAME)


def test_the_public_url_may_end_with_a_slash(monkeypatch):
    monkeypatch.setenv(NAME, "https://GPU.example/")

    assert env_url(NAME) == "https://gpu.example"
    assert host_of("https://gpu.example:8443") == "gpu.example"
    assert host_of("http://[::1]:8000") == "[::1]"


def test_proxies_are_addresses_or_networks(monkeypatch):
    monkeypatch.setenv(NAME, "127.0.0.1, 10.0.0.0/8,::1")

    assert env_networks(NAME) == ["127.0.0.1/32", "10.0.0.0/8", "::1/128"]

    monkeypatch.setenv(NAME, "10.0.0.0/8,proxy.example")
    with pytest.raises(ImproperlyConfigured, match="expected addresses or networks"):
        env_networks(NAME)
