"""TLS: certificates and pre-shared keys on TCP, plain Unix clients beside them, nothing else."""

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import nbd
import pytest

from storage.pool import Pool
from tests.serving import Server, nearstone

DISK_SIZE_BYTES = 1 << 20


@pytest.fixture
def pool(folder: Path) -> Path:
    path = folder / "pool"
    Pool.init(path)
    with Pool.open(path) as pool:
        pool.create_disk("one", DISK_SIZE_BYTES)
    return path


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True)


def _certificate(folder: Path, name: str, lines: Sequence[str], authority: str | None) -> None:
    template = folder / f"{name}.info"
    template.write_text("\n".join(lines))
    key, cert = folder / f"{name}-key.pem", folder / f"{name}-cert.pem"
    _run("certtool", "--generate-privkey", "--key-type=ecdsa", f"--outfile={key}")
    how = ["--generate-self-signed"]
    if authority is not None:
        how = [
            "--generate-certificate",
            f"--load-ca-certificate={folder}/{authority}-cert.pem",
            f"--load-ca-privkey={folder}/{authority}-key.pem",
        ]
    _run("certtool", *how, f"--template={template}", f"--load-privkey={key}", f"--outfile={cert}")


@pytest.fixture
def certificates(folder: Path) -> Path:
    """An authority, a server's and a client's certificate, in one folder as nbdkit wants them."""
    path = folder / "pki"
    path.mkdir()
    _certificate(path, "ca", ["cn = Test", "ca", "cert_signing_key"], None)
    server = ["cn = localhost", "dns_name = localhost", "tls_www_server", "signing_key"]
    _certificate(path, "server", server, "ca")
    _certificate(path, "client", ["cn = Client", "tls_www_client", "signing_key"], "ca")
    return path


@pytest.fixture
def authority_only(certificates: Path, folder: Path) -> Path:
    """What a client without a certificate of its own has."""
    path = folder / "authority"
    path.mkdir()
    (path / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    return path


@pytest.fixture
def psk(folder: Path) -> Path:
    path = folder / "keys.psk"
    _run("psktool", "-u", "alice", "-p", str(path))
    return path


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        found: int = sock.getsockname()[1]
    return found


def _client(certificates: Path | None = None, psk: Path | None = None) -> nbd.NBD:
    client = nbd.NBD()
    client.set_export_name("one")
    if certificates is not None:
        client.set_tls(nbd.TLS_REQUIRE)
        client.set_tls_certificates(str(certificates))
        client.set_tls_verify_peer(True)
    if psk is not None:
        client.set_tls(nbd.TLS_REQUIRE)
        client.set_tls_username("alice")
        client.set_tls_psk_file(str(psk))
    return client


def _assert_plain_clients_get_nothing(port: int) -> None:
    with pytest.raises(nbd.Error):
        _client().connect_tcp("localhost", str(port))
    lister = nbd.NBD()
    lister.set_opt_mode(True)
    lister.connect_tcp("localhost", str(port))
    names: list[str] = []
    with pytest.raises(nbd.Error):
        lister.opt_list(lambda name, description: names.append(name))
    assert names == []


def test_certificates(pool: Path, certificates: Path, authority_only: Path, port: int) -> None:
    options = ("--listen", f"127.0.0.1:{port}", "--tls-certificates", str(certificates))
    with Server(pool, *options) as server:
        assert f"nbds://127.0.0.1:{port}/NAME" in server.ready_line
        client = _client(authority_only)
        client.connect_tcp("localhost", str(port))
        assert client.get_tls_negotiated()
        client.pwrite(b"x" * 4096, 0)
        _assert_plain_clients_get_nothing(port)
        # The Unix socket is guarded by its file's permissions.
        assert server.connect("one").pread(4096, 0) == b"x" * 4096


def test_clients_that_must_show_a_certificate(
    pool: Path, certificates: Path, authority_only: Path, port: int
) -> None:
    options = ("--listen", f"127.0.0.1:{port}", "--tls-certificates", str(certificates))
    with Server(pool, *options, "--tls-verify-peer") as server:
        with pytest.raises(nbd.Error):
            stranger = _client(authority_only)
            stranger.connect_tcp("localhost", str(port))
            stranger.pread(512, 0)
        known = _client(certificates)
        known.connect_tcp("localhost", str(port))
        assert known.get_size() == DISK_SIZE_BYTES
        assert server.connect("one").get_size() == DISK_SIZE_BYTES


def test_pre_shared_keys(pool: Path, psk: Path, folder: Path, port: int) -> None:
    with Server(pool, "--listen", f"127.0.0.1:{port}", "--tls-psk", str(psk)):
        client = _client(psk=psk)
        client.connect_tcp("localhost", str(port))
        assert client.get_size() == DISK_SIZE_BYTES
        wrong = folder / "wrong.psk"
        _run("psktool", "-u", "alice", "-p", str(wrong))
        with pytest.raises(nbd.Error):
            _client(psk=wrong).connect_tcp("localhost", str(port))
        _assert_plain_clients_get_nothing(port)


def test_unencrypted_only_when_told(pool: Path, port: int) -> None:
    address = f"127.0.0.1:{port}"
    refused = nearstone(pool, "serve", "--listen", address)
    assert refused.returncode == 2
    assert "--insecure" in refused.stderr
    assert not (pool / "nbd.sock").exists()
    with Server(pool, "--listen", address, "--insecure") as server:
        assert f" nbd://{address}/NAME" in server.ready_line
        client = _client()
        client.connect_tcp("localhost", str(port))
        assert client.get_size() == DISK_SIZE_BYTES


def test_what_is_refused_makes_no_pool(folder: Path) -> None:
    for address in ("127.0.0.1:0", "nonsense:port"):
        assert nearstone(folder / "new", "serve", "--listen", address).returncode == 2
    assert list(folder.iterdir()) == []


def test_missing_files_are_named(pool: Path, certificates: Path, folder: Path) -> None:
    (certificates / "server-key.pem").unlink()
    refused = nearstone(pool, "serve", "--tls-certificates", str(certificates))
    assert refused.returncode == 2
    assert "server-key.pem" in refused.stderr
    refused = nearstone(pool, "serve", "--tls-psk", str(folder / "none.psk"))
    assert refused.returncode == 2
    assert "none.psk" in refused.stderr


def test_files_that_are_no_certificates(pool: Path, certificates: Path) -> None:
    (certificates / "server-cert.pem").write_text("not a certificate\n")
    refused = nearstone(pool, "serve", "--tls-certificates", str(certificates))
    assert refused.returncode == 3
    assert "GnuTLS" in refused.stderr


def test_options_that_exclude_each_other(pool: Path, certificates: Path, psk: Path) -> None:
    both = ("--tls-certificates", str(certificates), "--tls-psk", str(psk))
    for options in (both, ("--tls-verify-peer",)):
        assert nearstone(pool, "serve", *options).returncode == 2
