"""TLS between a coordinator and its clients, with an authority of the test's own."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from chainfed.coordinator.app import in_background
from chainfed.coordinator.certificate import ServerCertificate
from chainfed.coordinator.client import OperatorClient
from chainfed.core.cli import run
from chainfed.core.errors import BadInputError, UnreachableError
from chainfed.core.transport import PLAINTEXT, Transport
from tests.certificates import Authority
from tests.coordinator.test_recovery import process


@pytest.fixture(autouse=True)
def no_authority_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAINFED_CA", raising=False)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> tuple[Path, Path]:
    return authority.issue(tmp_path, "127.0.0.1", "localhost")


@pytest.fixture
def address(tmp_path: Path, files: tuple[Path, Path]) -> Iterator[str]:
    with in_background(tmp_path / "state", certificate=ServerCertificate(*files)) as listening:
        yield listening


def trusting(authority: Authority) -> Transport:
    return Transport(encrypted=True, root_certificates=authority.pem)


def list_runs(address: str, transport: Transport) -> int:
    with OperatorClient(address, transport) as client:
        return len(client.list())


def shown_serial(address: str, authority: Authority) -> int:
    """The serial number of the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
        shown = tls.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


def test_a_client_that_trusts_the_authority_is_served(address: str, authority: Authority) -> None:
    assert list_runs(address, trusting(authority)) == 0
    assert list_runs(f"localhost:{address.rpartition(':')[2]}", trusting(authority)) == 0


@pytest.mark.parametrize("roots", ["another authority", "those of gRPC"])
def test_another_authority_is_not_trusted(address: str, roots: str) -> None:
    pem = Authority("another").pem if roots == "another authority" else None
    with pytest.raises(UnreachableError, match=r"no valid certificate for that name from an authority .* trusted here"):
        list_runs(address, Transport(encrypted=True, root_certificates=pem))


def test_another_name_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue(tmp_path, "coordinator.example")
    with (
        in_background(tmp_path / "state", certificate=ServerCertificate(*pair)) as address,
        pytest.raises(UnreachableError, match=r"no valid certificate for that name"),
    ):
        list_runs(address, trusting(authority))


def test_plain_text_where_tls_is_spoken_and_the_other_way(address: str, authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="with --tls or --ca if it speaks TLS"):
        list_runs(address, PLAINTEXT)
    with (
        in_background(tmp_path / "other") as plain,
        pytest.raises(UnreachableError, match="does not speak TLS"),
    ):
        list_runs(plain, trusting(authority))


def test_a_renewed_certificate_is_shown_without_a_restart(
    address: str, authority: Authority, files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = shown_serial(address, authority)
    assert shown_serial(address, authority) == before
    with OperatorClient(address, trusting(authority)) as open_before:
        assert open_before.list() == ()
        authority.issue(tmp_path, "127.0.0.1")
        renewed = shown_serial(address, authority)
        assert renewed != before
        with caplog.at_level(logging.ERROR, "chainfed"):
            files[1].write_text("half a key")
            assert shown_serial(address, authority) == renewed
            assert "holds no private key" in vars(caplog.records[-1])["detail"]
            assert shown_serial(address, authority) == renewed
        assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
        authority.issue(tmp_path, "127.0.0.1")
        assert shown_serial(address, authority) not in (before, renewed)
        assert open_before.list() == ()


def test_what_cannot_be_shown_is_said(authority: Authority, files: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = files
    other_certificate, other_key = authority.issue(tmp_path, "127.0.0.1", stem="other")
    ended = authority.issue(tmp_path, "127.0.0.1", days=-1, stem="ended")
    for pair, words in (
        ((tmp_path / "none.pem", key), r"--tls-certificate .*none\.pem cannot be read"),
        ((certificate, tmp_path / "none.key"), r"--tls-key .*none\.key cannot be read"),
        ((key, key), "holds no certificate in PEM"),
        ((certificate, certificate), "holds no private key in PEM"),
        ((certificate, other_key), "is not the key of the first certificate"),
        ((other_certificate, key), "is not the key of the first certificate"),
        (ended, "was valid until .* UTC; renew it"),
    ):
        with pytest.raises(BadInputError, match=words):
            ServerCertificate(*pair)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run(list(arguments))
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, " ".join(error.split())


def test_the_commands_of_an_operator_speak_tls(
    address: str, authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong = authority.write(tmp_path / "ca.pem"), Authority("another").write(tmp_path / "wrong.pem")
    command = ["run", "list", "--coordinator", address]
    assert said(capsys, *command, "--ca", str(right)) == (0, "")
    for options, code, words in (
        (["--ca", str(wrong)], 7, "Error: What answers at 127.0.0.1:"),
        (["--tls"], 7, "no valid certificate for that name"),
        ([], 7, "closed the connection"),
        (["--ca", str(right), "--insecure"], 3, "give only one of them"),
        (["--ca", str(tmp_path / "none.pem")], 3, "cannot be read"),
    ):
        found, error = said(capsys, *command, *options)
        assert found == code
        assert words in error
        assert error.count("Error:") == 1
    for name in ("show", "start", "pause", "resume", "cancel", "watch"):
        found, error = said(capsys, "run", name, "0123456789ab", "--coordinator", address, "--ca", str(right))
        assert (found, "does not exist" in error) == (12, True), name


def test_the_authority_may_come_from_the_environment(
    address: str,
    authority: Authority,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHAINFED_CA", str(authority.write(tmp_path / "ca.pem")))
    assert said(capsys, "run", "list", "--coordinator", address) == (0, "")


def test_a_coordinator_that_cannot_serve_tls_says_why(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, key = map(str, files)
    everywhere, here = ["--listen", "0.0.0.0:0"], ["--listen", "127.0.0.1:0"]
    for options, words in (
        (everywhere, "give --tls-certificate and --tls-key, listen on 127.0.0.1, or give --insecure-listen"),
        ([*everywhere, "--tls-certificate", certificate], "belong together"),
        ([*here, "--tls-key", key], "belong together"),
        ([*here, "--tls-certificate", certificate, "--tls-key", certificate], "holds no private key"),
        ([*here, "--enrolment-tokens", str(tmp_path / "none")], "none cannot be read"),
    ):
        code, error = said(capsys, "coordinator", "--state", str(tmp_path / "fresh"), *options)
        assert code == 3
        assert words in error
    assert not (tmp_path / "fresh").exists()


def test_the_command_serves_tls_to_other_machines(
    authority: Authority, files: tuple[Path, Path], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("spring\n")
    options = ["--tls-certificate", str(files[0]), "--tls-key", str(files[1]), "--enrolment-tokens", str(tokens)]
    with process(tmp_path / "state", "0.0.0.0:0", *options) as coordinator:
        port = coordinator.address.rpartition(":")[2]
        assert coordinator.address.startswith("0.0.0.0:")
        assert list_runs(f"127.0.0.1:{port}", trusting(authority)) == 0
        with pytest.raises(UnreachableError):
            list_runs(f"127.0.0.1:{port}", PLAINTEXT)
        assert coordinator.stop() == 0
