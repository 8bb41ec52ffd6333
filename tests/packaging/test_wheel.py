"""The wheel, without extras, in an empty environment."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOREIGN = {
    "aiosqlite", "asyncpg", "email_validator", "httpx", "jinja2", "multipart", "opentelemetry.exporter",
    "opentelemetry.instrumentation", "opentelemetry.sdk", "pydantic_settings", "rich", "sqlalchemy", "structlog",
    "typer", "uvicorn",
}  # fmt: skip


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")

    def run(*command: object) -> None:
        subprocess.run([str(word) for word in command], cwd=ROOT, check=True, capture_output=True)

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "environment")
    python = folder / "environment" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run(
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--python",
        python,
        "-c",
        "requirements/service.txt",
        wheel,
    )
    return python


def output(python: Path, *arguments: str) -> str:
    done = subprocess.run([python, *arguments], capture_output=True, text=True, check=True, cwd=python.parent)
    return done.stdout


def test_the_library_works_and_pulls_in_nothing_of_the_template(python: Path) -> None:
    loaded = set(output(python, "-c", "import outlive, sys; outlive.Outlive; print(*sys.modules)").split())
    assert "outlive.fastapi" in loaded
    assert not FOREIGN & loaded


def test_what_takes_long_to_import_comes_with_its_first_use(python: Path) -> None:
    script = (
        "import sys, outlive\n"
        "assert set(outlive.__all__) <= set(dir(outlive))\n"
        "print(*sys.modules)\n"
        "print(outlive.Outlive.__module__, outlive.AfterDisconnect is not None, hasattr(outlive, 'nothing'))"
    )
    modules, used = output(python, "-c", script).splitlines()
    assert not {"fastapi", "prometheus_client", "opentelemetry"} & set(modules.split())
    assert used == "outlive.fastapi True False"


def test_nothing_of_the_template_is_installed_along(python: Path) -> None:
    script = (
        "from importlib.util import find_spec\n"
        "def there(name):\n"
        "    try: return find_spec(name) is not None\n"
        "    except ModuleNotFoundError: return False\n"
        f"print(*[name for name in {sorted(FOREIGN)!r} if there(name)])"
    )
    assert output(python, "-c", script).split() == []


def test_the_live_page_is_packed_whole(python: Path) -> None:
    packed = output(python, "-c", "from outlive.live.site import site; print(*dict(site()), sep='/')").strip()
    static = ROOT / "src" / "outlive" / "live" / "static"
    served = {file.name for file in static.iterdir()} - {"index.html", "package.json"}
    assert set(packed.split("/")) == served | {""}


def test_types_are_told(python: Path) -> None:
    path = output(python, "-c", "import outlive; print(outlive.__path__[0])").strip()
    assert (Path(path) / "py.typed").exists()


def test_the_command_says_what_it_needs(python: Path) -> None:
    done = subprocess.run([python.parent / "outlive"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "the command line needs typer: pip install 'outlive[service]'"
