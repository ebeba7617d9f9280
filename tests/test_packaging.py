"""The built wheel, installed where nothing else is: the client alone, with the newest and the oldest of what it needs."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "deploy/locks").glob("*.txt"))
SERVER_ONLY = ("mlx", "mlx_lm", "transformers", "tokenizers", "numpy", "msgspec", "jinja2")

IMPORT_THE_CLIENT = """
import mlxrpc, mlxrpc.cli
from mlxrpc.v1 import admin_pb2_grpc, inference_pb2, inference_pb2_grpc, model_pb2_grpc

request = inference_pb2.GenerateRequest(model="tiny", input=inference_pb2.Input(text="안녕"))
request.sampling.temperature = 0
assert inference_pb2.GenerateRequest.FromString(request.SerializeToString()) == request
assert request.sampling.HasField("temperature") and not request.sampling.HasField("top_p")
print(mlxrpc.Client.__name__, mlxrpc.AsyncClient.__name__)
"""

FIND = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"


class Environment:
    """A virtual environment with the wheel and what a lock says, and nothing else."""

    def __init__(self, folder: Path, wheel: Path, lock: str) -> None:
        venv.create(folder, with_pip=False)
        self.bin = folder / "bin"
        self._install("--require-hashes", "-r", str(ROOT / "deploy/locks" / lock))
        self._install("--no-index", "--no-deps", str(wheel))

    def _install(self, *arguments: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *arguments], check=True)

    def python(self, program: str, *arguments: str) -> str:
        return self.run("python", "-I", "-W", "error", "-c", program, *arguments).stdout.strip()

    def run(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.bin / command, *arguments], check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def newest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("newest"), wheel, "client.txt")


@pytest.fixture(scope="module")
def oldest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("oldest"), wheel, "client-oldest.txt")


def test_the_wheel_has_the_protos_where_a_compiler_finds_them(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name: archive.read(name) for name in archive.namelist() if name.endswith(".proto")}
    sources = (ROOT / "proto").rglob("*.proto")
    assert shipped == {f"mlxrpc/proto/{path.relative_to(ROOT / 'proto')}": path.read_bytes() for path in sources}


def test_the_wheel_is_typed_and_has_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "mlxrpc/py.typed" in names
    assert "mlxrpc/v1/inference_pb2.pyi" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_carries_the_built_in_model(wheel: Path) -> None:
    folder = ROOT / "server/mlxrpc_server/demo/pebble"
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name: archive.read(name) for name in archive.namelist() if "/demo/pebble/" in name}
    assert shipped == {f"mlxrpc_server/demo/pebble/{path.name}": path.read_bytes() for path in folder.iterdir()}


def test_the_client_works_without_anything_of_the_server(newest: Environment) -> None:
    assert newest.python(FIND, *SERVER_ONLY) == "[]"
    assert newest.python(IMPORT_THE_CLIENT) == "Client AsyncClient"


def test_the_command_explains_itself_without_the_server(newest: Environment) -> None:
    assert "serve" in newest.run("mlxrpc", "--help").stdout


def test_serving_without_the_server_names_what_installs_it(newest: Environment) -> None:
    refused = newest.run("mlxrpc", "serve", check=False)
    assert refused.returncode != 0
    assert "pip install" in refused.stderr
    assert "mlxrpc[" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_client_works_with_the_oldest_of_what_it_needs(oldest: Environment) -> None:
    versions = "import google.protobuf, grpc; print(grpc.__version__, google.protobuf.__version__)"
    assert oldest.python(versions) == "1.81.1 6.33.5"
    assert oldest.python(IMPORT_THE_CLIENT) == "Client AsyncClient"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_pin_with_hashes_and_name_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(r"://|^\s*-|@ ", re.sub(r"--hash=\S+", "", text), re.MULTILINE)
    pinned = re.split(r"\n(?=\w)", re.sub(r"#.*", "", text).strip())
    assert pinned
    assert [entry for entry in pinned if "==" not in entry or "--hash=sha256:" not in entry] == []
