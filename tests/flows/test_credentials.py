"""The file with the secret: made for its owner alone, kept as it is, refused where it protects nothing."""

import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flows.credentials import HOME, SETTINGS, ensure_credentials
from model.errors import InputError
from tests.dvc_project import ROOT


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def secrets() -> set[str]:
    values = tomllib.loads(SETTINGS.read_text())
    return {values["api"]["auth_string"], values["server"]["api"]["auth_string"]}


def test_it_is_made_once_and_for_its_owner_alone():
    ensure_credentials()
    (secret,) = secrets()
    assert len(secret.partition(":")[2]) >= 43  # 32 bytes
    assert stat.S_IMODE(SETTINGS.stat().st_mode) == 0o600
    assert stat.S_IMODE(HOME.stat().st_mode) == 0o700
    ensure_credentials()
    assert secrets() == {secret}
    assert {path.name for path in Path().iterdir()} == {SETTINGS.name, HOME.name}


def test_of_two_at_once_both_have_the_same():
    code = "from flows.credentials import ensure_credentials; input(); ensure_credentials()"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(4)]
    for process in both:
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in both:
        process.communicate()
        assert process.returncode == 0
    assert len(secrets()) == 1
    assert {path.name for path in Path().iterdir()} == {SETTINGS.name, HOME.name}


def test_prefect_takes_it_together_with_pyproject():
    Path("pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    ensure_credentials()
    code = "from prefect.settings import get_current_settings as s; a = s().server.api; print(s().home, s().api.url, "
    code += "a.auth_string.get_secret_value(), a.csrf_protection_enabled, a.cors_allowed_origins, sep='\\n')"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split("\n")
    url = "http://127.0.0.1:4200"
    assert said == [str(HOME.absolute()), f"{url}/api", secrets().pop(), "True", url, ""]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_one_that_others_can_read_or_write_is_refused(mode: int):
    ensure_credentials()
    SETTINGS.chmod(mode)
    with pytest.raises(InputError, match=rf"^prefect\.toml holds a secret and has mode {mode:o}, .*chmod 600"):
        ensure_credentials()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\napi.auth_string", "\napi.auth", "no api.auth_string"),
        ("server.api.auth_string", "server.api.auth", "no server.api.auth_string"),
        ("server.api.auth_string =", 'server.api.auth_string = " " #', "no server.api.auth_string"),
        ("home = ", 'home = "/elsewhere" #', "home is /elsewhere; expected "),
        ("home = ", "home ", "is no TOML"),
    ],
)
def test_one_that_protects_nothing_is_refused(old: str, new: str, message: str):
    ensure_credentials()
    SETTINGS.write_text(SETTINGS.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        ensure_credentials()
