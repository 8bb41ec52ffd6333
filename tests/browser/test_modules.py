"""The page's modules: their types, what they compute, and that they are packed and need nothing from elsewhere."""

import re
import subprocess
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).parent
STATIC = Path(str(files("outlive.live"))) / "static"


def test_their_types_are_right(typescript: list[str]) -> None:
    done = subprocess.run(
        [*typescript, "-p", "tsconfig.json"], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_a_wrong_type_would_be_found(typescript: list[str], tmp_path: Path) -> None:
    for module in STATIC.glob("*.js"):
        (tmp_path / module.name).write_text(module.read_text())
    broken = tmp_path / "numbers.js"
    broken.write_text(broken.read_text() + '\nduration("a word");\n')
    flags = ["--allowJs", "--checkJs", "--noEmit", "--strict", "--module", "esnext", "--target", "es2023"]
    done = subprocess.run(
        [*typescript, *flags, "numbers.js"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "TS2345" in done.stdout


def test_they_are_formatted(prettier: str) -> None:
    wanted = [str(STATIC / "*.{js,css}"), str(FOLDER / "*.js")]
    done = subprocess.run(
        [prettier, "--config", FOLDER / "package.json", "--check", *wanted],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_compute_what_they_should(node: str) -> None:
    done = subprocess.run(
        [node, "--test", "modules.test.js"], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"pass [1-9]", done.stdout)


def test_text_is_never_markup_and_nothing_comes_from_elsewhere() -> None:
    for file in STATIC.iterdir():
        text = file.read_text()
        assert not re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        )
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name
    page = (STATIC / "index.html").read_text()
    assert not re.findall(r"<script(?![^>]*\ssrc=)|\sstyle=|\son\w+=|<style", page)


def test_modules_import_only_each_other() -> None:
    modules = {module.name for module in STATIC.glob("*.js")}
    for module in STATIC.glob("*.js"):
        for target in re.findall(r"from \"([^\"]+)\"", module.read_text()):
            assert target.removeprefix("./") in modules, f"{module.name}: {target}"
