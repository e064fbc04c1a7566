"""What is shipped around the program fits it: the service unit, the container, the constraints, the tracked files."""

import configparser
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml

from ckptwatch.cli.app import app
from ckptwatch.outline import SEARCHED
from ckptwatch.settings import default_state_dir

HERE = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands
LARGEST = 2 * 1024 * 1024  # bytes of a tracked file

UNIT = configparser.ConfigParser(interpolation=None, strict=False)
UNIT.optionxform = str  # type: ignore[assignment,method-assign]
UNIT.read(HERE / "systemd" / "ckptwatch.service")
DOCKERFILE = (HERE / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((HERE / "docker" / "compose.yaml").read_text())
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]


def instructions(name: str) -> list[str]:
    """The arguments of a Dockerfile instruction, each time it stands there, continuation lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.split(None, 1)[:1] == [name]]


def accepted(command: str, options: list[str]) -> None:
    """The command line has this command, and the command these options."""
    assert command in COMMANDS
    known = {o for p in COMMANDS[command].params for o in p.opts}
    assert {o for o in options if o.startswith("-")} <= known


# ---- the unit -------------------------------------------------------------------------------------------------------


def test_the_unit_starts_a_command_that_exists() -> None:
    program, command, *rest = shlex.split(UNIT["Service"]["ExecStart"])
    assert Path(program).is_absolute() and Path(program).name in PROJECT["scripts"]
    accepted(command, rest)


def test_the_unit_reads_the_configuration_that_is_looked_for() -> None:
    words = shlex.split(UNIT["Service"]["ExecStart"])
    assert words[words.index("-c") + 1] in SEARCHED


def test_the_unit_gives_the_state_directory_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    state = f"/var/lib/{UNIT['Service']['StateDirectory']}"
    monkeypatch.setenv("STATE_DIRECTORY", state)
    assert default_state_dir() == Path(state)


def test_the_unit_stops_in_order_and_starts_again_after_a_crash() -> None:
    service = UNIT["Service"]
    assert service["Type"] == "exec" and service["Restart"] == "on-failure" and service["KillMode"] == "mixed"
    assert service["RestartPreventExitStatus"] == "2", "a configuration that cannot be followed stays so"
    assert int(service["TimeoutStopSec"]) >= 30 and service["IOSchedulingClass"] == "idle"


# ---- the container --------------------------------------------------------------------------------------------------


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    for base in instructions("FROM"):
        assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-[\w.-]+( AS \w+)?", base), base
    assert instructions("USER") == ["ckptwatch"]


def test_the_image_starts_and_asks_commands_that_exist() -> None:
    assert yaml.safe_load(instructions("ENTRYPOINT")[0]) == list(PROJECT["scripts"])
    command, *rest = yaml.safe_load(instructions("CMD")[0])
    accepted(command, rest)
    asked = re.search(r"ckptwatch (\w+) (--\w+)", instructions("HEALTHCHECK")[0])
    assert asked
    accepted(asked[1], [asked[2]])


def test_the_image_is_built_from_what_is_not_ignored() -> None:
    allowed = {line[1:] for line in (HERE / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for words in instructions("COPY"):
        if not words.startswith("--from"):
            for source in words.split()[:-1]:
                assert source.removeprefix("./") in allowed and (HERE / source).exists()
    assert "--constraint constraints.txt" in DOCKERFILE and "--no-cache-dir" in DOCKERFILE


def test_compose_mounts_what_the_image_expects() -> None:
    service = COMPOSE["services"]["ckptwatch"]
    # The host's side may hold ${NAME:-default}, so the container's path is found by its slash.
    mounted = {re.sub(r":ro$", "", v).rpartition(":")[2] for v in service["volumes"]}
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(instructions("ENV"))))
    assert mounted == {"/data/runs", str(Path(environment["CKPTWATCH_CONFIG"]).parent), environment["STATE_DIRECTORY"]}
    assert all(path in " ".join(instructions("RUN")) for path in mounted)
    assert {v.split(":")[0] for v in service["volumes"] if not v.startswith("$")} == set(COMPOSE["volumes"])


def test_compose_builds_this_image_and_reserves_a_gpu() -> None:
    service = COMPOSE["services"]["ckptwatch"]
    build = service["build"]
    assert (HERE / "docker" / build["context"] / build["dockerfile"]).resolve() == HERE / "docker" / "Dockerfile"
    assert set(build["args"]) == {a.split("=")[0] for a in instructions("ARG")}
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert "gpu" in device["capabilities"]


# ---- the constraints ------------------------------------------------------------------------------------------------


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]


def test_constraints_are_names_and_versions_only() -> None:
    lines = [line for line in (HERE / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    odd = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)]
    assert not odd
    names = [_name(line) for line in lines]
    assert len(names) == len(set(names))


def test_constraints_cover_every_dependency() -> None:
    pinned = {_name(line) for line in (HERE / "constraints.txt").read_text().splitlines() if not line.startswith("#")}
    wanted = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    assert {_name(r) for r in wanted} <= pinned


def test_every_dependency_is_explained() -> None:
    page = (HERE / "docs" / "dependencies.md").read_text()
    wanted = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    unexplained = [r for r in wanted if re.match(r"[\w.-]+", r)[0] not in page]  # type: ignore[index]
    assert not unexplained


# ---- tracked files --------------------------------------------------------------------------------------------------


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=HERE, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [p for name in listed.split("\0") if name and (p := HERE / name).is_file()]


def test_no_large_file_is_tracked() -> None:
    large = {str(p.relative_to(HERE)): p.stat().st_size for p in tracked() if p.stat().st_size > LARGEST}
    assert not large


def test_no_path_of_somebodys_machine_is_tracked() -> None:
    # Spelled apart, so that this file does not find itself. Examples in documentation are about /data.
    somebody = re.compile(r"(?<![\w.<{/])/(?:" + "home|Users|root|work|mnt/[a-z]+" + r")/[\w.-]+")
    found = {}
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if match := somebody.search(text):
            found[str(path.relative_to(HERE))] = match[0]
    assert not found
